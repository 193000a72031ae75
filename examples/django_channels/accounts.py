"""The site's accounts, during the life of its process.

Keep to one process: each would have a client of its own for each account, and know nothing of the
swaps that were asked for in the others.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Final

from django.conf import settings

from examples.django_channels.broker import find_accounts
from examples.django_channels.live import LiveAccount

_at_the_end: Final = ExitStack()

LIVE: Final = {
    user: LiveAccount(account)
    for user, account in find_accounts(settings.BROKER_USERS, _at_the_end).items()
}


async def close_all() -> None:
    """Close every client, and then the sandbox, if there is one."""
    await asyncio.gather(*(account.aclose() for account in LIVE.values()))
    _at_the_end.close()
