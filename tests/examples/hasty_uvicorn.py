"""The example of FastAPI on uvicorn, with a client that gives up before a test gets bored."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI

from examples.fastapi_on_uvicorn import app as example

example.OPTIONS.update(request_timeout=0.1, resolve_timeout=0.1, reply_grace=0.1)
app: Final[FastAPI] = example.app
