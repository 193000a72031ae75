"""Writes journals as the first version of the library did."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from trio_broker import key_fingerprint

HOST = "broker.example"
KEY = "alice-the-key"
AT = "2026-01-02T03:04:05+00:00"
LATER = "2026-01-02T03:04:06+00:00"

SCHEMA = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    BEGIN;
    PRAGMA application_id = 1953653354;
    PRAGMA user_version = 1;
    CREATE TABLE swaps (
        number INTEGER PRIMARY KEY,
        host TEXT NOT NULL,
        key_fingerprint TEXT NOT NULL,
        client_order_id TEXT NOT NULL,
        attempt TEXT NOT NULL,
        amount_in TEXT NOT NULL,
        asset_in TEXT NOT NULL,
        asset_out TEXT NOT NULL,
        at TEXT NOT NULL,
        outcome TEXT NOT NULL,
        order_id TEXT,
        detail TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        UNIQUE (host, key_fingerprint, client_order_id)
    );
    COMMIT;
"""


def create(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(SCHEMA)
    connection.close()
    path.with_name(f"{path.name}.lock").touch()


def insert(name: str, outcome: str = "unknown", order_id: str | None = None) -> str:
    """The SQL that adds a swap."""
    order = "NULL" if order_id is None else f"'{order_id}'"
    return (
        "INSERT INTO swaps (host, key_fingerprint, client_order_id, attempt, amount_in, "  # noqa: S608
        "asset_in, asset_out, at, outcome, order_id, detail, updated_at) "
        f"VALUES ('{HOST}', '{key_fingerprint(KEY)}', '{name}', 'a1', '1.50', 'ETH', 'USDT', "
        f"'{AT}', '{outcome}', {order}, 'why', '{LATER}')"
    )


def execute(path: Path, *statements: str) -> None:
    """Execute SQL, each statement in its own transaction."""
    connection = sqlite3.connect(path, isolation_level=None)
    for sql in statements:
        connection.execute(sql)
    connection.close()


def execute_and_die(path: Path, *statements: str) -> None:
    """Execute SQL in a process that is killed, so that the effect is only in the ``-wal`` file."""
    code = (
        "import os, signal, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "for sql in sys.argv[2:]: connection.execute(sql)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path), *statements], check=False)  # noqa: S603 - our own
    assert ended.returncode == -signal.SIGKILL
    assert path.with_name(f"{path.name}-wal").stat().st_size
