"""No signature, help text or traceback shows a key or the environment."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from typing import Any, Final

import pytest
import rich.console
import rich.traceback
import trio

from tests.aio_host import Host
from tests.scripted import open_scripted
from trio_broker import BrokerWSClient, ConfigurationError, JournalError, SwapJournal
from trio_broker.aio import open_broker
from trio_broker.sandbox import open_sandbox
from trio_broker.signing import Signer

API_KEY: Final = "canary-api-key"
SECRET_KEY: Final = "canary/secret+key=="
KEYS: Final = (API_KEY, SECRET_KEY)
URL: Final = "wss://broker.example/ws?token=canary-token"
WORDS: Final = ("canary-api", "canary/secret", "canary-token")

HELP: Final = """
import importlib, inspect, pkgutil, pydoc, sys
import _trio_broker_pytest, trio_broker

names = ["_trio_broker_pytest", "trio_broker"]
names += [one.name for one in pkgutil.walk_packages(trio_broker.__path__, "trio_broker.")]
modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
seen = set()
for module in modules:
    print(pydoc.render_doc(module, renderer=pydoc.plaintext))
    for one in vars(module).values():
        if not (inspect.isclass(one) or inspect.isroutine(one)) or id(one) in seen:
            continue
        if not (getattr(one, "__module__", None) or "").startswith(("trio_broker", "_trio_b")):
            continue
        seen.add(id(one))
        print(pydoc.render_doc(one, renderer=pydoc.plaintext))
        for member in (one, *vars(one).values()) if inspect.isclass(one) else (one,):
            member = inspect.unwrap(getattr(member, "__func__", member))
            try:
                print(inspect.signature(member))
            except (TypeError, ValueError):
                pass
print("looked at", len(seen))
"""


def test_help_text_and_signatures_do_not_show_the_environment() -> None:
    ended = subprocess.run(  # noqa: S603 - a script of ours
        [sys.executable, "-c", HELP],
        env={**os.environ, "BROKER_SECRET_KEY": "canary-secret", "A_PASSWORD": "canary-password"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.rpartition("looked at ")[2]) > 300
    assert "class BrokerWSClient" in ended.stdout
    assert "canary" not in ended.stdout


# --- Tracebacks with locals ------------------------------------------------------------------


def shown(error: BaseException) -> str:
    """Format an error of the library as tools do, with the locals of each frame."""
    here = error.__traceback__
    while here is not None and "trio_broker" not in here.tb_frame.f_code.co_filename:
        here = here.tb_next  # the test's own frames have the keys
    assert here is not None
    kind = type(error)
    formatted = traceback.TracebackException(kind, error, here, capture_locals=True)
    text = "".join(formatted.format())
    console = rich.console.Console(file=StringIO(), width=200)
    console.print(
        rich.traceback.Traceback.from_exception(
            kind, error, here, show_locals=True, locals_max_string=10_000, locals_hide_dunder=False
        )
    )
    assert isinstance(console.file, StringIO)
    text += console.file.getvalue()
    with suppress(ImportError):
        cgitb = __import__("cgitb")
        text += cgitb.text((kind, error, here))
    return text


def assert_hidden(error: BaseException, *words: str) -> None:
    text = shown(error)
    assert type(error).__name__ in text
    for word in (*WORDS, *words):
        assert word not in text


WRONG: Final[dict[str, Callable[[], object]]] = {
    "key": lambda: BrokerWSClient(f" {API_KEY}", SECRET_KEY, URL),
    "blank key": lambda: BrokerWSClient("", SECRET_KEY, URL),
    "secret": lambda: BrokerWSClient(API_KEY, f"{SECRET_KEY}\n", URL),
    "bytes": lambda: BrokerWSClient(API_KEY, SECRET_KEY.encode(), URL),  # type: ignore[arg-type]
    "url": lambda: BrokerWSClient(*KEYS, f"https{URL[3:]}"),
    "password in the url": lambda: BrokerWSClient(*KEYS, "wss://canary-token@host/"),
    "no tls": lambda: BrokerWSClient(*KEYS, "ws://broker.example/?token=canary-token"),
    "order": lambda: BrokerWSClient(URL, API_KEY, SECRET_KEY),
    "order, with a colon": lambda: BrokerWSClient(URL, API_KEY, "canary-token:x"),
    "timeout": lambda: BrokerWSClient(*KEYS, URL, request_timeout=-1),
    "limits": lambda: BrokerWSClient(*KEYS, URL, limits=3),  # type: ignore[arg-type]
    "transport": lambda: BrokerWSClient(*KEYS, URL, transport="curl"),  # type: ignore[arg-type]
    "signing key": lambda: BrokerWSClient(
        *KEYS,
        URL,
        signing_key=SECRET_KEY,  # type: ignore[arg-type]
    ),
    "asyncio": lambda: open_broker(*KEYS, URL, close_timeout=-1),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
@pytest.mark.filterwarnings("ignore:'cgitb' is deprecated")
def test_traceback_of_the_constructor_shows_no_key(make: Callable[[], object]) -> None:
    with pytest.raises((ConfigurationError, TypeError)) as caught:
        make()
    text = shown(caught.value)
    # `signing_key` is an argument of its own, and the frame's to show.
    assert not [word for word in WORDS if word in str(caught.value)]
    if "signing_key='canary" not in text.replace("signing_key = ", "signing_key="):
        assert not [word for word in WORDS if word in text]


ENVIRON: Final = {"BROKER_API_KEY": API_KEY, "BROKER_SECRET_KEY": SECRET_KEY, "BROKER_WS_URL": URL}


@pytest.mark.parametrize(
    ("environ", "options"),
    [
        ({**ENVIRON, "BROKER_API_KEY": ""}, {}),
        ({**ENVIRON, "BROKER_SECRET_KEY": ""}, {}),
        ({**ENVIRON, "BROKER_WS_URL": ""}, {}),
        ({**ENVIRON, "BROKER_WS_URL": "", "BROKER_BASE_URL": "canary-token://x"}, {}),
        ({**ENVIRON, "BROKER_WS_URL": f"http{URL[3:]}"}, {}),
        (ENVIRON, {"auth_timeout": "soon"}),
        (ENVIRON, {"time_out": 3}),
    ],
)
@pytest.mark.parametrize("of_the_process", [False, True])
@pytest.mark.filterwarnings("ignore:'cgitb' is deprecated")
def test_traceback_of_from_env_does_not_show_the_environment(
    environ: dict[str, str],
    options: dict[str, Any],
    *,
    of_the_process: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, **environ, "OTHER": "canary-token"})
    with pytest.raises((ConfigurationError, TypeError)) as caught:
        BrokerWSClient.from_env(None if of_the_process else os.environ, **options)
    assert_hidden(caught.value)


@pytest.mark.filterwarnings("ignore:'cgitb' is deprecated")
def test_traceback_of_an_asyncio_client_shows_no_key(host: Host) -> None:
    async def main() -> None:
        async with open_broker(*KEYS, "wss://127.0.0.1:1/?token=canary-token"):
            pass

    with pytest.raises(Exception) as caught:  # noqa: PT011 - any will do
        host.run(main)
    assert_hidden(caught.value)


@pytest.mark.filterwarnings("ignore:'cgitb' is deprecated")
async def test_traceback_of_a_failing_signature_shows_no_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def sign(*_: object) -> str:
        raise RuntimeError("no entropy")

    monkeypatch.setattr(Signer, "sign", sign)
    async with open_scripted() as broker:
        with pytest.raises(Exception, match="no entropy") as caught:
            async with BrokerWSClient(*KEYS, f"{broker.url}?token=canary-token"):
                pass
    assert_hidden(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
    faults = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [type(fault) for fault in faults] == [RuntimeError]
    for fault in faults:
        assert fault is not None
        assert_hidden(fault)


@pytest.mark.filterwarnings("ignore:'cgitb' is deprecated")
def test_traceback_of_a_failing_hmac_shows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def sha256(*_: object) -> object:
        _ = ()
        raise ValueError("disabled for FIPS")

    monkeypatch.setattr("trio_broker.signing.hashlib.sha256", sha256)
    with pytest.raises(ValueError, match="FIPS") as caught:
        BrokerWSClient(*KEYS, URL)
    assert_hidden(caught.value)


@pytest.mark.filterwarnings("ignore:'cgitb' is deprecated")
async def test_traceback_of_a_journal_shows_no_key(tmp_path: Any) -> None:
    journal = SwapJournal(tmp_path / "missing" / "swaps.journal")
    client = BrokerWSClient(*KEYS, "wss://127.0.0.1:1/?token=canary-token", journal=journal)
    async with trio.open_nursery() as nursery:
        with pytest.raises(JournalError) as caught:
            await client.connect(nursery)
    assert_hidden(caught.value)


# --- Stacks with locals ----------------------------------------------------------------------


class StackReader(logging.Handler):
    """Notes what the library's frames hold while a record is written, as error services do."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.locals: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        frame = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            if "trio_broker/_connection" in frame.f_code.co_filename:
                self.locals += map(repr, frame.f_locals.values())


async def test_no_local_holds_the_api_key_while_a_record_is_written() -> None:
    logger = logging.getLogger("trio_broker.client")
    reader, level = StackReader(), logger.level
    logger.addHandler(reader)
    logger.setLevel(logging.DEBUG)
    try:
        async with open_sandbox() as sandbox, sandbox.client():
            key = sandbox.api_key
    finally:
        logger.removeHandler(reader)
        logger.setLevel(level)
    assert "auth sent" in reader.messages
    assert reader.locals
    assert not [text for text in reader.locals if key in text]
