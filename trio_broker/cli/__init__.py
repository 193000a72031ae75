"""The command ``trio-broker``: one module a command, and `shared` for what they have in common.

It needs the extra ``cli``; without it, it says so and nothing more.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; it always ends in `SystemExit`.

    Args:
        args: The arguments, ``sys.argv``'s if None.

    Raises:
        SystemExit: With 0 if all went well, 1 after an error, which was told in one line, 2 for
            arguments that can't be used, 130 after Ctrl-C.
    """
    if any(importlib.util.find_spec(name) is None for name in ("click", "rich")):
        sys.exit("trio-broker: the command needs its extra: pip install 'trio-broker[cli]'")
    # Not at the top, since it needs the extra.
    from trio_broker.cli.app import app  # noqa: PLC0415

    app.main(args, prog_name="trio-broker")
