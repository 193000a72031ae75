from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import trio

from tests.sandbox.test_server import closed, open_raw
from tests.sandbox.test_state import disks as disks  # noqa: PLC0414 - a fixture
from tests.sandbox_client import swap_body
from trio_broker import BrokerWSClient, ConfigurationError
from trio_broker.sandbox import (
    Account,
    Outcome,
    Sandbox,
    SandboxOptions,
    Settings,
    ThreadedSandbox,
    open_sandbox,
    open_threaded_sandbox,
    threads,
)
from trio_broker.sandbox.faults import Faults

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 30.0


@pytest.fixture
def sandbox() -> Iterator[ThreadedSandbox]:
    with open_threaded_sandbox() as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert "trio_broker.sandbox" not in {thread.name for thread in threading.enumerate()}


def test_its_options_are_those_of_a_sandbox() -> None:
    parameters = inspect.signature(open_sandbox).parameters.values()
    named = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    settings = get_type_hints(Settings)
    assert get_type_hints(SandboxOptions).keys() == named | settings.keys()


# ---- What is done there


def test_a_program_trades_with_it_and_the_test_looks_at_it(sandbox: ThreadedSandbox) -> None:
    async def program() -> str:
        keys = sandbox.api_key, sandbox.secret_key
        async with BrokerWSClient(*keys, sandbox.url) as client:
            order = await client.swap_and_wait("1", "ETH", "USDT", client_order_id="mine")
            # From within a Trio run, too, which another one's thread must not mix up with its own.
            assert sandbox.order(str(order.order_id)).status == order.status
        return str(order.order_id)

    sandbox.next_outcome("filled")
    order_id = trio.run(program)
    (order,) = sandbox.orders()
    assert (order.order_id, order.client_order_id) == (order_id, "mine")
    assert sandbox.orders(1) == ()
    assert sandbox.balances()["ETH"].total == Decimal(999)
    assert sandbox.balances(1)["ETH"].total == Decimal(1000)


def test_its_clients_are_for_a_run_of_the_tests_own() -> None:
    mine = Account("test_key_3", "test_secret_3")

    async def program(client: BrokerWSClient) -> None:
        async with client:
            await client.get_balances()

    with open_threaded_sandbox(signing_key="raw", accounts=[mine]) as sandbox:
        assert sandbox.accounts[2] == mine
        trio.run(program, sandbox.client("test_key_3", request_timeout=5))


def test_it_can_be_asked_in_an_event_loop(sandbox: ThreadedSandbox) -> None:
    async def program() -> int:
        await asyncio.sleep(0)
        return sandbox.drop_connections()

    assert asyncio.run(program()) == 0


def test_errors_are_the_callers(sandbox: ThreadedSandbox) -> None:
    with pytest.raises(ValueError, match="exploded"):
        sandbox.next_outcome("exploded")
    with pytest.raises(KeyError):
        sandbox.order("ord_1")
    with pytest.raises(pytest.fail.Exception, match="enough"):
        sandbox.do(lambda _: pytest.fail("enough"))
    assert sandbox.orders() == ()


def test_faults_are_begun_and_lifted_there(sandbox: ThreadedSandbox) -> None:
    async def balances() -> None:
        async with sandbox.client(auth_timeout=5) as client:
            await client.get_balances()

    fault = sandbox.do(lambda it: it.faults.refuse_auth())
    with pytest.raises(Exception, match="Invalid signature"):
        trio.run(balances)
    sandbox.do(lambda _: fault.lift())
    trio.run(balances)


def test_what_is_asked_for_in_its_own_thread_is_done_at_once(sandbox: ThreadedSandbox) -> None:
    def look(_: object) -> tuple[object, str]:
        with pytest.raises(RuntimeError, match=r"await sandbox\.faults\.revive"):
            sandbox.revive()
        return sandbox.orders(), threading.current_thread().name

    assert sandbox.do(look) == ((), "trio_broker.sandbox")


async def _visit(url: str) -> None:
    async with BrokerWSClient("test_key_1", "test_secret_1", url):
        pass


def test_it_is_killed_and_comes_back(sandbox: ThreadedSandbox) -> None:
    sandbox.kill()
    with pytest.raises(Exception, match="refused"):
        trio.run(_visit, sandbox.url)
    with pytest.raises(RuntimeError, match="killed already"):
        sandbox.kill()
    sandbox.revive()
    trio.run(_visit, sandbox.url)
    with pytest.raises(RuntimeError, match="isn't killed"):
        sandbox.revive()


# ---- Beginning


def test_what_keeps_it_from_beginning_is_raised() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"), open_threaded_sandbox(port=port):
            pytest.fail("it has begun")
    with pytest.raises(ConfigurationError, match="fee_bps"), open_threaded_sandbox(fee_bps=-1):
        pytest.fail("it has begun")


# ---- Ending


@pytest.mark.parametrize(("error", "code"), [(None, 1001), (ValueError("mine"), 1006)])
def test_clients_are_told_goodbye_unless_there_is_an_error(
    error: Exception | None, code: int
) -> None:
    async def stay(sandbox: Sandbox) -> None:
        async with open_raw(sandbox) as raw:
            connected.set()
            codes.append(await closed(raw))

    connected = threading.Event()
    codes: list[int] = []
    with suppress(ValueError), open_threaded_sandbox() as sandbox:
        # What a client needs of it doesn't change, so it may be read in any thread.
        client = threading.Thread(target=trio.run, args=(stay, sandbox.do(lambda it: it)))
        client.start()
        assert connected.wait(PATIENCE)
        if error is not None:
            raise error
    client.join(PATIENCE)
    assert codes == [code]


@pytest.mark.parametrize("make", [lambda: ValueError("mine"), KeyboardInterrupt])
def test_a_users_error_comes_through_as_it_was_raised(make: Callable[[], BaseException]) -> None:
    error = make()
    with pytest.raises(type(error)) as caught, open_threaded_sandbox():
        raise error
    assert caught.value is error
    assert error.__context__ is None


def test_after_its_end_it_says_so() -> None:
    with open_threaded_sandbox() as sandbox:
        pass
    with pytest.raises(RuntimeError, match="the sandbox has ended"):
        sandbox.balances()


def _run_out_of_room(path: Path, disks: list[Any], error: Exception | None = None) -> None:
    async def swap(sandbox: Sandbox) -> None:
        async with open_raw(sandbox) as raw:
            await raw.request("swap", swap_body())

    with open_threaded_sandbox(state=path) as sandbox:
        disks[-1].room = 0
        with suppress(BaseExceptionGroup):  # the client's, which is hung up on
            trio.run(swap, sandbox.do(lambda it: it))
        if error is not None:
            raise error


def test_what_ends_it_is_raised_from_the_end_of_the_block(tmp_path: Path, disks: list[Any]) -> None:
    with pytest.raises(OSError, match="No space"):
        _run_out_of_room(tmp_path / "state", disks)


def test_a_users_error_goes_before_it(tmp_path: Path, disks: list[Any]) -> None:
    with pytest.raises(ValueError, match="mine"):
        _run_out_of_room(tmp_path / "state", disks, ValueError("mine"))


def test_who_waits_for_it_when_it_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: Faults) -> None:
        waiting.set()
        await trio.sleep_forever()

    def revive() -> None:
        with pytest.raises(RuntimeError, match="the sandbox has ended"):
            sandbox.revive()
        told.append(True)

    waiting = threading.Event()
    told: list[bool] = []
    monkeypatch.setattr(Faults, "revive", never)
    with open_threaded_sandbox() as sandbox:
        other = threading.Thread(target=revive)
        other.start()
        assert waiting.wait(PATIENCE)
    other.join(PATIENCE)
    assert told


def test_a_thread_that_can_t_end_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_: object) -> None:
        hanging.set()
        release.wait(PATIENCE)

    def use() -> None:
        with open_threaded_sandbox() as sandbox:
            other = threading.Thread(target=sandbox.do, args=(hang,), daemon=True)
            other.start()
            assert hanging.wait(PATIENCE)

    monkeypatch.setattr(threads, "_STOP_TIMEOUT", 0.01)
    hanging, release = threading.Event(), threading.Event()
    with pytest.raises(RuntimeError, match="never returns"):
        use()
    release.set()
    for thread in threading.enumerate():
        if thread.name == "trio_broker.sandbox":
            thread.join(PATIENCE)


def test_a_forked_process_is_told_so(
    sandbox: ThreadedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(RuntimeError, match="runs in another process"):
            sandbox.balances()


def test_what_nobody_would_await_is_refused(sandbox: ThreadedSandbox) -> None:
    with pytest.raises(TypeError, match=r"Faults\.revive is async"):
        sandbox.do(lambda inside: inside.faults.revive())  # type: ignore[unused-coroutine]  # so it is


def test_an_interrupted_test_leaves_a_stuck_thread_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_ABORT_TIMEOUT", 0.01)
    hanging, release = threading.Event(), threading.Event()

    def hang(_: Sandbox) -> None:
        hanging.set()
        release.wait(PATIENCE)

    def use() -> None:
        with open_threaded_sandbox() as sandbox:
            threading.Thread(target=sandbox.do, args=(hang,), daemon=True).start()
            assert hanging.wait(PATIENCE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    release.set()
    for thread in threading.enumerate():
        if thread.name == "trio_broker.sandbox":
            thread.join(PATIENCE)


def test_outcomes_come_in_the_order_asked_for(sandbox: ThreadedSandbox) -> None:
    async def program() -> list[str]:
        async with sandbox.client() as client:
            orders = [await client.swap_and_wait("1", "ETH", "USDT") for _ in range(2)]
        return [order.status for order in orders]

    sandbox.next_outcome(Outcome.CANCELLED, "failed")
    assert trio.run(program) == ["CANCELLED", "FAILED"]
