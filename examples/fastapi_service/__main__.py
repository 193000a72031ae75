"""Run the service on Hypercorn's trio worker until Ctrl-C or SIGTERM.

The command ``hypercorn --worker-class trio examples.fastapi_service.app:app`` runs it too. But
Hypercorn closes an application only after the last request has ended, and event streams don't
end by themselves. This module ends them before Hypercorn stops.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from functools import partial
from typing import cast

import trio
from fastapi import FastAPI
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import ASGIFramework

from examples.fastapi_service.app import create_app
from examples.fastapi_service.broker import is_named, named_broker
from trio_broker import ConfigurationError


async def wait_for_signal(app: FastAPI) -> None:
    """Wait for Ctrl-C or SIGTERM, then end the streams."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(aiter(signals))
    app.state.board.end_streams()


def first_of(error: BaseException) -> BaseException:
    """The first error in a group, which may be nested."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> None:
    """Run the service."""
    parser = argparse.ArgumentParser(prog="python -m examples.fastapi_service")
    parser.add_argument("--bind", default="127.0.0.1:8000", metavar="HOST:PORT")
    config = Config()
    config.bind = [parser.parse_args().bind]
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    app = create_app()
    served = cast("ASGIFramework", app)  # Hypercorn types what is sent more closely
    try:
        if is_named(os.environ):
            named_broker(os.environ)  # report invalid settings before opening anything
        trio.run(partial(serve, served, config, shutdown_trigger=partial(wait_for_signal, app)))
    except* ConfigurationError as group:
        sys.exit(str(first_of(group)))
    except* OSError as group:
        sys.exit(f"can't listen at {config.bind[0]}: {first_of(group)}")


if __name__ == "__main__":
    main()
