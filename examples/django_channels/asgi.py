"""The application that Daphne serves: pages by HTTP, accounts by WebSocket.

    daphne -b 127.0.0.1 -p 8000 examples.django_channels.asgi:application

ASGI has a *lifespan*, in which an application opens and closes what it needs, and Daphne doesn't
have it. So clients are opened when they are needed, and for the end Daphne's own reactor is asked:
before it stops, it waits for what is done here.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator, WebsocketDenier
from daphne.server import reactor  # importing it makes Twisted run on asyncio
from django.core.asgi import get_asgi_application
from django.urls import path
from twisted.internet.defer import Deferred

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.django_channels.settings")
pages = get_asgi_application()

# After that, as Django must know its settings first.
from examples.django_channels.accounts import close_all  # noqa: E402
from examples.django_channels.consumers import AccountConsumer  # noqa: E402

accounts = URLRouter([path("ws/<slug:user>/", AccountConsumer.as_asgi())])
# Otherwise another site could point its name here, and its pages would pass the origin check.
of_allowed_hosts = AllowedHostsOriginValidator(accounts)


async def own_pages(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Refuse other sites' pages, because browsers don't apply the same-origin rule to WebSockets.

    What Channels has for it compares names, and a page from another port of this machine has the
    same name. The port must be the same as well.
    """
    headers = dict(scope["headers"])
    # Compared as texts, because an origin may be anything, for example "null".
    host = headers.get(b"host", b"").lower()
    is_own = headers.get(b"origin", b"").lower() in {b"http://" + host, b"https://" + host}
    await (of_allowed_hosts if is_own else WebsocketDenier())(scope, receive, send)


application: Final = ProtocolTypeRouter(
    {
        "http": pages,
        "websocket": own_pages,
    }
)


def _close() -> Deferred[None]:
    return Deferred.fromFuture(asyncio.ensure_future(close_all()))


reactor.addSystemEventTrigger("before", "shutdown", _close)
