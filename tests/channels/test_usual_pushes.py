"""Usual pushes of orders are taken together, with the same results as one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from hypothesis import given, strategies as st

from tests.channels.harness import MS, ChannelsEngine, ChannelsHarness, Consumer
from trio_broker._channels.registry import ChannelRegistry
from trio_broker._engine import Engine
from trio_broker._redactor import Redactor
from trio_broker._secret import Secret
from trio_broker.exceptions import ChannelError

KEY = "key-of-a-client"


class Harness(ChannelsHarness):
    """Orders o1 with one subscription, o2 with two, o3 that is tracked, and o4 with a snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self.consumers: list[Consumer] = [self.subscribed("orders:o1")]
        self.consumers += [self.subscribed("orders:o2"), self.subscribe("orders:o2")]
        self.consumers.append(self.track_acknowledged("orders:o3"))
        self.consumers.append(self.subscribe("orders:o4", snapshot=True))
        self.answer("subscribe", "orders:o4")
        self.send_all()

    def make_engine(self, **options: Any) -> Engine:
        return ChannelsEngine(Redactor([Secret(KEY)]), **options)

    def results(self) -> object:
        messages = [everything(one) for one in self.consumers]
        channels = [
            (one.has_state, one.is_client_id, one.overtaken, *(s.newest for s in one.subscribers))
            for one in self.channels._channels.values()
        ]
        return messages, channels, self.unexpected, self.engine.received, self.replaced


class OneByOne(Harness):
    """The same, without the quicker way."""

    def __init__(self) -> None:
        super().__init__()
        self.channels.take_usual_pushes = lambda *_: 0  # type: ignore[method-assign]


def everything(consumer: Consumer) -> list[object]:
    """All that a consumer can receive, with errors and the end as texts."""
    found: list[object] = []
    while True:
        try:
            found.append(consumer.handle.receive_nowait())
        except ChannelError as error:
            found.append(str(error))
        except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError) as error:
            return [*found, repr(error)]


def push(order: str, status: str, **members: object) -> str:
    message = {"ch": f"orders:{order}", "data": {"status": status, **members}}
    return json.dumps(message, separators=(",", ":"))


pushes = st.builds(
    push,
    st.sampled_from(["o1", "o1", "o1", "o2", "o3", "o4", "nobody", ""]),
    st.sampled_from(["PENDING", "PARTIAL", "PROCESSING", "FILLED", "FAILED", "ODD"]),
    orderId=st.sampled_from(["o1", "o2", "", None, 7]),
    filledOut=st.sampled_from(["1", "2", "3", None, "NaN"]),
    updatedAt=st.sampled_from([MS, MS + 1, MS + 2, None, 5]),
    txHash=st.sampled_from([None, "0x1", KEY, "\\"]),
)
others = st.sampled_from(
    [
        b"binary",
        push("o1", "FILLED").encode(),
        "no JSON",
        "{}",
        '{"ch":"orders:o1","error":"no"}',
        '{"ch":"orders:o1","ch":"balances","data":{"status":"FILLED"}}',
        '{"ch":"balances","data":[]}',
        '{"op":"ping"}',
    ]
)
reads = st.lists(st.lists(pushes | pushes | pushes | others, max_size=8), max_size=4)


@given(reads, st.sampled_from(["nothing", "leave", "unsubscribe", "reconnect", "track"]))
def test_pushes_together_give_what_they_give_one_by_one(
    messages: list[list[str | bytes]], then: str
) -> None:
    results = []
    for kind in Harness, OneByOne:
        harness = kind()
        for read in messages:
            harness.receive(*read)
            if then == "leave":
                harness.consumers[2].handle.close()
            elif then == "unsubscribe":
                harness.unsubscribe("orders:o1", [])
            elif then == "reconnect":
                harness.lose()
                harness.connect()
            elif then == "track":
                harness.consumers.append(harness.track_order("orders:o1"))
        results.append(harness.results())
    assert results[0] == results[1]


def test_pushes_of_one_order_are_one_effect() -> None:
    harness = Harness()
    reads = [push("o1", "PARTIAL", filledOut=str(number)) for number in range(1, 5)]
    effects = harness.engine.receive(reads, harness.now, harness.at)
    assert len(effects) == 1
    harness.act(effects)
    fills = [one.data.filled_out for one in harness.consumers[0].receive_all()]
    assert fills == [1, 2, 3, 4]


@pytest.mark.parametrize("odd", [b"binary", "no JSON", '{"op":"ping"}'])
def test_pushes_go_on_after_a_message_of_another_kind(odd: str | bytes) -> None:
    harness = Harness()
    harness.receive(push("o1", "PENDING"), odd, push("o1", "PARTIAL"))
    received = harness.consumers[0].receive_all()
    assert [one.data.status for one in received] == ["PENDING", "PARTIAL"]


def test_key_in_a_push_among_others_is_taken_out() -> None:
    harness = Harness()
    harness.receive(push("o1", "PENDING"), push("o1", "PARTIAL", txHash=KEY))
    received = harness.consumers[0].receive_all()
    assert [one.data.status for one in received] == ["PENDING", "PARTIAL"]
    assert KEY not in str(received[1])


@pytest.mark.parametrize("order", ["o1", "o2"])
def test_usual_pushes_are_taken_the_quicker_way(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where there is one subscription."""
    calls = []
    take_push = ChannelRegistry.take_push

    def taking(*args: Any) -> None:
        calls.append(args)
        take_push(*args)

    monkeypatch.setattr(ChannelRegistry, "take_push", taking)
    harness = Harness()
    harness.receive(*(push(order, "PARTIAL", filledOut=str(number)) for number in range(1, 5)))
    assert len(calls) == (0 if order == "o1" else 4)
