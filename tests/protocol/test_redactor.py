"""Keys and signatures that a broker echoes are in no event, error, value or repr."""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.scripted import (
    SWAPPED,
    Body,
    open_scripted,
    scripted_client,
    start,
)
from tests.transports.raw_server import close_frame, send, serve_raw
from trio_broker import (
    Balance,
    BrokerError,
    BrokerWSClient,
    ChannelError,
    ConnectFailedError,
    ConnectionLostError,
    Disconnected,
    NotSentError,
    Order,
    OrderStatus,
    ServerError,
    SwapOutcomeUnknownError,
    SwapResolved,
    UnexpectedMessage,
)
from trio_broker._redactor import Redactor
from trio_broker._secret import Secret
from trio_broker.exceptions import fresh
from trio_broker.models import Message
from trio_broker.settings import parse_url

# With what JSON, URLs and Python's repr escape.
API_KEY = "canary/Key+1=="
SECRET = "canary'Secret\"ü😀"
REDACTED = "<removed>"


def words(sig: str = "") -> list[str]:
    return [word for word in (API_KEY, SECRET, "canary", sig) if word]


def assert_clean(*shown: object, sig: str = "") -> None:
    text = "".join(f"{one!r} {one}" for one in shown)
    assert not [word for word in words(sig) if word in text], text


@pytest.fixture
def redactor() -> Redactor:
    return Redactor([Secret(API_KEY), Secret(SECRET)])


SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": json.dumps,
    "json in json": lambda key: json.dumps(json.dumps(key)),
    "json of python": lambda key: json.dumps(key, ensure_ascii=False),
    "all escaped": lambda key: "".join(
        f"\\u{key.encode('utf-16-be').hex()[at : at + 4]}"
        for at in range(0, len(key.encode("utf-16-be").hex()), 4)
    ),
    "slashes": lambda key: json.dumps(key).replace("/", r"\/"),
    "repr": repr,
    "url": lambda key: quote(key, safe=""),
    "in a text": lambda key: f"no such key as{key}.",
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("key", [API_KEY, SECRET])
def test_key_is_removed_in_every_spelling(
    redactor: Redactor, key: str, spell: Callable[[str], str]
) -> None:
    redacted = redactor.text(f"a {spell(key)} b")
    assert REDACTED in redacted
    assert "canary" not in redacted
    assert redacted.startswith("a ")
    assert redacted.endswith(" b")


@pytest.mark.parametrize("text", ["x" * 10**6, "\\" * 10**6, "%" * 10**6, '{"a":"b"}' * 10**5])
def test_long_texts_are_redacted_quickly(redactor: Redactor, text: str) -> None:
    before = time.process_time()
    assert redactor.text(text) == text
    assert time.process_time() - before < 5


@pytest.mark.parametrize("start_", [0, 900, 990, 999, 1000, 1500, 50_000])
@pytest.mark.parametrize("key", [API_KEY, json.dumps(SECRET)])
def test_text_is_redacted_before_it_is_cut(redactor: Redactor, start_: int, key: str) -> None:
    text = "x" * start_ + key + "y" * 200_000
    beginning = redactor.beginning(text, 1000)
    assert len(beginning) == 1000
    assert "can" not in beginning
    many = redactor.beginning(key * 10_000, 1000)
    assert "anary" not in many


def test_keys_in_values_are_removed_and_types_kept(redactor: Redactor) -> None:
    signature = "ab" * 32
    data = {
        "text": f"no {SECRET}",
        API_KEY: [1, Decimal("1.50"), None, True, API_KEY],
        "sig": signature,
        "txHash": signature,
        "sigs": {"signature": "short"},
    }
    assert redactor.value(data) == {
        "text": "no <removed>",
        REDACTED: [1, Decimal("1.50"), None, True, REDACTED],
        "sig": REDACTED,
        "txHash": signature,
        "sigs": {"signature": "short"},
    }
    order = Order(API_KEY, f"ODD {SECRET}", Decimal(1), API_KEY, None, SECRET)
    redacted = redactor.value(order)
    assert (redacted.status, redacted.tx_hash) == ("ODD <removed>", REDACTED)
    assert (redacted.order_id, redacted.client_order_id) == (API_KEY, SECRET)
    same = (Balance("ETH", Decimal(1)), Order("o1", OrderStatus.FILLED))
    assert all(one is other for one, other in zip(redactor.value(same), same, strict=True))


def test_error_is_redacted_with_all_its_causes(redactor: Redactor) -> None:
    def fail() -> None:
        raise OSError(5, f"no {SECRET}")

    with pytest.raises(OSError, match="no") as caught:
        fail()
    error = ConnectionLostError(f"lost {API_KEY}", 1011)
    error.__cause__ = caught.value
    redacted = redactor.error(error, frames=False)
    assert isinstance(redacted, ConnectionLostError)
    assert (redacted.message, redacted.code) == ("lost <removed>", 1011)
    cause = redacted.__cause__
    assert str(cause) == "OSError: [Errno 5] no <removed>"
    assert cause is not None
    assert cause.__traceback__ is None
    assert_clean(redacted, cause, "".join(traceback.format_exception(redacted)))


def test_error_without_keys_is_returned_unchanged(redactor: Redactor) -> None:
    error = NotSentError("nothing was sent")
    error.__cause__ = OSError(5, "no")
    error.__context__ = error
    assert redactor.error(error) is error
    assert isinstance(error.__cause__, OSError)
    group = ExceptionGroup("", [error])
    assert redactor.error(group) is group


def test_groups_and_contexts_are_redacted(redactor: Redactor) -> None:
    error = KeyError(SECRET)
    error.__context__ = ValueError(API_KEY)
    error.__suppress_context__ = True
    redacted = redactor.error(ExceptionGroup("two", [error, ValueError("x")]))
    assert_clean(redacted, redacted.exceptions[0], redacted.exceptions[0].__context__)
    assert redacted.exceptions[0].__suppress_context__
    unknown = SwapOutcomeUnknownError("c1", f"no {SECRET}")
    assert str(redactor.error(unknown)).startswith(
        "the outcome of swap c1 is unknown (no <removed>"
    )
    named = SwapOutcomeUnknownError(API_KEY, f"no {SECRET}")
    assert redactor.error(named).client_order_id == API_KEY


def test_no_keys_redact_nothing() -> None:
    redactor = Redactor(())
    assert redactor.text(f"a {'ab' * 32}") == f"a {'ab' * 32}"
    assert redactor.value({"a": "b"}) == {"a": "b"}
    assert fresh(redactor.error(ServerError("x", "y"))).message == "y"


# --- Through a client ------------------------------------------------------------------------


def client_at(url: str, **options: Any) -> BrokerWSClient:
    return BrokerWSClient(API_KEY, SECRET, url, **options)


async def receive_everything(*messages: Body | str, name: str = "") -> list[Any]:
    """The events that messages bring about, until the broker hangs up."""
    async with open_scripted() as broker:
        client = client_at(broker.url)
        events = client.events()
        async with client:
            line = await broker.line()
            sig = line.auth["sig"]
            texts = [one if isinstance(one, str) else json.dumps(one) for one in messages]
            await line.send(*[text.replace("SIG", sig) for text in texts])
            await line.send_bytes(close_frame(1011, f"no {API_KEY} {sig}"))
            seen = [await events.receive()]
            while not isinstance(seen[-1], Disconnected):
                seen.append(await events.receive())
    for event in seen:
        assert_clean(event, vars_of(event), sig=sig)
    return seen


def vars_of(event: Any) -> list[object]:
    error = getattr(event, "error", None)
    chain = [error, getattr(error, "__cause__", None), getattr(error, "__context__", None)]
    return [getattr(event, "raw", None), getattr(event, "reason", None), *chain]


@pytest.mark.parametrize(
    "message",
    [
        {"op": "auth", "key": API_KEY, "sig": "SIG"},
        {"op": f"what {SECRET}", "x": 1},
        {"error": f"bad {API_KEY}", "sig": "SIG"},
        "x" * 990 + API_KEY,
        {"ch": "nobody", "data": SECRET},
        json.dumps({"a": json.dumps({"key": SECRET})}),
    ],
)
async def test_unexpected_messages_and_closings_show_no_key(message: Body | str) -> None:
    seen = await receive_everything(message)
    assert any(isinstance(event, UnexpectedMessage) for event in seen)


async def test_pushes_show_no_key() -> None:
    async with open_scripted() as broker, client_at(broker.url) as client:
        line = await broker.line()
        sig = line.auth["sig"]
        pushes = {
            "news": {"headline": f"key {SECRET}", "sig": sig, "rate": 1.5, API_KEY: 1},
            "balances": [{"asset": API_KEY, "total": "1.50"}],
            "orders:o1": {"status": f"WAITING FOR {SECRET}", "txHash": API_KEY, "filledOut": "2"},
        }
        async with trio.open_nursery() as nursery:
            for channel, data in pushes.items():
                nursery.start_soon(line.acknowledge)
                async with client.subscribe(channel, snapshot=False) as updates:
                    await line.send({"ch": channel, "data": data})
                    message = await updates.receive()
                    assert_clean(message, message.data, sig=sig)
                    assert REDACTED in repr(message.data)
                    await line.send({"ch": channel, "error": f"no {API_KEY} {sig}"})
                    with pytest.raises(ChannelError) as caught:
                        await updates.receive()
                    assert_clean(caught.value, caught.value.args, sig=sig)
                await line.acknowledge("unsubscribe")


async def test_replies_show_no_key() -> None:
    async with open_scripted() as broker, client_at(broker.url) as client:
        line = await broker.line()

        async def ask(call: Callable[[], Any], op: str, reply: Body) -> Any:
            async with trio.open_nursery() as nursery:
                calling = start(nursery, call)
                await line.receive(op)
                await line.send({"op": op, **reply})
                answer: Any
                try:
                    answer = await calling.result()
                except ServerError as error:
                    answer = error
            return answer

        order = await ask(
            lambda: client.get_order_status("o1"),
            "order_status",
            {"data": {"status": SECRET, "orderId": "o1"}},
        )
        estimate = await ask(
            lambda: client.estimate_swap("1", "ETH", "USDT"),
            "estimate",
            {"data": {"price": "2", "expectedOut": "2", "route": [{"pool": API_KEY}]}},
        )
        receipt = await ask(
            lambda: client.do_swap("1", "ETH", "USDT"),
            "swap",
            {"data": {"orderId": "o2", "status": f"TAKEN {API_KEY}"}},
        )
        assert_clean(order, estimate, receipt)
        error = await ask(client.get_balances, "balances", {"error": f"no {SECRET}"})
        assert isinstance(error, ServerError)
        assert_clean(error, error.args)


async def test_late_receipt_shows_no_key() -> None:
    async with open_scripted() as broker:
        client = client_at(broker.url)
        events = client.events()
        async with client, trio.open_nursery() as nursery:
            line = await broker.line()
            call = start(nursery, partial(client.do_swap, "1", "ETH", "USDT"))
            await line.receive("swap")
            call.scope.cancel()
            status = f"TAKEN {SECRET}"
            await line.send({**SWAPPED, "data": {**SWAPPED["data"], "status": status}})
            while not isinstance(event := await events.receive(), SwapResolved):
                pass
            assert_clean(event, event.receipt)


async def test_handshake_shows_no_key() -> None:
    async def handler(stream: trio.abc.Stream) -> None:
        location = f"https://other.example/?key={quote(API_KEY, safe='')}"
        await stream.receive_some()
        await send(stream, f"HTTP/1.1 302 no\r\nLocation: {location}\r\n\r\n".encode())

    async with serve_raw(handler) as port:
        client = client_at(f"ws://127.0.0.1:{port}/ws")
        with pytest.raises(ConnectFailedError) as caught:
            async with client:
                raise AssertionError
    assert_clean(caught.value, caught.value.__cause__, caught.value.__context__)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_reprs_show_no_key() -> None:
    client = client_at(f"wss://broker.example/ws/{quote(API_KEY, safe='')}?key=canary")
    assert_clean(client, client.logger, client._settings)
    assert_clean(parse_url("wss://broker.example/ws?key=canary"))
    message = Message("news", 1, "push", None, client._driver.wall_time(), SECRET)
    assert_clean(message)
    assert message.raw == SECRET


async def test_internal_error_shows_no_key() -> None:
    def clock() -> float:
        raise ValueError(f"no {SECRET}")

    async with open_scripted() as broker:
        with pytest.raises(BrokerError, match="internal error") as caught:
            async with client_at(broker.url, clock=clock):
                pass
    assert_clean(caught.value, caught.value.__cause__)


async def test_ids_and_amounts_are_never_altered() -> None:
    order_id = "ab" * 32
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        nursery.start_soon(line.acknowledge)
        async with client.subscribe_order(order_id, snapshot=False) as updates:
            data = {"orderId": order_id, "status": "FILLED", "txHash": "cd" * 32, "x": "\\"}
            await line.send({"ch": f"orders:{order_id}", "data": data})
            state = (await updates.receive()).data
    assert (state.order_id, state.tx_hash) == (order_id, "cd" * 32)


@pytest.mark.parametrize("where", [0, 1990, 1999, 2000, 2200, 2500, 5000])
@pytest.mark.parametrize("count", [1, 3, 500])
def test_long_error_text_is_cut_without_showing_a_key(where: int, count: int) -> None:
    key = "the-secret-key"
    text = "." * where + key * count + "." * 3000
    short = Redactor([Secret(key)]).error_text(text)
    assert len(short) <= 2004
    assert re.fullmatch(r"\.*(<removed>)*(<[a-z]*)?\.* \[…\]", short)


def test_short_error_text_is_unchanged() -> None:
    redactor = Redactor([Secret("the-secret-key")])
    assert redactor.error_text("x" * 2000) == "x" * 2000
    assert redactor.error_text("x" * 2001) == "x" * 2000 + " […]"


PLAIN_KEYS = ("plain-api-key-1", "plain-secret-key-1")


@pytest.mark.parametrize("key", PLAIN_KEYS)
@pytest.mark.parametrize(
    ("channel", "data"),
    [
        ("news", {"headline": "KEY", "more": [{"deep": "x KEY y"}]}),
        ("orders:o1", {"orderId": "o1", "status": "KEY"}),
        ("orders:o1", {"orderId": "o1", "status": "FILLED", "txHash": "0x KEY"}),
    ],
)
async def test_plain_keys_are_removed_from_pushes(key: str, channel: str, data: Body) -> None:
    async with open_scripted() as broker:
        client = BrokerWSClient(*PLAIN_KEYS, broker.url)
        async with client, trio.open_nursery() as nursery:
            line = await broker.line()
            opening = start(nursery, lambda: client.subscribe(channel, snapshot=False))
            await line.acknowledge()
            updates = await opening.result()
            await line.send(
                {"ch": channel, "data": json.loads(json.dumps(data).replace("KEY", key))}
            )
            message = await updates.receive()
            assert key not in repr(message)
            assert REDACTED in repr(message)


@pytest.mark.parametrize("key", PLAIN_KEYS)
async def test_plain_keys_are_removed_from_replies(key: str) -> None:
    async with open_scripted() as broker:
        client = BrokerWSClient(*PLAIN_KEYS, broker.url)
        async with client, trio.open_nursery() as nursery:
            line = await broker.line()
            call = start(nursery, client.get_order_status, "o1")
            await line.receive("order_status")
            data = {"orderId": "o1", "status": "PENDING", "txHash": key}
            await line.send({"op": "order_status", "data": data})
            assert key not in repr(await call.result())


@pytest.mark.parametrize("depth", [400, 500, 800, 5000])
async def test_deeply_nested_push_is_lost_alone(depth: int) -> None:
    async with scripted_client() as (client, line), trio.open_nursery() as nursery:
        opening = start(nursery, lambda: client.subscribe("news", snapshot=False))
        await line.acknowledge()
        updates = await opening.result()
        nested = '{"a":' * depth + '"\\n"' + "}" * depth
        await line.send('{"ch":"news","data":' + nested + "}", {"ch": "news", "data": "last"})
        message = await updates.receive()
        if message.data != "last":
            message = await updates.receive()
        assert message.data == "last"
        assert client.is_connected()


def test_errors_with_notes_and_other_values_are_redacted(redactor: Redactor) -> None:
    error = ServerError("swap", f"no {SECRET}")
    error.add_note(f"note of {SECRET}")
    error.extra = {"a": 1}  # type: ignore[attr-defined]
    clean = redactor.error(error)
    assert_clean(clean, clean.__notes__)


async def test_long_operations_of_the_broker_are_cut_in_events() -> None:
    async with open_scripted() as broker, BrokerWSClient(API_KEY, SECRET, broker.url) as client:
        line = await broker.line()
        events = client.events()
        await line.send({"op": "x" * 900_000}, {"op": "x" * 260 + API_KEY})
        for _ in range(2):
            event = await events.receive()
            assert isinstance(event, UnexpectedMessage)
            assert len(event.reason) < 400
            assert_clean(event)


@pytest.mark.parametrize("op", ["balances", "estimate"])
async def test_echoed_keys_are_in_no_traceback_with_locals(op: str) -> None:
    async with open_scripted() as broker, BrokerWSClient(API_KEY, SECRET, broker.url) as client:
        line = await broker.line()
        async with trio.open_nursery() as nursery:
            asks = {
                "balances": client.get_balances,
                "estimate": lambda: client.estimate_swap("1", "ETH", "USDT"),
            }
            call = start(nursery, asks[op])
            await line.receive(op)
            await line.send({"op": op, "error": f"Insufficient balance of {API_KEY}"})
            with pytest.raises(ServerError) as caught:
                await call.result()
        frames = caught.value.__traceback__
        assert frames is not None
        formatted = traceback.TracebackException(
            ServerError, caught.value, frames.tb_next, capture_locals=True
        )
        assert not [word for word in words() if word in "".join(formatted.format())]


async def test_errors_in_events_have_no_frames() -> None:
    async with open_scripted() as broker, BrokerWSClient(API_KEY, SECRET, broker.url) as client:
        line = await broker.line()
        async with trio.open_nursery() as nursery:
            events = client.events()
            opening = start(nursery, lambda: client.subscribe("balances"))
            await line.acknowledge()
            await opening.result()
            await line.receive("balances")
            await line.send({"op": "balances", "data": {"balances": API_KEY}})
            event = await events.receive()
            while not hasattr(event, "error"):
                event = await events.receive()
            error: BaseException | None = event.error
            while error is not None:
                assert error.__traceback__ is None
                error = error.__cause__ or error.__context__


class UncopyableError(Exception):
    """An exception whose constructor has more parameters than `args` has values."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("cause", [OSError(5, "gone"), UncopyableError(1, 2)])
def test_frames_are_removed_from_copies_of_causes_only(
    cause: Exception, redactor: Redactor
) -> None:
    with suppress(type(cause)):
        raise cause
    error = ConnectionLostError("lost")
    error.__cause__ = cause
    clean = redactor.error(error, frames=False)
    assert clean.__cause__ is not None
    assert clean.__cause__.__traceback__ is None
    assert str(cause) in str(clean.__cause__)
    assert cause.__traceback__ is not None
