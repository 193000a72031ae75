"""What the tests of the doctor share: its steps' names, an account, a port where nobody listens."""

from __future__ import annotations

import socket
from typing import Final

from trio_broker.cli import doctor

KEY: Final = "test_key_1"
SECRET: Final = "test_secret_1"
NAMES: Final = tuple(step.name for step in doctor.STEPS)

# What may stand in the environment, and would change what is found or printed.
VARIABLES: Final = (
    "BROKER_API_KEY", "BROKER_SECRET_KEY", "BROKER_WS_URL", "BROKER_BASE_URL", "SSL_CERT_FILE",
    "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS",
)  # fmt: skip


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
