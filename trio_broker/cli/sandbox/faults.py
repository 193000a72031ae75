"""The faults of ``trio-broker sandbox --fault``: their names, their values and their effects.

Permanent faults last from the start to the end. Periodic faults, ``…-every=SECONDS``, are repeated
for all connected clients.
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

    _FaultParam: TypeAlias = click.ParamType["RequestedFault"]
    _FloatParam: TypeAlias = click.ParamType[float]
else:
    # Not generic in older versions of click.
    _FaultParam = _FloatParam = click.ParamType

# Called with the action, and the number of connections if it is known.
Report: TypeAlias = Callable[[str, int | None], None]

_OPERATIONS: Final = (
    "auth", "subscribe", "unsubscribe", "balances", "estimate", "swap", "order_status",
)  # fmt: skip
_DOWNTIME: Final = 2.0  # seconds after `kill-every`


@attrs.frozen
class RequestedFault:
    """A fault of the command line, with its parsed value."""

    name: str
    value: Any = None

    @property
    def is_periodic(self) -> bool:
        """Whether the fault is periodic."""
        return self.name in _PERIODIC

    def begin(self, faults: Faults) -> None:
        """Begin a permanent fault."""
        _PERMANENT[self.name].begin(faults, self.value)

    async def repeat(self, faults: Faults, report: Report) -> None:
        """Repeat a periodic fault until cancelled, and report it each time."""
        inject = _PERIODIC[self.name].inject
        while True:
            await trio.sleep(self.value)
            await inject(faults, report)


# --- Values ---------------------------------------------------------------------------------


def _operation(text: str) -> str | None:
    if text and text not in _OPERATIONS:
        raise ValueError(f"unknown operation {text!r}; choose from {', '.join(_OPERATIONS)}")
    return text or None


def _status(text: str) -> int | None:
    if text == "reset":
        return None
    if not (text.isascii() and text.isdigit() and 200 <= int(text) <= 999):
        raise ValueError(f"expected an HTTP status from 200 to 999, or 'reset', not {text!r}")
    return int(text)


def _channel(text: str) -> str:
    if not text:
        raise ValueError("expected a channel: 'balances', 'orders:*' or '*'")
    return text


def _name(text: str) -> str:
    # Imported here, because `--help` doesn't need it.
    from trio_broker.sandbox import Faults  # noqa: PLC0415

    name = text.replace("-", "_")
    if name not in Faults.named:
        choices = ", ".join(Faults.named).replace("_", "-")
        raise ValueError(f"unknown name {text!r}; choose from {choices}")
    return name


def _nothing(text: str) -> None:
    if text:
        raise ValueError("this fault takes no value")


def _number(text: str, unit: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"expected a number of {unit}, not {text!r}")
    return number


def _milliseconds(text: str) -> float:
    return _number(text, "milliseconds") / 1000


def _seconds(text: str) -> float:
    seconds = _number(text, "seconds")
    if seconds < 0.01:
        raise ValueError(f"expected at least 0.01 seconds, not {text!r}")
    return seconds


# --- The faults -----------------------------------------------------------------------------


@attrs.frozen
class _Permanent:
    """A permanent fault.

    Attributes:
        begin: Begins the fault with a value.
        help: Its effect.
        metavar: The name of the value in the help; empty without a value.
        parse: Parses the value; raises ValueError if it is invalid.
        default: The default text of the value; None if the value is required.
    """

    begin: Callable[[Faults, Any], object]
    help: str
    metavar: str = ""
    parse: Callable[[str], Any] = _nothing
    default: str | None = ""


@attrs.frozen
class _Periodic:
    """A periodic fault.

    Attributes:
        inject: Injects the fault once.
        help: Its effect.
        metavar: The name of the value in the help.
        parse: Parses the value.
        default: None, because the value is required.
    """

    inject: Callable[[Faults, Report], Awaitable[None]]
    help: str
    metavar: str = "SECONDS"
    parse: Callable[[str], Any] = _seconds
    default: str | None = None


def _immediate(
    action: str, inject: Callable[[Faults], int]
) -> Callable[[Faults, Report], Awaitable[None]]:
    async def inject_and_report(faults: Faults, report: Report) -> None:
        await trio.lowlevel.checkpoint()
        report(action, inject(faults))

    return inject_and_report


async def _silence(faults: Faults, report: Report) -> None:
    # This affects only existing connections, which stay silent.
    faults.go_silent()
    report("silent from now on", None)
    await trio.lowlevel.checkpoint()


async def _kill(faults: Faults, report: Report) -> None:
    if faults.is_killed:  # by another fault
        return
    faults.kill()
    report("killed", None)
    await trio.sleep(_DOWNTIME)
    await faults.revive()
    report("back", None)


_PERMANENT: Final = {
    "refuse-connections": _Permanent(
        lambda faults, status: faults.refuse_connections(status),
        "Refuse connections with an HTTP status (default: 503), or 'reset' them.",
        "STATUS", _status, "503",
    ),
    "stall-handshakes": _Permanent(
        lambda faults, _: faults.stall_handshakes(), "Accept connections, but never respond."
    ),
    "refuse-auth": _Permanent(lambda faults, _: faults.refuse_auth(), "Refuse every key."),
    "refuse-channel": _Permanent(
        lambda faults, channel: faults.refuse_channel(channel),
        "Refuse subscriptions to a channel; 'orders:*' means all orders.",
        "CHANNEL", _channel, None,
    ),
    "ignore": _Permanent(
        lambda faults, op: faults.ignore(op=op),
        "Drop all requests, or those of one operation, before they are handled.",
        "OP", _operation,
    ),
    "swallow": _Permanent(
        lambda faults, op: faults.swallow(op=op),
        "Drop everything that the broker sends, or only the replies to one operation.",
        "OP", _operation,
    ),
    "stop-pushing": _Permanent(
        lambda faults, _: faults.stop_pushing(), "Drop every push, but answer requests."
    ),
    "duplicate": _Permanent(
        lambda faults, op: faults.duplicate(op=op),
        "Send everything twice, or only the replies to one operation.",
        "OP", _operation,
    ),
    "drip": _Permanent(
        lambda faults, delay: faults.drip(delay),
        "Send byte by byte, with this delay between bytes.",
        "MS", _milliseconds, "1",
    ),
    "named": _Permanent(
        lambda faults, name: faults.start(name),
        "Inject a fault by a name from docs/testing.md, such as swap-error-late.",
        "NAME", _name, None,
    ),
}  # fmt: skip

_PERIODIC: Final = {
    "reset-every": _Periodic(
        _immediate("reset", lambda faults: faults.reset()), "Reset the connections."
    ),
    "hang-up-every": _Periodic(
        _immediate("hung up on", lambda faults: faults.hang_up()),
        "Close the connections without a close frame.",
    ),
    "close-every": _Periodic(
        _immediate("closed", lambda faults: faults.close(1012, "the broker restarts")),
        "Close the connections with code 1012.",
    ),
    "end-sessions-every": _Periodic(
        _immediate("ended the sessions of", lambda faults: faults.end_sessions()),
        "Forget the clients' authentication, and send an error.",
    ),
    "go-silent-every": _Periodic(
        _silence,
        "Stop reading and writing on existing connections, like an unplugged cable.",
    ),
    "kill-every": _Periodic(_kill, f"Stop the broker, and restart it after {_DOWNTIME:g} seconds."),
}
_KINDS: Final[dict[str, _Permanent | _Periodic]] = {**_PERMANENT, **_PERIODIC}


def help_rows() -> list[tuple[str, str]]:
    """Return the syntax and the effect of each fault."""
    return [(_usage(name), kind.help) for name, kind in _KINDS.items()]


def _usage(name: str) -> str:
    kind = _KINDS[name]
    if not kind.metavar:
        return name
    value = f"={kind.metavar}"
    return name + (value if kind.default is None else f"[{value}]")


class MillisecondsType(_FloatParam):
    """An option in milliseconds, which is converted to seconds."""

    name = "ms"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse a time; a float is already in seconds."""
        if isinstance(value, float):
            return value
        try:
            return _milliseconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class FaultType(_FaultParam):
    """An option ``NAME`` or ``NAME=VALUE``."""

    name = "fault"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> RequestedFault:
        """Parse a fault; a parsed fault is returned unchanged."""
        if isinstance(value, RequestedFault):
            return value
        name, _, text = value.partition("=")
        kind = _KINDS.get(name)
        if kind is None:
            choices = ", ".join(map(_usage, _KINDS))
            self.fail(f"unknown fault {name!r}; choose from {choices}", param, ctx)
        try:
            return RequestedFault(name, kind.parse(text or kind.default or ""))
        except ValueError as error:
            self.fail(f"{name}: {error}", param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem[str]]:
        """Return the faults that begin with the incomplete word."""
        return [
            CompletionItem(name + ("=" if kind.default is None else ""), help=kind.help)
            for name, kind in _KINDS.items()
            if name.startswith(incomplete)
        ]
