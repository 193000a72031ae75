"""``python -m trio_broker.cli``."""

from __future__ import annotations

from trio_broker.cli import main

main()
