"""The doctor's network steps: DNS, TCP and TLS."""

from __future__ import annotations

import datetime as dt
import itertools
import re
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import trio
import trustme
from trio.testing import MockClock

from tests.cli.doctor.harness import (
    Resolver,
    all_ok,
    closed_port,
    exit_status,
    failing,
    in_front_of,
    resolve_to,
    results,
    run_doctor,
    server_tls,
    text_of,
)
from tests.transports.raw_server import Handler, serve_raw, wait_gone
from trio_broker.cli.doctor.certificate import Certificate, parse
from trio_broker.sandbox import open_sandbox

# --- DNS and TCP ----------------------------------------------------------------------------


async def test_unknown_host_fails(autojump_clock: MockClock) -> None:
    async def answer() -> Iterable[str]:
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    trio.socket.set_custom_hostname_resolver(Resolver(answer))
    found = await run_doctor("wss://broker.example")
    assert results(found) == failing("dns")
    assert "broker.example can't be resolved (Name or service not known)" in text_of(found, "dns")
    assert exit_status(found) == 4


@pytest.mark.parametrize(("delay", "result"), [(0.5, "ok"), (1.5, "slow"), (11, "failed")])
async def test_slow_resolver_is_slow_or_fails(
    delay: float, result: str, autojump_clock: MockClock
) -> None:
    async def answer() -> Iterable[str]:
        await trio.sleep(delay)
        return ["127.0.0.1"]

    trio.socket.set_custom_hostname_resolver(Resolver(answer))
    async with serve_raw(wait_gone) as port:
        found = await run_doctor(f"wss://broker.example:{port}")
    assert found["dns"].finding.result == result
    assert found["dns"].seconds == pytest.approx(min(delay, 10))
    if result == "ok":
        assert text_of(found, "dns") == "ok: broker.example is 127.0.0.1; None"
    else:
        assert "resolver" in text_of(found, "dns")
    if result == "failed":
        assert "not finished within 10 s" in text_of(found, "dns")


async def test_refused_connection_fails(autojump_clock: MockClock) -> None:
    port = closed_port()
    found = await run_doctor(f"ws://127.0.0.1:{port}")
    assert results(found) == failing("tcp")
    assert f"port {port} at 127.0.0.1: Connection refused; check that the broker is up" in text_of(
        found, "tcp"
    )
    assert text_of(found, "subscription") == "skipped: tcp failed; None"
    assert exit_status(found) == 4


async def test_addresses_that_refuse_are_shown(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        resolve_to("127.0.0.9", "127.0.0.1")
        port = urlsplit(sandbox.url).port
        url = f"ws://broker.example:{port}/ws/v1/stream"
        found = await run_doctor(url, allow_insecure=True)
    assert "broker.example is 127.0.0.9, 127.0.0.1" in text_of(found, "dns")
    assert text_of(found, "tcp") == "ok: 127.0.0.1 answered; 127.0.0.9: Connection refused; None"


class SilentSocket:
    """A socket whose peer never answers."""

    def close(self) -> None:
        pass

    async def connect(self, _: object) -> None:
        await trio.sleep_forever()


class SocketFactory(trio.abc.SocketFactory):
    """Makes some silent sockets first, and then real ones."""

    def __init__(self, silent: int) -> None:
        self._silent = silent

    def socket(self, *args: Any) -> Any:
        self._silent -= 1
        if self._silent >= 0:
            return SilentSocket()
        return trio.socket.from_stdlib_socket(socket.socket(*args))


async def test_silent_address_delays_the_next_only_briefly(autojump_clock: MockClock) -> None:
    async with serve_raw(wait_gone) as port:
        resolve_to("192.0.2.1", "127.0.0.1")
        trio.socket.set_custom_socket_factory(SocketFactory(1))
        found = await run_doctor(f"wss://broker.example:{port}")
    assert text_of(found, "tcp") == "ok: 127.0.0.1 answered; 192.0.2.1: no answer; None"
    assert found["tcp"].seconds == pytest.approx(0.25)


async def test_silent_addresses_fail(autojump_clock: MockClock) -> None:
    resolve_to("192.0.2.1", "192.0.2.2")
    trio.socket.set_custom_socket_factory(SocketFactory(2))
    found = await run_doctor("wss://broker.example", limit=3)
    assert results(found) == failing("tcp")
    assert "192.0.2.1: no answer; 192.0.2.2: no answer at port 443 within 3 s" in text_of(
        found, "tcp"
    )
    assert exit_status(found) == 4


# --- TLS ------------------------------------------------------------------------------------


async def test_tls_shows_the_certificate_and_the_skew(trusted: None, authority: trustme.CA) -> None:
    # On the real clock: a mock clock jumps while a thread makes the client's TLS context.
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=87.5)
    context = server_tls(authority, common_name="the broker", not_after=ends)
    async with (
        open_sandbox() as sandbox,
        in_front_of(sandbox, date=time.time, ssl_context=context) as url,
    ):
        found = await run_doctor(url)
    assert results(found) == all_ok(tls="ok")
    tls = text_of(found, "tls")
    for text in ("TLSv1.3", "CN=the broker", "for 127.0.0.1,", "issued by O=trustme",
                 f"{ends:%Y-%m-%d} (87 days left)"):  # fmt: skip
        assert text in tls
    low, high = re.findall(r"[+-]\d+\.\d", text_of(found, "clock"))
    assert float(low) <= 0 <= float(high)


LONG_AGO: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("host", "options", "texts"),
    [
        ("127.0.0.1", {"not_after": LONG_AGO},
         ("certificate has expired", "2020-01-01 (expired)", "the broker must renew it")),
        ("127.0.0.1", {"not_before": dt.datetime(2100, 1, 1, tzinfo=dt.UTC),
                       "not_after": dt.datetime(2101, 1, 1, tzinfo=dt.UTC)},
         ("not yet valid", "valid until 2101-01-01", "check this machine's clock")),
        ("other.example", {},
         ("not valid for '127.0.0.1'", "for other.example,", "it is for another host")),
    ],
    ids=["expired", "too early", "wrong host"],
)  # fmt: skip
@pytest.mark.usefixtures("trusted")
async def test_invalid_certificate_is_shown(
    host: str,
    options: dict[str, Any],
    texts: tuple[str, ...],
    authority: trustme.CA,
    autojump_clock: MockClock,
) -> None:
    context = server_tls(authority, host, common_name="somebody", **options)
    async with serve_raw(wait_gone, ssl_context=context) as port:
        found = await run_doctor(f"wss://127.0.0.1:{port}")
    assert results(found) == failing("tls")
    for text in ("CN=somebody", "issued by O=trustme", *texts):
        assert text in text_of(found, "tls")
    assert exit_status(found) == 4


async def test_certificate_of_another_host_fails(
    trusted: None, authority: trustme.CA, autojump_clock: MockClock
) -> None:
    resolve_to("127.0.0.1")
    context = server_tls(authority, "other.example")
    async with serve_raw(wait_gone, ssl_context=context) as port:
        found = await run_doctor(f"wss://broker.example:{port}")
    assert "not valid for 'broker.example'" in text_of(found, "tls")
    assert "check the host in the URL" in text_of(found, "tls")


async def test_untrusted_certificate_is_shown(
    authority: trustme.CA, autojump_clock: MockClock
) -> None:
    async with serve_raw(wait_gone, ssl_context=server_tls(authority)) as port:
        found = await run_doctor(f"wss://127.0.0.1:{port}")
    assert results(found) == failing("tls")
    for text in ("unable to get local issuer certificate", "issued by O=trustme", "days left",
                 "SSL_CERT_FILE"):  # fmt: skip
        assert text in text_of(found, "tls")


def showing_it_once(authority: trustme.CA, then: Handler) -> Handler:
    """A server that does a TLS handshake only with its first client."""
    context = server_tls(authority)
    clients = itertools.count()

    async def handler(stream: trio.abc.Stream) -> None:
        if next(clients) == 0:
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
async def test_certificate_that_cannot_be_fetched_again_is_not_shown(
    then: Handler, seconds: float, authority: trustme.CA, autojump_clock: MockClock
) -> None:
    async with serve_raw(showing_it_once(authority, then)) as port:
        found = await run_doctor(f"wss://127.0.0.1:{port}", limit=8)
    assert "unable to get local issuer certificate; the connection may be" in text_of(found, "tls")
    assert found["tls"].seconds == pytest.approx(seconds)


async def test_certificate_that_expires_soon_is_a_warning(
    trusted: None, authority: trustme.CA
) -> None:
    # On the real clock: a mock clock jumps while a thread makes the client's TLS context.
    for days, result in ((13.9, "slow"), (14.1, "ok")):
        ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
        context = server_tls(authority, not_after=ends)
        async with (
            open_sandbox() as sandbox,
            in_front_of(sandbox, ssl_context=context) as url,
        ):
            found = await run_doctor(url)
        assert found["tls"].finding.result == result
        assert exit_status(found) == 0
        assert (f"({int(days)} days left)") in text_of(found, "tls")
        assert ("the broker must renew it" in text_of(found, "tls")) == (result == "slow")


async def test_port_without_tls_fails(autojump_clock: MockClock) -> None:
    async with open_sandbox() as sandbox:
        found = await run_doctor(sandbox.url.replace("ws://", "wss://"))
    assert results(found) == failing("tls")
    assert "the TLS handshake failed (wrong version number)" in text_of(found, "tls")
    assert "check that this port speaks TLS" in text_of(found, "tls")


def test_certificate_shows_only_some_of_its_hosts() -> None:
    facts = {
        "subject": ((("commonName", "a"),), (("serialNumber", "7"),)),
        "issuer": (),
        "subjectAltName": tuple(("DNS", f"{number}.example") for number in range(5)),
        "notAfter": "Jan  1 00:00:00 2030 GMT",
    }
    shown = parse(facts)
    assert shown == Certificate(
        subject="CN=a, serialNumber=7",
        issuer="no name",
        hosts=tuple(f"{number}.example" for number in range(5)),
        expires_at=dt.datetime(2030, 1, 1, tzinfo=dt.UTC).timestamp(),
    )
    text = shown.describe(shown.expires_at - 86_400)
    assert "for 0.example, 1.example, 2.example and 2 more," in text
    assert "valid until 2030-01-01 (1 days left)" in text
    del facts["subjectAltName"]
    assert "for no host," in parse(facts).describe(0.0)
