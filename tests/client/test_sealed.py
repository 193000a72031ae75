"""Attributes that a class doesn't have are refused, with a hint; a test can still patch methods."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import trio

from tests.aio_host import Host
from trio_broker import Balance, BoundedReceiveChannel, BrokerWSClient, Subscription
from trio_broker._streams.buffer import Buffer, MessageBuffer
from trio_broker.aio import AioBrokerClient, AioChannel, AioSubscription, open_client
from trio_broker.sandbox import open_sandbox, open_threaded_sandbox

KEYS = ("key", "secret", "wss://broker.example/ws")


def aio_client() -> AioBrokerClient:
    return AioBrokerClient(BrokerWSClient(*KEYS), None)  # type: ignore[arg-type]


SEALED: dict[str, Callable[[], Any]] = {
    "client": lambda: BrokerWSClient(*KEYS),
    "aio client": aio_client,
    "subscription": lambda: Subscription(MessageBuffer[Any]("balances")),
    "events": lambda: BoundedReceiveChannel(Buffer[str]("events", 1)),
    "aio subscription": lambda: AioSubscription(
        Subscription(MessageBuffer[Any]("balances")),
        None,  # type: ignore[arg-type]
    ),
    "aio events": lambda: AioChannel(
        BoundedReceiveChannel(Buffer[str]("events", 1)),
        None,  # type: ignore[arg-type]
    ),
}
each = pytest.mark.parametrize("make", SEALED.values(), ids=SEALED)


@each
@pytest.mark.parametrize("name", ["response_handler", "on_message", "price_callback"])
def test_callback_attribute_is_refused_with_a_hint(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(
        AttributeError, match=f"no attribute '{name}'.*no callbacks.*async "
    ) as caught:
        setattr(make(), name, print)
    assert caught.value.name == name


@each
@pytest.mark.parametrize("name", ["nothing", "register", "mro", "_private", "__slots_"])
def test_any_other_unknown_name_is_refused(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}'.*declare it in a subclass"):
        setattr(make(), name, 1)


@pytest.mark.parametrize(
    ("name", "meant"), [("max_reconnect_attempt", "max_reconnect_attempts"), ("loger", "logger")]
)
@pytest.mark.parametrize("make", [SEALED["client"], SEALED["aio client"]])
def test_error_suggests_the_attribute_that_was_meant(
    make: Callable[[], Any], name: str, meant: str
) -> None:
    with pytest.raises(AttributeError, match=f"did you mean '{meant}'"):
        setattr(make(), name, 3)


@each
def test_only_settable_properties_can_be_assigned(make: Callable[[], Any]) -> None:
    sealed = make()
    name = "latency" if hasattr(sealed, "latency") else "dropped"
    with pytest.raises(AttributeError):
        setattr(sealed, name, 1)
    if hasattr(sealed, "reconnect_delay"):
        sealed.reconnect_delay = 0.5
        assert sealed.reconnect_delay == 0.5


@each
def test_every_method_can_be_patched_on_an_instance(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = make()
    names = [
        name
        for name, member in inspect.getmembers(type(sealed), inspect.isfunction)
        if not name.startswith("__")
    ]
    assert len(names) > 5
    for name in names:
        before = getattr(sealed, name)
        with monkeypatch.context() as patched:
            patched.setattr(sealed, name, print)
            assert getattr(sealed, name) is print
        assert getattr(sealed, name) == before
        with mock.patch.object(sealed, name, autospec=True) as fake:
            assert getattr(sealed, name) is fake
        assert getattr(sealed, name) == before


async def test_patched_method_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fake() -> tuple[Balance, ...]:
        await trio.lowlevel.checkpoint()
        return ()

    async with open_sandbox() as sandbox, sandbox.client() as client:
        monkeypatch.setattr(client, "get_balances", fake)
        assert await client.get_balances() == ()
        async with client.subscribe_balances() as updates:
            monkeypatch.setattr(updates, "receive", fake)
            assert str(await updates.receive()) == "()"


class Annotated(BrokerWSClient):
    desk: str
    limit: int = 3


class Slotted(BrokerWSClient):
    __slots__ = ("desk",)


class Set(BrokerWSClient):
    def __init__(self, *arguments: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.desk = "none"
        self.orders: list[str] = []


class Mixin:
    def open_desk(self) -> None:
        self.desk = "open"


class Mixed(Mixin, BrokerWSClient):
    pass


class Heir(Set):
    pass


@pytest.mark.parametrize("kind", [Annotated, Slotted, Set, Mixed, Heir])
def test_subclass_can_add_attributes(kind: type[Any]) -> None:
    client = kind(*KEYS)
    client.desk = "Zurich"
    assert client.desk == "Zurich"
    with pytest.raises(AttributeError, match="response_handler"):
        client.response_handler = print


def test_annotations_that_cannot_be_evaluated_yet_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = inspect.get_annotations

    def get_annotations(kind: type) -> dict[str, Any]:
        if kind is Set:
            raise NameError("not there yet")
        return original(kind)

    monkeypatch.setattr(inspect, "get_annotations", get_annotations)
    client = Set(*KEYS)
    client.desk = "Zurich"
    with pytest.raises(AttributeError):
        client.response_handler = print  # type: ignore[attr-defined]


def test_stream_of_a_subclass_is_sealed_too() -> None:
    class Mine(Subscription[Any]):
        note: str

    mine = Mine(MessageBuffer[Any]("balances"))
    mine.note = "mine"
    with pytest.raises(AttributeError):
        mine.notes = "?"  # type: ignore[attr-defined]


def test_clients_for_asyncio_are_patched_likewise(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fake() -> tuple[Balance, ...]:
        await asyncio.sleep(0)
        return ()

    async def main() -> None:
        with open_threaded_sandbox() as sandbox:
            async with open_client(sandbox.client()) as client:
                monkeypatch.setattr(client, "get_balances", fake)
                assert await client.get_balances() == ()
                async with client.subscribe("balances") as updates:
                    monkeypatch.setattr(updates, "receive", fake)
                    assert str(await updates.receive()) == "()"

    host.run(main)


def test_tracked_order_refuses_attributes_that_it_does_not_have() -> None:
    client = BrokerWSClient("key", "secret", "ws://127.0.0.1:1/ws")
    with pytest.raises(AttributeError, match="async for"):
        client.track_order("o1").on_message = print  # type: ignore[attr-defined]


def test_tracked_order_for_asyncio_refuses_attributes_that_it_does_not_have(host: Host) -> None:
    async def main() -> None:
        with open_threaded_sandbox() as sandbox:
            async with open_client(sandbox.client()) as client:
                with pytest.raises(AttributeError, match="async for"):
                    client.track_order("o1").on_message = print  # type: ignore[attr-defined]

    host.run(main)
