from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings, strategies as st
from trio.testing import MockClock

from tests.sandbox.test_server import closed, open_raw
from tests.sandbox_client import swap_body
from trio_broker.exceptions import ConfigurationError
from trio_broker.models import OrderStatus
from trio_broker.sandbox import Account, Outcome, open_sandbox, state
from trio_broker.sandbox.exchange import Exchange
from trio_broker.sandbox.ledger import Ledger
from trio_broker.sandbox.moment import Moment
from trio_broker.sandbox.orders import Order, Terms
from trio_broker.sandbox.refusals import Refusal
from trio_broker.sandbox.rules import Rules
from trio_broker.sandbox.server import Link

WALL = 1_732_526_400.0
OPENING = {
    "alice": {"ETH": Decimal(100), "USDT": Decimal("1000.5")},
    "bob": {"BTC": Decimal(1)},
}
TERMS = Terms(Decimal(10), "ETH", "USDT")
S = OrderStatus


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def opened(
    path: Path | None,
    seed: int | None = None,
    *,
    at: float = 1000.0,
    wall: float = WALL,
    opening: Any = OPENING,
    **rules: Any,
) -> Iterator[Exchange]:
    def stop() -> None:
        pass

    moment = Moment(at, wall)
    checked = Rules(**{"order_id_prefix": "ord_", **rules})
    with state.open_exchange(path, seed, opening, checked, moment, stop=stop) as exchange:
        yield exchange


def swap(exchange: Exchange, after: float = 0.0, client_order_id: str | None = None) -> Order:
    """So long after the exchange was opened, on clocks that agree."""
    moment = Moment(exchange.opened_at + after, WALL + after)
    return exchange.swap("alice", TERMS, client_order_id, moment)[0]


def advance(exchange: Exchange, after: float) -> None:
    exchange.advance(Moment(exchange.opened_at + after, WALL + after))


def live(exchange: Exchange) -> None:
    while (deadline := exchange.next_deadline()) is not None:
        advance(exchange, deadline - exchange.opened_at)
        exchange.advance(Moment(deadline, WALL))


def ledger(exchange: Exchange) -> tuple[object, ...]:
    held = exchange.ledger
    return held.accounts, held.book, held.fees


def unstamped(exchange: Exchange) -> list[Order]:
    return [attrs.evolve(order, updated_at=0) for order in exchange.orders.values()]


# ---- What is taken up


def test_a_file_has_no_say_where_there_is_none() -> None:
    with opened(None, 7) as exchange:
        assert exchange.seed == 7
        assert exchange.on_change is None
    with opened(None) as exchange:
        assert exchange.seed == 0


def test_everything_is_as_it_was(path: Path) -> None:
    with opened(path, 7) as exchange:
        exchange.forced.extend([Outcome.FILLED, Outcome.FILLED_IN_PARTS])
        swap(exchange, 0, "first")
        advance(exchange, 10)
        swap(exchange, 10, "second")
        deadline = exchange.next_deadline()
        assert deadline is not None
        advance(exchange, after := deadline - exchange.opened_at + 1e-6)
        orders, held = dict(exchange.orders), ledger(exchange)
        second = orders["ord_00000002"]
        assert orders["ord_00000001"].status is S.FILLED
        assert second.status is S.PROCESSING
        assert held[1]
        assert held[2]
    # On another Trio clock, which has nothing to do with the first one.
    with opened(path, at=-5.0, wall=WALL + after) as exchange:
        assert exchange.orders == orders
        assert list(exchange.orders) == list(orders)
        assert ledger(exchange) == held
        assert exchange.find("alice", "second") == second
        deadline = exchange.next_deadline()
        assert deadline is not None
        assert deadline - -5.0 == pytest.approx(second.steps[0].at - after)
        assert swap(exchange, after, "first") == orders["ord_00000001"]
        terms = attrs.evolve(TERMS, amount_in=Decimal(1))
        with pytest.raises(Refusal, match="Duplicate"):
            exchange.swap("alice", terms, "second", Moment(0.0, WALL))
        assert swap(exchange, after).order_id == "ord_00000003"
        assert exchange.ledger.holding("alice", "ETH").locked == 20


def test_order_ids_go_on_with_the_prefix_of_the_file(path: Path) -> None:
    with opened(path, order_id_prefix=None) as exchange:
        first = swap(exchange).order_id
    with opened(path, order_id_prefix=None) as exchange:
        second = swap(exchange).order_id
    assert first.removesuffix("1") == second.removesuffix("2")
    with pytest.raises(ConfigurationError, match="leave order_id_prefix out"):
        opened(path, order_id_prefix="other_").__enter__()


def test_what_was_due_while_nobody_ran_is_done_at_once_as_if_somebody_had(path: Path) -> None:
    outcomes = [Outcome.FILLED_IN_PARTS, Outcome.PARTLY_FILLED, Outcome.FAILED, Outcome.FILLED]
    told: list[list[tuple[str, OrderStatus]]] = []
    exchanges = []
    for file in (None, path):
        with opened(file, 7) as exchange:
            exchange.forced.extend(outcomes)
            for _ in outcomes:
                swap(exchange)
            exchanges.append(exchange)
    uninterrupted, _ = exchanges
    changes = uninterrupted.advance(Moment(uninterrupted.opened_at + 3600, WALL))
    told.append([(change.order.order_id, change.order.status) for change in changes])
    size = path.stat().st_size
    with opened(path, at=0.0, wall=WALL + 3600) as exchange:
        assert unstamped(exchange) == unstamped(uninterrupted)
        assert ledger(exchange) == ledger(uninterrupted)
        assert exchange.next_deadline() is None
        last = [order.updated_at for order in exchange.orders.values()]
        assert all(0 <= stamp - (WALL + 3600) * 1000 < 10 for stamp in last)
    assert path.stat().st_size > size
    _, *lines = path.read_text().splitlines()
    done = [json.loads(line)["order"] for line in lines]
    told.append([(order["order_id"], order["status"]) for order in done])
    assert told[0] == told[1]


@pytest.mark.parametrize(("passed", "counts"), [(5000.0, 5000.0), (0.0, 0.0), (-900.0, 0.0)])
def test_prices_go_on_from_the_same_origin(path: Path, passed: float, counts: float) -> None:
    with opened(path, 7) as exchange:
        swap(exchange, 100)
        advance(exchange, 200)
        written = exchange.opened_at
        last = json.loads(path.read_text().splitlines()[-1])
        assert (last["at"], last["wall"]) == (200, WALL + 200)
        expected = exchange.quote(TERMS, written + 200 + counts)
        other = exchange.quote(TERMS, written + 200 + counts + 60)
    assert other != expected
    # Twice: what the first one writes down anew is the same.
    for _ in range(2):
        with opened(path, at=77.0, wall=WALL + 200 + passed) as exchange:
            assert exchange.quote(TERMS, 77.0) == expected


def test_time_that_a_clock_went_back_is_not_counted_again(path: Path) -> None:
    with opened(path, 7):
        pass
    for wall, age in ((WALL - 500, 0.0), (WALL, 500.0), (WALL - 100, 500.0), (WALL, 600.0)):
        with opened(path, at=0.0, wall=wall) as exchange:
            assert exchange.opened_at == -age


def test_accounts_keep_what_they_hold_and_new_ones_begin(path: Path) -> None:
    with opened(path) as exchange:
        swap(exchange)
        held = exchange.ledger.accounts
    opening = {"alice": {"DOGE": Decimal(1)}, "carol": {"SOL": Decimal(5)}}
    with opened(path, opening=opening) as exchange:
        assert exchange.ledger.accounts == {**held, **Ledger({"carol": opening["carol"]}).accounts}
        assert exchange.ledger.holding("alice", "ETH").locked == 10


@pytest.mark.parametrize("seed", [0, -1, 2**70])
def test_the_seed_is_the_files(path: Path, seed: int) -> None:
    with opened(path, seed):
        pass
    for given_seed in (None, seed):
        with opened(path, given_seed) as exchange:
            assert exchange.seed == seed
            price = exchange.market.price("BTC", 5.0)
            assert price == Exchange(seed, 0.0, {}, Rules()).market.price("BTC", 5.0)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=f"with seed {seed}, not 5$"), opened(path, 5):
        pass
    assert path.read_bytes() == before


SCRIPTS = st.lists(
    st.tuples(
        st.sampled_from(["alice", "bob"]),
        st.decimals("0.001", "0.1", places=3),
        st.floats(0, 0.3),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(SCRIPTS, st.integers(0, 99), st.data())
def test_killed_anywhere_it_goes_on_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory,
    script: list[tuple[str, Decimal, float]],
    seed: int,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("killed") / "state"
    after = 0.0
    sold = {"alice": "ETH", "bob": "BTC"}
    with opened(path, seed) as exchange:
        sums = exchange.ledger.sums()
        # After every change: how long the file is, and what anybody may have been told.
        history: list[tuple[int, dict[str, Order], tuple[object, ...]]]
        history = [(path.stat().st_size, {}, ledger_copy(exchange))]
        write = exchange.on_change
        assert write is not None

        def remember(order: Order, moment: Moment) -> None:
            write(order, moment)
            history.append((path.stat().st_size, dict(exchange.orders), ledger_copy(exchange)))

        exchange.on_change = remember
        for account, amount, pause in script:
            after += pause
            advance(exchange, after)
            moment = Moment(exchange.opened_at + after, WALL + after)
            exchange.swap(account, Terms(amount, sold[account], "USDT"), None, moment)
        taken = set(exchange.orders)
        live(exchange)
        ended = unstamped(exchange), ledger(exchange)
        assert exchange.ledger.sums() == sums
    cut = data.draw(st.integers(history[0][0], history[-1][0]))
    path.write_bytes(path.read_bytes()[:cut])
    _, orders, held = [entry for entry in history if entry[0] <= cut][-1]
    saved = state._read(path)
    assert saved is not None
    assert saved.orders == orders
    assert (saved.accounts, saved.book, saved.fees) == held
    with opened(path, at=0.0, wall=WALL) as exchange:
        assert exchange.ledger.sums() == sums
        live(exchange)
        assert exchange.ledger.sums() == sums
        assert unstamped(exchange) == [o for o in ended[0] if o.order_id in orders]
        if set(orders) == taken:
            assert ledger(exchange) == ended[1]


def ledger_copy(exchange: Exchange) -> tuple[object, ...]:
    held = exchange.ledger
    return {key: dict(value) for key, value in held.accounts.items()}, {**held.book}, {**held.fees}


def test_a_change_costs_the_same_however_many_there_are(path: Path) -> None:
    lengths = []
    with opened(path, opening={"alice": {"ETH": Decimal(10_000)}}) as exchange:
        for _ in range(1000):
            before = path.stat().st_size
            swap(exchange)
            lengths.append(path.stat().st_size - before)
    assert max(lengths) < 1000
    assert sum(lengths[-100:]) < sum(lengths[:100]) * 1.2


def test_the_next_one_makes_a_snapshot_of_it_all(path: Path) -> None:
    with opened(path) as exchange:
        for _ in range(5):
            swap(exchange)
        live(exchange)
        orders = exchange.orders
    assert len(path.read_text().splitlines()) > 10
    for _ in range(2):
        with opened(path) as exchange:
            assert exchange.orders == orders
        (line,) = path.read_text().splitlines()
        assert json.loads(line)["orders"].keys() == orders.keys()


# ---- The file


VERSION_1 = (
    '{"format":"trio-broker sandbox","version":1,"seed":"7","at":1.5,"wall":1732526401.5,'
    '"accounts":{"alice":{"ETH":{"total":"100","locked":"10"}}},"book":{"ETH":"2","USDT":"-4E+1"},'
    '"fees":{"USDT":"0.040"},"orders":{"ord_00000001":{"order_id":"ord_00000001",'
    '"api_key":"alice","terms":{"amount_in":"10.0","asset_in":"ETH","asset_out":"USDT",'
    '"sources":["bybit","gate"],"slippage_bps":50,"wallet":"0x1"},"client_order_id":"mine",'
    '"rate":"3245.6","updated_at":1732526400000,"steps":['
    '{"at":2.25,"status":"PROCESSING","amount_in":"0"},'
    '{"at":2.5,"status":"FILLED","amount_in":"10.0"}],"status":"PENDING","filled_in":"0",'
    '"filled_out":"0","tx_hash":null,"reason":null}}}\n'
    '{"at":2.25,"wall":1732526402.25,"order":{"order_id":"ord_00000001","api_key":"alice",'
    '"terms":{"amount_in":"10.0","asset_in":"ETH","asset_out":"USDT","sources":["bybit","gate"],'
    '"slippage_bps":50,"wallet":"0x1"},"client_order_id":"mine","rate":"3245.6",'
    '"updated_at":1732526402250,"steps":[{"at":2.5,"status":"FILLED","amount_in":"10.0"}],'
    '"status":"PROCESSING","filled_in":"0","filled_out":"0","tx_hash":null,"reason":null},'
    '"holdings":{"ETH":{"total":"100","locked":"10"},"USDT":{"total":"0","locked":"0"}},'
    '"book":{"ETH":"2","USDT":"-40"},"fees":{"USDT":"0.04"}}\n'
)


def test_version_1_stays_readable(path: Path) -> None:
    path.write_text(VERSION_1)
    with opened(path, 7, opening={}, at=0.0, wall=1732526402.25) as exchange:
        order = exchange.find("alice", "mine")
        assert order.status is S.PROCESSING
        assert order.terms == Terms(Decimal(10), "ETH", "USDT", ("bybit", "gate"), 50, "0x1")
        assert exchange.opened_at == -2.25
        assert exchange.next_deadline() == 0.25
        assert exchange.ledger.fees == {"USDT": Decimal("0.04")}
        assert exchange.ledger.book == {"ETH": 2, "USDT": -40}
    assert json.loads(path.read_text())["version"] == 1


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.touch()
    with opened(path) as exchange:
        swap(exchange)
    with opened(path) as exchange:
        assert len(exchange.orders) == 1


def changed(old: str, new: str) -> str:
    assert old in VERSION_1
    return VERSION_1.replace(old, new)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]\n", "isn't the state of a sandbox$"),
        ("\n", "isn't the state of a sandbox$"),
        ("{}\n", "isn't the state of a sandbox$"),
        ("[" * 100_000 + "\n", "isn't the state of a sandbox$"),
        ("BROKER_API_KEY=test_key_1\n", "isn't the state of a sandbox$"),
        (b'{"format":"\xff","version":1}\n', "isn't the state of a sandbox$"),
        ('{"format":"a diary","version":1}\n', "isn't the state of a sandbox$"),
        (VERSION_1[:40], "isn't the state of a sandbox$"),
        (VERSION_1.partition("\n")[0], "isn't the state of a sandbox$"),
        (changed('"version":1', '"version":2'), "is of version 2; this .* takes up version 1$"),
        (changed('"seed":"7"', '"seed":"7e1"'), "is damaged at line 1: .*`\\$.seed`"),
        (changed('"fees":{"USDT":"0.040"},', ""), "is damaged at line 1: .*`fees`"),
        (changed('"fees":{"USDT":"0.04"}}', '"fees":{"USDT":"0.04"'), "is damaged at line 2: "),
        (changed('"USDT":"-40"', '"USDT":"minus"'), "is damaged at line 2: .*Invalid decimal"),
        (changed('"100","locked":"10"', '"1","locked":"10"'), "line 1: the ledger doesn't add up"),
        (changed('"100","locked":"10"', '"NaN","locked":"10"'), "is damaged at line 1: "),
        (changed('"100","locked":"10"', '"100","locked":"9"'), "don't lock what is locked of ETH"),
        (changed('{"alice":{"ETH"', '{"bob":{"ETH"'), "is damaged at line 2: 'alice'"),
        (
            changed('{"alice":{"ETH":{"total":"100","locked":"10"}}', '{"alice":{}').replace(
                '"ETH":{"total":"100","locked":"10"},', ""
            ),
            "an order locks what no account holds",
        ),
        (
            changed('"status":"PROCESSING","filled', '"status":"FAILED","filled'),
            "ord_00000001 can't go from FAILED to FILLED",
        ),
        (changed('[{"at":2.5,"status":"FILLED","amount_in":"10.0"}]', "[]"), "ends as PROCESSING"),
        (changed('"FILLED","amount_in":"10.0"', '"FILLED","amount_in":"10.1"'), "can't trade what"),
        (changed('"rate":"3245.6"', '"rate":"0"'), "can't trade what"),
        (changed('"rate":"3245.6"', '"rate":"NaN"'), "is damaged at line 2: "),
        (changed('"asset_out":"USDT"', '"asset_out":"XYZ"'), "an asset that the sandbox hasn't"),
        (changed('"seed":"7"', f'"seed":"{"7" * 4301}"'), "is damaged at line 1: "),
        (changed("ord_00000001", "ord_00000002"), "order 1 is ord_00000002"),
        (changed('"order_id":"ord_00000001"', '"order_id":"ord_1"'), "line 2: order 1 is ord_0"),
        (VERSION_1 + "\n", "is damaged at line 3: "),
        (VERSION_1.encode() + b"\0" * 50 + b"\n", "is damaged at line 3: "),
    ],
)
def test_a_file_that_can_t_be_taken_up_is_named_and_left_alone(
    path: Path, content: str | bytes, message: str
) -> None:
    written = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(written)
    with pytest.raises(ConfigurationError, match=message) as caught, opened(path):
        pass
    assert str(caught.value).startswith(f"{path} is")
    assert path.read_bytes() == written
    assert {file.name for file in path.parent.iterdir()} == {"state", "state.lock"}


@pytest.mark.parametrize("name", ["folder", os.devnull])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(ConfigurationError, match=f"{name} isn't a file$"),
        opened(tmp_path / name),
    ):
        pass


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), opened(tmp_path / "nowhere" / "state"):
        pass


def test_a_link_stays_one(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    with opened(link) as exchange:
        swap(exchange)
        with pytest.raises(ConfigurationError, match="in use"), opened(path):
            pass
    assert link.is_symlink()
    with opened(path) as exchange:
        assert len(exchange.orders) == 1


def test_a_file_is_its_owners_until_its_owner_shares_it(path: Path) -> None:
    with opened(path):
        pass
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with opened(path):
        pass
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_is_one_sandboxs_at_a_time(path: Path) -> None:
    with opened(path) as exchange:
        before = path.read_bytes()
        with (
            pytest.raises(ConfigurationError, match=r"is in use by another sandbox$"),
            opened(path),
        ):
            pass
        assert path.read_bytes() == before
        swap(exchange)
    with opened(path) as exchange:
        assert len(exchange.orders) == 1


# ---- Writing that fails


class FullDisk:
    """A file on a disk that has room for so many bytes, and takes few at a time."""

    def __init__(self, path: Path, room: int) -> None:
        self._file = path.open("ab", buffering=0)
        self.room = room

    def write(self, line: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        piece = line[: min(self.room, 100)]
        self.room -= len(piece)
        return self._file.write(piece)

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> list[FullDisk]:
    """Files that changes go to from now on; set their `room`."""
    made: list[FullDisk] = []
    init = state._Journal.__init__

    def with_a_full_disk(self: Any, path: Path, *args: Any) -> None:
        init(self, path, *args)
        self._file.close()
        self._file = FullDisk(path, 10**9)
        made.append(self._file)

    monkeypatch.setattr(state._Journal, "__init__", with_a_full_disk)
    return made


def test_a_line_is_written_to_its_end(path: Path, disks: list[FullDisk]) -> None:
    with opened(path) as exchange:
        order = swap(exchange)
    with opened(path) as exchange:
        assert list(exchange.orders.values()) == [order]


def swap_without_room(exchange: Exchange, disks: list[FullDisk]) -> None:
    disks[-1].room = 250
    swap(exchange)


def test_a_change_that_can_t_be_written_is_an_error(path: Path, disks: list[FullDisk]) -> None:
    with opened(path) as exchange:
        first = swap(exchange)
    with pytest.raises(OSError, match="No space") as caught, opened(path) as exchange:
        swap_without_room(exchange, disks)
    assert caught.value.filename == str(path)
    assert not path.read_bytes().endswith(b"\n")
    with opened(path) as exchange:
        assert list(exchange.orders.values()) == [first]


def test_a_snapshot_that_can_t_be_written_leaves_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as exchange:
        swap(exchange)
    before = path.read_bytes()

    def fsync(_: int) -> None:
        raise OSError(errno.EIO, "a bad disk")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="a bad disk"), opened(path):
        pass
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} == {"state", "state.lock"}


async def test_who_could_not_be_told_the_truth_is_told_nothing(
    path: Path, disks: list[FullDisk], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []

    async def use() -> None:
        async with open_sandbox(state=path) as sandbox, open_raw(sandbox) as raw:
            disks[-1].room = 100
            heard.append(await raw.request("swap", swap_body()))

    with pytest.raises(OSError, match="No space") as caught:
        await use()
    assert heard == []
    assert caught.value.filename == str(path)
    assert "so the sandbox ends" in caplog.text
    saved = state._read(path)
    assert saved is not None
    assert saved.orders == {}


async def test_a_step_that_could_not_be_written_ends_the_sandbox(
    path: Path, disks: list[FullDisk], autojump_clock: MockClock
) -> None:
    heard: list[Any] = []

    async def use() -> None:
        async with open_sandbox(state=path) as sandbox, open_raw(sandbox) as raw:
            heard.append(await raw.request("swap", swap_body()))
            disks[-1].room = 0
            heard.append(await raw.receive_json())

    with pytest.raises(OSError, match="No space"):
        await use()
    (reply,) = heard
    assert reply["data"]["status"] == "PENDING"
    async with open_sandbox(state=path) as sandbox:
        (order,) = sandbox.orders()
        assert order.order_id == reply["data"]["orderId"]


async def test_a_users_error_goes_before_it(path: Path, disks: list[FullDisk]) -> None:
    async def use() -> None:
        async with open_sandbox(state=path) as sandbox:
            disks[-1].room = 0
            try:
                async with open_raw(sandbox) as raw:
                    await raw.request("swap", swap_body())
            finally:
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await use()


# ---- The sandbox


async def test_what_a_client_is_told_is_in_the_file_already(
    path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    post = Link.post

    def check(self: Link, item: Any) -> None:
        if isinstance(item, str):
            message = json.loads(item)
            saved = state._read(path)
            assert saved is not None
            data, kind = (
                message.get("data"),
                message.get("ch", message.get("op", "")),
            )
            if kind.startswith("orders:") and "op" not in message:
                order = saved.orders[data["orderId"]]
                assert (order.status, order.updated_at) == (data["status"], data["updatedAt"])
                told.append(data["status"])
            elif kind == "balances" and "op" not in message:
                for balance in data:
                    holding = saved.accounts["test_key_1"][balance["asset"]]
                    assert holding.total == Decimal(balance["total"])
                    assert holding.locked == Decimal(balance["locked"])
                told.append("balances")
            elif kind == "swap":
                assert saved.orders[data["orderId"]].status == data["status"]
                told.append("swap")
        post(self, item)

    monkeypatch.setattr(Link, "post", check)
    async with (
        open_sandbox(state=path, order_id_prefix="ord_") as sandbox,
        open_raw(sandbox) as raw,
    ):
        sandbox.next_outcome("filled")
        await raw.subscribe("balances")
        await raw.subscribe("orders:ord_00000001")
        await raw.request("swap", swap_body())
        await trio.sleep(10)
    assert told == ["swap", "PENDING", "balances", "PROCESSING", "FILLED", "balances"]


async def test_a_sandbox_goes_on_from_where_one_was_killed(
    tmp_path: Path, path: Path, autojump_clock: MockClock
) -> None:
    start = trio.current_time()

    def clock() -> float:
        return WALL + trio.current_time() - start

    mine = Account("test_key_3", "test_secret_3", {"USDT": Decimal(5)})
    killed = tmp_path / "killed"
    body = swap_body(clientOrderId="mine")
    async with open_sandbox(seed=7, state=path, clock=clock, accounts=[mine]) as sandbox:
        sandbox.next_outcome("filled", "filled")
        async with open_raw(sandbox, clock=clock) as raw:
            first = await raw.request("swap", swap_body(amountIn="2"))
            await trio.sleep(60)
            second = await raw.request("swap", body)
            await trio.sleep_until(start + 60.16)
            assert sandbox.order(second["data"]["orderId"]).status is S.PROCESSING
            shutil.copyfile(path, killed)
            before = sandbox.orders(), sandbox.balances()
    async with open_sandbox(state=killed, clock=clock) as sandbox:
        # What was due while that one said goodbye is done.
        assert sandbox.order(first["data"]["orderId"]) == before[0][0]
        await trio.sleep(1)
        async with open_raw(sandbox, clock=clock) as raw:
            again = await raw.request("swap", body)
            assert again["data"] == {**second["data"], "status": "FILLED"}
        bought = sandbox.order(second["data"]["orderId"]).filled_out
        assert sandbox.balances()["USDT"].total == before[1]["USDT"].total + bought
        assert sandbox.balances()["ETH"].total == Decimal("996.5")
        assert sandbox.balances()["ETH"].locked == 0


async def test_a_sandbox_that_can_t_listen_gives_the_file_back(path: Path) -> None:
    async with open_sandbox() as other:
        port = int(other.url.split(":")[2].partition("/")[0])
        with pytest.raises(OSError, match="in use"):
            async with open_sandbox(state=path, port=port):
                pass
    async with open_sandbox(state=path) as sandbox, open_raw(sandbox) as raw:
        sandbox.drop_connections()
        assert await closed(raw) == 1006
