"""Items that go to whoever listens at the time: a client's events, and its raw messages."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from trio.lowlevel import enable_ki_protection

from trio_broker.subscription import BoundedReceiveChannel, Mailbox

T = TypeVar("T")

BUFFER_SIZE: Final = 1024


class Taps(Generic[T]):
    """The channels of those who listen, each with every item from its opening on.

    Args:
        name: What the items are, for people.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._mailboxes: dict[Mailbox[T], None] = {}
        self._over = False

    def __bool__(self) -> bool:
        return bool(self._mailboxes)

    @enable_ki_protection
    def open(self) -> BoundedReceiveChannel[T]:
        """A new channel; one that is opened after the end is at its end."""
        mailbox: Mailbox[T]
        mailbox = Mailbox(
            self._name, BUFFER_SIZE, on_close=lambda: self._mailboxes.pop(mailbox, None)
        )
        channel = BoundedReceiveChannel(mailbox)
        if self._over:
            mailbox.end()
        else:
            self._mailboxes[mailbox] = None
        return channel

    def put(self, item: T) -> None:
        """Hand an item to everyone who listens; the slow lose their oldest.

        Args:
            item: The item.
        """
        for mailbox in tuple(self._mailboxes):
            mailbox.put(item)

    def end(self) -> None:
        """End every channel, after what is buffered."""
        self._over = True
        for mailbox in tuple(self._mailboxes):
            mailbox.end()
        self._mailboxes.clear()
