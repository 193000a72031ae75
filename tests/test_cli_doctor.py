"""``trio-broker doctor``: what each step finds, and with which status it ends.

Time is Trio's mock clock's: however busy the machine is, only what is meant to be slow is slow.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import importlib.util
import io
import itertools
import json
import re
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
import pytest
import trio
import trustme
from trio.testing import MockClock

import trio_broker
from tests.doctoring import KEY, NAMES, SECRET, VARIABLES, closed_port
from tests.rawserver import (
    Handler,
    PeerGoneError,
    receive_request,
    reset,
    send,
    serve_raw,
    switching_protocols,
    wait_gone,
)
from trio_broker import key_fingerprint
from trio_broker.cli import checks, doctor
from trio_broker.cli.account import find_account, gather
from trio_broker.cli.certificate import Certificate, read
from trio_broker.cli.checkup import (
    Checked,
    Result,
    Visit,
    examine,
    status,
)
from trio_broker.cli.skew import Skew
from trio_broker.sandbox import Sandbox, open_sandbox

# Long enough never to matter, short enough that a hang fails the test and doesn't stop it.
PATIENCE: Final = 30.0


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BROKER_API_KEY", KEY)
    monkeypatch.setenv("BROKER_SECRET_KEY", SECRET)
    monkeypatch.chdir(tmp_path)  # where there is no .env


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BROKER_API_KEY")
    monkeypatch.delenv("BROKER_SECRET_KEY")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


def server_tls(authority: trustme.CA, host: str = "127.0.0.1", **options: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host, **options).configure_cert(context)
    return context


async def checkup(
    url: str | None,
    *,
    limit: float = 10.0,
    clock: Callable[[], float] = time.time,
    after: Mapping[str, Callable[[], object]] | None = None,
    **flags: Any,
) -> dict[str, Checked]:
    """What each step finds; `after` has what happens right after some of them."""
    told: list[Checked] = []

    def report(checked: Checked) -> None:
        told.append(checked)
        if after is not None and checked.step in after:
            after[checked.step]()

    everything = {
        "url": url, "env_file": None, "secret_key_stdin": False, "signing_key": "derived",
        "transport": "trio-websocket", "allow_insecure": False, **flags,
    }  # fmt: skip
    visit = Visit(flags=everything, timeout=limit, clock=clock)
    with trio.fail_after(PATIENCE):
        taken = await examine(visit, doctor.STEPS, report)
    assert taken == told
    assert tuple(each.step for each in taken) == NAMES
    for each in taken:
        shown = f"{each.finding.detail} {each.finding.advice}"
        assert SECRET not in shown
        assert KEY not in shown
        assert (each.seconds is None) == (each.finding.result == "skipped")
    return {each.step: each for each in taken}


def results(taken: Mapping[str, Checked]) -> dict[str, str]:
    return {name: each.finding.result for name, each in taken.items()}


def told(taken: Mapping[str, Checked], step: str) -> str:
    finding = taken[step].finding
    return f"{finding.result}: {finding.detail}; {finding.advice}"


def all_ok(**others: Result) -> dict[str, str]:
    return {**dict.fromkeys(NAMES, "ok"), "tls": "skipped", **others}


def failing(step: str, **others: Result) -> dict[str, str]:
    """That one failed, and those after it were skipped, as far as nothing else is said."""
    place = NAMES.index(step)
    return {
        **dict.fromkeys(NAMES[:place], "ok"),
        step: "failed",
        **dict.fromkeys(NAMES[place + 1 :], "skipped"),
        "versions": "ok",
        **others,
    }


def exit_status(taken: Mapping[str, Checked]) -> int:
    return status(taken.values())


class Resolver(trio.abc.HostnameResolver):
    """A resolver that knows one answer."""

    def __init__(self, answer: Callable[[], Awaitable[Iterable[str]]]) -> None:
        self._answer = answer

    async def getaddrinfo(  # type: ignore[override]  # the rest of its arguments doesn't matter
        self, _host: bytes, port: int, *_: int
    ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port))
            for address in await self._answer()
        ]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise AssertionError("nobody asks what an address is called")


def resolve_to(*addresses: str) -> None:
    async def answer() -> Iterable[str]:
        await trio.lowlevel.checkpoint()
        return addresses

    trio.socket.set_custom_hostname_resolver(Resolver(answer))


@asynccontextmanager
async def in_front_of(
    sandbox: Sandbox,
    *,
    date: Callable[[], float] | None = None,
    delay: float = 0.0,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Something in front of a sandbox, as brokers have: it dates answers, and speaks TLS."""
    port = urlsplit(sandbox.url).port
    assert port is not None

    async def pump(source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await source.receive_some(65536):
                await sink.send_all(data)
        scope.cancel()

    async def relay(stream: trio.abc.Stream) -> None:
        request = await receive_request(stream)
        await trio.sleep(delay)
        async with await trio.open_tcp_stream("127.0.0.1", port) as behind:
            await behind.send_all(request)
            head = await receive_request(behind)
            if date is not None:
                when = dt.datetime.fromtimestamp(date(), dt.UTC)
                dated = f"\r\nDate: {format_datetime(when, usegmt=True)}\r\n\r\n"
                head = head.removesuffix(b"\r\n\r\n") + dated.encode()
            await send(stream, head)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, stream, behind, nursery.cancel_scope)
                nursery.start_soon(pump, behind, stream, nursery.cancel_scope)

    async with serve_raw(relay, ssl_context=ssl_context) as own:
        yield f"{'wss' if ssl_context else 'ws'}://127.0.0.1:{own}/ws/v1/stream"


# --- All is well ----------------------------------------------------------------------------


async def test_a_broker_that_works_is_found_to_work(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        taken = await checkup(sandbox.url + "?token=hidden")
        assert sandbox.orders() == ()
    assert results(taken) == all_ok()
    assert exit_status(taken) == 0
    port = urlsplit(sandbox.url).port
    configuration = told(taken, "configuration")
    assert configuration == (
        f"ok: SANDBOX account {key_fingerprint(KEY)} at {sandbox.url}; "
        "BROKER_API_KEY, BROKER_SECRET_KEY from the environment; BROKER_WS_URL from --url; None"
    )
    assert told(taken, "dns") == "ok: 127.0.0.1 is an address already; None"
    assert told(taken, "tcp") == "ok: 127.0.0.1 answered; None"
    assert port is not None
    assert "ws:// has no TLS" in told(taken, "tls")
    assert "HTTP status 101" in told(taken, "handshake")
    assert "less than 30 s" in told(taken, "clock")
    assert "5 calls of get_balances" in told(taken, "latency")
    assert "a snapshot of 10 assets" in told(taken, "subscription")
    for text in (f"trio-broker {trio_broker.__version__}", f"trio {trio.__version__}",
                 "trio-websocket ", "Python 3.", "OpenSSL"):  # fmt: skip
        assert text in told(taken, "versions")


async def test_over_tls_it_tells_whose_certificate_it_is_and_what_time_it_is_there(
    trusted: None, authority: trustme.CA, autojump_clock: MockClock
) -> None:
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=87.5)
    context = server_tls(authority, common_name="the broker", not_after=ends)
    async with (
        open_sandbox() as sandbox,
        in_front_of(sandbox, date=time.time, ssl_context=context) as url,
    ):
        taken = await checkup(url)
    assert results(taken) == all_ok(tls="ok")
    tls = told(taken, "tls")
    for text in ("TLSv1.3", "CN=the broker", "for 127.0.0.1,", "issued by O=trustme",
                 f"{ends:%Y-%m-%d} (87 days left)"):  # fmt: skip
        assert text in tls
    low, high = re.findall(r"[+-]\d+\.\d", told(taken, "clock"))
    assert float(low) <= 0 <= float(high)


async def test_each_transport_will_do(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        taken = await checkup(sandbox.url, transport="websockets")
    assert results(taken) == all_ok()
    assert "websockets 1" in told(taken, "versions")


# --- The configuration ----------------------------------------------------------------------


def write(text: str, name: str = ".env", mode: int = 0o600) -> Path:
    file = Path(name)
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.mark.usefixtures("no_keys")
async def test_without_settings_it_says_which_are_missing(autojump_clock: MockClock) -> None:
    taken = await checkup(None)
    assert results(taken) == failing("configuration")
    assert told(taken, "configuration").startswith(
        "failed: the environment variable BROKER_API_KEY is not set (nothing was found); set it in"
    )
    assert exit_status(taken) == 2
    assert told(taken, "subscription") == "skipped: configuration failed; None"


@pytest.mark.usefixtures("no_keys")
async def test_what_was_found_is_told_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    write(f"BROKER_API_KEY={KEY}\n")
    monkeypatch.setenv("BROKER_BASE_URL", "https://broker.example")
    taken = await checkup(None)
    for text in ("BROKER_SECRET_KEY is not set", "BROKER_API_KEY from .env",
                 "BROKER_BASE_URL from the environment"):  # fmt: skip
        assert text in told(taken, "configuration")


@pytest.mark.parametrize(
    ("url", "flags", "message"),
    [
        ("ftp://broker.example", {}, "must begin with wss://"),
        ("ws://broker.example", {}, "without TLS"),
        ("wss://127.0.0.1:1", {"env_file": Path("none")}, "there is no file 'none'"),
        ("wss://127.0.0.1:1", {"secret_key_stdin": True}, "standard input is empty"),
    ],
)
async def test_settings_that_cannot_work_are_told(
    url: str,
    flags: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    taken = await checkup(url, **flags)
    assert results(taken) == failing("configuration")
    assert message in told(taken, "configuration")
    assert taken["configuration"].finding.advice
    assert exit_status(taken) == 2


async def test_a_transport_that_is_not_installed_is_told(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    def not_found(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    taken = await checkup("wss://127.0.0.1:1", transport="websockets")
    assert results(taken) == failing("configuration")
    assert "pip install 'trio-broker[speed]'" in told(taken, "configuration")
    assert "websockets (not installed)" in told(taken, "versions")


@pytest.mark.parametrize(
    ("mode", "result"), [(0o600, "ok"), (0o640, "slow"), (0o604, "slow"), (0o622, "ok")]
)
async def test_a_secret_that_others_can_read_is_worth_a_warning(
    mode: int, result: str, autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox:
        settings = f"BROKER_API_KEY={KEY}\nBROKER_SECRET_KEY={SECRET}\n"
        file = write(settings + f"BROKER_WS_URL={sandbox.url}\n", "my keys.env", mode)
        taken = await checkup(None, env_file=file)
    assert results(taken) == {**all_ok(), "configuration": result}
    assert exit_status(taken) == 0
    assert "BROKER_WS_URL from my keys.env" in told(taken, "configuration")
    assert ("chmod 600 'my keys.env'" in told(taken, "configuration")) == (result == "slow")


async def test_a_way_that_everyone_can_read_along_is_worth_a_warning(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        resolve_to("127.0.0.1")
        port = urlsplit(sandbox.url).port
        url = f"ws://broker.example:{port}/ws/v1/stream"
        taken = await checkup(url, allow_insecure=True)
    assert results(taken) == all_ok(configuration="slow")
    assert "LIVE account" in told(taken, "configuration")
    assert "use wss://" in told(taken, "configuration")


def test_settings_are_taken_from_flags_then_the_environment_then_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write("BROKER_API_KEY=file\nBROKER_SECRET_KEY=file\nBROKER_WS_URL=wss://file.example\n")
    environ = {"BROKER_API_KEY": "environ", "BROKER_SECRET_KEY": " ", "PATH": "/bin"}
    found = gather(environ=environ)
    assert found.values == {
        "BROKER_API_KEY": "environ",
        "BROKER_SECRET_KEY": "file",
        "BROKER_WS_URL": "wss://file.example",
    }
    assert found.sources == {
        "BROKER_API_KEY": "the environment",
        "BROKER_SECRET_KEY": ".env",
        "BROKER_WS_URL": ".env",
    }
    assert found.secret_file == Path(".env")
    monkeypatch.setattr(sys, "stdin", io.StringIO("stdin\n"))
    found = gather(url="wss://flag.example", secret_key_stdin=True, environ=environ)
    assert found.values["BROKER_WS_URL"] == "wss://flag.example"
    assert found.values["BROKER_SECRET_KEY"] == "stdin"
    assert found.sources["BROKER_WS_URL"] == "--url"
    assert found.sources["BROKER_SECRET_KEY"] == "--secret-key-stdin"
    # The key in the file is there to be read all the same.
    assert found.secret_file == Path(".env")


def test_a_base_url_does_not_lose_to_what_counts_less() -> None:
    write("BROKER_WS_URL=wss://file.example\n")
    found = gather(environ={"BROKER_BASE_URL": "https://environ.example"})
    assert found.values == {"BROKER_BASE_URL": "https://environ.example"}
    assert found.secret_file is None


def test_a_base_url_by_flag_becomes_the_websockets() -> None:
    assert find_account(url="https://broker.example/v2").endpoint.url == (
        "wss://broker.example/v2/ws/v1/stream"
    )


def test_other_commands_end_where_this_one_reports() -> None:
    with pytest.raises(click.UsageError, match="BROKER_BASE_URL is set; set it in"):
        find_account()
    Path(".env").write_bytes(b"BROKER_WS_URL=\xff")
    with pytest.raises(click.UsageError, match=r"'\.env' can't be read"):
        find_account()


# --- DNS and TCP ----------------------------------------------------------------------------


async def test_a_name_that_does_not_resolve_is_told(autojump_clock: MockClock) -> None:
    async def answer() -> Iterable[str]:
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    trio.socket.set_custom_hostname_resolver(Resolver(answer))
    taken = await checkup("wss://broker.example")
    assert results(taken) == failing("dns")
    assert "broker.example can't be resolved (Name or service not known)" in told(taken, "dns")
    assert exit_status(taken) == 4


@pytest.mark.parametrize(("delay", "result"), [(0.5, "ok"), (1.5, "slow"), (11, "failed")])
async def test_a_resolver_that_takes_its_time_is_slow_or_has_failed(
    delay: float, result: str, autojump_clock: MockClock
) -> None:
    async def answer() -> Iterable[str]:
        await trio.sleep(delay)
        return ["127.0.0.1"]

    trio.socket.set_custom_hostname_resolver(Resolver(answer))
    async with serve_raw(wait_gone) as port:
        taken = await checkup(f"wss://broker.example:{port}")
    assert taken["dns"].finding.result == result
    assert taken["dns"].seconds == pytest.approx(min(delay, 10))
    if result == "ok":
        assert told(taken, "dns") == "ok: broker.example is 127.0.0.1; None"
    else:
        assert "resolver" in told(taken, "dns")
    if result == "failed":
        assert "not done within 10 s" in told(taken, "dns")


async def test_a_broker_that_is_down_is_told(autojump_clock: MockClock) -> None:
    port = closed_port()
    taken = await checkup(f"ws://127.0.0.1:{port}")
    assert results(taken) == failing("tcp")
    assert f"port {port} at 127.0.0.1: Connection refused; is the broker up" in told(taken, "tcp")
    assert told(taken, "subscription") == "skipped: tcp failed; None"
    assert exit_status(taken) == 4


async def test_each_address_that_refuses_is_told(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        resolve_to("127.0.0.9", "127.0.0.1")
        port = urlsplit(sandbox.url).port
        url = f"ws://broker.example:{port}/ws/v1/stream"
        taken = await checkup(url, allow_insecure=True)
    assert "broker.example is 127.0.0.9, 127.0.0.1" in told(taken, "dns")
    assert told(taken, "tcp") == "ok: 127.0.0.1 answered; 127.0.0.9: Connection refused; None"


class DeafSocket:
    """A socket whose address never answers."""

    def close(self) -> None:
        pass

    async def connect(self, _: object) -> None:
        await trio.sleep_forever()


class Sockets(trio.abc.SocketFactory):
    """The first sockets are deaf, and the others are real."""

    def __init__(self, deaf: int) -> None:
        self._deaf = deaf

    def socket(self, *args: Any) -> Any:
        self._deaf -= 1
        if self._deaf >= 0:
            return DeafSocket()
        return trio.socket.from_stdlib_socket(socket.socket(*args))


async def test_an_address_that_does_not_answer_holds_nobody_up(autojump_clock: MockClock) -> None:
    async with serve_raw(wait_gone) as port:
        resolve_to("192.0.2.1", "127.0.0.1")
        trio.socket.set_custom_socket_factory(Sockets(1))
        taken = await checkup(f"wss://broker.example:{port}")
    assert told(taken, "tcp") == "ok: 127.0.0.1 answered; 192.0.2.1: no answer; None"
    assert taken["tcp"].seconds == pytest.approx(0.25)


async def test_addresses_none_of_which_answers_are_told(autojump_clock: MockClock) -> None:
    resolve_to("192.0.2.1", "192.0.2.2")
    trio.socket.set_custom_socket_factory(Sockets(2))
    taken = await checkup("wss://broker.example", limit=3)
    assert results(taken) == failing("tcp")
    assert "192.0.2.1: no answer; 192.0.2.2: no answer at port 443 within 3 s" in told(taken, "tcp")
    assert exit_status(taken) == 4


# --- TLS ------------------------------------------------------------------------------------

LONG_AGO: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("host", "options", "texts"),
    [
        ("127.0.0.1", {"not_after": LONG_AGO},
         ("certificate has expired", "2020-01-01 (it has ended)", "the broker has to renew it")),
        ("127.0.0.1", {"not_before": dt.datetime(2100, 1, 1, tzinfo=dt.UTC),
                       "not_after": dt.datetime(2101, 1, 1, tzinfo=dt.UTC)},
         ("not yet valid", "good until 2101-01-01", "is this machine's clock right?")),
        ("other.example", {},
         ("not valid for '127.0.0.1'", "for other.example,", "it is another host's")),
    ],
    ids=["expired", "too early", "wrong host"],
)  # fmt: skip
@pytest.mark.usefixtures("trusted")
async def test_a_certificate_that_does_not_fit_is_shown(
    host: str,
    options: dict[str, Any],
    texts: tuple[str, ...],
    authority: trustme.CA,
    autojump_clock: MockClock,
) -> None:
    context = server_tls(authority, host, common_name="somebody", **options)
    async with serve_raw(wait_gone, ssl_context=context) as port:
        taken = await checkup(f"wss://127.0.0.1:{port}")
    assert results(taken) == failing("tls")
    for text in ("CN=somebody", "issued by O=trustme", *texts):
        assert text in told(taken, "tls")
    assert exit_status(taken) == 4


async def test_another_hosts_name_is_told(
    trusted: None, authority: trustme.CA, autojump_clock: MockClock
) -> None:
    resolve_to("127.0.0.1")
    context = server_tls(authority, "other.example")
    async with serve_raw(wait_gone, ssl_context=context) as port:
        taken = await checkup(f"wss://broker.example:{port}")
    assert "not valid for 'broker.example'" in told(taken, "tls")
    assert "check the host in the URL" in told(taken, "tls")


async def test_a_certificate_that_is_not_trusted_is_shown(
    authority: trustme.CA, autojump_clock: MockClock
) -> None:
    async with serve_raw(wait_gone, ssl_context=server_tls(authority)) as port:
        taken = await checkup(f"wss://127.0.0.1:{port}")
    assert results(taken) == failing("tls")
    for text in ("unable to get local issuer certificate", "issued by O=trustme", "days left",
                 "SSL_CERT_FILE"):  # fmt: skip
        assert text in told(taken, "tls")


def showing_it_once(authority: trustme.CA, then: Handler) -> Handler:
    """A server that begins TLS with its first visitor alone."""
    context = server_tls(authority)
    visitors = itertools.count()

    async def handler(stream: trio.abc.Stream) -> None:
        if next(visitors) == 0:
            tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            with suppress(trio.BrokenResourceError):
                await tls.do_handshake()
        await then(stream)

    return handler


async def hang_up(_: trio.abc.Stream) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("then", "seconds"), [(hang_up, 0), (wait_gone, 2)], ids=["hangs up", "is silent"]
)
async def test_a_certificate_that_cannot_be_had_again_is_told_without(
    then: Handler, seconds: float, authority: trustme.CA, autojump_clock: MockClock
) -> None:
    async with serve_raw(showing_it_once(authority, then)) as port:
        taken = await checkup(f"wss://127.0.0.1:{port}", limit=8)
    assert "unable to get local issuer certificate; somebody else may be" in told(taken, "tls")
    assert taken["tls"].seconds == pytest.approx(seconds)


async def test_a_certificate_that_ends_soon_is_worth_a_warning(
    trusted: None, authority: trustme.CA, autojump_clock: MockClock
) -> None:
    for days, result in ((13.9, "slow"), (14.1, "ok")):
        ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
        context = server_tls(authority, not_after=ends)
        async with (
            open_sandbox() as sandbox,
            in_front_of(sandbox, ssl_context=context) as url,
        ):
            taken = await checkup(url)
        assert taken["tls"].finding.result == result
        assert exit_status(taken) == 0
        assert (f"({int(days)} days left)") in told(taken, "tls")
        assert ("the broker has to renew it" in told(taken, "tls")) == (result == "slow")


async def test_a_port_without_tls_is_told(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        taken = await checkup(sandbox.url.replace("ws://", "wss://"))
    assert results(taken) == failing("tls")
    assert "the TLS handshake failed (wrong version number)" in told(taken, "tls")
    assert "does this port speak TLS?" in told(taken, "tls")


def test_a_certificates_names_are_told_as_far_as_there_is_room() -> None:
    facts = {
        "subject": ((("commonName", "a"),), (("serialNumber", "7"),)),
        "issuer": (),
        "subjectAltName": tuple(("DNS", f"{number}.example") for number in range(5)),
        "notAfter": "Jan  1 00:00:00 2030 GMT",
    }
    shown = read(facts)
    assert shown == Certificate(
        subject="CN=a, serialNumber=7",
        issuer="nobody",
        names=tuple(f"{number}.example" for number in range(5)),
        ends_at=dt.datetime(2030, 1, 1, tzinfo=dt.UTC).timestamp(),
    )
    text = shown.told(shown.ends_at - 86_400)
    assert "for 0.example, 1.example, 2.example and 2 more," in text
    assert "good until 2030-01-01 (1 days left)" in text
    del facts["subjectAltName"]
    assert "for no host," in read(facts).told(0.0)


# --- The handshake --------------------------------------------------------------------------


def answering(answer: bytes) -> Handler:
    async def handler(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        await send(stream, answer)
        await wait_gone(stream)

    return handler


async def reset_after_the_request(stream: trio.abc.Stream) -> None:
    await receive_request(stream)
    await reset(stream)


async def hang_up_after_the_request(stream: trio.abc.Stream) -> None:
    await receive_request(stream)


@pytest.mark.parametrize(
    ("handler", "texts"),
    [
        (answering(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\n\r\n"),
         ("refused with HTTP status 503, to be tried again after 7", "in trouble: try later")),
        (answering(b"HTTP/1.1 403 No\r\n\r\n"), ("HTTP status 403", "let this machine in?")),
        (answering(b"HTTP/1.1 404 No\r\n\r\n"), ("HTTP status 404", "path of the URL")),
        (answering(b"HTTP/1.1 418 No\r\n\r\n"), ("HTTP status 418", "check the URL")),
        (answering(b"HTTP/1.1 302 No\r\nLocation: https://x.example/y?token=z\r\n\r\n"),
         ("redirected to https://x.example/y (HTTP status 302)", "set it as the URL")),
        (answering(switching_protocols(b"Sec-WebSocket-Key: other\r\n")),
         ("its key doesn't fit", "a proxy")),
        (answering(b"220 mail.example ESMTP\r\n"),
         ("doesn't speak HTTP/1.1 (it begins with b'220 mai')", "check the port")),
        (answering(b"HTTP/1.1 what?\r\n\r\n"), ("doesn't speak HTTP/1.1 (", "check the port")),
        (hang_up_after_the_request, ("the peer hung up before it answered", "try again later")),
        (reset_after_the_request, ("the connection broke (", "reset", "try again later")),
    ],
    ids=["503", "403", "404", "418", "redirect", "wrong key", "no HTTP", "bad HTTP", "hang-up",
         "reset"],
)  # fmt: skip
async def test_a_handshake_that_fails_is_told(
    handler: Handler, texts: tuple[str, ...], autojump_clock: MockClock
) -> None:
    async with serve_raw(handler) as port:
        taken = await checkup(f"ws://127.0.0.1:{port}?token=z")
    assert results(taken) == failing("handshake", tls="skipped")
    for text in texts:
        assert text in told(taken, "handshake")
    assert "token" not in told(taken, "handshake")
    assert told(taken, "clock") == "skipped: nothing has told the broker's time; None"
    assert exit_status(taken) == 4


async def test_a_handshake_that_is_not_answered_is_told(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        with sandbox.faults.stall_handshakes():
            taken = await checkup(sandbox.url, limit=2)
    assert results(taken) == failing("handshake", tls="skipped")
    assert "not done within 2 s; the broker, or what stands in front of it" in told(
        taken, "handshake"
    )
    assert exit_status(taken) == 4


async def test_a_handshake_that_takes_its_time_is_slow(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox, in_front_of(sandbox, delay=1.5) as url:
        taken = await checkup(url)
    assert results(taken) == all_ok(handshake="slow")
    assert exit_status(taken) == 0


async def test_the_request_is_a_websockets_and_ends_politely(autojump_clock: MockClock) -> None:
    requests: list[bytes] = []
    goodbyes: list[bytes] = []

    async def handler(stream: trio.abc.Stream) -> None:
        requests.append(await receive_request(stream))
        # A hint may come before the answer that counts.
        hint = b"HTTP/1.1 103 Early Hints\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
        await send(stream, hint + switching_protocols(requests[0]))
        with suppress(PeerGoneError):
            while data := await stream.receive_some():
                goodbyes.append(bytes(data))

    async with serve_raw(handler) as port:
        taken = await checkup(f"ws://127.0.0.1:{port}/a?b=c", limit=0.5)
    lines = requests[0].split(b"\r\n")
    assert lines[0] == b"GET /a?b=c HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}".encode() in lines
    assert goodbyes[0] == b"\x88\x80\0\0\0\0"
    assert taken["handshake"].finding.result == "ok"


# --- Authentication -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "advice"),
    [("BROKER_API_KEY", "check BROKER_API_KEY"), ("BROKER_SECRET_KEY", "check BROKER_SECRET_KEY")],
)
async def test_wrong_keys_are_told(
    name: str, advice: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setenv(name, "wrong-indeed")
    async with open_sandbox() as sandbox:
        taken = await checkup(sandbox.url)
    assert results(taken) == failing("authentication", tls="skipped")
    assert advice in told(taken, "authentication")
    assert "wrong-indeed" not in str(taken)
    assert exit_status(taken) == 3


async def test_a_broker_that_does_not_answer_the_authentication_is_told(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        with sandbox.faults.ignore(op="auth"):
            taken = await checkup(sandbox.url, limit=2)
    assert results(taken) == failing("authentication", tls="skipped")
    assert "doesn't answer on them" in told(taken, "authentication")
    assert exit_status(taken) == 4


async def test_a_connection_that_worked_a_moment_ago_is_worth_another_try(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        faults = sandbox.faults
        taken = await checkup(sandbox.url, after={"handshake": faults.kill})
    assert results(taken) == failing("authentication", tls="skipped")
    assert "worked a moment ago: try again" in told(taken, "authentication")
    assert exit_status(taken) == 4


# --- The clock ------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [60.0, -60.0])
async def test_a_clock_that_the_broker_refuses_is_told(
    offset: float, autojump_clock: MockClock
) -> None:
    async with open_sandbox(clock=lambda: time.time() + offset) as sandbox:
        taken = await checkup(sandbox.url)
    assert results(taken) == failing("authentication", tls="skipped", clock="failed")
    assert "synchronize this machine's clock" in told(taken, "authentication")
    assert "off by 30 s or more" in told(taken, "clock")
    assert exit_status(taken) == 3


async def test_a_refused_clock_is_told_exactly_where_the_answer_has_a_date(
    autojump_clock: MockClock,
) -> None:
    def clock() -> float:
        return time.time() + 60

    async with (
        open_sandbox(clock=clock) as sandbox,
        in_front_of(sandbox, date=clock) as url,
    ):
        taken = await checkup(url)
    low, high = re.findall(r"[+-]\d+\.\d", told(taken, "clock"))
    assert -62.5 < float(low) <= -60 <= float(high) < -50
    assert "the broker refused the timestamp" in told(taken, "clock")


@pytest.mark.parametrize(
    ("offset", "result"), [(0, "ok"), (4.9, "ok"), (-10, "slow"), (10, "slow"), (-40, "failed")]
)
async def test_a_clock_is_compared_with_the_answers_date(
    offset: float, result: Result, autojump_clock: MockClock
) -> None:
    now = float(int(time.time()))
    async with (
        open_sandbox(clock=lambda: now) as sandbox,
        in_front_of(sandbox, date=lambda: now - offset) as url,
    ):
        taken = await checkup(url, clock=lambda: now)
    # Nothing else is skipped for it.
    assert results(taken) == all_ok(clock=result)
    assert exit_status(taken) == (1 if result == "failed" else 0)
    assert ("synchronize" in told(taken, "clock")) == (result != "ok")


@pytest.mark.parametrize("date", ["yesterday", "Thu, 01 Jan 99999999 00:00:00 GMT"])
async def test_a_date_that_is_none_tells_nothing(date: str, autojump_clock: MockClock) -> None:
    answer = f"HTTP/1.1 503 No\r\nDate: {date}\r\n\r\n".encode()
    async with serve_raw(answering(answer)) as port:
        taken = await checkup(f"ws://127.0.0.1:{port}")
    assert "nothing has told" in told(taken, "clock")


async def test_a_refusals_date_does_as_well(autojump_clock: MockClock) -> None:
    date = format_datetime(dt.datetime.now(dt.UTC), usegmt=True)
    answer = f"HTTP/1.1 503 No\r\nDate: {date}\r\n\r\n".encode()
    async with serve_raw(answering(answer)) as port:
        taken = await checkup(f"ws://127.0.0.1:{port}")
    assert results(taken) == failing("handshake", tls="skipped", clock="ok")


def test_the_round_trip_bounds_what_a_date_tells() -> None:
    # Our clock is right, the answer was written within the second 100, and was under way.
    skew = Skew.from_date(100.0, 100.4, 100.5)
    assert str(skew) == "between -0.6 and +0.5 s"
    assert skew.certain == 0
    assert Skew(7.0, 8.0).certain == 7
    assert Skew(-8.0, -7.0).certain == 7


# --- Latency and subscription ---------------------------------------------------------------


def test_latency_is_told_by_the_best_and_the_median() -> None:
    found = checks.latency([0.4, 0.6, 0.5])
    assert (found.result, found.advice) == ("ok", None)
    assert "3 calls" in found.detail
    assert "400.0 ms at least, 500.0 ms in the median" in found.detail
    found = checks.latency([0.6])
    assert found.result == "slow"
    assert "1 call of" in found.detail


async def test_calls_that_take_long_are_as_many_as_there_is_time_for(
    autojump_clock: MockClock,
) -> None:
    async with open_sandbox() as sandbox:
        with sandbox.faults.delay(0.9, op="balances"):
            taken = await checkup(sandbox.url, limit=2)
    assert taken["latency"].finding.result == "slow"
    assert "2 calls of get_balances: 9" in told(taken, "latency")
    assert "far away or busy" in told(taken, "latency")


@pytest.mark.parametrize(
    ("strike", "text", "expected"),
    [
        (lambda faults: faults.swallow(op="balances"), "no reply within 2 s", 4),
        (lambda faults: faults.kill(), "try again", 4),
        (lambda faults: faults.replace({"op": "balances", "error": "no \x1b[2J"},
                                       op="balances"), "no \x1b[2J", 5),
    ],
    ids=["mute", "killed", "refused"],
)  # fmt: skip
async def test_calls_that_fail_are_told(
    strike: Callable[[Any], object], text: str, expected: int, autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox:
        then = partial(strike, sandbox.faults)
        taken = await checkup(sandbox.url, limit=2, after={"authentication": then})
    assert results(taken) == failing("latency", tls="skipped", clock="ok")
    assert text in told(taken, "latency")
    assert exit_status(taken) == expected


async def test_a_refused_channel_is_told(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        with sandbox.faults.refuse_channel("balances", "not for you"):
            taken = await checkup(sandbox.url)
    assert results(taken) == failing("subscription", tls="skipped")
    assert "not for you" in told(taken, "subscription")
    assert exit_status(taken) == 5


@pytest.mark.parametrize(
    ("op", "text"),
    [("subscribe", "not acknowledged within 2 s"), ("balances", "no snapshot came within 2 s")],
)
async def test_a_subscription_that_brings_nothing_is_told(
    op: str, text: str, autojump_clock: MockClock
) -> None:
    async with open_sandbox() as sandbox:
        then = partial(sandbox.faults.swallow, op=op)
        taken = await checkup(sandbox.url, limit=2, after={"latency": then})
    assert results(taken) == failing("subscription", tls="skipped")
    assert text in told(taken, "subscription")
    assert exit_status(taken) == 4


async def test_a_push_is_no_snapshot(autojump_clock: MockClock) -> None:
    push = json.dumps({"ch": "balances", "data": []})
    async with open_sandbox() as sandbox:

        def then() -> None:
            sandbox.faults.delay(0.5, op="balances")
            nursery.start_soon(push_later)

        async def push_later() -> None:
            await trio.sleep(0.25)
            sandbox.push(push)

        async with trio.open_nursery() as nursery:
            taken = await checkup(sandbox.url, after={"latency": then})
    assert "a snapshot of 10 assets" in told(taken, "subscription")
