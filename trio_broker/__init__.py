"""A Trio-native client for TheOne Trading API: balances, order updates and swaps.

The one class that you need is `BrokerWSClient`; a broker to try it with is in
`trio_broker.sandbox`.
"""

from trio_broker.client import BrokerWSClient as BrokerWSClient
from trio_broker.exceptions import (
    AuthenticationError as AuthenticationError,
    AuthenticationTimeoutError as AuthenticationTimeoutError,
    BrokerError as BrokerError,
    CertificateError as CertificateError,
    ChannelError as ChannelError,
    ClientClosedError as ClientClosedError,
    ClockSkewError as ClockSkewError,
    ConfigurationError as ConfigurationError,
    ConnectFailedError as ConnectFailedError,
    ConnectionLostError as ConnectionLostError,
    DuplicateClientOrderIdError as DuplicateClientOrderIdError,
    InvalidApiKeyError as InvalidApiKeyError,
    InvalidChannelError as InvalidChannelError,
    InvalidSignatureError as InvalidSignatureError,
    JournalError as JournalError,
    MessageTooLargeError as MessageTooLargeError,
    NonceReusedError as NonceReusedError,
    NotAuthenticatedError as NotAuthenticatedError,
    NotConnectedError as NotConnectedError,
    NotSentError as NotSentError,
    OrderUnfinishedError as OrderUnfinishedError,
    ProtocolError as ProtocolError,
    QuoteExpiredError as QuoteExpiredError,
    ReconnectFailedError as ReconnectFailedError,
    RequestTimeoutError as RequestTimeoutError,
    ServerError as ServerError,
    SlippageError as SlippageError,
    SlowConsumerError as SlowConsumerError,
    SubscriptionBrokenError as SubscriptionBrokenError,
    SubscriptionLimitError as SubscriptionLimitError,
    SwapOutcomeUnknownError as SwapOutcomeUnknownError,
    UnknownOperationError as UnknownOperationError,
)
from trio_broker.journal import SwapJournal as SwapJournal
from trio_broker.journalfile import (
    JournalRow as JournalRow,
    key_fingerprint as key_fingerprint,
)
from trio_broker.models import (
    Balance as Balance,
    ChannelRefused as ChannelRefused,
    ClientStatistics as ClientStatistics,
    Closed as Closed,
    Connected as Connected,
    ConnectionEvent as ConnectionEvent,
    ConnectionState as ConnectionState,
    Disconnected as Disconnected,
    Gap as Gap,
    GaveUp as GaveUp,
    Message as Message,
    OddMessage as OddMessage,
    Order as Order,
    OrderStatus as OrderStatus,
    Restored as Restored,
    RouteStep as RouteStep,
    SnapshotUnavailable as SnapshotUnavailable,
    SwapEstimate as SwapEstimate,
    SwapFinding as SwapFinding,
    SwapOutcome as SwapOutcome,
    SwapReceipt as SwapReceipt,
    SwapResolved as SwapResolved,
    SwapUnresolved as SwapUnresolved,
    UnresolvedSwap as UnresolvedSwap,
)
from trio_broker.settings import Limits as Limits, ReconnectPolicy as ReconnectPolicy
from trio_broker.subscription import (
    BoundedReceiveChannel as BoundedReceiveChannel,
    Subscription as Subscription,
)
from trio_broker.swaps import new_client_order_id as new_client_order_id

__version__ = "0.1.0"
