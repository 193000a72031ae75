"""A broker to try things against: the whole protocol, on this machine, with play money.

>>> async with open_sandbox(seed=7) as sandbox:
...     async with sandbox.client() as client:
...         balances = await client.get_balances()
"""

from __future__ import annotations

from trio_broker.sandbox.accounts import Account as Account, is_play_money as is_play_money
from trio_broker.sandbox.broker import Connection as Connection, Received as Received
from trio_broker.sandbox.disturbance import Fault as Fault
from trio_broker.sandbox.embedded import Sandbox as Sandbox, open_sandbox as open_sandbox
from trio_broker.sandbox.events import (
    ClientAsked as ClientAsked,
    ClientCame as ClientCame,
    ClientLeft as ClientLeft,
    ClientTurnedAway as ClientTurnedAway,
    OrderMoved as OrderMoved,
    SandboxEvent as SandboxEvent,
)
from trio_broker.sandbox.faults import Faults as Faults
from trio_broker.sandbox.orders import Order as Order, Outcome as Outcome, Terms as Terms
from trio_broker.sandbox.rules import Rules as Rules, Settings as Settings
from trio_broker.sandbox.testing import BrokerClients as BrokerClients
from trio_broker.sandbox.threads import (
    SandboxOptions as SandboxOptions,
    ThreadedSandbox as ThreadedSandbox,
    open_threaded_sandbox as open_threaded_sandbox,
)
