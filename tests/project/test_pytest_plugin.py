"""The pytest plugin, as users' test runs have it: each a process, with the plugins that it names.

A run costs a second, so each has many tests. The tests of a run are in this file as a user would
write them; what is asserted here is how they ended.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import get_type_hints

import pytest

from trio_broker import ConfigurationError
from trio_broker.sandbox import Fault, open_sandbox
from trio_broker.sandbox.faults import Faults
from trio_broker.sandbox.testing import LASTING_FAULTS, MarkerOptions

Run = Callable[..., pytest.RunResult]

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 60.0


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run tests in a process, with these plugins for async tests and no others."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)  # it may have options of other plugins

    def run(tests: str, *options: str, plugins: tuple[str, ...] = ()) -> pytest.RunResult:
        pytester.makepyfile(tests)
        loaded = ("no:cacheprovider", "trio_broker", *plugins)
        ended = pytester.runpytest_subprocess(
            "-Werror",
            "--strict-markers",
            *(option for name in loaded for option in ("-p", name)),
            *(["-o", "asyncio_default_fixture_loop_scope=function"] * ("asyncio" in plugins)),
            *options,
            timeout=PATIENCE,
        )
        assert "INTERNALERROR" not in ended.stdout.str()
        return ended

    return run


# ---- Who runs the test


def test_pytest_trio_in_its_mode(run: Run) -> None:
    ended = run(
        """
        import pytest
        import trio

        from trio_broker import ConnectFailedError, ConnectionState
        from trio_broker.sandbox import Sandbox, ThreadedSandbox, open_sandbox

        pytestmark = pytest.mark.broker(seed=7, max_subscriptions=1)
        seen = []

        @pytest.fixture
        async def mine(broker_clients):
            client = await broker_clients(account=1, close_timeout=4)
            yield client
            seen.append(client.state)  # while this fixture ends, they are still there

        @pytest.fixture
        def plain(broker_client):
            return broker_client

        async def test_all_are_there(
            broker_sandbox, broker_client, broker_clients, mine, plain, autojump_clock
        ):
            assert isinstance(broker_sandbox, Sandbox)
            assert plain is broker_client
            another = await broker_clients()
            assert broker_client.is_connected() and mine.is_connected()
            await mine.do_swap("1", "ETH", "USDT")
            assert len(broker_sandbox.orders(1)) == 1
            await trio.sleep(1000)  # by the clock of the broker and its clients, too
            assert broker_sandbox.orders()[0].status.is_final
            assert broker_client.is_connected()
            seen.extend([broker_sandbox, broker_client, mine, another])

        async def test_all_is_over_after_the_test():
            sandbox, *clients, state = seen
            assert state is ConnectionState.CONNECTED
            assert {client.state for client in clients} == {ConnectionState.CLOSED}
            assert len(clients) == 3
            with pytest.raises(ConnectFailedError):
                async with sandbox.client():
                    pass

        async def test_it_is_fresh(broker_sandbox):
            assert broker_sandbox not in seen
            assert broker_sandbox.orders() == ()

        class TestMarkers:
            pytestmark = pytest.mark.broker(faults=["stop_pushing"], fee_bps=0)

            @pytest.mark.broker(max_subscriptions=2)
            async def test_they_add_up(self, broker_sandbox, broker_client):
                rules = broker_sandbox._server.rules
                assert (rules.fee_bps, rules.max_subscriptions) == (0, 2)
                assert broker_sandbox._exchange.seed == 7
                assert len(broker_sandbox.faults._disturbances._rules) == 1

        class TestOwnSandbox:
            @pytest.fixture
            async def broker_sandbox(self):
                async with open_sandbox() as sandbox:
                    yield sandbox

            async def test_it_is_the_one_that_clients_are_of(self, broker_sandbox, broker_client):
                assert len(broker_sandbox.connections) == 1

        def test_a_plain_test_has_it_in_a_thread(broker_sandbox):
            assert isinstance(broker_sandbox, ThreadedSandbox)

        async def test_that_fails(broker_client):
            assert not broker_client.is_connected()

        async def test_that_leaves_a_broker_dead(broker_sandbox, broker_clients):
            await broker_clients()
            broker_sandbox.faults.kill()

        @pytest.mark.broker(faults=["refuse_connections"])
        async def test_without_a_client(broker_client):
            pass
        """,
        *("-o", "trio_mode=true"),
        plugins=("trio",),
    )
    ended.assert_outcomes(passed=7, failed=2)
    ended.stdout.fnmatch_lines(["*AssertionError*", "*ConnectFailedError: *503*"])


def test_all_plugins_side_by_side(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    ended = run(
        """
        import asyncio
        import pytest
        import sniffio
        import trio
        from hypothesis import HealthCheck, given, settings, strategies

        from trio_broker.sandbox import Sandbox, ThreadedSandbox

        @pytest.mark.trio
        async def test_pytest_trio(broker_sandbox, broker_client, autojump_clock):
            assert isinstance(broker_sandbox, Sandbox)
            await trio.sleep(1000)
            await broker_client.get_balances()

        @pytest.mark.trio
        @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=3)
        @given(amount=strategies.integers(1, 9))
        async def test_hypothesis_under_pytest_trio(broker_client, amount):
            await broker_client.do_swap(amount, "ETH", "USDT")

        @pytest.mark.anyio
        @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=3)
        @given(amount=strategies.integers(1, 9))
        @pytest.mark.parametrize("anyio_backend", ["trio"])
        async def test_hypothesis_under_anyio(broker_client, amount):
            await broker_client.do_swap(amount, "ETH", "USDT")

        @pytest.fixture
        async def greedy(broker_clients):
            yield await broker_clients(account=1)

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", [("trio", {"instruments": ()})])
        async def test_anyio_on_trio(broker_sandbox, broker_client, greedy, anyio_backend):
            assert isinstance(broker_sandbox, Sandbox)
            await broker_client.get_balances()
            await greedy.get_balances()

        @pytest.mark.anyio
        async def test_anyio_on_both(broker_sandbox, anyio_backend_name):
            assert sniffio.current_async_library() == anyio_backend_name
            kind = {"trio": Sandbox, "asyncio": ThreadedSandbox}[anyio_backend_name]
            assert isinstance(broker_sandbox, kind)
            assert broker_sandbox.balances()

        @pytest.fixture
        async def asynchronous(anyio_backend):
            return 1

        @pytest.mark.parametrize("anyio_backend", ["trio"])
        def test_plain_with_anyios_fixtures(broker_sandbox, asynchronous, anyio_backend):
            assert isinstance(broker_sandbox, ThreadedSandbox)
            assert broker_sandbox.balances()

        @pytest.mark.asyncio
        async def test_asyncio(broker_sandbox):
            assert isinstance(broker_sandbox, ThreadedSandbox)
            address = broker_sandbox.url.split("/")[2].split(":")
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\\r\\n\\r\\n")
            assert await reader.readline()
            writer.close()
            await writer.wait_closed()

        def test_plain(broker_sandbox):
            assert isinstance(broker_sandbox, ThreadedSandbox)

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["trio"])
        async def test_anyio_fails(broker_client):
            assert not broker_client.is_connected()

        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        @pytest.mark.anyio
        async def test_no_client_on_asyncio(broker_client):
            pass
        """,
        *("-p", "no:randomly", "-o", "asyncio_default_fixture_loop_scope=function"),
    )
    ended.assert_outcomes(passed=8, failed=1, errors=2)
    ended.stdout.fnmatch_lines(["*: pytest-trio can't set fixtures up for each example *"])
    ended.stdout.fnmatch_lines(
        ["*: test_no_client_on_asyncio[[]asyncio]: broker_client needs Trio, *"]
    )


def test_pytest_asyncio_in_its_mode(run: Run) -> None:
    ended = run(
        """
        import pytest
        from trio_broker.sandbox import ThreadedSandbox

        @pytest.fixture
        async def mine(broker_sandbox):
            broker_sandbox.next_outcome("filled")
            yield broker_sandbox

        @pytest.mark.broker(faults=[("drip", {"delay": 0.001})])
        async def test_asyncio(mine, broker_sandbox):
            assert isinstance(broker_sandbox, ThreadedSandbox)
            assert mine is broker_sandbox
            assert broker_sandbox.do(lambda it: len(it.faults._disturbances._rules)) == 1

        async def test_no_clients(broker_clients):
            pass
        """,
        *("-o", "asyncio_mode=auto"),
        plugins=("asyncio",),
    )
    ended.assert_outcomes(passed=1, errors=1)
    ended.stdout.fnmatch_lines(["*: test_no_clients: broker_clients needs Trio, *"])


def test_without_any_plugin_for_async_tests(run: Run) -> None:
    ended = run(
        """
        import pytest
        import trio

        def test_plain(broker_sandbox):
            async def program():
                async with broker_sandbox.client() as client:
                    await client.do_swap("1", "ETH", "USDT")

            trio.run(program)
            assert len(broker_sandbox.orders()) == 1
            assert broker_sandbox.do(lambda it: it._exchange.seed) == 0

        def test_that_fails(broker_sandbox):
            assert broker_sandbox.orders()

        def test_no_client(broker_client):
            pass

        @pytest.mark.broker(7)
        def test_position(broker_sandbox):
            pass

        @pytest.mark.broker(sed=7)
        def test_name(broker_sandbox):
            pass

        @pytest.mark.broker(fee_bps=-1)
        def test_value(broker_sandbox):
            pass

        @pytest.mark.broker(faults=[("swallow", {"times": 0})])
        def test_argument(broker_sandbox):
            pass
        """
    )
    ended.assert_outcomes(passed=1, failed=1, errors=5)
    for line in (
        "16: test_no_client: broker_client needs Trio, *",
        "19: test_position: @pytest.mark.broker: it takes only keyword arguments, not 7",
        "23: test_name: @pytest.mark.broker: unknown setting 'sed'; the settings are faults, *",
        "27: test_value: @pytest.mark.broker: a setting is invalid: fee_bps must be at least 0, *",
        "31: test_argument: @pytest.mark.broker: the fault 'swallow' is invalid: times must be *",
    ):
        ended.stdout.fnmatch_lines([f"test_without_any_plugin_for_async_tests.py:{line}"])
    assert "During handling" not in ended.stdout.str()
    assert "The above exception" not in ended.stdout.str()


def test_who_does_not_use_it_imports_neither_trio_nor_the_client(run: Run) -> None:
    ended = run(
        """
        import sys

        def test_nothing():
            assert "_trio_broker_pytest" in sys.modules
            heavy = {"trio", "trio_broker", "attrs", "msgspec", "asyncio"} & sys.modules.keys()
            assert heavy <= {"asyncio"}
        """
    )
    ended.assert_outcomes(passed=1)


def test_it_tells_what_it_has(run: Run) -> None:
    told = run("", "--fixtures", "--markers").stdout.str()
    assert "@pytest.mark.broker(seed=0, faults=[...], **settings): configure the sandbox" in told
    told = run("", "--fixtures").stdout.str()
    fixtures = set(re.findall(r"^(_?broker_\w+) --", told, re.MULTILINE))
    assert fixtures == {"broker_sandbox", "broker_client", "broker_clients"}


# ---- The marker's options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sed": 7},
            r"unknown setting 'sed'; the settings are faults, accounts, auth_timeout, .*seed",
        ),
        ({"max_connections": 0}, "max_connections must be at least 1, not 0"),
        ({"max_connections": "many"}, "a setting is invalid: "),
        ({"seed": 1.5}, "seed must be an int, not 1.5"),
        ({"host": 1}, "host must be a str"),
        ({"port": "x"}, "port must be an int"),
        ({"accounts": [5]}, r"accounts must be a list of Account, not \[5\]"),
        ({"on_event": 5}, "on_event must be a function"),
        ({"outcomes": {"exploded": 1}}, "a setting is invalid: 'exploded' is not a valid Outcome"),
        ({"faults": "drip"}, "faults must be a list, not 'drip'"),
        ({"faults": [7]}, "a fault must be a name, or a pair .*, not 7"),
        ({"faults": [("drip", 0.1)]}, "a fault must be a name, or a pair .*, not .'drip', 0.1"),
        (
            {"faults": ["reset"]},
            "unknown fault 'reset'; the initial faults are alter_.*, swallow, busy, .*",
        ),
        ({"faults": ["refuse_channel"]}, r"'refuse_channel' takes \(channel: .*'channel'$"),
        ({"faults": [("drip", {"speed": 1})]}, r"'drip' takes \(delay: 'float' = 0.0.*'speed'$"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MarkerOptions.read(options)


async def test_faults_begin_in_their_order() -> None:
    faults = ["drip", ("refuse_connections", {"status": 429, "times": 2})]
    options = MarkerOptions.read({"seed": 3, "faults": faults})
    assert options.options == {"seed": 3}
    async with open_sandbox(**options.options) as sandbox:
        options.start_faults(sandbox)
        assert [fault.times for fault in sandbox.faults._disturbances._rules] == [None, 2]


async def test_initial_faults_may_have_names_for_what_goes_wrong() -> None:
    given = ["swap_reply_lost", ("swap_refused", {"times": 2, "error": "Market closed"})]
    options = MarkerOptions.read({"faults": given})
    async with open_sandbox() as sandbox:
        options.start_faults(sandbox)
        assert [fault.times for fault in sandbox.faults._disturbances._rules] == [None, 2]
    with pytest.raises(ConfigurationError, match=r"'swap_refused' takes \(error: .*'speed'$"):
        MarkerOptions.read({"faults": [("swap_refused", {"speed": 1})]})


async def test_an_account_that_isn_t_there_is_told_when_its_fault_begins() -> None:
    options = MarkerOptions.read({"faults": [("refuse_auth", {"account": 9})]})
    async with open_sandbox() as sandbox:
        with pytest.raises(ConfigurationError, match="the fault 'refuse_auth' is invalid: tuple"):
            options.start_faults(sandbox)


def test_those_that_last_are_all_there() -> None:
    lasting = {
        name
        for name, method in inspect.getmembers(Faults, inspect.isfunction)
        if not name.startswith("_")
        if get_type_hints(method, {**vars(sys.modules[method.__module__])})["return"] is Fault
    }
    # These are about connections that there are; and one starts any other by its name.
    others = {"go_silent", "stall_reading", "stall_writing", "start"}
    assert lasting - {*LASTING_FAULTS} == others
    assert {*LASTING_FAULTS} <= lasting
    assert list(LASTING_FAULTS) == sorted(LASTING_FAULTS)
