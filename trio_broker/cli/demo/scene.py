"""The state that the demo's screen draws. Each event of the demo changes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

import attrs

from trio_broker import OrderStatus
from trio_broker.cli.terminal.output import plain

# The event that completes each step, and its title, which fits into 40 columns.
STEPS: Final = (
    ("sandbox", "Start a sandbox broker"),
    ("connected", "Connect and authenticate"),
    ("balances", "Get the balances"),
    ("estimate", "Estimate a swap"),
    ("swap", "Swap, sent at most once"),
    ("order", "Follow the order until it is final"),
    ("restored", "Lose the connection, reconnect"),
    ("gap", "Learn which updates may be missing"),
    ("end", "Check the balances"),
)
_STEPS_DONE: Final = {event: number for number, (event, _) in enumerate(STEPS, 1)}

_FINAL: Final = [status for status in OrderStatus if status.is_final]


@attrs.frozen(kw_only=True)
class Scene:
    """The state of the demo.

    Attributes:
        sold: The asset that is sold.
        bought: The asset that is bought.
        done: How many of `STEPS` are done.
        notes: The results of steps, by event.
        connection: The changes of the connection: times, and whether it was connected from then on.
        retry_at: The time at which the client reconnects.
        is_closed: Whether the client is closed.
        before: The first balances, by asset.
        now: The last balances.
        expected: The estimated result of the swap.
        order_id: The order ID.
        status: The order's status.
        filled: The amount that was bought so far.
        result: The result of the demo; empty until the end.
        is_over: Whether no more events follow.
    """

    sold: str
    bought: str
    done: int = 0
    notes: Mapping[str, str] = attrs.field(factory=dict)
    connection: tuple[tuple[float, bool], ...] = ()
    retry_at: float | None = None
    is_closed: bool = False
    before: Mapping[str, Decimal] = attrs.field(factory=dict)
    now: Mapping[str, Decimal] = attrs.field(factory=dict)
    expected: Decimal | None = None
    order_id: str = ""
    status: str = ""
    filled: Decimal = Decimal(0)
    result: str = ""
    is_over: bool = False

    def after(self, event: str, text: str, at: float, values: Mapping[str, Any]) -> Scene:
        """Return the scene after an event, given as in `Reporter`, at a time."""
        change = _CHANGES.get(event)
        scene = self if change is None else change(self, text, at, values)
        if event == "order" and values["status"] not in _FINAL:
            return scene
        return attrs.evolve(scene, done=max(self.done, _STEPS_DONE.get(event, 0)))

    def noted(self, event: str, note: str) -> Scene:
        """Return the scene with a note at the step that an event completes."""
        return attrs.evolve(self, notes={**self.notes, event: note})

    @property
    def is_connected(self) -> bool:
        """Whether the client is connected."""
        return bool(self.connection) and self.connection[-1][1] and not self.is_closed


# --- What each event changes ----------------------------------------------------------------

_Values = Mapping[str, Any]


def _connected(scene: Scene, _text: str, at: float, _values: _Values) -> Scene:
    return attrs.evolve(scene, connection=(*scene.connection, (at, True)), retry_at=None)


def _lost(scene: Scene, _text: str, at: float, values: _Values) -> Scene:
    delay = values["retry_in"]
    retry_at = None if delay is None else at + delay
    return attrs.evolve(scene, connection=(*scene.connection, (at, False)), retry_at=retry_at)


def _restored(scene: Scene, _text: str, at: float, values: _Values) -> Scene:
    lost_at = next((since for since, connected in reversed(scene.connection) if not connected), at)
    channels = ", ".join(values["channels"])
    return scene.noted("restored", f"{at - lost_at:.1f} s later, with {channels}")


def _balances(scene: Scene, _text: str, _at: float, values: _Values) -> Scene:
    return attrs.evolve(scene, before=scene.before or values["balances"], now=values["balances"])


def _estimate(scene: Scene, _text: str, _at: float, values: _Values) -> Scene:
    note = f"{plain(values['expected_out'])} {scene.bought}"
    return attrs.evolve(scene.noted("estimate", note), expected=values["expected_out"])


def _swap(scene: Scene, _text: str, _at: float, values: _Values) -> Scene:
    scene = scene.noted("swap", f"accepted as {values['order_id']}")
    return attrs.evolve(scene, order_id=values["order_id"], status=str(values["status"] or ""))


def _order(scene: Scene, _text: str, _at: float, values: _Values) -> Scene:
    filled, status = values["filled_out"] or Decimal(0), values["status"]
    scene = attrs.evolve(scene, status=str(status), filled=filled)
    return scene.noted("order", f"it is {status}")


def _gap(scene: Scene, _text: str, _at: float, values: _Values) -> Scene:
    return scene.noted("gap", f"a gap, and a {values['origin']}")


def _closed(scene: Scene, _text: str, _at: float, _values: _Values) -> Scene:
    return attrs.evolve(scene, is_closed=True)


def _end(scene: Scene, text: str, _at: float, _values: _Values) -> Scene:
    return attrs.evolve(scene, result=text, is_over=True)


_CHANGES: Final[dict[str, Callable[[Scene, str, float, _Values], Scene]]] = {
    "connected": _connected,
    "lost": _lost,
    "restored": _restored,
    "balances": _balances,
    "estimate": _estimate,
    "swap": _swap,
    "order": _order,
    "gap": _gap,
    "closed": _closed,
    "end": _end,
}
