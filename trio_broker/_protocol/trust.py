"""How far the replies of a connection can be trusted, and when it is replaced.

A connection is replaced at once if the broker no longer knows the client, or if nothing of what it
sends can be read. Three things can wait until no swap is unresolved, because a swap's reply would
be lost with the connection:

- **A lane is wanted whose last reply has not come** for `reply_grace` seconds. Each time, the grace
  of that operation doubles, until the broker answers it in time. So a slow broker isn't
  disconnected again and again.
- **A reply came that nobody was owed.** From then on, an error that names no operation may be such
  a reply too, so it can't refuse a swap. Or it could not be decided whose a swap's reply was. This
  replaces a connection at most once in `FRESH_INTERVAL`. Requests in flight get `PATIENCE` seconds
  to be answered before.
- **A swap had an error, and this broker's receipts can't be verified.** After the error, each
  receipt would be uncertain, so the connection is replaced as soon as nothing is in flight.

Such a replacement is no attempt to reconnect: the broker is there, and the client wants it so.
"""

from __future__ import annotations

import math
from typing import Final

from trio_broker._protocol.effects import Effect, ReplaceConnection
from trio_broker.exceptions import ConnectionLostError

FRESH_INTERVAL: Final = 60.0
PATIENCE: Final = 5.0
MAX_GRACE: Final = 60.0
MALFORMED_IN_A_ROW: Final = 5


class Trust:
    """The state of one client's connections.

    Attributes:
        is_over: Whether this connection is about to be replaced: everything more is ignored.
        is_tainted: Whether a reply came on this connection that nobody was owed.
        had_swap_error: Whether a swap had an error as its reply on this connection.
        can_verify: Whether no receipt was left that lookups could not attribute.
        stale_since: Since when this connection is to be replaced, or infinity.
        malformed: Messages in a row that are no JSON.
        graces: How long an abandoned request of an operation keeps its lane, if that was doubled.
    """

    def __init__(self, effects: list[Effect], reply_grace: float) -> None:
        self.is_over: bool = False
        self.is_tainted: bool = False
        self.had_swap_error: bool = False
        self.can_verify: bool = True
        self.stale_since: float = math.inf
        self.malformed: int = 0
        self._effects = effects
        self._reply_grace = reply_grace
        self.graces: dict[str, float] = {}
        self._last_replaced = -math.inf

    def reconnected(self) -> None:
        """Trust the next connection."""
        self.is_over = self.is_tainted = self.had_swap_error = False
        self.stale_since = math.inf
        self.malformed = 0

    def end(self, why: str, *, is_attempt: bool) -> None:
        """Have the connection replaced, and ignore everything more from it."""
        self.is_over = True
        self._effects.append(ReplaceConnection(ConnectionLostError(why), is_attempt))

    def take_malformed(self) -> None:
        """Count a message that is no JSON."""
        self.malformed += 1
        if self.malformed == MALFORMED_IN_A_ROW:
            why = f"{MALFORMED_IN_A_ROW} malformed messages came in a row"
            self.end(why, is_attempt=True)

    # --- Lanes -----------------------------------------------------------------------------

    def grace(self, op: str) -> float:
        """How long an abandoned request keeps its lane, in seconds."""
        return self.graces.get(op, self._reply_grace)

    def grace_is_over(self, op: str) -> None:
        """A lane is wanted, and its last reply hasn't come."""
        self.graces[op] = max(self.grace(op), min(2 * self.grace(op), MAX_GRACE))
        why = f"the reply to an abandoned {op!r} has not arrived, and the next one is wanted"
        self.end(why, is_attempt=False)

    def answered_in_time(self, op: str) -> None:
        """The broker has answered a request that somebody waited for."""
        self.graces.pop(op, None)

    # --- Replies that nobody was owed ------------------------------------------------------

    def taint(self, now: float) -> None:
        """A reply came that nobody was owed."""
        self.is_tainted = True
        self.make_stale(now)

    def make_stale(self, now: float) -> None:
        """Have the connection replaced when that does no harm."""
        self.stale_since = min(self.stale_since, now)

    def take_swap_error(self, now: float) -> None:
        """A swap had an error as its reply: later receipts have to be verified."""
        self.had_swap_error = True
        if not self.can_verify:
            self._last_replaced = -math.inf
            self.make_stale(now)

    def verification_failed(self, now: float) -> None:
        """Lookups could not tell whose a receipt is."""
        self.can_verify = False
        self.make_stale(now)

    def fresh_at(self, *, is_busy: bool) -> float:
        """When a stale connection is replaced, if no swap is in flight."""
        patience = PATIENCE if is_busy else 0.0
        return max(self.stale_since + patience, self._last_replaced + FRESH_INTERVAL)

    def make_fresh(self, now: float) -> None:
        """Replace a stale connection."""
        self._last_replaced = now
        why = "it could not be decided which request a reply belongs to"
        self.end(why, is_attempt=False)
