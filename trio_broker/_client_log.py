"""What one client logs. Every text and level is here, and `docs/logging.md` has the list.

Each record has all fields of `_log_fields.fields`. None contains a key or a signature: texts of the
broker were redacted before, and names are redacted here.

**A recovery has the level of its loss.** A problem is remembered with its level, and its end is
logged at the same level. So a handler that shows the one shows the other.
"""

from __future__ import annotations

import logging
import math
import sys
import traceback
from typing import Any, Final, TypeAlias

import attrs

from trio_broker._channels.channel import BALANCES, ORDERS
from trio_broker._log_fields import fields
from trio_broker._protocol.effects import SwapEnded
from trio_broker._protocol.requests import Request
from trio_broker._redactor import Redactor
from trio_broker.events import (
    ChannelRefused,
    Closed,
    Connected,
    ConnectionEvent,
    Disconnected,
    GaveUp,
    Restored,
    SnapshotUnavailable,
    SwapCorrected,
    SwapUnresolved,
    UnexpectedMessage,
)
from trio_broker.exceptions import ConnectFailedError, ReconnectFailedError, fresh
from trio_broker.models import ConnectionState, Order, SwapOutcome, SwapReceipt

Problem: TypeAlias = tuple[str, str]

_CONNECTION: Final[Problem] = ("connection", "")
_CHANNELS: Final[Problem] = ("channels", "")
# Seconds for which a consumer that falls behind again is not logged again.
_QUIET: Final = 60.0
_MOST_PROBLEMS: Final = 10_000

_root_logger: Final = logging.getLogger("trio_broker")
_parent_logger: Final = logging.getLogger("trio_broker.client")
# Without it, a program that hasn't configured logging would print warnings to the terminal.
_root_logger.addHandler(logging.NullHandler())


class _ClientLogger(logging.Logger):
    """A logger below `trio_broker.client` that is deleted with its client.

    `logging.getLogger` keeps every logger for ever, which leaks memory in a service that makes a
    client for each request. The logging module doesn't know this logger, so it can't invalidate
    its cache of levels; therefore it has none.
    """

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name that logging calls
        return self.manager.disable < level >= self.getEffectiveLevel()


def client_logger(name: str, *, is_registered: bool) -> logging.Logger:
    """The logger of a client. It is registered if the user chose its name."""
    if is_registered:
        return logging.getLogger(f"{_parent_logger.name}.{name}")
    logger = _ClientLogger(f"{_parent_logger.name}.{name}")
    logger.parent = _parent_logger
    return logger


class ClientLog:
    """Writes the log records of one client."""

    def __init__(
        self,
        logger: logging.Logger,
        client: str,
        url: str,
        redactor: Redactor,
    ) -> None:
        self.client: str = client
        self._client_field = redactor.name(client)
        self._logger = logger
        self._url = url
        self._redactor = redactor
        self._problems: dict[Problem, int] = {}  # and the level of each
        self._sent_at: dict[str, float] = {}

    def write(
        self,
        level: int,
        text: str,
        *,
        problem: Problem | None = None,
        error: BaseException | None = None,
        duration: float | None = None,
        **names: str | None,
    ) -> None:
        """Write one record. A problem is remembered, for the level of its end."""
        if problem is not None:
            self._problems[problem] = level
            if len(self._problems) > _MOST_PROBLEMS:  # after months, in a service
                del self._problems[next(iter(self._problems))]
        if not self._logger.isEnabledFor(level):
            return
        redact = self._redactor.name
        extra = fields(
            client=self._client_field,
            duration=duration,
            **{field: name and redact(name) for field, name in names.items()},
        )
        line = redact(text)
        if not line.isprintable():
            line = "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
        exc_info = self._redactor.error(error) if error is not None else None
        try:
            self._logger.log(level, "%s", line, exc_info=exc_info, extra=extra)
        except Exception:  # noqa: BLE001 - a program's handler, filter or record factory
            # As the handlers of `logging` do: such an error must not end the client.
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()

    # --- The connection ------------------------------------------------------------------------

    def state(self, before: ConnectionState, after: ConnectionState) -> None:
        """Log a change of the client's state."""
        self.write(logging.DEBUG, f"state: {before.value} -> {after.value}")

    def completed(self, event: ConnectionEvent) -> ConnectionEvent:
        """The event as users see it: with the client's name, and without keys."""
        changes: dict[str, Any] = {"client": self.client}
        for field in attrs.fields(type(event)):
            value = getattr(event, field.name)
            if isinstance(value, BaseException):
                # The frames hold messages that aren't redacted.
                error = self._redactor.error(fresh(value), frames=False)
                changes[field.name] = error.with_traceback(None)
            elif field.name == "reason":
                changes[field.name] = self._redactor.text(value)
            elif isinstance(value, SwapReceipt):
                changes[field.name] = self._redactor.value(value)
        return attrs.evolve(event, **changes)

    def event(self, event: ConnectionEvent) -> None:  # noqa: C901 - a table
        """Log an event. The end of a swap is logged by `swap_ended`, also where it is no event."""
        match event:
            case Connected():
                level = self._problems.pop(_CONNECTION, None)
                if level is not None:
                    self._problems[_CHANNELS] = level
                self.write(level or logging.INFO, f"connected to {self._url}")
            case Disconnected(error=error, retry_in=delay):
                self._problems.pop(_CHANNELS, None)
                was_never = isinstance(error, ConnectFailedError | ReconnectFailedError)
                what = "connecting failed" if was_never else "connection lost"
                then = "no further attempt" if delay is None else f"next attempt in {delay:.1f} s"
                self.write(logging.WARNING, f"{what}: {error}; {then}", problem=_CONNECTION)
            case Restored(channels=channels):
                names = ", ".join(map(repr, channels)) or "no channels"
                level = self._problems.pop(_CHANNELS, logging.INFO)
                self.write(level, f"restored: {names}")
            case Closed():
                self.write(self._problems.pop(_CONNECTION, logging.INFO), "closed")
            case GaveUp(error=error):
                self.write(logging.ERROR, f"gave up: {error}")
            case ChannelRefused(channel=channel, error=error):
                self.write(
                    logging.WARNING,
                    f"channel {channel!r} was refused after the reconnection: {error}",
                    problem=("channel", channel),
                    channel=channel,
                )
            case SnapshotUnavailable(channel=channel, error=error):
                self.write(
                    logging.INFO,
                    f"the state of {channel!r} is not available: {error}",
                    problem=("state", channel),
                    channel=channel,
                )
            case SwapCorrected(client_order_id=name, outcome=outcome, receipt=receipt):
                order_id = receipt.order_id if receipt is not None else None
                how = f" as order {order_id}" if order_id is not None else ""
                self.write(
                    logging.ERROR,
                    f"swap {name} was reported as refused, but is {outcome.value}{how}",
                    op="swap",
                    client_order_id=name,
                    order_id=order_id,
                )
            case SwapUnresolved(client_order_id=name, reason=reason):
                self._swap_problem(name, f"unresolved: {reason}")
            case UnexpectedMessage(reason=reason):
                self.write(logging.INFO, f"unexpected message: {reason}")

    def fault(self, text: str, error: BaseException) -> None:
        """Log an internal error: a fault of this library, or of the user's clock."""
        self.write(logging.ERROR, text, error=error)

    # --- Requests ------------------------------------------------------------------------------

    def sent(self, request: Request, now: float) -> None:
        """Log that a request is sent."""
        if request.op == "swap":
            name = str(request.client_order_id)
            self._sent_at[name] = now
            self.write(logging.INFO, f"swap {name} sent", op="swap", client_order_id=name)
        elif self._logger.isEnabledFor(logging.DEBUG):
            self._write_of(request, logging.DEBUG, f"{_named(request)} sent")

    def ended(self, request: Request, now: float) -> None:
        """Log that a request has ended."""
        level = logging.DEBUG
        is_given_up = request.is_abandoned and request.result is None
        if self._problems and request.error is None and request.was_sent and not is_given_up:
            level = self._recovered(request)
        if not self._logger.isEnabledFor(level):
            return
        seconds = now - request.since if request.was_sent else None
        if not request.was_sent:
            text = f"{_named(request)} not sent: {request.error or 'given up'}"
        elif is_given_up and request.error is None:
            text = f"{_named(request)} given up after {seconds:.3f} s"
        elif request.error is not None:
            text = f"{_named(request)} failed after {seconds:.3f} s: {request.error}"
        else:
            text = f"{_named(request)} answered in {seconds:.3f} s"
        self._write_of(request, level, text, seconds)

    def _recovered(self, request: Request) -> int:
        """The level for a reply: that of the problem that it ends, if there is one."""
        if request.op == "subscribe":
            return self._problems.pop(("channel", str(request.channel)), logging.DEBUG)
        name = request.order_id or request.client_order_id
        channel = BALANCES if request.op == "balances" else f"{ORDERS}{name}"
        return self._problems.pop(("state", channel), logging.DEBUG)

    def _write_of(
        self, request: Request, level: int, text: str, duration: float | None = None
    ) -> None:
        found = request.result
        order_id = found.order_id if isinstance(found, Order | SwapReceipt) else None
        self.write(
            level,
            text,
            op=request.op,
            client_order_id=request.client_order_id,
            # Some lookups send a client order id in the place of an order id.
            order_id=order_id if request.client_order_id else request.order_id or order_id,
            channel=request.channel,
            duration=duration,
        )

    # --- Swaps ---------------------------------------------------------------------------------

    def swap_ended(self, ended: SwapEnded, now: float) -> None:
        """Log the outcome of a swap."""
        name = ended.intent.client_order_id
        sent_at = self._sent_at.pop(name, None)
        how = f": {ended.detail}" if ended.order_id is None else f" as order {ended.order_id}"
        is_settled = ended.outcome is SwapOutcome.SETTLED
        outcome = "settled by hand" if is_settled else ended.outcome.value
        self.write(
            self._problems.pop(("swap", name), logging.INFO),
            f"swap {name} {outcome}{how}",
            op="swap",
            client_order_id=name,
            order_id=ended.order_id,
            duration=None if sent_at is None else now - sent_at,
        )

    def swap_given_up(self, client_order_id: str) -> None:
        """Log that the caller of a swap was cancelled before the outcome was known."""
        self._swap_problem(client_order_id, "was given up: outcome unknown")

    def swap_left_over(self, client_order_id: str, reason: str) -> None:
        """Log that the outcome of a swap of an earlier process is unknown."""
        self._swap_problem(client_order_id, f"of an earlier run is unresolved: {reason}")

    def _swap_problem(self, client_order_id: str, text: str) -> None:
        self.write(
            logging.WARNING,
            f"swap {client_order_id} {text}",
            problem=("swap", client_order_id),
            op="swap",
            client_order_id=client_order_id,
        )

    def swap_unclaimed(
        self, client_order_id: str, order_id: str, why: str, status: str = ""
    ) -> None:
        """Log the order of a swap whose call can't return it."""
        self.write(
            logging.WARNING,
            f"swap {client_order_id} was accepted as order {order_id}"
            f"{status and f' ({status})'}, and {why}",
            op="swap",
            client_order_id=client_order_id,
            order_id=order_id,
        )


class SlowConsumer:
    """Logs that a subscription's consumer has fallen behind, and that it has caught up."""

    def __init__(self, log: ClientLog, channel: str) -> None:
        self._log = log
        self._channel = channel
        self._is_logged = False
        self._quiet_until = -math.inf

    def overflowed(self, now: float) -> None:
        """Note that the buffer is full, so that its oldest message is dropped."""
        if not self._is_logged and now >= self._quiet_until:
            self._is_logged = True
            self._quiet_until = now + _QUIET
            self._write("is too slow: its oldest messages are dropped")

    def drained(self, dropped: int) -> None:
        """Note that the buffer is empty again."""
        if self._is_logged:
            self._is_logged = False
            self._write(f"has caught up; {dropped} messages were dropped so far")

    def _write(self, what: str) -> None:
        text = f"a consumer of {self._channel!r} {what}"
        self._log.write(logging.WARNING, text, channel=self._channel)


def _named(request: Request) -> str:
    subject = request.channel or request.order_id or request.client_order_id
    return request.op if subject is None else f"{request.op} {subject!r}"
