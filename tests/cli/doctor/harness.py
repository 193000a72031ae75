"""Running the doctor's steps against brokers and servers that misbehave."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from email.utils import format_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import trio
import trustme

from tests.cli.harness import PATIENCE
from tests.transports.raw_server import Handler, receive_request, send, serve_raw, wait_gone
from trio_broker.cli.doctor import steps
from trio_broker.cli.doctor.checklist import STEPS
from trio_broker.cli.doctor.steps import CheckContext, Outcome, StepResult, run_steps
from trio_broker.sandbox import Sandbox

KEY: Final = "test_key_1"
SECRET: Final = "test_secret_1"
NAMES: Final = tuple(step.name for step in STEPS)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


# --- Running the steps ----------------------------------------------------------------------


async def run_doctor(
    url: str | None,
    *,
    limit: float = 10.0,
    clock: Callable[[], float] = time.time,
    after: Mapping[str, Callable[[], object]] | None = None,
    **flags: Any,
) -> dict[str, StepResult]:
    """Run all steps; `after` maps steps to functions that are called right after them."""
    reported: list[StepResult] = []

    def report(result: StepResult) -> None:
        reported.append(result)
        if after is not None and result.step in after:
            after[result.step]()

    everything = {
        "url": url, "env_file": None, "secret_key_stdin": False, "dialect": None,
        "signing_key": None, "transport": "trio-websocket", "allow_insecure": False, **flags,
    }  # fmt: skip
    context = CheckContext(flags=everything, timeout=limit, clock=clock)
    with trio.fail_after(PATIENCE):
        found = await run_steps(context, STEPS, report)
    assert found == reported
    assert tuple(each.step for each in found) == NAMES
    for each in found:
        shown = f"{each.finding.detail} {each.finding.advice}"
        assert SECRET not in shown
        assert KEY not in shown
        assert (each.seconds is None) == (each.finding.result == "skipped")
    return {each.step: each for each in found}


def results(found: Mapping[str, StepResult]) -> dict[str, str]:
    return {name: each.finding.result for name, each in found.items()}


def text_of(found: Mapping[str, StepResult], step: str) -> str:
    finding = found[step].finding
    return f"{finding.result}: {finding.detail}; {finding.advice}"


def all_ok(**others: Outcome) -> dict[str, str]:
    return {**dict.fromkeys(NAMES, "ok"), "tls": "skipped", **others}


def failing(step: str, **others: Outcome) -> dict[str, str]:
    """Return the results if one step failed and later ones were skipped, except for others."""
    place = NAMES.index(step)
    return {
        **dict.fromkeys(NAMES[:place], "ok"),
        step: "failed",
        **dict.fromkeys(NAMES[place + 1 :], "skipped"),
        "versions": "ok",
        **others,
    }


def exit_status(found: Mapping[str, StepResult]) -> int:
    return steps.exit_status(found.values())


# --- Resolvers and servers ------------------------------------------------------------------


class Resolver(trio.abc.HostnameResolver):
    """A resolver that always gives the same answer."""

    def __init__(self, answer: Callable[[], Awaitable[Iterable[str]]]) -> None:
        self._answer = answer

    async def getaddrinfo(  # type: ignore[override]  # the other arguments aren't used
        self, _host: bytes, port: int, *_: int
    ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port))
            for address in await self._answer()
        ]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise AssertionError("unexpected reverse lookup")


def resolve_to(*addresses: str) -> None:
    async def answer() -> Iterable[str]:
        await trio.lowlevel.checkpoint()
        return addresses

    trio.socket.set_custom_hostname_resolver(Resolver(answer))


def server_tls(authority: trustme.CA, host: str = "127.0.0.1", **options: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(host, **options).configure_cert(context)
    return context


@asynccontextmanager
async def in_front_of(
    sandbox: Sandbox,
    *,
    date: Callable[[], float] | None = None,
    delay: float = 0.0,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Run a proxy in front of a sandbox, which can add a Date header and TLS."""
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


def answering(answer: bytes) -> Handler:
    async def handler(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        await send(stream, answer)
        await wait_gone(stream)

    return handler
