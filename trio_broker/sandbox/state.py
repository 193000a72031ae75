"""The state file of a sandbox, from which a later sandbox continues.

Each line of the file is JSON. The first is a snapshot: the seed, every holding and every order,
with its future steps. Each further line is a change: the new state of an order, and the ledger's
entries that it changed. A change is appended before its reply or push is sent, so no client knows
anything that isn't in the file. The cost of a change doesn't depend on the number of orders. The
next sandbox writes everything as one snapshot.

The laws of this file:

- If the process is killed at any moment, the file stays usable. A snapshot replaces the whole file
  atomically. A change whose line was cut off was not sent to any client, and is dropped.
- A file that can't be used is not changed.
- If a change can't be written, the sandbox ends, because its state would be lost later.

Appended lines aren't forced to the disk. They survive the end of the process, but the last ones may
be lost if the machine loses power.

Times are seconds since the sandbox was first opened. Each line also has the wall clock's time, so
that the time between two sandboxes counts too. Steps that were due in between are done when the
file is loaded, each at the price of its own time. Connections, subscriptions, nonces and
`next_outcome` end with the process.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, TypeAlias

import msgspec

from trio_broker import lockfile
from trio_broker.exceptions import ConfigurationError
from trio_broker.sandbox.exchange import Exchange, numbered_id
from trio_broker.sandbox.ledger import Holding
from trio_broker.sandbox.market import ASSETS
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.money import CONTEXT, ZERO
from trio_broker.sandbox.orders import NEXT, Order
from trio_broker.sandbox.rules import Rules

logger: Final = logging.getLogger("trio_broker.sandbox")

StatePath: TypeAlias = str | os.PathLike[str]

FORMAT: Final = "trio-broker sandbox"
VERSION: Final = 1


class _Header(msgspec.Struct):
    """The members that the first line has in every version."""

    format: str
    version: int


class _Snapshot(msgspec.Struct):
    """The first line. The seed is text, since JSON integers have a limited size."""

    format: str
    version: int
    seed: Annotated[str, msgspec.Meta(pattern=r"^-?[0-9]+$", max_length=4300)]
    at: float
    wall: float
    accounts: dict[str, dict[str, Holding]]
    book: dict[str, Decimal]
    fees: dict[str, Decimal]
    orders: dict[str, Order]
    # Files of earlier versions have none.
    order_id_prefix: str = "ord_"

    def apply(self, change: _Change) -> None:
        """Apply a change."""
        order = change.order
        self.at, self.wall = change.at, change.wall
        self.orders[order.order_id] = order
        self.accounts[order.api_key] |= change.holdings
        self.book |= change.book
        self.fees |= change.fees

    def check(self) -> None:
        """Check that a sandbox has written it: lines may be missing, or changed by hand.

        Raises:
            ValueError: The orders and the balances don't fit together.
        """
        locked: dict[tuple[str, str], Decimal] = {}
        for number, (order_id, order) in enumerate(self.orders.items(), 1):
            if not order_id == order.order_id == numbered_id(self.order_id_prefix, number):
                raise ValueError(f"order {number} is {order_id}")
            _check_life(order)
            if order.steps:
                place = order.api_key, order.terms.asset_in
                locked[place] = CONTEXT.add(locked.get(place, ZERO), order.unfilled)
        for account, holdings in self.accounts.items():
            for asset, holding in holdings.items():
                if holding.locked != locked.pop((account, asset), ZERO):
                    raise ValueError(f"the orders don't lock what is locked of {asset}")
        if locked:
            raise ValueError("an order locks what no account holds")


class _Change(msgspec.Struct):
    """Every other line: the new amounts of the two assets that were swapped."""

    at: float
    wall: float
    order: Order
    holdings: dict[str, Holding]
    book: dict[str, Decimal]
    fees: dict[str, Decimal]


def _check_life(order: Order) -> None:
    """Check an order and its future steps.

    Raises:
        ValueError: A step is impossible.
    """
    status, left = order.status, order.unfilled
    for step in order.steps:
        if step.status not in NEXT[status]:
            raise ValueError(f"{order.order_id} can't go from {status} to {step.status}")
        status, left = step.status, CONTEXT.subtract(left, step.amount_in)
    if not status.is_final:
        raise ValueError(f"{order.order_id} ends as {status}")
    if left < 0 or not order.rate > 0:
        raise ValueError(f"{order.order_id} can't trade what it is to trade")
    if not {order.terms.asset_in, order.terms.asset_out} <= ASSETS.keys():
        raise ValueError(f"{order.order_id} has an asset that the sandbox hasn't")


_encoder: Final = msgspec.json.Encoder()
_snapshots: Final = msgspec.json.Decoder(_Snapshot)
_changes: Final = msgspec.json.Decoder(_Change)


@contextmanager
def open_exchange(
    path: StatePath | None,
    seed: int | None,
    opening: Mapping[str, Mapping[str, Decimal]],
    rules: Rules,
    moment: Moment,
    *,
    stop: Callable[[], object],
) -> Iterator[Exchange]:
    """Open an exchange during the block: a new one, or the one in a state file.

    Args:
        path: The file, which is created if it is missing or empty. None for an exchange that isn't
            saved.
        seed: The seed of prices and orders; None for the file's seed, or 0.
        opening: The opening balances of accounts that the file doesn't have, by API key and asset.
        rules: The sandbox's settings.
        moment: The time.
        stop: Called when a change couldn't be written. It must end the block without sending
            anything more to clients.

    Raises:
        ConfigurationError: The file is invalid, has another seed, or is in use.
        OSError: It can't be read or written; from the end of the block if a change couldn't be.
    """
    if path is None:
        yield Exchange(seed or 0, moment.at, opening, rules)
        return
    file = Path(path).resolve()  # So that replacing it doesn't replace a link to it.
    if file.exists() and not file.is_file():
        raise ConfigurationError(f"{file} isn't a file")
    if not file.parent.is_dir():
        # Otherwise the error would name the lock file.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.parent))
    with _locked(file):
        saved = _read(file)
        if saved is None:
            exchange = Exchange(seed or 0, moment.at, opening, rules)
        elif seed not in {None, int(saved.seed)}:
            raise ConfigurationError(f"{file} is of a sandbox with seed {saved.seed}, not {seed}")
        elif rules.order_id_prefix not in {None, saved.order_id_prefix}:
            raise ConfigurationError(
                f"the order ids in {file} begin with {saved.order_id_prefix!r}, not with "
                f"{rules.order_id_prefix!r}: leave order_id_prefix out"
            )
        else:
            exchange = _resumed(saved, opening, rules, moment)
        _replace(file, _snapshot(exchange, moment))
        with _Journal(file, exchange, stop):
            exchange.advance(moment)
            yield exchange


class _Journal:
    """Appends each change of an exchange to its file."""

    def __init__(self, path: Path, exchange: Exchange, stop: Callable[[], object]) -> None:
        self._path = path
        self._exchange = exchange
        self._stop = stop
        self._failure: OSError | None = None
        # Unbuffered: what was written is the system's, and nothing is written later.
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> None:
        self._exchange.on_change = self._record

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        failure = self._failure
        if failure is None:
            return
        # A task raises it in a group. The block's own errors have precedence.
        grouped = isinstance(error, BaseExceptionGroup) and error.subgroup(
            lambda each: each is failure
        )
        if error is None or grouped:
            raise failure

    def _record(self, order: Order, moment: Moment) -> None:
        ledger = self._exchange.ledger
        held = ledger.accounts[order.api_key]
        assets = order.terms.asset_in, order.terms.asset_out
        change = _Change(
            at=moment.at - self._exchange.opened_at,
            wall=moment.wall,
            order=order,
            holdings={asset: held[asset] for asset in assets if asset in held},
            book={asset: ledger.book[asset] for asset in assets if asset in ledger.book},
            fees={asset: ledger.fees[asset] for asset in assets if asset in ledger.fees},
        )
        try:
            self._append(_encoder.encode(change) + b"\n")
        except OSError as error:
            error.filename = str(self._path)
            self._failure = error
            logger.error("a change couldn't be written, so the sandbox ends: %s", error)  # noqa: TRY400 - it is raised
            self._stop()
            raise

    def _append(self, line: bytes) -> None:
        while line:  # A disk that gets full takes a part of it first.
            line = line[self._file.write(line) :]


def _snapshot(exchange: Exchange, moment: Moment) -> _Snapshot:
    return _Snapshot(
        format=FORMAT,
        version=VERSION,
        seed=str(exchange.seed),
        at=moment.at - exchange.opened_at,
        wall=moment.wall,
        accounts=exchange.ledger.accounts,
        book=exchange.ledger.book,
        fees=exchange.ledger.fees,
        orders=exchange.orders,
        order_id_prefix=exchange.order_id_prefix,
    )


def _resumed(
    saved: _Snapshot,
    opening: Mapping[str, Mapping[str, Decimal]],
    rules: Rules,
    moment: Moment,
) -> Exchange:
    # A wall clock that was set back must not take time back.
    age = saved.at + max(0.0, moment.wall - saved.wall)
    exchange = Exchange(int(saved.seed), moment.at - age, opening, rules)
    exchange.order_id_prefix = saved.order_id_prefix
    exchange.ledger.accounts |= saved.accounts
    exchange.ledger.book |= saved.book
    exchange.ledger.fees |= saved.fees
    exchange.resume(saved.orders.values())
    logger.info("took up %d orders after %.1f s", len(saved.orders), moment.wall - saved.wall)
    return exchange


def _read(path: Path) -> _Snapshot | None:
    """Read a file, None if it is missing or empty.

    Raises:
        ConfigurationError: It isn't a sandbox's, is of another version, or is damaged.
    """
    content = path.read_bytes() if path.exists() else b""
    if not content:
        return None
    first, *changes = content.split(b"\n")
    try:
        header = msgspec.json.decode(first, type=_Header)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        header = _Header("", 0)
    if header.format != FORMAT or not changes:
        raise ConfigurationError(f"{path} isn't the state of a sandbox")
    if header.version != VERSION:
        raise ConfigurationError(
            f"{path} is of version {header.version}; this sandbox takes up version {VERSION}"
        )
    number = 1
    try:
        saved = _snapshots.decode(first)
        # What follows the last line's end is nothing, or a line that was cut off.
        for number, line in enumerate(changes[:-1], 2):  # noqa: B007 - an error tells it
            saved.apply(_changes.decode(line))
        saved.check()
    # Before msgspec 0.21 its errors are no ValueErrors.
    except (
        msgspec.MsgspecError, ValueError, LookupError, ArithmeticError, RecursionError,
    ) as error:  # fmt: skip
        raise ConfigurationError(f"{path} is damaged at line {number}: {error}") from error
    return saved


def _replace(path: Path, snapshot: _Snapshot) -> None:
    """Write a snapshot in place of a file, so that there is always the one or the other."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(_encoder.encode(snapshot) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, name)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(lockfile.held(path))
        except BlockingIOError:
            raise ConfigurationError(f"{path} is in use by another sandbox") from None
        yield
