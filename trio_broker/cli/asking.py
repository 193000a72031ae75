"""One question to the broker, by a client that is there for it alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from trio_broker import BrokerWSClient
from trio_broker.cli.account import Account
from trio_broker.cli.ending import usage_errors
from trio_broker.cli.interrupt import ctrl_c_cancels

Answer = TypeVar("Answer")


async def ask(account: Account, question: Callable[[BrokerWSClient], Awaitable[Answer]]) -> Answer:
    """Connect, ask, and say goodbye, after Ctrl-C as well.

    Args:
        account: Whose client asks.
        question: What is asked of it.

    Raises:
        KeyboardInterrupt: There was a Ctrl-C before the answer.
        click.UsageError: The question has an argument that can't be sent.
        BrokerError: As the client raises it.
    """
    async with account.client() as client:
        with ctrl_c_cancels(), usage_errors():
            return await question(client)
    raise KeyboardInterrupt
