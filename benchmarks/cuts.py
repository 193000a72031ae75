"""Cut the connection of a swap at every byte, and compare the outcomes with the broker's ledger.

    python benchmarks/cuts.py
    python benchmarks/cuts.py --stride 7 --seed 1

A client connects to a sandbox through a proxy, over real sockets on this machine, with an autojump
clock. Each history has one swap. The proxy passes some bytes of its frame, or of the broker's
reply, and then cuts: it disconnects, resets, or stays silent. The caller waits, or is cancelled at
that moment, or has a second swap that waits in the queue. Afterwards the connection works again,
and the client looks up the swap, but lookups may fail too. In the end they work, and unknown swaps
are looked up again.

The exit status is 1 if any outcome was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Final, Literal, TypeAlias, get_args

import attrs
import trio
import trio.testing

from trio_broker import (
    BrokerWSClient,
    ConnectionEvent,
    NotSentError,
    ReconnectPolicy,
    ServerError,
    SwapOutcome,
    SwapOutcomeUnknownError,
    SwapReceipt,
    SwapResolved,
)
from trio_broker.sandbox import Sandbox, open_sandbox
from trio_broker.sandbox.accounts import Account
from trio_broker.sandbox.orders import Order

Direction: TypeAlias = Literal["to the broker", "to the client"]
Way: TypeAlias = Literal["hang up", "reset", "go silent"]
Caller: TypeAlias = Literal["stays", "cancelled", "rival"]
Kind: TypeAlias = Literal["accepted", "refused", "lookups fail", "lookups are lost"]

KINDS: Final = get_args(Kind)
FIGURES: Final = (
    "histories",
    "executed",
    "confirmed at once",
    "confirmed after asking",
    "refused",
    "not sent",
    "unknown",
    "cancelled",
    "resolved later",
    "disagreements",
)
GRACE: Final = 5.0
LINGER: Final = 15.0  # seconds in which a client looks up a swap, and abandons a lost reply
_NOT_FOUND: Final = {"op": "order_status", "error": "Order not found"}
_START: Final = 1_767_312_000.0  # any time
_POLICY: Final = ReconnectPolicy(max_attempts=None, initial_delay=0.1, max_delay=0.5)
_ACCOUNT: Final = Account("key-of-the-cuts", "secret-of-the-cuts", {"BTC": 1_000_000})


# --- The proxy ------------------------------------------------------------------------------


@attrs.define(eq=False)
class Cut:
    """Where and how the connection is cut, once.

    Attributes:
        direction: In which of its streams.
        offset: After how many bytes.
        way: How.
        on_cut: Called at that moment.
        passed: How many bytes have come in each direction.
        is_done: Whether it has happened.
    """

    direction: Direction
    offset: int
    way: Way
    on_cut: Callable[[], object] = lambda: None
    passed: Counter[Direction] = attrs.field(factory=Counter)
    is_done: bool = False

    def allowed(self, direction: Direction, data: bytes) -> bytes | None:
        """The part of some bytes that passes before the cut; None if they don't reach it."""
        before = self.passed[direction]
        self.passed[direction] += len(data)
        if self.is_done or direction != self.direction or before + len(data) < self.offset:
            return None
        self.is_done = True
        return data[: self.offset - before]


class Line:
    """A proxy in front of the broker.

    Args:
        port: The broker's.
    """

    def __init__(self, port: int) -> None:
        self.cut: Cut | None = None
        self._port = port

    async def serve(self, client: trio.SocketStream) -> None:
        """Forward bytes until the connection is cut."""
        broker = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with client, broker, trio.open_nursery() as nursery:
            link = _Link(self, client, broker, nursery.cancel_scope)
            nursery.start_soon(link.pass_on, client, broker, "to the broker")
            nursery.start_soon(link.pass_on, broker, client, "to the client")


@attrs.define(eq=False)
class _Link:
    line: Line
    client: trio.SocketStream
    broker: trio.SocketStream
    scope: trio.CancelScope
    is_silent: bool = False

    async def pass_on(
        self, source: trio.SocketStream, target: trio.SocketStream, direction: Direction
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := bytes(await source.receive_some(65536)):
                if self.is_silent:
                    continue
                cut = self.line.cut
                rest = cut.allowed(direction, data) if cut is not None else None
                if cut is None or rest is None:
                    await target.send_all(data)
                    continue
                if rest:
                    await target.send_all(rest)
                self._cut(cut)
        if not self.is_silent or source is self.client:
            self.scope.cancel()

    def _cut(self, cut: Cut) -> None:
        if cut.way == "go silent":
            self.is_silent = True
        else:
            if cut.way == "reset":
                for stream in (self.client, self.broker):
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.scope.cancel()
        cut.on_cut()


# --- A history ------------------------------------------------------------------------------


@attrs.frozen
class Case:
    """The parameters of a history."""

    kind: Kind
    caller: Caller
    way: Way
    direction: Direction
    offset: int


@attrs.define(eq=False)
class Told:
    """A swap, and the outcome that its caller got.

    Attributes:
        name: Its client order id.
        outcome: What; None for one who was cancelled.
        receipt: The receipt, if there was one.
        asked: Whether the broker was asked for it before that.
        unresolved: Whether the client had it among its unresolved swaps at that moment.
        had_left: Whether any byte of it had.
    """

    name: str
    outcome: SwapOutcome | None = None
    receipt: SwapReceipt | None = None
    asked: bool = False
    unresolved: bool = False
    had_left: bool = False


@attrs.define(eq=False)
class Cuts:
    """The run: its sandbox, its proxy, its counters and its disagreements."""

    sandbox: Sandbox
    line: Line
    url: str
    clock: Callable[[], float]
    figures: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    disagreements: list[str] = attrs.field(factory=list)
    refused: set[str] = attrs.field(factory=set)
    connections_before: int = 0
    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))

    def orders_of(self, name: str) -> list[Order]:
        """The ledger's orders with a client order id."""
        orders = self.sandbox.orders(_ACCOUNT.api_key)
        # The last ones are enough while a history runs.
        return [order for order in orders[-10:] if order.client_order_id == name]

    async def measure(self, kind: Kind) -> Counter[Direction]:
        """The number of bytes that a swap of a kind sends and receives without a cut."""
        self.line.cut = cut = Cut("to the client", 1_000_000, "hang up")
        async with self._client() as client:
            self.line.cut.passed.clear()
            with suppress(ServerError):
                await self._swap(client, kind, self._name())
        passed = Counter(cut.passed)
        self.line.cut = None
        return passed

    async def history(self, case: Case) -> None:
        """Cut the connection once, wait for all outcomes, and compare with the ledger."""
        self.figures[case.kind, "histories"] += 1
        events: list[ConnectionEvent] = []
        self.connections_before = self.sandbox.connections[-1].number
        told = [Told(self._name())]
        if case.caller == "rival":
            told.append(Told(self._name()))
        async with self._client() as client:
            tap = client.events()
            first = trio.CancelScope()
            on_cut = first.cancel if case.caller == "cancelled" else lambda: None
            with ExitStack() as faults:
                self._break_lookups(case.kind, faults)
                self.line.cut = Cut(case.direction, case.offset, case.way, on_cut)
                async with trio.open_nursery() as nursery:
                    for one in told:
                        scope = first if one is told[0] else trio.CancelScope()
                        nursery.start_soon(self._call, client, case.kind, one, scope)
                # Wait for the lookups of cancelled swaps, and until lost replies are abandoned.
                await trio.sleep(LINGER)
            if not self.line.cut.is_done:
                self._disagree(case, "the line was never cut")
            self.line.cut = None
            for one in told:
                await self._settle(client, case, one)
            with suppress(trio.WouldBlock):
                while True:
                    events.append(tap.receive_nowait())
            self._check_events(case, events)
            self._check_unresolved(case, client, told, events)
        for one in told:
            self._check(case, one)
        sent = [one for one in told if one.outcome is not SwapOutcome.NOT_SENT]
        self._expect(case, sent, f"{told[0].name} had left, and is told not sent")

    async def _call(
        self, client: BrokerWSClient, kind: Kind, told: Told, scope: trio.CancelScope
    ) -> None:
        try:
            with scope:
                told.receipt = await self._swap(client, kind, told.name)
                told.outcome = SwapOutcome.CONFIRMED
        except NotSentError:
            told.outcome = SwapOutcome.NOT_SENT
        except ServerError:
            told.outcome = SwapOutcome.REFUSED
        except SwapOutcomeUnknownError:
            told.outcome = SwapOutcome.UNKNOWN
        told.asked = self._was_asked()
        told.unresolved = self._is_unresolved(client, told.name)
        cut = self.line.cut
        told.had_left = cut is not None and cut.passed["to the broker"] > 0

    async def _settle(self, client: BrokerWSClient, case: Case, told: Told) -> None:
        """Look up unknown swaps, now without faults."""
        if told.outcome not in {SwapOutcome.UNKNOWN, None}:
            return
        if told.outcome is None and not told.had_left:
            return
        orders = self.orders_of(told.name)
        try:
            receipt = await client.resolve_swap(told.name)
        except ServerError:
            self._expect(case, not orders, f"{told.name} is executed, and resolved as refused")
            self.figures[case.kind, "resolved later"] += 1
            self.refused.add(told.name)
        except SwapOutcomeUnknownError:
            self._expect(case, not orders, f"{told.name} is executed, and isn't found")
            self._expect(case, self._is_unresolved(client, told.name), "it isn't kept")
        else:
            self.figures[case.kind, "resolved later"] += 1
            self._check_receipt(case, told.name, receipt)

    # --- What must agree -------------------------------------------------------------------

    def _check(self, case: Case, told: Told) -> None:
        orders = self.orders_of(told.name)
        self._expect(case, len(orders) <= 1, f"{told.name} is executed {len(orders)} times")
        self.figures[case.kind, "executed"] += len(orders)
        name = str(told.outcome or "cancelled")
        match told.outcome:
            case SwapOutcome.CONFIRMED:
                name = "confirmed after asking" if told.asked else "confirmed at once"
                self._check_receipt(case, told.name, told.receipt)
            case SwapOutcome.REFUSED:
                self.refused.add(told.name)
                self._expect(case, not orders, f"{told.name} is executed, told refused")
            case SwapOutcome.NOT_SENT:
                self._expect(case, not orders, f"{told.name} is executed, told not sent")
            case SwapOutcome.UNKNOWN:
                self._expect(case, told.unresolved, f"{told.name} is unknown, and not kept")
        self.figures[case.kind, name] += 1

    def _check_receipt(self, case: Case, name: str, receipt: SwapReceipt | None) -> None:
        orders = [order.order_id for order in self.orders_of(name)]
        same = receipt and (orders, name) == ([receipt.order_id], receipt.client_order_id)
        self._expect(case, same, f"{name} has the orders {orders}, told {receipt}")

    def _check_events(self, case: Case, events: list[ConnectionEvent]) -> None:
        for event in events:
            if not isinstance(event, SwapResolved):
                continue
            if event.receipt is not None:
                self._check_receipt(case, event.client_order_id, event.receipt)
            else:
                self.refused.add(event.client_order_id)

    def _check_unresolved(
        self,
        case: Case,
        client: BrokerWSClient,
        told: list[Told],
        events: list[ConnectionEvent],
    ) -> None:
        """Check that a cancelled swap is unresolved, or that an event reported its outcome."""
        resolved = {one.client_order_id for one in events if isinstance(one, SwapResolved)}
        for one in told:
            if one.outcome is None and one.had_left:
                kept = one.unresolved or one.name in resolved
                self._expect(case, kept, f"{one.name} was cancelled, and is forgotten")
            if one.name in resolved:
                gone = not self._is_unresolved(client, one.name)
                self._expect(case, gone, f"{one.name} is resolved, and unresolved")

    def check_refused(self) -> None:
        """Check at the very end that refused swaps weren't executed later."""
        executed = {order.client_order_id for order in self.sandbox.orders()}
        names = [order.client_order_id for order in self.sandbox.orders()]
        if len(names) != len(executed):
            self.disagreements.append("a client order id is in the ledger more than once")
        for name in sorted(self.refused & executed):
            self.disagreements.append(f"{name} was refused, and is executed")

    def _expect(self, case: Case, agrees: object, text: str) -> None:
        if not agrees:
            self._disagree(case, text)

    def _disagree(self, case: Case, text: str) -> None:
        self.figures[case.kind, "disagreements"] += 1
        self.disagreements.append(f"{case}: {text}")

    # --- Small things ----------------------------------------------------------------------

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[BrokerWSClient]:
        async with BrokerWSClient(
            _ACCOUNT.api_key,
            _ACCOUNT.secret_key,
            self.url,
            reconnect=_POLICY,
            heartbeat_interval=2.0,
            heartbeat_timeout=2.0,
            request_timeout=3.0,
            reply_grace=GRACE,
            resolve_timeout=8.0,
            clock=self.clock,
        ) as client:
            yield client

    async def _swap(self, client: BrokerWSClient, kind: Kind, name: str) -> SwapReceipt:
        amount = "9000000" if kind == "refused" else "0.00100"
        return await client.do_swap(amount, "BTC", "USDT", client_order_id=name)

    def _break_lookups(self, kind: Kind, faults: ExitStack) -> None:
        if kind == "lookups fail":
            faults.enter_context(self.sandbox.faults.replace(_NOT_FOUND, op="order_status"))
        elif kind == "lookups are lost":
            faults.enter_context(self.sandbox.faults.swallow(op="order_status"))

    def _is_unresolved(self, client: BrokerWSClient, name: str) -> bool:
        return any(swap.client_order_id == name for swap in client.unresolved_swaps())

    def _was_asked(self) -> bool:
        """Whether this history's connections have received a lookup."""
        links = itertools.takewhile(
            lambda link: link.number > self.connections_before, reversed(self.sandbox.connections)
        )
        return any(one.op == "order_status" for link in links for one in link.received)

    def _name(self) -> str:
        return f"cut-{next(self._numbers):08d}"


# --- The run --------------------------------------------------------------------------------


def cases(kind: Kind, sizes: Counter[Direction], stride: int, chance: random.Random) -> list[Case]:
    """Every history of a kind, or with a stride some of each sort and the last."""
    found = []
    for direction, way, caller in itertools.product(
        get_args(Direction), get_args(Way), get_args(Caller)
    ):
        # A stride begins anywhere, so that the sorts don't all miss the same offsets.
        offsets = {*range(chance.randrange(stride), sizes[direction], stride), sizes[direction]}
        found += [Case(kind, caller, way, direction, offset) for offset in sorted(offsets)]
    return found


async def cut_everywhere(stride: int, seed: int) -> Cuts:
    """Run all histories."""
    clock: Callable[[], float] = lambda: _START + trio.current_time()  # noqa: E731 - it has a type
    chance = random.Random(seed)  # noqa: S311 - repeatable is the point
    async with (
        open_sandbox(seed=seed, clock=clock, accounts=[_ACCOUNT], history_size=100) as sandbox,
        trio.open_nursery() as nursery,
    ):
        line = Line(int(sandbox.url.rsplit(":", 1)[1].split("/")[0]))
        (listener,) = await nursery.start(partial(trio.serve_tcp, line.serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        cuts = Cuts(sandbox, line, f"ws://127.0.0.1:{port}/ws/v1/stream", clock)
        for kind in KINDS:
            for case in cases(kind, await cuts.measure(kind), stride, chance):
                await cuts.history(case)
        cuts.check_refused()
        nursery.cancel_scope.cancel()
    return cuts


def show(cuts: Cuts) -> None:
    """Print the table."""
    print(f"{'':24}" + "".join(f"{kind:>18}" for kind in KINDS) + f"{'in all':>10}")
    for figure in FIGURES:
        counts = [cuts.figures[kind, figure] for kind in KINDS]
        total = max(sum(counts), len(cuts.disagreements) if figure == "disagreements" else 0)
        print(f"{figure:<24}" + "".join(f"{count:>18}" for count in counts) + f"{total:>10}")
    for line in cuts.disagreements[:20]:
        print("WRONG:", line)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Swaps whose line is cut at every byte.")
    parser.add_argument("--stride", type=int, default=1, help="only every so manyth offset")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    clock = trio.testing.MockClock(autojump_threshold=0)
    cuts = trio.run(cut_everywhere, arguments.stride, arguments.seed, clock=clock)
    show(cuts)
    sys.exit(1 if cuts.disagreements else 0)


if __name__ == "__main__":
    main()
