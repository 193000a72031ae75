"""No request ends with the reply to another one, for any requests in flight together.

The model broker answers each message at most once, in any order, with or without names, or never.
Each reply has the number of the message that it answers. To run more histories:

    python -m tests.swaps.test_attribution 20000
"""

from __future__ import annotations

import json
import random
import re
import sys
from decimal import Decimal
from typing import Any, Final

import attrs
import pytest

from tests.engine_harness import EngineHarness
from trio_broker._protocol import requests
from trio_broker._protocol.requests import Request
from trio_broker._streams.buffer import MessageBuffer
from trio_broker._streams.subscription import Subscription
from trio_broker.exceptions import ConnectionLostError, ServerError
from trio_broker.models import SwapIntent, SwapOutcome

STEPS: Final = 200


@attrs.define
class Asked:
    """A message that has reached the broker."""

    number: int
    request: Request


class Caller:
    """A waiter that does nothing when it is woken."""

    def set(self) -> None:
        pass


class History:
    """One client and one broker, whose steps follow from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names = self.random.choice([0.0, 0.3, 0.7, 1.0])
        self.loss = self.random.choice([0.0, 0.1, 0.3])
        self.repeats_client_ids = self.random.random() < 0.5
        self.harness = EngineHarness(max_subscriptions=3, messages_per_second=6, reply_grace=5.0)
        self.engine = self.harness.engine
        self.count = 0
        self.sent_bodies: dict[int, str] = {}
        self.pending: list[Asked] = []
        self.reads: list[Request] = []
        self.will_execute: dict[str, bool] = {}
        self.is_online = False

    def run(self) -> None:
        for step in range(STEPS):
            self.step(step)
            self.check()

    def step(self, step: int) -> None:
        chance = self.random.random()
        if not self.is_online:
            if chance < 0.5:
                self.connect()
            else:
                self.harness.pass_time(self.random.choice([0.1, 1.0]))
        elif self.harness.replaced or chance < 0.01:
            self.harness.lose(ConnectionLostError("lost"))
            self.is_online = False
        elif chance < 0.4:
            self.write()
        elif chance < 0.66:
            self.answer()
        elif chance < 0.79:
            self.send_request(chance)
        elif chance < 0.82 and self.reads:
            self.harness.give_up(self.reads.pop(self.random.randrange(len(self.reads))))
        elif chance < 0.86 and self.engine.session.is_authenticated:
            self.swap(f"c{step}")
        else:
            longest = self.harness.now + self.random.choice([0.05, 0.2, 1.0, 3.0])
            at = min(self.engine.timers.next_deadline, longest)
            self.harness.pass_time(max(0.0, at - self.harness.now))

    # --- The client --------------------------------------------------------------------------

    def connect(self) -> None:
        now = self.harness.now
        self.engine.connected(requests.authentication(now + 10), now)
        self.is_online = True
        self.pending.clear()
        self.harness.replaced.clear()

    def write(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            request = self.engine.next_to_send(self.harness.now)
            if request is None:
                return
            self.count += 1
            self.sent_bodies[self.count] = request.body or request.op
            nonce = "" if request.channel else f"n{self.count}"
            self.engine.mark_sent(request, nonce, self.harness.now)
            if request.op == "swap":
                self.will_execute[str(request.client_order_id)] = self.random.random() < 1 / 3
            if request.op == "auth" or self.random.random() >= self.loss:
                self.pending.append(Asked(self.count, request))

    def send_request(self, chance: float) -> None:
        deadline = self.harness.now + 10
        if chance < 0.76:
            order = self.random.choice(["a", "b", "d", *list(self.will_execute)[-2:]])
            is_order = self.random.random() < 0.6
            make = requests.order_status(order, deadline) if is_order else None
            self.reads.append(self.harness.submit(make or requests.balances(deadline)))
        else:
            buffer: MessageBuffer[Any] = MessageBuffer("")
            Subscription(buffer)
            order = self.random.choice(["t1", "t2", "t3", "t4"])
            now = self.harness.now
            _, effects = self.engine.track(order, buffer, now, stop_at_partial=False)
            self.harness.act(effects)

    def swap(self, client_order_id: str) -> None:
        now = self.harness.now
        trade = requests.Trade("1", "ETH", "USDT")
        intent = SwapIntent(
            client_order_id=client_order_id,
            amount_in=Decimal(trade.amount_in),
            asset_in="ETH",
            asset_out="USDT",
            at=self.harness.at,
        )
        swap = self.engine.enter_swap(intent, client_order_id, now)
        request = requests.swap(trade, client_order_id, None, now + 10)
        self.harness.act(self.engine.submit_swap(swap, request, Caller(), now))

    # --- The broker --------------------------------------------------------------------------

    def answer(self) -> None:
        messages = []
        for _ in range(self.random.randint(1, 2)):
            if self.pending:
                is_out_of_order = self.random.random() < 0.4
                index = self.random.randrange(len(self.pending)) if is_out_of_order else 0
                messages.append(json.dumps(self.message(self.pending.pop(index))))
        was_online = self.engine.session.is_authenticated
        self.harness.receive(*messages)
        if not was_online and self.engine.session.is_authenticated:
            self.harness.act(self.engine.restore(self.harness.now)[1])

    def message(self, asked: Asked) -> dict[str, Any]:
        request, number = asked.request, asked.number
        is_named = self.random.random() < self.names
        if request.op == "auth":
            return {"op": "auth", "data": {"status": "authenticated"}}
        if request.channel:
            return {"op": request.op, "ch": request.channel}
        if request.op == "swap":
            if self.will_execute[str(request.client_order_id)]:
                return {"op": "swap", "data": {"orderId": f"O{request.client_order_id}"}}
            message: dict[str, Any] = {"error": f"Insufficient #{number}"}
        elif request.op == "balances":
            balances = [{"asset": "USDT", "total": str(number)}]
            is_refused = self.random.random() < 0.3
            message = (
                {"error": f"bad #{number}"} if is_refused else {"data": {"balances": balances}}
            )
        else:
            message = self.order(json.loads(request.body)["id"], number, is_named=is_named)
        return {"op": request.op, **message} if is_named else message

    def order(self, asked: str, number: int, *, is_named: bool) -> dict[str, Any]:
        is_swap = asked.startswith("c")
        if (is_swap and not self.will_execute.get(asked)) or self.random.random() < 0.2:
            return {"error": f"order not found #{number}"}
        data = {"status": f"S{number}"}
        if is_named:
            data["orderId"] = f"O{asked}" if is_swap else asked
            if is_swap and self.repeats_client_ids:
                data["clientOrderId"] = asked
        return {"data": data}

    # --- Invariants --------------------------------------------------------------------------

    def check(self) -> None:
        for request in (*self.harness.ended, *self.harness.late):
            if request.op in {"balances", "order_status"}:
                number = number_in_reply(request)
                body = request.body or request.op
                # "Oc1" is the order of the swap c1: either lookup asks for it.
                is_own = number is None or same_order(self.sent_bodies[number], body)
                assert is_own, f"{body} ended with the reply to {number}"
        for ended in self.harness.swaps_ended:
            name = ended.intent.client_order_id
            if ended.outcome is SwapOutcome.CONFIRMED:
                assert self.will_execute.get(name), f"{name} was not executed"
                assert ended.order_id == f"O{name}"
            elif ended.outcome is SwapOutcome.REFUSED:
                assert self.will_execute.get(name) is False, f"{name} was executed"
            elif ended.outcome is SwapOutcome.NOT_SENT:
                assert name not in self.will_execute
        for items in (self.harness.ended, self.harness.late, self.harness.swaps_ended):
            items.clear()


def same_order(body: str, other: str) -> bool:
    return body.replace('"O', '"') == other.replace('"O', '"')


def number_in_reply(request: Request) -> int | None:
    """The number of the message that a request's answer is for; None if it has no answer."""
    if request.error is not None:
        found = re.search(r"#(\d+)", str(request.error))
        return int(found[1]) if found and isinstance(request.error, ServerError) else None
    if request.result is None:
        return None
    if request.op == "balances":
        return int(request.result[0].total)
    return int(str(request.result.status)[1:])


@pytest.mark.parametrize("seed", range(0, 400, 40))
def test_no_request_ends_with_the_answer_to_another_one(seed: int) -> None:
    for one in range(seed, seed + 40):
        History(one).run()


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        History(number).run()
    print(f"{sys.argv[1]} histories of {STEPS} steps, and nothing wrong")  # noqa: T201
