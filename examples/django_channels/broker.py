"""Choose the broker: the one that the environment names, or a sandbox in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from trio_broker import BrokerWSClient, ReconnectPolicy
from trio_broker.sandbox import is_play_money, open_threaded_sandbox

# A site outlives any connection, and may start before its network.
FOR_A_SITE: Final[Mapping[str, Any]] = {
    "reconnect": ReconnectPolicy(max_attempts=None, max_delay=15.0, retry_first=True)
}


@attrs.frozen
class Account:
    """A user's account at the broker.

    Attributes:
        make_client: Makes a client of it, which isn't connected yet. A client is used once.
        host: Where the broker is, for people.
        is_play_money: Whether its money certainly is none.
    """

    make_client: Callable[[], BrokerWSClient]
    host: str
    is_play_money: bool


def find_accounts(
    users: Mapping[str, str], stack: ExitStack, environ: Mapping[str, str] = os.environ
) -> dict[str, Account]:
    """The accounts by user.

    Args:
        users: The users, as in the settings.
        stack: Closes the sandbox, if one is started.
        environ: The environment. Without BROKER_API_KEY, a sandbox is started.

    Raises:
        ConfigurationError: A variable is missing, or can't work; the message names it.
    """
    if "BROKER_API_KEY" in environ:
        named = {user for user, suffix in users.items() if f"BROKER_API_KEY{suffix}" in environ}
        return {user: _named(environ, users[user]) for user in users if user in named}
    # Slow enough that users can watch an order.
    sandbox = stack.enter_context(
        open_threaded_sandbox(pending_delay=(0.3, 0.6), processing_delay=(0.6, 1.2))
    )
    return {
        user: Account(partial(sandbox.client, number, **FOR_A_SITE), "its own", is_play_money=True)
        for number, user in enumerate(users)
    }


def _named(environ: Mapping[str, str], suffix: str) -> Account:
    own = dict(environ)
    for name in ("BROKER_API_KEY", "BROKER_SECRET_KEY"):
        own[name] = environ.get(name + suffix, "")
    make_client = partial(BrokerWSClient.from_env, own, **FOR_A_SITE)
    make_client()  # report invalid settings at the start
    address = environ.get("BROKER_WS_URL") or environ.get("BROKER_BASE_URL", "")
    host = urlsplit(address).netloc.rpartition("@")[2]
    return Account(make_client, host, is_play_money(own["BROKER_API_KEY"], address))
