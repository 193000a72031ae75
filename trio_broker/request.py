"""One message to the broker, and what comes of it; and the doubt whose an answer is.

The session moves requests from stage to stage; those who ask make them and read what they bring.
Nothing here knows of turns or of time.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs

from trio_broker.exceptions import BrokerError
from trio_broker.wire import Inbound

Lane: TypeAlias = tuple[str, str | None]
CHANNEL: Final = "channel"


class Priority(enum.IntEnum):
    """The order in which requests leave."""

    AUTH = 0
    SWAP = 1
    READ = 2
    SUBSCRIBE = 3
    BACKGROUND = 4


class Stage(enum.Enum):
    """How far a request is."""

    WAITING = enum.auto()
    IN_FLIGHT = enum.auto()
    ENDED = enum.auto()


def ignore(_: Any) -> None:
    """The callback of those who give none."""


@attrs.define(eq=False)
class Request:
    """One message to the broker and what comes of it.

    Attributes:
        op: The operation.
        priority: When it leaves.
        decode: Makes the result out of the reply; a `ProtocolError` that it raises is the answer.
        deadline: When nobody waits for it any more, on the caller's clock.
        leave_by: Until when it may be signed, in seconds of the wall clock.
        body: The text of its ``data`` member.
        channel: The channel, of ``subscribe`` and ``unsubscribe``.
        order_id: The order id that ``order_status`` asks for.
        client_order_id: The client order id that ``order_status`` asks for, or that a swap has.
        on_end: Called once, when the answer is there or nobody waits for it any more.
        on_late: Called when the answer comes although it was given up; what it brings replaces
            the error that the request ended with.
        result: What `decode` made of the reply.
        reply: The text of the reply.
        error: Why there is no result.
        named: Whether the answer named the operation.
        alone: Whether nothing else was in flight when the answer came.
        echoed: Whether the broker has refused something on this connection in the same words
            before, so that this refusal may be that one once more.
        was_sent: Whether any byte of it may have left.
    """

    op: str
    priority: Priority
    decode: Callable[[Inbound], Any] = ignore
    deadline: float = math.inf
    body: str = ""
    channel: str | None = None
    order_id: str | None = None
    client_order_id: str | None = None
    leave_by: float = math.inf
    on_end: Callable[[Request], None] = ignore
    on_late: Callable[[Request], None] = ignore

    result: Any = attrs.field(init=False, default=None)
    reply: str = attrs.field(init=False, default="")
    error: BrokerError | None = attrs.field(init=False, default=None)
    named: bool = attrs.field(init=False, default=False)
    alone: bool = attrs.field(init=False, default=False)
    echoed: bool = attrs.field(init=False, default=False)
    was_sent: bool = attrs.field(init=False, default=False)

    # The session's notes. `unheard`: nobody waits for an answer any more, or it is there already
    # and one more may come. `nonces` counts the sendings, `replies` what certainly came for them.
    stage: Stage = attrs.field(init=False, default=Stage.WAITING)
    since: float = attrs.field(init=False, default=0.0)
    nonces: list[str] = attrs.field(init=False, factory=list)
    replies: int = attrs.field(init=False, default=0)
    unheard: bool = attrs.field(init=False, default=False)
    grace_ends: float = attrs.field(init=False, default=math.inf)
    doubt: Doubt | None = attrs.field(init=False, default=None)

    @property
    def lane(self) -> Lane:
        """What its reply could be confused with."""
        if self.channel is not None:
            return (CHANNEL, self.channel)
        return (self.op, self.order_id)

    @property
    def is_owed(self) -> bool:
        """Whether one more reply to it may come, once it was sent."""
        return self.doubt is not None or self.replies < len(self.nonces)


@attrs.define(eq=False)
class Doubt:
    """Requests, and the answers that belong to some of them and name none.

    Attributes:
        suspects: Who may be meant.
        answers: What came.
    """

    suspects: dict[Request, None]
    answers: list[tuple[Inbound, str]]

    @classmethod
    def merged(cls, suspects: list[Request], message: Inbound, text: str) -> Doubt:
        """One doubt out of a new answer and those that its suspects were in."""
        earlier = dict.fromkeys(request.doubt for request in suspects if request.doubt is not None)
        doubt = cls(dict.fromkeys(suspects), [])
        for one in earlier:
            doubt.suspects |= one.suspects
            doubt.answers += one.answers
        doubt.answers.append((message, text))
        for request in doubt.suspects:
            request.doubt = doubt
        return doubt

    @property
    def outstanding(self) -> int:
        """How many replies to the suspects have not come."""
        named = sum(len(request.nonces) - request.replies for request in self.suspects)
        return named - len(self.answers)

    def dissolve(self) -> list[Request]:
        """Count the answers in, once it is certain whose they are.

        They are if every reply has come, or if one suspect is left. A swap is left alone, as no
        count may tell its fate: an error that came twice would make it wrong.

        Returns:
            Those who were suspects; none as long as nothing is certain.
        """
        all_came = self.outstanding <= 0
        if len(self.suspects) > 1 and not all_came:
            return []
        for request in self.suspects:
            request.doubt = None
            if request.priority is not Priority.SWAP:
                sent = len(request.nonces)
                request.replies = sent if all_came else request.replies + len(self.answers)
        return list(self.suspects)

    def answer(self) -> tuple[Inbound, str] | None:
        """The answer to each who was asked again, if it is the same one whichever it was."""
        if len(self.suspects) == 1 or len({text for _, text in self.answers}) == 1:
            return self.answers[-1]
        return None
