"""`Opening`: what `subscribe` returns, to be awaited or entered.

    updates = await client.subscribe("balances")
    async with client.subscribe("balances") as updates:

The class works in Trio and in asyncio alike.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType, coroutine
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

S_co = TypeVar("S_co", bound=AbstractAsyncContextManager[Any, Any], covariant=True)


class NotAStream:
    """The base of what must be entered before it can be used: mistakes get a hint."""

    __slots__ = ()

    @abstractmethod
    def _hint(self) -> str:
        """What to write instead."""

    # Type checkers find these mistakes by themselves, as long as they don't see the methods.
    if not TYPE_CHECKING:  # pragma: no branch

        def __getattr__(self, name: str) -> NoReturn:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if not name.startswith("_"):  # as Python itself looks for those
                text += f": {self._hint()}"
            raise AttributeError(text, name=name, obj=self)

        def __aiter__(self) -> NoReturn:
            raise TypeError(f"this can't be iterated over: {self._hint()}")

        def __enter__(self) -> NoReturn:
            raise TypeError(f"'with' isn't supported: {self._hint()}")

        def __exit__(self, *_: object) -> None:
            """Never called."""


class NotATracker(NotAStream):
    """The base of what `track_order` returns, which can be entered alone."""

    __slots__ = ()

    _order_id: str

    if not TYPE_CHECKING:  # pragma: no branch

        def __await__(self) -> NoReturn:
            raise TypeError(f"this can't be awaited: {self._hint()}")

    def _hint(self) -> str:
        return (
            f"write 'async with client.track_order({self._order_id!r}) as progress:', and use the "
            "returned stream"
        )


class Opening(NotAStream, Coroutine[Any, Any, S_co], Generic[S_co]):
    """A subscription that is about to be made: await it, or enter it with ``async with``.

    Nothing is sent before. ``async with`` closes the subscription at the end of the block. An
    opening is used once. One that is dropped unused gives a `ResourceWarning`. It is a coroutine as
    well, for `trio.Nursery.start_soon` and `asyncio.create_task`.

    Args:
        open_stream: Opens the stream.
        method: The method that made this, for people.
        arguments: Its arguments.
    """

    __slots__ = (
        "_arguments",
        "_coroutine",
        "_is_told",
        "_is_used",
        "_method",
        "_open_stream",
        "_stream",
    )

    def __init__(
        self,
        open_stream: Callable[[], Awaitable[S_co]],
        method: str,
        arguments: tuple[object, ...],
    ) -> None:
        self._is_told = self._is_used = False
        self._coroutine: Coroutine[Any, Any, S_co] | None = None
        self._open_stream = open_stream
        self._method = method
        self._arguments = arguments
        self._stream: S_co

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._call}>"

    def __await__(self) -> Generator[Any, Any, S_co]:
        return self._open().__await__()

    def send(self, value: Any) -> Any:
        """Run it as a coroutine, for an event loop."""
        return self._started().send(value)

    def throw(self, *raised: Any) -> Any:
        """Raise something in it as a coroutine, for an event loop."""
        return self._started().throw(*raised)

    def close(self) -> None:
        """Give it up, without a warning."""
        self._is_used = True
        if self._coroutine is not None:
            self._coroutine.close()

    def _started(self) -> Coroutine[Any, Any, S_co]:
        if self._coroutine is None:
            self._coroutine = self._open()
        return self._coroutine

    @enable_ki_protection
    async def __aenter__(self) -> S_co:
        self._stream = await self._open()
        return self._stream

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What a stream does there is shielded where it has to be.
        await self._stream.__aexit__(exc_type, exc_value, traceback)  # noqa: ASYNC102

    def __del__(self) -> None:
        # There is no attribute if the class was called wrongly. An error with a hint is enough.
        if not (getattr(self, "_is_used", True) or self._is_told or self._coroutine):
            warnings.warn(
                f"{self._call} was never awaited, so nothing was subscribed to: {self._hint()}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    @enable_ki_protection
    async def _open(self) -> S_co:
        if self._is_used:
            if trio.lowlevel.in_trio_task():
                await trio.lowlevel.checkpoint()
            else:
                await _turn()
            raise RuntimeError(f"{self._call} was awaited or entered before: call it again")
        self._is_used = True
        return await self._open_stream()

    @property
    def _call(self) -> str:
        return f"client.{self._method}({', '.join(map(repr, self._arguments))})"

    def _hint(self) -> str:
        self._is_told = True
        return (
            f"write 'async with {self._call} as updates:', or 'updates = await {self._call}', and "
            "use the returned stream"
        )


@coroutine
def _turn() -> Generator[None, None, None]:
    """A turn of asyncio's event loop, as `asyncio.sleep` with 0 gives it."""
    yield
