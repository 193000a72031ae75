"""``trio-broker watch``: its lines, its screen, and how it ends."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
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
    Disconnected,
    Gap,
    Message,
    OddMessage,
    Order,
    OrderStatus,
    ReconnectPolicy,
    ServerError,
)
from trio_broker.cli import main, watch as watch_module, watching
from trio_broker.cli.account import Account
from trio_broker.cli.board import ChannelTrouble, Subscribed
from trio_broker.cli.ending import CommandFailed, status_of
from trio_broker.cli.output import Output, json_text
from trio_broker.cli.pipe import Pipe
from trio_broker.cli.views import Lines, Raw, event_facts, message_facts, raw_line
from trio_broker.sandbox import Sandbox, open_sandbox
from trio_broker.settings import parse_url

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "trio_broker.cli")

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE = 30.0
A_MOCK_HOUR = 3600.0

SET_BY_USERS = ("BROKER_", "NO_COLOR", "FORCE_COLOR", "TTY_", "COLUMNS", "LINES")


def environment(sandbox: Sandbox | None = None, **more: str) -> dict[str, str]:
    plain = {name: text for name, text in os.environ.items() if not name.startswith(SET_BY_USERS)}
    if sandbox is not None:
        plain |= {
            "BROKER_WS_URL": sandbox.url,
            "BROKER_API_KEY": sandbox.api_key,
            "BROKER_SECRET_KEY": sandbox.secret_key,
        }
    return {**plain, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **more}


class Watcher:
    """A process that watches, and what it has printed so far."""

    def __init__(self, process: trio.Process, output: trio.abc.ReceiveStream) -> None:
        self.process = process
        self.printed = b""
        self._output = output

    async def until(self, is_there: Callable[[str], object]) -> str:
        """What was printed, once something is there."""
        with trio.fail_after(PATIENCE):
            while not is_there(self.text):
                assert await self._more(), f"it ended before that: {self.text}"
        return self.text

    async def ended(self) -> int:
        """The status, once all is read."""
        with trio.fail_after(PATIENCE):
            while await self._more():
                pass
            return await self.process.wait()

    async def _more(self) -> bool:
        try:
            chunk = await self._output.receive_some()
        except trio.BrokenResourceError:
            chunk = b""  # how Linux says that nobody has the terminal any more
        self.printed += chunk
        return bool(chunk)

    @property
    def text(self) -> str:
        return self.printed.decode(errors="replace")

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines(keepends=True) if "\n" in line]

    async def until_event(self, name: str, **members: object) -> dict[str, Any]:
        """The first event of a kind that has these members."""

        def found(_: str = "") -> list[dict[str, Any]]:
            wanted = {"event": name, **members}
            return [one for one in self.objects if {**one, **wanted} == one]

        await self.until(found)
        return found()[0]


@asynccontextmanager
async def watch(
    *args: str, environ: Mapping[str, str], command: Sequence[str] = ("watch",)
) -> AsyncIterator[Watcher]:
    """A process that prints into a pipe."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, *command, *args], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with _ending(process):
        assert process.stdout is not None
        yield Watcher(process, process.stdout)


@asynccontextmanager
async def watch_on_screen(
    *args: str,
    environ: Mapping[str, str],
    size: tuple[int, int] = (80, 30),
    command: Sequence[str] = ("watch",),
) -> AsyncIterator[tuple[Watcher, Callable[[int, int], None]]]:
    """A process on a terminal of its own, and what changes the terminal's size."""
    terminal, inside = pty.openpty()

    def resize(width: int, height: int) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    resize(*size)
    process = await trio.lowlevel.open_process(
        [*COMMAND, *command, *args],
        env=environ,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    async with trio.lowlevel.FdStream(terminal) as stream, _ending(process):
        yield Watcher(process, stream), resize


@asynccontextmanager
async def _ending(process: trio.Process) -> AsyncIterator[None]:
    try:
        yield
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()


async def complaints(watcher: Watcher) -> str:
    """All that it has said to standard error."""
    assert watcher.process.stderr is not None
    said = b""
    with trio.fail_after(PATIENCE):
        async for chunk in watcher.process.stderr:
            said += chunk
    return said.decode()


def status(*args: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(args)
    return ended.value.code


# --- In a pipe ------------------------------------------------------------------------------


async def test_in_a_pipe_each_line_is_an_object() -> None:
    async with open_sandbox(seed=7) as sandbox, sandbox.client() as client:
        sandbox.next_outcome("filled")
        async with watch(environ=environment(sandbox)) as watcher:
            first = await watcher.until_event("message")
            assert [one["event"] for one in watcher.objects] == [
                "connected", "subscribed", "message",
            ]  # fmt: skip
            assert (first["channel"], first["origin"], first["gap"]) == (
                "balances", "snapshot", None,
            )  # fmt: skip
            ether = {"asset": "ETH", "total": "1000", "locked": "0", "available": "1000"}
            assert ether in first["data"]

            await client.do_swap("2", "ETH", "USDT")
            pushed = await watcher.until_event("message", origin="push")
            ether = {"asset": "ETH", "total": "1000", "locked": "2", "available": "998"}
            assert ether in pushed["data"]

            watcher.process.send_signal(signal.SIGINT)
            assert await watcher.ended() == 130
            assert await complaints(watcher) == ""
            assert watcher.text.endswith("}\n")


async def test_a_reader_that_has_read_enough_sees_no_traceback() -> None:
    async with open_sandbox(seed=7) as sandbox, watch(environ=environment(sandbox)) as watcher:
        await watcher.until_event("message")
        assert watcher.process.stdout is not None
        await watcher.process.stdout.aclose()
        sandbox.faults.reset()
        with trio.fail_after(PATIENCE):
            assert await watcher.process.wait() == 1
        assert await complaints(watcher) == ""


class Authentications(logging.Handler):
    """Wakes whoever waits for a client of a sandbox in this process to be authenticated."""

    def __init__(self) -> None:
        super().__init__()
        self.happened = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "authenticated" in record.getMessage():
            self.happened.set()


async def test_a_reader_that_reads_nothing_holds_up_neither_connection_nor_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trio_broker.sandbox")
    authentications = Authentications()
    async with open_sandbox(seed=7) as sandbox, watch(environ=environment(sandbox)) as watcher:
        await watcher.until_event("message")
        logging.getLogger("trio_broker.sandbox").addHandler(authentications)
        for _ in range(20):  # far more than a pipe holds
            push = {"ch": "balances", "data": [{"asset": "A" * 50_000, "total": "1"}]}
            sandbox.push(json.dumps(push))
        sandbox.faults.close(1012)
        with trio.fail_after(PATIENCE):
            await authentications.happened.wait()  # it still reads and writes
            watcher.process.send_signal(signal.SIGINT)
            assert await watcher.process.wait() == 130
        logging.getLogger("trio_broker.sandbox").removeHandler(authentications)
        assert await complaints(watcher) == ""


async def test_balances_watch_is_the_same() -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        watch("--watch", environ=environment(sandbox), command=("balances",)) as watcher,
    ):
        message = await watcher.until_event("message")
        assert message["channel"] == "balances"
        watcher.process.send_signal(signal.SIGINT)
        assert await watcher.ended() == 130


# --- Raw ------------------------------------------------------------------------------------


async def test_raw_is_what_the_broker_sends_but_for_secrets() -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        watch("--raw", environ=environment(sandbox)) as watcher,
    ):
        await watcher.until(lambda text: '"asset":"ETH"' in text)
        odd = '{"key":"alice","sig":"abc","text":"test_key_1 test_secret_1","x":"\x1b[2J\n"}'
        sandbox.push(odd)
        expected = (
            '{"key":"<removed>","sig":"<removed>","text":"<removed> <removed>","x":"\\x1b[2J\\n"}\n'
        )
        await watcher.until(lambda text: text.endswith(expected))
        assert "authenticated" in watcher.text.splitlines()[0]
        watcher.process.send_signal(signal.SIGINT)
        assert await watcher.ended() == 130
        said = (await complaints(watcher)).splitlines()
        assert said[:2] == ["connected", "subscribed to balances"]
        assert said[2].startswith("an odd message: ")


def test_raw_of_a_binary_message() -> None:
    assert raw_line(b"\xff secret\n", lambda text: text.replace("secret", "-")) == r"\xff -\n"


async def test_raw_tells_what_it_has_left_out(
    capfd: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    async with open_sandbox(seed=7) as sandbox, sandbox.client() as client:
        view = Raw(Output(), str, client.messages())
        for number in range(2000):
            client._supervisor._show([f"message {number}"])
        await client.aclose()
        await view.run(client)
    ended = capfd.readouterr()
    lines = ended.out.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("message 976", "message 1999", 1024)
    assert ended.err == "976 messages are left out: nobody read them\n"


# --- How it doesn't begin -------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings of a broker that isn't there, and no others."""
    monkeypatch.chdir(tmp_path)
    for name in tuple(os.environ):
        if name.startswith(SET_BY_USERS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BROKER_API_KEY", "alice")
    monkeypatch.setenv("BROKER_SECRET_KEY", "of alice")
    monkeypatch.setenv("BROKER_WS_URL", "ws://127.0.0.1:1/")


@pytest.mark.usefixtures("nowhere")
def test_without_a_broker_it_ends_with_4(capfd: pytest.CaptureFixture[str]) -> None:
    assert status("watch") == 4
    ended = capfd.readouterr()
    assert ended.out == ""
    assert ended.err.startswith("Error: ")
    assert ended.err.count("\n") == 1


@pytest.mark.usefixtures("nowhere")
def test_without_settings_it_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BROKER_API_KEY")
    assert status("watch") == 2
    assert "BROKER_API_KEY is not set" in capsys.readouterr().err


@pytest.mark.usefixtures("nowhere")
def test_raw_texts_are_no_objects(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("watch", "--raw", "--json") == 2
    assert "it doesn't go with --json" in capsys.readouterr().err


@pytest.mark.usefixtures("nowhere")
def test_nothing_is_written_where_standard_output_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stdout__", None)
    assert status("watch") == 1
    assert capsys.readouterr().err == "Error: standard output is closed\n"


async def test_a_wrong_key_ends_with_3() -> None:
    async with open_sandbox(seed=7) as sandbox:
        environ = environment(sandbox, BROKER_SECRET_KEY="another")
        async with watch(environ=environ) as watcher:
            assert await watcher.ended() == 3
            assert watcher.text == ""
            assert (await complaints(watcher)).count("\n") == 1


def test_help_imports_no_rich() -> None:
    code = (
        "import sys\nfrom trio_broker.cli import main\n"
        "try: main(['watch', '--help'])\nfinally: assert 'rich' not in sys.modules"
    )
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True,
        check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "\n  disconnected          error, retry_in (seconds, or null)\n" in ended.stdout


# --- The command in this process ------------------------------------------------------------


class Printed:
    """What the command has printed for programs, and how it ended."""

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

    async def write(_: Pipe, lines: Iterable[str]) -> None:
        await trio.lowlevel.checkpoint()
        collected.lines += lines
        collected.wake()

    monkeypatch.setattr(Pipe, "write", write)
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
            await watching.until_told(lambda: watch_module._watch(channels, account, output))
        except (BrokerError, click.ClickException) as error:
            printed.error = error
            printed.wake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield
        nursery.cancel_scope.cancel()


async def test_it_goes_on_over_an_outage_and_owns_up(
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


async def test_an_order_is_watched_and_a_refusal_stops_nothing_else(
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
async def test_if_all_is_refused_it_ends_with_5(
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
    said = sorted(capsys.readouterr().err.splitlines())
    if quiet:
        assert printed.lines == []
        assert said == [f"Error: {name} is refused: {reason}" for name in ("news", "views")]
    else:
        assert len(printed.events("channel_refused")) == 2
        assert said == []


async def test_a_channel_that_is_refused_after_an_outage_is_told_once(
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


async def test_quiet_leaves_messages_alone(printed: Printed, autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=7) as sandbox, running(sandbox, printed, "balances", quiet=True):
        await printed.until(lambda: printed.lines)
        sandbox.faults.reset()
        await printed.until(lambda: len(printed.lines) == 2)
    assert [one["event"] for one in printed.objects] == ["message", "message"]


async def test_a_final_error_later_is_the_end(printed: Printed, autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=7) as sandbox, running(sandbox, printed, "balances"):
        await printed.until(lambda: printed.events("message"))
        sandbox.faults.refuse_auth()
        sandbox.faults.reset()
        error = await printed.ended()
    assert status_of(error) == 3
    gave_up = printed.objects[-1]
    assert gave_up["event"] == "gave_up"
    assert gave_up["error"] == str(error) == "the broker refused auth: Invalid signature"


async def test_a_channel_that_can_t_be_sent_is_a_usage_error(
    printed: Printed, autojump_clock: MockClock
) -> None:
    async with open_sandbox(seed=7) as sandbox, running(sandbox, printed, "orders:<1>"):
        error = await printed.ended()
    assert isinstance(error, click.UsageError)
    assert "U+003C" in error.message


# --- The tasks ------------------------------------------------------------------------------


class Recorder:
    """A view that remembers."""

    def __init__(self) -> None:
        self.events: list[ConnectionEvent] = []
        self.messages: list[Message[Any]] = []
        self.told = trio.Event()

    async def run(self, client: BrokerWSClient) -> None:
        pass

    async def tell(self, event: ConnectionEvent) -> None:
        self.events.append(event)
        self._wake()

    async def take(self, messages: Sequence[Message[Any]]) -> None:
        self.messages += messages
        self._wake()

    def _wake(self) -> None:
        self.told.set()
        self.told = trio.Event()

    async def until(self, is_there: Callable[[], object]) -> None:
        with trio.fail_after(A_MOCK_HOUR):
            while not is_there():
                await self.told.wait()

    def kinds(self) -> list[type[ConnectionEvent]]:
        return [type(event) for event in self.events]


@asynccontextmanager
async def following(
    sandbox: Sandbox, *channels: str, **options: Any
) -> AsyncIterator[tuple[Recorder, BrokerWSClient]]:
    view = Recorder()
    client = sandbox.client(reconnect=ReconnectPolicy(max_attempts=None), **options)
    events = client.events()
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(watching.follow, client, events, channels, view)
        yield view, client
        if not client.state.is_over:
            nursery.cancel_scope.cancel()


async def test_an_error_on_a_channel_is_told_and_it_goes_on(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        following(sandbox, "balances") as (view, _),
    ):
        await view.until(lambda: view.messages)
        sandbox.push('{"ch":"balances","error":"no luck"}')
        sandbox.push('{"ch":"balances","data":[{"asset":"ETH","total":"3"}]}')
        await view.until(lambda: len(view.messages) > 1 and ChannelTrouble in view.kinds())
        (trouble,) = (event for event in view.events if isinstance(event, ChannelTrouble))
        assert event_facts(trouble)["event"] == "channel_error"
        assert str(trouble.error) == "the broker reports on channel 'balances': no luck"


async def test_a_subscription_that_nobody_answers_is_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox(seed=7) as sandbox:
        sandbox.faults.ignore(op="subscribe", times=2)
        async with following(sandbox, "balances") as (view, _):
            await view.until(lambda: view.messages)
            kinds = view.kinds()
            assert kinds.index(ChannelTrouble) < kinds.index(Subscribed)


async def test_it_ends_with_the_client(autojump_clock: MockClock) -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        following(sandbox, "balances") as (view, client),
    ):
        await view.until(lambda: view.messages)
        await client.aclose()
        await view.until(lambda: Closed in view.kinds())


async def test_what_waits_for_a_subscription_ends_with_the_client(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox(seed=7) as sandbox:
        sandbox.faults.ignore(op="subscribe")
        async with following(sandbox, "balances") as (view, client):
            await view.until(lambda: ChannelTrouble in view.kinds())
            await client.aclose()
    assert Subscribed not in view.kinds()


async def test_other_channels_bring_what_they_bring(autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=7) as sandbox:
        reply = {"op": "subscribe", "ch": "news", "data": {"status": "subscribed"}}
        sandbox.faults.replace(reply, op="subscribe")
        async with following(sandbox, "news") as (view, _):
            await view.until(lambda: Subscribed in view.kinds())
            sandbox.push('{"ch":"news","data":{"up":1.50}}')
            await view.until(lambda: view.messages)
    assert str(view.messages[0].data["up"]) == "1.50"


async def test_too_many_channels_are_refused_here(autojump_clock: MockClock) -> None:
    async with open_sandbox(seed=7) as sandbox:
        names = [f"orders:{number}" for number in range(101)]
        async with following(sandbox, *names) as (view, _):
            await view.until(lambda: ChannelRefused in view.kinds())


async def test_a_failure_is_raised_without_a_group() -> None:
    async def fail() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise CommandFailed("no luck")

    with pytest.raises(CommandFailed, match="no luck"):
        await watching.until_told(fail)


async def test_what_ends_by_itself_ends_well() -> None:
    assert await watching.until_told(trio.lowlevel.checkpoint) == 0


# --- Lines ----------------------------------------------------------------------------------


async def test_a_line_has_no_secrets_in_it(capfd: pytest.CaptureFixture[str]) -> None:
    lines = Lines(Output(as_json=True), lambda text: text.replace("alice", "<removed>"))
    error = ServerError("subscribe", "alice may not")
    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    await lines.tell(ChannelRefused(at=when, channel="news", error=error))
    await lines.tell(OddMessage(at=when, reason="odd", raw='{"sig":"abc","x":"alice"}'))
    await lines.tell(OddMessage(at=when, reason="binary", raw=None))
    refused, odd, binary = map(json.loads, capfd.readouterr().out.splitlines())
    assert refused == {
        "event": "channel_refused", "at": "2026-01-02T03:04:05+00:00", "channel": "news",
        "error": "the broker refused subscribe: <removed> may not",
    }  # fmt: skip
    assert (odd["event"], odd["raw"]) == ("odd", '{"sig":"<removed>","x":"<removed>"}')
    assert binary["raw"] is None


def test_each_kind_of_data_has_its_form() -> None:
    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    gap = Gap(frozenset({"overflow"}), 3, when)
    order = Order("1", OrderStatus.FILLED, Decimal("1.50"), "0xfeed", when, "mine")
    facts = message_facts(Message("orders:1", order, "push", gap, when, "raw"))
    at = "2026-01-02T03:04:05+00:00"
    assert json.loads(json_text(facts)) == {
        "event": "message",
        "at": at,
        "channel": "orders:1",
        "origin": "push",
        "gap": {"reasons": ["overflow"], "dropped": 3, "since": at},
        "data": {
            "order_id": "1",
            "status": "FILLED",
            "filled_out": "1.50",
            "tx_hash": "0xfeed",
            "updated_at": at,
            "client_order_id": "mine",
        },
    }
    other = message_facts(Message("news", {"up": [1, None]}, "push", None, when, "raw"))
    assert (other["data"], other["gap"]) == ({"up": [1, None]}, None)
    lost = Disconnected(at=when, error=ConnectionError(), retry_in=None)
    assert event_facts(lost)["error"] == "ConnectionError"


# --- On a screen ----------------------------------------------------------------------------

ENTER, LEAVE, SHOW_CURSOR, HOME = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h", "\x1b[H"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def last_frame(printed: str) -> str:
    """The last frame that is whole, without its colours."""
    frames = printed.split(HOME)
    return COLOURS.sub("", frames[-2] if len(frames) > 2 else "")


def left_behind(printed: str) -> str:
    """What is on the terminal after the end, without colours."""
    assert printed.count(ENTER) == printed.count(LEAVE) == 1
    after = printed[printed.index(LEAVE) :]
    assert SHOW_CURSOR in printed[printed.rindex(HOME) :]
    return COLOURS.sub("", after.removeprefix(LEAVE))


async def test_a_screen_is_kept_up_to_date_and_left_clean() -> None:
    async with open_sandbox(seed=7) as sandbox, sandbox.client() as client:
        sandbox.next_outcome("filled")
        receipt = await client.do_swap("2", "ETH", "USDT")
        channel = f"orders:{receipt.order_id}"
        async with watch_on_screen("balances", channel, environ=environment(sandbox)) as (
            watcher, resize,
        ):  # fmt: skip
            await watcher.until(lambda text: "FILLED" in last_frame(text))
            await watcher.until(lambda text: re.search(r"USDT +1\d+", last_frame(text)))
            frame = last_frame(watcher.text)
            assert " SANDBOX  127.0.0.1:" in frame
            assert "● connected" in frame
            assert "available" in frame

            resize(40, 20)
            narrow = await watcher.until(lambda text: "available" not in last_frame(text))
            lines = last_frame(narrow).split("\r\n")
            assert max(map(len, lines)) <= 40
            assert len(lines) <= 20

            sandbox.faults.kill()
            await watcher.until(lambda text: "next try in" in last_frame(text))
            await sandbox.faults.revive()
            await watcher.until(lambda text: "1 outage" in last_frame(text))
            await watcher.until(lambda text: "● connected" in last_frame(text))

            watcher.process.send_signal(signal.SIGINT)
            assert await watcher.ended() == 130
            stays = left_behind(watcher.text)
            assert receipt.order_id in stays
            assert "FILLED" in stays
            assert "Ctrl-C" not in stays


async def test_a_screen_is_left_clean_by_sigterm_and_by_a_final_error() -> None:
    async with open_sandbox(seed=7) as sandbox:
        async with watch_on_screen(environ=environment(sandbox)) as (watcher, _):
            await watcher.until(lambda text: "USDT" in last_frame(text))
            watcher.process.send_signal(signal.SIGTERM)
            assert await watcher.ended() == 0
            assert "USDT" in left_behind(watcher.text)
        async with watch_on_screen("--quiet", environ=environment(sandbox)) as (watcher, _):
            await watcher.until(lambda text: "USDT" in last_frame(text))
            assert "EVENTS" not in last_frame(watcher.text)
            sandbox.faults.refuse_auth()
            sandbox.faults.reset()
            assert await watcher.ended() == 3
            stays = left_behind(watcher.text)
            assert "● failed" in stays
            assert stays.splitlines()[-1].startswith("Error: the broker refused auth")


async def test_ctrl_z_leaves_the_screen_to_the_shell_for_a_while() -> None:
    async with (
        open_sandbox(seed=7) as sandbox,
        watch_on_screen(environ=environment(sandbox)) as (watcher, _),
    ):
        await watcher.until(lambda text: "USDT" in last_frame(text))
        watcher.process.send_signal(signal.SIGTSTP)
        await watcher.until(lambda text: LEAVE in text)
        with trio.fail_after(PATIENCE):
            is_stopped = partial(os.waitid, os.P_PID, watcher.process.pid)
            await trio.to_thread.run_sync(is_stopped, os.WSTOPPED | os.WNOWAIT)
        watcher.process.send_signal(signal.SIGCONT)
        again = await watcher.until(lambda text: text.count(ENTER) == 2)
        await watcher.until(lambda text: "USDT" in last_frame(text[len(again) :]))
        watcher.process.send_signal(signal.SIGINT)
        assert await watcher.ended() == 130
        assert watcher.text.count(LEAVE) == 2


async def test_a_dumb_terminal_gets_lines() -> None:
    async with open_sandbox(seed=7) as sandbox:
        environ = environment(sandbox, TERM="dumb")
        async with watch_on_screen(environ=environ) as (watcher, _):
            await watcher.until(lambda text: text.count("\n") == 3)
            assert [one["event"] for one in watcher.objects] == [
                "connected", "subscribed", "message",
            ]  # fmt: skip
