"""A Trio-native client for TheOne Trading API: balances, order updates and swaps.

The main class is `BrokerWSClient`. `trio_broker.sandbox` has a broker with play money for tests.
"""

import typing as _typing

# fmt: off
# isort: off
from trio_broker._journal.journal import SwapJournal
from trio_broker._journal.entries import JournalRow, key_fingerprint
from trio_broker._swap_executor import new_client_order_id
from trio_broker._streams.opening import Opening
from trio_broker._streams.subscription import BoundedReceiveChannel, Subscription
from trio_broker._version import __version__
from trio_broker.client import BrokerWSClient
from trio_broker.events import (
    ChannelRefused, Closed, Connected, ConnectionEvent, Disconnected, GaveUp, Restored,
    SnapshotUnavailable, SwapCorrected, SwapResolved, SwapUnresolved, UnexpectedMessage,
)
from trio_broker.exceptions import (
    AuthenticationError, AuthenticationTimeoutError, BrokerError, CertificateError, ChannelError,
    ClientClosedError, ClockSkewError, ConfigurationError, ConnectFailedError, ConnectionLostError,
    DuplicateClientOrderIdError, InsufficientBalanceError, InternalServerError, InvalidAmountError,
    InvalidApiKeyError, InvalidChannelError, InvalidRequestError, InvalidSignatureError,
    JournalError, MessageTooLargeError, NonceReusedError, NotAuthenticatedError, NotConnectedError,
    NotSentError, OrderNotFoundError, OrderUnfinishedError, ProtocolError, QuoteExpiredError,
    RateLimitedError, ReconnectFailedError, ReplyTooLargeError, RequestTimeoutError, ServerError,
    SlippageError, SlowConsumerError, SubscriptionBrokenError, SubscriptionLimitError,
    SwapOutcomeUnknownError, UnknownAssetError, UnknownOperationError, UnreadableError,
)
from trio_broker.models import (
    Balance, ClientStatistics, ConnectionState, Gap, Message, Order, OrderStatus, RouteStep,
    SwapEstimate, SwapFinding, SwapIntent, SwapOutcome, SwapReceipt, UnresolvedSwap,
)
from trio_broker.settings import Limits, ReconnectPolicy

__all__ = [
    "AuthenticationError", "AuthenticationTimeoutError", "Balance", "BoundedReceiveChannel",
    "BrokerError", "BrokerWSClient", "CertificateError", "ChannelError", "ChannelRefused",
    "ClientClosedError", "ClientStatistics", "ClockSkewError", "Closed", "ConfigurationError",
    "ConnectFailedError", "Connected", "ConnectionEvent", "ConnectionLostError", "ConnectionState",
    "Disconnected", "DuplicateClientOrderIdError", "Gap", "GaveUp", "InsufficientBalanceError",
    "InternalServerError", "InvalidAmountError", "InvalidApiKeyError", "InvalidChannelError",
    "InvalidRequestError", "InvalidSignatureError", "JournalError", "JournalRow", "Limits",
    "Message", "MessageTooLargeError", "NonceReusedError", "NotAuthenticatedError",
    "NotConnectedError", "NotSentError", "Opening", "Order", "OrderNotFoundError", "OrderStatus",
    "OrderUnfinishedError", "ProtocolError", "QuoteExpiredError", "RateLimitedError",
    "ReconnectFailedError", "ReconnectPolicy", "ReplyTooLargeError", "RequestTimeoutError",
    "Restored", "RouteStep", "ServerError", "SlippageError", "SlowConsumerError",
    "SnapshotUnavailable", "Subscription", "SubscriptionBrokenError", "SubscriptionLimitError",
    "SwapCorrected", "SwapEstimate", "SwapFinding", "SwapIntent", "SwapJournal", "SwapOutcome",
    "SwapOutcomeUnknownError", "SwapReceipt", "SwapResolved", "SwapUnresolved", "UnexpectedMessage",
    "UnknownAssetError", "UnknownOperationError", "UnreadableError", "UnresolvedSwap",
    "__version__", "key_fingerprint", "new_client_order_id",
]
# isort: on
# fmt: on

# Tracebacks, reprs and documentation show the names under which users import them.
for _name in __all__:
    _value = globals()[_name]
    if isinstance(_value, type):
        # Tools resolve annotations in the module that `__module__` names.
        _value.__annotations__ = _typing.get_type_hints(_value)
    if hasattr(_value, "__module__"):
        _value.__module__ = __name__
del _name, _value
