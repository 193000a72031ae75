"""A broker to try things against: the whole protocol, on this machine, with play money.

>>> async with open_sandbox(seed=7) as sandbox:
...     async with sandbox.client() as client:
...         balances = await client.get_balances()
"""

from __future__ import annotations

from trio_broker.sandbox.accounts import Account, is_play_money
from trio_broker.sandbox.broker import Connection, Received
from trio_broker.sandbox.disturbance import Fault
from trio_broker.sandbox.embedded import Sandbox, open_sandbox
from trio_broker.sandbox.events import (
    ClientAsked,
    ClientCame,
    ClientLeft,
    ClientTurnedAway,
    OrderMoved,
    RestAsked,
    SandboxEvent,
)
from trio_broker.sandbox.faults import Faults
from trio_broker.sandbox.named_faults import NamedFault
from trio_broker.sandbox.orders import Order, Outcome, Terms
from trio_broker.sandbox.rules import Rules, Settings
from trio_broker.sandbox.testing import BrokerClients
from trio_broker.sandbox.threads import (
    SandboxOptions,
    ThreadedSandbox,
    open_threaded_sandbox,
)

# fmt: off
__all__ = [
    "Account", "BrokerClients", "ClientAsked", "ClientCame", "ClientLeft", "ClientTurnedAway",
    "Connection", "Fault", "Faults", "NamedFault", "Order", "OrderMoved",
    "Outcome", "Received", "RestAsked", "Rules", "Sandbox", "SandboxEvent", "SandboxOptions",
    "Settings", "Terms", "ThreadedSandbox", "is_play_money", "open_sandbox",
    "open_threaded_sandbox",
]
# fmt: on
