"""The watch's tasks: following channels through outages, refusals and failures."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import click
import pytest
import trio
from trio.testing import MockClock

from trio_broker import (
    BrokerError,
    BrokerWSClient,
    ChannelRefused,
    Closed,
    ConnectionEvent,
    Message,
    ReconnectPolicy,
)
from trio_broker.cli.account import Account
from trio_broker.cli.errors import CommandFailed, status_of
from trio_broker.cli.terminal.output import Output
from trio_broker.cli.terminal.stdout import LineWriter
from trio_broker.cli.watch.events import ChannelFailed, Subscribed
from trio_broker.cli.watch.following import follow, watch_channels
from trio_broker.cli.watch.views import event_members
from trio_broker.sandbox import Sandbox, open_sandbox
from trio_broker.settings import parse_url

A_MOCK_HOUR = 3600.0


# --- The whole watch in this process --------------------------------------------------------


class Printed:
    """The printed JSON lines, and the error that ended the command."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.error: Exception | None = None
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [one for one in self.objects if one["event"] == name]

    async def until(self, is_there: Callable[[], object]) -> None:
        with trio.fail_after(A_MOCK_HOUR):
            while not is_there():
                await self.changed.wait()

    async def ended(self) -> Exception:
        await self.until(lambda: self.error)
        assert self.error is not None
        return self.error


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    collected = Printed()

    async def write(_: LineWriter, lines: Iterable[str]) -> None:
        await trio.lowlevel.checkpoint()
        collected.lines += lines
        collected.wake()

    monkeypatch.setattr(LineWriter, "write", write)
    return collected


@asynccontextmanager
async def running(
    sandbox: Sandbox, printed: Printed, *channels: str, quiet: bool = False
) -> AsyncIterator[None]:
    account = Account(
        api_key=sandbox.api_key,
        secret_key=sandbox.secret_key,
        ws_url=sandbox.url,
        endpoint=parse_url(sandbox.url),
    )
    output = Output(as_json=True, quiet=quiet)

    async def run() -> None:
        try:
            await watch_channels(channels, account, output)
        except (BrokerError, click.ClickException) as error:
            printed.error = error
            printed.wake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield
        nursery.cancel_scope.cancel()


async def test_watch_continues_after_an_outage_and_shows_the_gap(
    printed: Printed, autojump_clock: MockClock
) -> None:
    async with open_sandbox(seed=7) as sandbox, running(sandbox, printed, "balances"):
        await printed.until(lambda: printed.events("message"))
        sandbox.faults.kill()
        await printed.until(lambda: len(printed.events("disconnected")) > 10)
        lost = printed.events("disconnected")[0]
        assert lost["error"]
        assert 0 < lost["retry_in"] <= 1
        await sandbox.faults.revive()
        await printed.until(lambda: len(printed.events("message")) == 2)
        (restored,) = printed.events("restored")
        assert restored["channels"] == ["balances"]
        message = printed.events("message")[-1]
        assert (message["gap"]["reasons"], message["gap"]["dropped"]) == (["reconnected"], 0)
        assert message["gap"]["since"] <= lost["at"]
        assert message["origin"] == "snapshot"
        assert printed.error is None


async def test_refused_channel_does_not_stop_the_others(
    printed: Printed, autojump_clock: MockClock
) -> None:
    async with open_sandbox(seed=7) as sandbox, sandbox.client() as client:
        sandbox.next_outcome("filled")
        receipt = await client.do_swap("2", "ETH", "USDT")
        channel = f"orders:{receipt.order_id}"
        async with running(sandbox, printed, "news", channel):
            await printed.until(lambda: '"status": "FILLED"' in "".join(printed.lines[-1:]))
        (refused,) = printed.events("channel_refused")
        assert refused["channel"] == "news"
        assert refused["error"] == "the broker refused subscribe: Invalid channel format"
        (subscribed,) = printed.events("subscribed")
        assert subscribed["channel"] == channel
        last = printed.objects[-1]
        assert (last["channel"], last["data"]["order_id"]) == (channel, receipt.order_id)


@pytest.mark.parametrize("quiet", [False, True])
async def test_watch_exits_with_5_if_all_channels_are_refused(
    quiet: bool, printed: Printed, capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    reason = "the broker refused subscribe: Invalid channel format"
    async with (
        open_sandbox(seed=7) as sandbox,
        running(sandbox, printed, "news", "views", quiet=quiet),
    ):
        error = await printed.ended()
    assert isinstance(error, CommandFailed)
    assert (error.message, error.exit_code) == (f"no channel is left: {reason}", 5)
    errors = sorted(capsys.readouterr().err.splitlines())
    if quiet:
        assert printed.lines == []
        assert errors == [f"Error: {name} is refused: {reason}" for name in ("news", "views")]
    else:
        assert len(printed.events("channel_refused")) == 2
        assert errors == []


async def test_channel_refused_after_an_outage_is_shown_once(
    printed: Printed, autojump_clock: MockClock
) -> None:
    async with open_sandbox(seed=7) as sandbox, running(sandbox, printed, "balances"):
        await printed.until(lambda: printed.events("message"))
        sandbox.faults.refuse_channel("balances", "not any more")
        sandbox.faults.reset()
        error = await printed.ended()
    assert isinstance(error, CommandFailed)
    assert error.exit_code == 5
    (refused,) = printed.events("channel_refused")
    assert refused["error"] == "the broker refused subscribe: not any more"


async def test_quiet_prints_only_messages(printed: Printed, autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=7) as sandbox, running(sandbox, printed, "balances", quiet=True):
        await printed.until(lambda: printed.lines)
        sandbox.faults.reset()
        await printed.until(lambda: len(printed.lines) == 2)
    assert [one["event"] for one in printed.objects] == ["message", "message"]


async def test_final_error_ends_the_watch(printed: Printed, autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=7) as sandbox, running(sandbox, printed, "balances"):
        await printed.until(lambda: printed.events("message"))
        sandbox.faults.refuse_auth()
        sandbox.faults.reset()
        error = await printed.ended()
    assert status_of(error) == 3
    gave_up = printed.objects[-1]
    assert gave_up["event"] == "gave_up"
    assert gave_up["error"] == str(error) == "the broker refused auth: Invalid signature"


async def test_invalid_channel_is_a_usage_error(
    printed: Printed, autojump_clock: MockClock
) -> None:
    async with open_sandbox(seed=7) as sandbox, running(sandbox, printed, "orders:<1>"):
        error = await printed.ended()
    assert isinstance(error, click.UsageError)
    assert "U+003C" in error.message


# --- The tasks ------------------------------------------------------------------------------


class RecordingView:
    """A view that records events and messages."""

    def __init__(self) -> None:
        self.events: list[ConnectionEvent] = []
        self.messages: list[Message[Any]] = []
        self.shown = trio.Event()

    async def run(self, client: BrokerWSClient) -> None:
        pass

    async def show_event(self, event: ConnectionEvent) -> None:
        self.events.append(event)
        self._wake()

    async def show_messages(self, messages: Sequence[Message[Any]]) -> None:
        self.messages += messages
        self._wake()

    def _wake(self) -> None:
        self.shown.set()
        self.shown = trio.Event()

    async def until(self, is_there: Callable[[], object]) -> None:
        with trio.fail_after(A_MOCK_HOUR):
            while not is_there():
                await self.shown.wait()

    def kinds(self) -> list[type[ConnectionEvent]]:
        return [type(event) for event in self.events]


@asynccontextmanager
async def following(
    sandbox: Sandbox, *channels: str, **options: Any
) -> AsyncIterator[tuple[RecordingView, BrokerWSClient]]:
    view = RecordingView()
    client = sandbox.client(reconnect=ReconnectPolicy(max_attempts=None), **options)
    events = client.events()
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(follow, client, events, channels, view)
        yield view, client
        if not client.state.is_over:
            nursery.cancel_scope.cancel()


async def test_channel_error_is_shown_and_the_channel_continues(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        following(sandbox, "balances") as (view, _),
    ):
        await view.until(lambda: view.messages)
        sandbox.push('{"ch":"balances","error":"no luck"}')
        sandbox.push('{"ch":"balances","data":[{"asset":"ETH","total":"3"}]}')
        await view.until(lambda: len(view.messages) > 1 and ChannelFailed in view.kinds())
        (trouble,) = (event for event in view.events if isinstance(event, ChannelFailed))
        assert event_members(trouble)["event"] == "channel_error"
        assert str(trouble.error) == "the broker reports on channel 'balances': no luck"


async def test_subscription_without_a_reply_is_repeated(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox(seed=7) as sandbox:
        sandbox.faults.ignore(op="subscribe", times=2)
        async with following(sandbox, "balances") as (view, _):
            await view.until(lambda: view.messages)
            kinds = view.kinds()
            assert kinds.index(ChannelFailed) < kinds.index(Subscribed)


async def test_watch_ends_when_the_client_is_closed(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        following(sandbox, "balances") as (view, client),
    ):
        await view.until(lambda: view.messages)
        await client.aclose()
        await view.until(lambda: Closed in view.kinds())


async def test_unanswered_subscription_ends_when_the_client_is_closed(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox(seed=7) as sandbox:
        sandbox.faults.ignore(op="subscribe")
        async with following(sandbox, "balances") as (view, client):
            await view.until(lambda: ChannelFailed in view.kinds())
            await client.aclose()
    assert Subscribed not in view.kinds()


async def test_messages_of_other_channels_are_shown_unchanged(autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=7) as sandbox:
        reply = {"op": "subscribe", "ch": "news", "data": {"status": "subscribed"}}
        sandbox.faults.replace(reply, op="subscribe")
        async with following(sandbox, "news") as (view, _):
            await view.until(lambda: Subscribed in view.kinds())
            sandbox.push('{"ch":"news","data":{"up":1.50}}')
            await view.until(lambda: view.messages)
    assert str(view.messages[0].data["up"]) == "1.50"


async def test_too_many_channels_are_refused(autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=7) as sandbox:
        names = [f"orders:{number}" for number in range(101)]
        async with following(sandbox, *names) as (view, _):
            await view.until(lambda: ChannelRefused in view.kinds())
