"""The faults of ``trio-broker sandbox --fault``: their names, their values, and what they do.

Some last from the start to the end. The others, ``…-every=SECONDS``, happen again and again to
whoever is connected then: they make a broker to try one's patience with.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import click
import trio
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from trio_broker.sandbox import Faults

    _FaultParam: TypeAlias = click.ParamType["AskedFault"]
    _FloatParam: TypeAlias = click.ParamType[float]
else:
    # Which has no parameter in older versions of click.
    _FaultParam = _FloatParam = click.ParamType

# Told in words what was done, and to how many connections if that is known.
Report: TypeAlias = Callable[[str, int | None], None]

_OPERATIONS: Final = (
    "auth", "subscribe", "unsubscribe", "balances", "estimate", "swap", "order_status",
)  # fmt: skip
_DEAD: Final = 2.0  # seconds, for which a broker is away that is killed every now and then


@attrs.frozen
class AskedFault:
    """A fault as it was asked for.

    Attributes:
        name: Its name.
        value: Its value, read.
    """

    name: str
    value: Any = None

    @property
    def is_periodic(self) -> bool:
        """Whether it happens again and again."""
        return self.name in _PERIODIC

    def begin(self, faults: Faults) -> None:
        """Begin one that lasts.

        Args:
            faults: The sandbox's faults.
        """
        _LASTING[self.name].begin(faults, self.value)

    async def repeat(self, faults: Faults, report: Report) -> None:
        """Do one that happens again and again, until this is cancelled.

        Args:
            faults: The sandbox's faults.
            report: Told each time.
        """
        strike = _PERIODIC[self.name].strike
        while True:
            await trio.sleep(self.value)
            await strike(faults, report)


# ---- Values


def _operation(text: str) -> str | None:
    if text and text not in _OPERATIONS:
        raise ValueError(f"{text!r} is no operation; there are {', '.join(_OPERATIONS)}")
    return text or None


def _status(text: str) -> int | None:
    if text == "reset":
        return None
    if not (text.isascii() and text.isdigit() and 200 <= int(text) <= 999):
        raise ValueError(f"it takes an HTTP status from 200 to 999, or 'reset', not {text!r}")
    return int(text)


def _channel(text: str) -> str:
    if not text:
        raise ValueError("it needs a channel: 'balances', 'orders:*' or '*'")
    return text


def _nothing(text: str) -> None:
    if text:
        raise ValueError("it takes no value")


def _number(text: str, unit: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"it takes a number of {unit}, not {text!r}")
    return number


def _milliseconds(text: str) -> float:
    return _number(text, "milliseconds") / 1000


def _seconds(text: str) -> float:
    seconds = _number(text, "seconds")
    if seconds < 0.01:
        raise ValueError(f"it takes at least 0.01 seconds, not {text!r}")
    return seconds


# ---- The faults


@attrs.frozen
class _Lasting:
    """A fault that lasts.

    Attributes:
        begin: Begins it with a value.
        help: What it does.
        metavar: Its value, as help shows it; empty if there is none.
        read: Reads the value; raises ValueError for one that can't be.
        default: The value's text if there is none; None if there must be one.
    """

    begin: Callable[[Faults, Any], object]
    help: str
    metavar: str = ""
    read: Callable[[str], Any] = _nothing
    default: str | None = ""


@attrs.frozen
class _Periodic:
    """A fault that happens again and again.

    Attributes:
        strike: Does it once.
        help: What it does.
        metavar: Its value, as help shows it.
        read: Reads the value.
        default: There is none.
    """

    strike: Callable[[Faults, Report], Awaitable[None]]
    help: str
    metavar: str = "SECONDS"
    read: Callable[[str], Any] = _seconds
    default: str | None = None


def _at_once(
    verb: str, strike: Callable[[Faults], int]
) -> Callable[[Faults, Report], Awaitable[None]]:
    async def act(faults: Faults, report: Report) -> None:
        await trio.lowlevel.checkpoint()
        report(verb, strike(faults))

    return act


async def _silence(faults: Faults, report: Report) -> None:
    # Never lifted: the connections that there are stay silent.
    faults.go_silent()
    report("silent from now on", None)
    await trio.lowlevel.checkpoint()


async def _kill(faults: Faults, report: Report) -> None:
    if faults.is_killed:  # by another one that was asked for
        return
    faults.kill()
    report("killed", None)
    await trio.sleep(_DEAD)
    await faults.revive()
    report("back", None)


_LASTING: Final = {
    "refuse-connections": _Lasting(
        lambda faults, status: faults.refuse_connections(status),
        "Refuse connections with an HTTP status, 503 if not said, or 'reset' them.",
        "STATUS", _status, "503",
    ),
    "stall-handshakes": _Lasting(
        lambda faults, _: faults.stall_handshakes(), "Accept connections and say nothing."
    ),
    "refuse-auth": _Lasting(lambda faults, _: faults.refuse_auth(), "Refuse every key."),
    "refuse-channel": _Lasting(
        lambda faults, channel: faults.refuse_channel(channel),
        "Refuse to subscribe to a channel; 'orders:*' for any order's.",
        "CHANNEL", _channel, None,
    ),
    "ignore": _Lasting(
        lambda faults, op: faults.ignore(op=op),
        "Lose requests, or those of one operation: nobody handles them.",
        "OP", _operation,
    ),
    "swallow": _Lasting(
        lambda faults, op: faults.swallow(op=op),
        "Lose all that the broker says, or the replies to one operation, which is done.",
        "OP", _operation,
    ),
    "stop-pushing": _Lasting(
        lambda faults, _: faults.stop_pushing(), "Lose every push; requests are answered."
    ),
    "duplicate": _Lasting(
        lambda faults, op: faults.duplicate(op=op),
        "Say everything twice, or the replies to one operation.",
        "OP", _operation,
    ),
    "drip": _Lasting(
        lambda faults, delay: faults.drip(delay),
        "Send single bytes, with so much time between two of them.",
        "MS", _milliseconds, "1",
    ),
}  # fmt: skip

_PERIODIC: Final = {
    "reset-every": _Periodic(
        _at_once("reset", lambda faults: faults.reset()), "Reset the connections."
    ),
    "hang-up-every": _Periodic(
        _at_once("hung up on", lambda faults: faults.hang_up()),
        "End the connections without a goodbye.",
    ),
    "close-every": _Periodic(
        _at_once("closed", lambda faults: faults.close(1012, "the broker restarts")),
        "Close the connections with code 1012.",
    ),
    "go-silent-every": _Periodic(
        _silence,
        "Neither read nor write on the connections that there are, as if the cable were pulled.",
    ),
    "kill-every": _Periodic(_kill, f"Kill the broker; it is back after {_DEAD:g} seconds."),
}
_KINDS: Final[dict[str, _Lasting | _Periodic]] = {**_LASTING, **_PERIODIC}


def help_rows() -> list[tuple[str, str]]:
    """Each fault as it is written, and what it does."""
    return [(_usage(name), kind.help) for name, kind in _KINDS.items()]


def _usage(name: str) -> str:
    kind = _KINDS[name]
    if not kind.metavar:
        return name
    value = f"={kind.metavar}"
    return name + (value if kind.default is None else f"[{value}]")


class MillisecondsType(_FloatParam):
    """An option's value in milliseconds; what comes of it are seconds."""

    name = "ms"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read a time.

        Args:
            value: The text, or seconds.
            param: The option.
            ctx: The command's context.
        """
        if isinstance(value, float):
            return value
        try:
            return _milliseconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class FaultType(_FaultParam):
    """An option's value ``NAME`` or ``NAME=VALUE``."""

    name = "fault"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> AskedFault:
        """Read a fault.

        Args:
            value: The text, or what was read from it before.
            param: The option.
            ctx: The command's context.
        """
        if isinstance(value, AskedFault):
            return value
        name, _, text = value.partition("=")
        kind = _KINDS.get(name)
        if kind is None:
            there_are = ", ".join(map(_usage, _KINDS))
            self.fail(f"there is no fault {name!r}; there are {there_are}", param, ctx)
        try:
            return AskedFault(name, kind.read(text or kind.default or ""))
        except ValueError as error:
            self.fail(f"{name}: {error}", param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem[str]]:
        """What a shell offers.

        Args:
            ctx: The command's context.
            param: The option.
            incomplete: What is typed so far.
        """
        return [
            CompletionItem(name + ("=" if kind.default is None else ""), help=kind.help)
            for name, kind in _KINDS.items()
            if name.startswith(incomplete)
        ]
