from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_broker
from tests.sandbox.test_server import closed, open_raw
from tests.sandbox_client import swap_body
from trio_broker import ReconnectPolicy
from trio_broker.exceptions import ConfigurationError, InvalidSignatureError
from trio_broker.models import Balance
from trio_broker.sandbox import Account, Outcome, open_sandbox


async def test_the_documented_accounts_are_there() -> None:
    async with open_sandbox() as sandbox:
        assert (sandbox.api_key, sandbox.secret_key) == ("test_key_1", "test_secret_1")
        assert sandbox.url.startswith("ws://127.0.0.1:")
        assert sandbox.url.endswith("/ws/v1/stream")
        async with open_raw(sandbox, 2) as raw:
            assert "data" in await raw.request("balances")


async def test_more_accounts_can_be_added() -> None:
    mine = Account("test_key_3", "test_secret_3", {"USDT": Decimal(5)})
    async with open_sandbox(accounts=[mine]) as sandbox, open_raw(sandbox, 3) as raw:
        reply = await raw.request("balances")
        assert reply["data"]["balances"] == [{"asset": "USDT", "total": "5", "locked": "0"}]
        assert sandbox.balances("test_key_3") == sandbox.balances(2)
        with pytest.raises(LookupError) as caught:
            sandbox.balances("test_key_4")
        assert "test_key_4" not in str(caught.value)


async def test_two_accounts_with_one_key_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="the same API key"):
        async with open_sandbox(accounts=[Account("test_key_1", "x")]):
            pass


async def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="idle_time"):
        async with open_sandbox(idle_time=5):  # type: ignore[call-arg]  # the point of the test
            pass


async def test_balances_and_orders_can_be_looked_at() -> None:
    async with (
        open_sandbox(order_id_prefix="ord_") as sandbox,
        open_raw(sandbox) as mine,
        open_raw(sandbox, 2) as other,
    ):
        await mine.request("swap", swap_body(clientOrderId="mine"))
        await other.request("swap", swap_body(assetIn="BTC"))
        assert sandbox.balances()["ETH"] == Balance("ETH", Decimal(1000), Decimal("1.5"))
        assert sandbox.balances("test_key_2")["ETH"] == Balance("ETH", Decimal(1000), Decimal(0))
        first, second = sandbox.orders()
        assert sandbox.orders(0) == (first,)
        assert sandbox.orders("test_key_2") == (second,)
        assert (first.client_order_id, first.terms.amount_in) == ("mine", Decimal("1.5"))
        assert sandbox.order("ord_00000002") == second
        with pytest.raises(KeyError):
            sandbox.order("ord_00000003")


async def test_a_test_decides_how_the_next_orders_go(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        sandbox.next_outcome("failed", Outcome.CANCELLED)
        sandbox.next_outcome(Outcome.PARTLY_FILLED)
        for _ in range(3):
            await raw.request("swap", swap_body())
        await trio.sleep(10)
        first, second, third = sandbox.orders()
        assert (first.status, second.status, third.status) == ("FAILED", "CANCELLED", "CANCELLED")
        assert 0 == second.filled_in < third.filled_in
        with pytest.raises(ValueError, match="exploded"):
            sandbox.next_outcome("filled", "exploded")


async def test_a_test_sees_what_clients_have_sent(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, open_raw(sandbox) as raw:
        await trio.sleep(2)
        await raw.subscribe("balances")
        (connection,) = sandbox.connections
        auth, subscription = connection.received
        assert (auth.op, auth.channel) == ("auth", None)
        assert (subscription.op, subscription.channel) == ("subscribe", "balances")
        assert subscription.at - auth.at == pytest.approx(2)


async def test_any_text_can_be_pushed() -> None:
    async with (
        open_sandbox() as sandbox,
        open_raw(sandbox) as mine,
        open_raw(sandbox, 2) as other,
    ):
        assert sandbox.push('{"op":"news"}') == 2
        assert await mine.receive_json() == await other.receive_json() == {"op": "news"}
        assert sandbox.push("[]", account=1) == 1
        assert await other.receive_json() == []


async def test_connections_can_be_dropped() -> None:
    async with (
        open_sandbox() as sandbox,
        open_raw(sandbox) as mine,
        open_raw(sandbox, 2) as other,
    ):
        assert sandbox.drop_connections("test_key_1") == 1
        assert await closed(mine) == 1006
        assert "data" in await other.request("balances")
        assert sandbox.drop_connections() == 1
        assert await closed(other) == 1006


async def test_stamps_and_timestamps_go_by_the_given_clock() -> None:
    def clock() -> float:
        return 1_000_000.0

    async with open_sandbox(clock=clock) as sandbox:
        async with open_raw(sandbox, None, clock=time.time) as raw:
            reply = await raw.request("auth", key="test_key_1")
            assert reply["error"] == "Request timestamp outside allowed window"
        async with open_raw(sandbox, 1, clock=clock) as raw:
            data = (await raw.request("estimate", swap_body()))["data"]
            assert data["expiresAt"] == 1_000_030_000


async def test_the_same_seed_gives_the_same_story(autojump_clock: MockClock) -> None:
    async def story(seed: int) -> list[Any]:
        def clock() -> float:
            return 1_000_000.0 + trio.current_time() - start

        start = trio.current_time()
        heard = []
        async with open_sandbox(seed=seed, clock=clock, order_id_prefix="ord_") as sandbox:
            async with open_raw(sandbox, clock=clock) as raw:
                for _ in range(10):
                    heard.append(await raw.request("estimate", swap_body()))
                    heard.append(await raw.request("swap", swap_body()))
                    await trio.sleep(200)
            heard += [(o.status, o.filled_out, o.updated_at) for o in sandbox.orders()]
        return heard

    first = await story(1)
    assert await story(1) == first
    assert await story(2) != first


async def test_several_sandboxes_run_side_by_side() -> None:
    async with open_sandbox() as one, open_sandbox() as two:
        assert one.url != two.url
        async with open_raw(one) as first, open_raw(two) as second:
            await first.request("swap", swap_body())
            assert "data" in await second.request("balances")
        assert (len(one.orders()), len(two.orders())) == (1, 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1"])  # noqa: S104 - with nobody else there
async def test_the_url_can_be_dialled_whatever_the_host(host: str) -> None:
    async with open_sandbox(host=host) as sandbox:
        assert sandbox.url.startswith(("ws://127.0.0.1:", "ws://[::1]:"))


async def test_a_port_that_is_taken_is_an_os_error() -> None:
    async with open_sandbox() as sandbox:
        port = int(sandbox.url.split(":")[2].partition("/")[0])
        with pytest.raises(OSError, match="in use"):
            async with open_sandbox(port=port):
                pass


# ---- Exceptions


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("mine"),
        KeyboardInterrupt,
        lambda: ExceptionGroup("mine", [ValueError()]),
    ],
)
async def test_a_users_exception_comes_through_as_it_was_raised(
    make: Callable[[], BaseException],
) -> None:
    error = make()
    with pytest.raises(type(error)) as caught:
        async with open_sandbox():
            raise error
    assert caught.value is error
    assert error.__cause__ is None
    assert error.__context__ is None


async def test_a_users_exception_is_not_lost_to_a_cancellation() -> None:
    async def fail_while_cancelled() -> None:
        async with open_sandbox():
            scope.cancel()
            raise ValueError("mine")

    with trio.CancelScope() as scope, pytest.raises(ValueError, match="mine"):
        await fail_while_cancelled()


async def test_cancelling_leaves_at_once(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    with trio.move_on_after(5) as scope:
        async with open_sandbox() as sandbox, open_raw(sandbox):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() - start == pytest.approx(5)
    assert all(connection.closed_at is not None for connection in sandbox.connections)


# ---- The client


class _Client:
    def __init__(self, *arguments: str, **options: Any) -> None:
        self.arguments = arguments
        self.options = options


@pytest.mark.parametrize("required", ["both", "clients", "docs"])
@pytest.mark.parametrize("dialect", [None, "clients", "docs"])
async def test_a_client_trades_in_the_dialect_of_the_sandbox_or_its_own(
    required: Any, dialect: Any, autojump_clock: MockClock
) -> None:
    options = {} if dialect is None else {"dialect": dialect}
    async with open_sandbox(dialect=required, outcomes={Outcome.FILLED: 1}) as sandbox:
        client = sandbox.client(reconnect=ReconnectPolicy(max_attempts=0), **options)
        if required == "both" or dialect in {None, required}:
            async with client:
                await client.get_balances()
                await client.estimate_swap("1", "ETH", "USDT")
                assert (await client.swap_and_wait("1", "ETH", "USDT")).status == "FILLED"
        else:
            with pytest.raises(InvalidSignatureError):
                async with client:
                    pytest.fail("it connected")


async def test_a_client_gets_keys_url_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio_broker, "BrokerWSClient", _Client, raising=False)

    def clock() -> float:
        return 5.0

    async with open_sandbox(clock=clock, signing_key="raw") as sandbox:
        client: Any = sandbox.client()
        assert client.arguments == ("test_key_1", "test_secret_1", sandbox.url)
        assert client.options == {"clock": clock, "dialect": "clients", "signing_key": "raw"}
        client = sandbox.client("test_key_2", clock=time.time, request_timeout=1)
        assert client.arguments[0] == "test_key_2"
        assert client.options["clock"] is time.time
        assert client.options["request_timeout"] == 1
