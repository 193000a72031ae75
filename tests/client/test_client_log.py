"""The log of a client: stable fields and levels, and no key."""

from __future__ import annotations

import gc
import io
import json
import logging
import re
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.blocks import blocks_of
from tests.client.test_client import wait_until_idle
from tests.scripted import (
    API_KEY,
    BALANCES,
    SECRET_KEY,
    SWAPPED,
    ScriptedConnection,
    acknowledgement,
    open_scripted,
    scripted_client,
    start,
    wait_until,
)
from trio_broker import (
    BrokerError,
    BrokerWSClient,
    Closed,
    ConfigurationError,
    Connected,
    ReconnectPolicy,
    ServerError,
    SwapJournal,
    SwapOutcomeUnknownError,
)
from trio_broker._client_log import SlowConsumer
from trio_broker.aio import open_broker
from trio_broker.sandbox import Outcome, open_sandbox

FIELDS = {"client", "op", "client_order_id", "order_id", "channel", "duration"}
PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text()
QUICK = ReconnectPolicy(max_attempts=None, initial_delay=0.01, max_delay=0.02)


class Taking(logging.Handler):
    """Keeps every record."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.taken.append(record)


@pytest.fixture(autouse=True)
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    caplog.set_level(logging.DEBUG, logger="trio_broker")
    handler = Taking()
    logger = logging.getLogger("trio_broker")
    logger.addHandler(handler)
    yield handler.taken
    logger.removeHandler(handler)


def record_of(records: list[logging.LogRecord], beginning: str) -> Any:
    """Return the only record that begins with this text."""
    (record,) = [one for one in records if one.getMessage().startswith(beginning)]
    return record


def assert_complete(records: list[logging.LogRecord]) -> None:
    for record in records:
        if record.name.startswith("trio_broker") and "sandbox" not in record.name:
            assert vars(record).keys() >= FIELDS, record.getMessage()


# --- The name --------------------------------------------------------------------------------


def make_client(**options: Any) -> BrokerWSClient:
    return BrokerWSClient("api-key", "secret-key", "wss://broker.example/ws?token=1", **options)


def test_name_is_in_the_repr_and_in_the_logger() -> None:
    client = make_client(name="desk-1")
    assert repr(client) == "<BrokerWSClient 'desk-1' wss://broker.example/ws idle>"
    assert client.logger is logging.getLogger("trio_broker.client.desk-1")


def test_unnamed_clients_are_numbered_and_register_no_logger() -> None:
    one, other = make_client(), make_client()
    prefix = "trio_broker.client.client-"
    first, second = (int(client.logger.name.removeprefix(prefix)) for client in (one, other))
    assert second == first + 1
    assert f"'client-{first}'" in repr(one)
    assert one.logger.name not in logging.root.manager.loggerDict
    assert one.logger.parent is logging.getLogger("trio_broker.client")
    gone = weakref.ref(one.logger)
    del one
    gc.collect()
    assert gone() is None


def test_level_and_handler_of_the_parent_logger_apply(caplog: pytest.LogCaptureFixture) -> None:
    parent = logging.getLogger("trio_broker.client")
    handler = Taking()
    parent.addHandler(handler)
    caplog.set_level(logging.ERROR, logger="trio_broker.client")
    try:
        for client in (make_client(), make_client(name="desk-2")):
            assert not client.logger.isEnabledFor(logging.WARNING)
            client.logger.error("one")
    finally:
        parent.removeHandler(handler)
    assert [record.getMessage() for record in handler.taken] == ["one", "one"]


@pytest.mark.parametrize("name", ["", " ", "a.b", "a\nb", " a", "a\t", 5, b"a", "a\x00"])
def test_invalid_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name must"):
        make_client(name=name)


async def test_events_have_the_clients_name() -> None:
    async with open_sandbox() as sandbox:
        client = sandbox.client(name="desk-3")
        events = client.events()
        async with client:
            pass
        seen = [event async for event in events]
    assert [type(event) for event in seen] == [Connected, Closed]
    assert {event.client for event in seen} == {"desk-3"}


def test_asyncio_client_has_a_name() -> None:
    with pytest.raises(ConfigurationError, match="name must"):
        open_broker("key", "secret", "wss://broker.example/ws", name="")


# --- The records -----------------------------------------------------------------------------


async def test_records_have_ids_and_durations(
    autojump_clock: MockClock, records: list[logging.LogRecord]
) -> None:
    async with (
        open_sandbox(outcomes={Outcome.FILLED: 1}) as sandbox,
        sandbox.client(name="desk-4") as client,
        client.subscribe("balances"),
    ):
        order = await client.swap_and_wait("1", "ETH", "USDT", client_order_id="c1")
        await client.get_balances()
        with pytest.raises(ServerError):
            await client.get_order_status("nothing")
        await wait_until_idle(client)
    assert_complete(records)
    mine = [record for record in records if record.name == "trio_broker.client.desk-4"]
    assert {vars(record)["client"] for record in mine} == {"desk-4"}
    info = [record for record in mine if record.levelno == logging.INFO]
    assert [record.getMessage() for record in info] == [
        f"connected to {sandbox.url.partition('?')[0]}",
        "swap c1 sent",
        f"swap c1 confirmed as order {order.order_id}",
        "closed",
    ]
    outcome = vars(info[2])
    assert (outcome["op"], outcome["client_order_id"]) == ("swap", "c1")
    assert outcome["order_id"] == order.order_id
    assert outcome["duration"] >= 0
    subscribed = vars(record_of(mine, "subscribe 'balances' answered"))
    assert (subscribed["op"], subscribed["channel"]) == ("subscribe", "balances")
    assert subscribed["levelno"] == logging.DEBUG
    assert subscribed["duration"] is not None
    assert record_of(mine, "subscribe 'balances' sent").duration is None
    assert record_of(mine, "order_status 'nothing' failed").order_id == "nothing"
    assert record_of(mine, "state: restoring -> connected")
    assert any("balances answered in" in record.getMessage() for record in mine)


async def test_undisturbed_session_logs_no_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="trio_broker")
    async with open_sandbox() as sandbox, sandbox.client() as client:
        await client.do_swap("1", "ETH", "USDT")
    assert caplog.records == []


async def test_unsent_timed_out_and_abandoned_requests_are_logged(
    autojump_clock: MockClock, records: list[logging.LogRecord]
) -> None:
    async with scripted_client(request_timeout=5) as (client, line):
        async with trio.open_nursery() as nursery:
            start(nursery, client.get_balances)
            waits = start(nursery, client.get_balances)
            await line.receive("balances")
            waits.scope.cancel()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with pytest.raises(BrokerError), trio.fail_after(20):
            await client.get_order_status("o1")
    assert "balances not sent: given up" in record_of(records, "balances not sent").getMessage()
    assert record_of(records, "balances given up after")
    assert record_of(records, "order_status 'o1' failed after 5.000 s")
    assert_complete(records)


async def test_recovery_is_logged_at_the_level_of_the_loss(
    records: list[logging.LogRecord],
) -> None:
    async with open_scripted() as broker:
        client = broker.client(reconnect=QUICK)
        events = client.events()
        async with client:
            line = await broker.line()
            line.hang_up()
            line = await broker.line()
            while type(await events.receive()).__name__ != "Restored":
                pass
    lost = record_of(records, "connection lost: ")
    assert lost.levelno == logging.WARNING
    assert "; next attempt in 0.0 s" in lost.getMessage()
    levels = [one.levelno for one in records if one.getMessage().startswith("connected to")]
    assert levels == [logging.INFO, logging.WARNING]
    assert record_of(records, "restored: no channels").levelno == logging.WARNING
    assert record_of(records, "closed").levelno == logging.INFO


async def test_close_during_an_outage_is_logged_at_its_level(
    autojump_clock: MockClock, records: list[logging.LogRecord]
) -> None:
    policy = ReconnectPolicy(max_attempts=None, initial_delay=1000, max_delay=1000)
    async with open_scripted() as broker:
        client = broker.client(reconnect=policy)
        events = client.events()
        async with client:
            (await broker.line()).hang_up()
            await events.receive()
            await events.receive()
    assert record_of(records, "closed").levelno == logging.WARNING


async def test_retried_first_connection_is_logged_when_connected(
    autojump_clock: MockClock, records: list[logging.LogRecord]
) -> None:
    async with open_sandbox() as sandbox:
        sandbox.faults.refuse_connections(times=1)
        async with sandbox.client(reconnect=ReconnectPolicy(retry_first=True)):
            pass
    assert record_of(records, "connecting failed: ").levelno == logging.WARNING
    assert record_of(records, "connected to ").levelno == logging.WARNING
    assert record_of(records, "closed").levelno == logging.INFO


async def test_final_failure_is_logged_as_an_error(records: list[logging.LogRecord]) -> None:
    async with open_scripted() as broker, broker.client() as client:
        (await broker.line()).hang_up()
        with pytest.raises(BrokerError):
            await client.wait_closed()
    assert record_of(records, "gave up: ").levelno == logging.ERROR
    assert record_of(records, "connection lost: ").levelno == logging.WARNING


async def wait_until_resolved(client: BrokerWSClient) -> None:
    while client.unresolved_swaps():
        await wait_all_tasks_blocked(0.001)


async def make_unknown_swap(client: BrokerWSClient, line: ScriptedConnection) -> None:
    """Make a swap c1 whose outcome is unknown."""
    async with trio.open_nursery() as nursery:
        call = start(nursery, partial(client.do_swap, "1", "ETH", "USDT", client_order_id="c1"))
        await line.receive("swap")
        with pytest.raises(SwapOutcomeUnknownError):
            await call.result()


@asynccontextmanager
async def client_with_unknown_swap() -> AsyncIterator[tuple[BrokerWSClient, ScriptedConnection]]:
    async with scripted_client(resolve_timeout=0.05, request_timeout=0.5) as (client, line):
        await make_unknown_swap(client, line)
        yield client, line


async def test_resolved_swap_has_the_level_of_its_problem(
    records: list[logging.LogRecord],
) -> None:
    async with client_with_unknown_swap() as (client, line):
        await line.send(SWAPPED)
        await wait_until_resolved(client)
    assert record_of(records, "swap c1 unresolved: ").levelno == logging.WARNING
    resolved = record_of(records, "swap c1 confirmed as order o1")
    assert resolved.levelno == logging.WARNING
    assert vars(resolved)["order_id"] == "o1"
    assert_complete(records)


async def test_settled_swap_has_the_level_of_its_problem(
    records: list[logging.LogRecord],
) -> None:
    async with client_with_unknown_swap() as (client, _):
        await client.settle_swap("c1", "the exchange says so")
    settled_ = record_of(records, "swap c1 settled by hand: the exchange says so")
    assert settled_.levelno == logging.WARNING


async def test_abandoned_swap_has_the_level_of_its_problem(
    records: list[logging.LogRecord],
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, partial(client.do_swap, "1", "ETH", "USDT", client_order_id="c1"))
        await line.receive("swap")
        call.scope.cancel()
        await wait_all_tasks_blocked()
        await line.send({"op": "swap", "error": "Insufficient balance"})
        await wait_until_resolved(client)
    assert record_of(records, "swap c1 was given up: outcome unknown").levelno == logging.WARNING
    refused = record_of(records, "swap c1 refused: ")
    assert refused.levelno == logging.WARNING
    assert "Insufficient balance" in refused.getMessage()


async def test_swap_of_an_earlier_run_has_the_level_of_its_problem(
    tmp_path: Path, records: list[logging.LogRecord]
) -> None:
    path = tmp_path / "swaps.journal"
    options = {"resolve_timeout": 0.05, "request_timeout": 0.5}
    async with open_scripted() as broker:
        async with broker.client(journal=SwapJournal(path), **options) as client:
            await make_unknown_swap(client, await broker.line())
        records.clear()
        async with (
            broker.client(journal=SwapJournal(path)) as client,
            trio.open_nursery() as nursery,
        ):
            line = await broker.line()
            nursery.start_soon(client.resolve_swap, "c1")
            await line.receive("order_status")
            found = {"orderId": "o1", "status": "FILLED", "clientOrderId": "c1"}
            await line.send({"op": "order_status", "data": found})
    assert record_of(records, "swap c1 of an earlier run is unresolved").levelno == logging.WARNING
    assert record_of(records, "swap c1 confirmed as order o1").levelno == logging.WARNING
    assert_complete(records)


async def test_recovered_channel_has_the_level_of_its_refusal(
    autojump_clock: MockClock, records: list[logging.LogRecord]
) -> None:
    async with open_sandbox() as sandbox, sandbox.client() as client:
        await client.subscribe("balances", snapshot=False)
        events = client.events()
        sandbox.faults.refuse_channel("balances")
        sandbox.drop_connections()
        while type(await events.receive()).__name__ != "Restored":
            pass
        sandbox.faults.clear()
        await client.subscribe("balances", snapshot=False)
    assert (
        record_of(records, "channel 'balances' was refused after the reconnection").levelno
        == logging.WARNING
    )
    answers = [one for one in records if "subscribe 'balances' answered" in one.getMessage()]
    assert answers[-1].levelno == logging.WARNING


async def test_recovered_snapshot_has_the_level_of_its_failure(
    records: list[logging.LogRecord],
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        call = start(nursery, client.subscribe_balances)
        await line.send(acknowledgement(await line.receive("subscribe")))
        await call.result()
        await line.receive("balances")
        await line.send({"op": "balances", "error": "busy"})
        again = start(nursery, client.get_balances)
        await line.receive("balances")
        await line.send(BALANCES)
        await again.result()
    assert record_of(records, "the state of 'balances' is not available").levelno == logging.INFO
    assert record_of(records, "balances answered in").levelno == logging.INFO


async def test_slow_consumer_is_logged_at_most_once_a_minute(
    autojump_clock: MockClock, records: list[logging.LogRecord]
) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        nursery.start_soon(line.acknowledge)
        async with client.subscribe("news", snapshot=False, buffer_size=2) as updates:
            for _ in range(3):
                await line.send(*[{"ch": "news", "data": number} for number in range(5)])
                await trio.sleep(1)
                assert [(await updates.receive()).data for _ in range(2)] == [3, 4]
    slow, caught_up = [one for one in records if "a consumer of 'news'" in one.getMessage()]
    assert slow.levelno == caught_up.levelno == logging.WARNING
    assert "too slow" in slow.getMessage()
    assert "has caught up; 3 messages" in caught_up.getMessage()
    assert vars(slow)["channel"] == "news"


def test_slow_consumer_is_logged_again_after_a_minute(records: list[logging.LogRecord]) -> None:
    client = make_client(name="desk-5")
    slow = SlowConsumer(client._log, "news")
    for now in (0.0, 30.0, 61.0):
        slow.overflowed(now)
        slow.overflowed(now)
        slow.drained(7)
    assert len(records) == 4


# --- No key ----------------------------------------------------------------------------------


async def test_no_record_has_a_key(records: list[logging.LogRecord]) -> None:
    def clock() -> float:
        if len(broker.lines) > 1:
            raise ValueError(f"no {SECRET_KEY}")
        return 1e9

    async with open_scripted() as broker:
        policy = attrs.evolve(QUICK, max_attempts=3)
        client = broker.client(reconnect=policy, clock=clock, name="desk-7")
        events = client.events()
        async with client:
            line = await broker.line()
            signature = line.auth["sig"]
            async with trio.open_nursery() as nursery:
                call = start(
                    nursery, partial(client.do_swap, "1", "ETH", "USDT", client_order_id=API_KEY)
                )
                await line.receive("swap")
                await line.send({"op": "swap", "error": f"No route: {SECRET_KEY} {signature}"})
                with pytest.raises(BrokerError):
                    await call.result()
                subscribing = start(nursery, partial(client.subscribe, SECRET_KEY))
                await line.receive("subscribe")
                await line.send({"op": "subscribe", "ch": SECRET_KEY, "error": f"no {API_KEY}"})
                with pytest.raises(BrokerError):
                    await subscribing.result()
            await line.send({"op": f"op {API_KEY}", "sig": signature})
            line.hang_up()
            with pytest.raises(BrokerError):
                await client.wait_closed()
        shown = "".join(f"{event!r}" for event in [event async for event in events])
    formatter = logging.Formatter()
    assert len(records) > 10
    for record in records:
        text = formatter.format(record) + repr(vars(record))
        for word in (API_KEY, SECRET_KEY, signature):
            assert word not in text
    assert not [word for word in (API_KEY, SECRET_KEY, signature) if word in shown]
    assert_complete(records)


async def test_records_about_a_callback_have_the_fields(records: list[logging.LogRecord]) -> None:
    async with (
        open_sandbox() as sandbox,
        sandbox.client() as client,
        client.subscribe_balances(snapshot=False) as updates,
    ):
        updates.when_ready(lambda: 1 / 0)
        await client.do_swap("1", "ETH", "USDT")
        await updates.receive()
    assert record_of(records, "the callback for").name == "trio_broker.subscription"
    assert_complete(records)


# --- docs/logging.md -------------------------------------------------------------------------


def test_documented_formatter_prints_json(records: list[logging.LogRecord]) -> None:
    code = next(code for language, code in blocks_of("docs/logging.md") if "JsonFormatter" in code)
    names: dict[str, Any] = {}
    root = logging.getLogger("trio_broker")
    before = list(root.handlers)
    try:
        exec(compile(code, "docs/logging.md", "exec"), names)  # noqa: S102 - it is our page
        client = make_client(name="desk-6")
        client._log.write(logging.INFO, "swap c1 sent", op="swap", client_order_id="c1")
        line = json.loads(names["JsonFormatter"]().format(records[-1]))
    finally:
        root.handlers[:] = before
    assert line.pop("time")
    assert line == {
        "level": "INFO",
        "logger": "trio_broker.client.desk-6",
        "text": "swap c1 sent",
        "client": "desk-6",
        "op": "swap",
        "client_order_id": "c1",
    }


def test_documented_code_sets_the_level_of_one_client() -> None:
    (_, code), *_ = blocks_of("docs/logging.md")
    names: dict[str, Any] = {"api_key": "k", "secret_key": "s", "ws_url": "wss://host/ws"}
    logger = logging.getLogger("trio_broker.client.desk")
    try:
        exec(compile(code, "docs/logging.md", "exec"), names)  # noqa: S102 - it is our page
        assert names["client"].logger is logger
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(logging.NOTSET)


async def test_documented_code_shows_the_records_of_trio_websocket(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    code = next(code for _, code in blocks_of("docs/logging.md") if '"trio-websocket"' in code)
    theirs = logging.getLogger("trio-websocket")
    handler = Taking()
    theirs.addHandler(handler)
    try:
        async with scripted_client():
            pass
        before = list(handler.taken)
        exec(compile(code, "docs/logging.md", "exec"), {"logging": logging})  # noqa: S102
        async with scripted_client():
            pass
    finally:
        theirs.removeHandler(handler)
        theirs.setLevel(logging.NOTSET)
    assert before == []
    assert handler.taken
    texts = [one.getMessage() for one in handler.taken]
    assert not [text for text in texts if API_KEY in text or SECRET_KEY in text]


def test_logging_page_names_every_field() -> None:
    assert all(f"| `{field}` |" in PAGE for field in FIELDS)


def test_logging_page_lists_every_fault() -> None:
    package = Path(__file__).parents[2] / "trio_broker"
    sources = "".join(path.read_text() for path in package.rglob("*.py"))
    faults = re.findall(r'\.fault\(\s*"([^"]+)"', sources)
    assert len(faults) == sources.count("_log.fault(") >= 2
    assert all(f"`{fault}`" in PAGE for fault in faults)


class FailingHandler(logging.Handler):
    """A handler that always fails."""

    def emit(self, _: logging.LogRecord) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("way", ["factory", "handler", "filter"])
async def test_record_that_cannot_be_written_ends_nothing(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = logging.getLogger("trio_broker.client")
    monkeypatch.setattr(parent, "level", logging.DEBUG)
    handler = FailingHandler() if way == "handler" else logging.StreamHandler(io.StringIO())
    if way == "filter":
        handler.addFilter(lambda _: bool(1 / 0))
    parent.addHandler(handler)
    make = logging.getLogRecordFactory()

    def factory(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        record.client = "192.0.2.1"
        return record

    try:
        if way == "factory":
            logging.setLogRecordFactory(factory)
        async with open_sandbox() as sandbox, sandbox.client() as client:
            receipt = await client.do_swap("1", "ETH", "USDT")
            assert receipt.order_id
            assert client.is_connected()
    finally:
        logging.setLogRecordFactory(make)
        parent.removeHandler(handler)
    assert "Error" in capsys.readouterr().err


async def test_failing_records_are_silent_where_logging_is_set_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    parent = logging.getLogger("trio_broker.client")
    handler = FailingHandler()
    parent.addHandler(handler)
    try:
        async with open_sandbox() as sandbox, sandbox.client() as client:
            sandbox.drop_connections()
            await wait_until(lambda: not client.is_connected())
    finally:
        parent.removeHandler(handler)
    assert capsys.readouterr().err == ""


async def test_problems_that_never_end_are_not_kept_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_broker._client_log._MOST_PROBLEMS", 2)
    async with open_sandbox() as sandbox, sandbox.client() as client:
        for number in range(5):
            await client.subscribe(f"orders:unknown{number}")
        await wait_until_idle(client)
        assert len(client._log._problems) <= 2
