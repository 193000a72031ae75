"""The processes of a run: a server on one core, and on another one client after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import attrs

from benchmarks.speed.certificates import Certificates

T = TypeVar("T")
W = TypeVar("W", bound=str)

Link: TypeAlias = Literal["plain", "TLS"]
"""How a client reaches the server."""
LINKS: Final[tuple[Link, ...]] = ("plain", "TLS")

ROOT: Final = Path(__file__).parents[2]
_PATIENCE: Final = 600.0


class BrokenError(Exception):
    """A benchmark didn't measure what it was to measure."""


@attrs.frozen
class Server:
    """Where the server is.

    Attributes:
        ports: Its port and that for TLS; and both over its slow link, if it has one.
    """

    ports: list[int]

    def url(self, link: Link = "plain", *, slow: bool = False, **wishes: int) -> str:
        """The URL for a client.

        Args:
            link: How the client reaches it.
            slow: Whether it is at the other end of the slow link.
            wishes: What the client is to be pushed.
        """
        query = "&".join(f"{name}={value}" for name, value in wishes.items())
        scheme = "ws" if link == "plain" else "wss"
        port = self.ports[LINKS.index(link) + len(LINKS) * slow]
        return f"{scheme}://127.0.0.1:{port}/ws/v1/stream?{query}"


@attrs.frozen
class Bench:
    """How this run measures.

    Attributes:
        rounds: How many rounds.
        quick: Whether small counts will do, for a try.
        say: Takes a line that says how far it is.
        certificates: For TLS.
    """

    rounds: int
    quick: bool
    say: Callable[[str], None]
    certificates: Certificates = attrs.field(factory=Certificates)

    @contextmanager
    def server(self, round_trip: float | None = None) -> Iterator[Server]:
        """A server in a process of its own, as long as the block lasts.

        Args:
            round_trip: Given, it has more ports, behind a link with that round trip in seconds.
        """
        core, _ = cores()
        command = [sys.executable, "-m", "benchmarks.speed.server"]
        command += [f"--certificate={self.certificates.server}"]
        command += [] if core is None else [f"--core={core}"]
        command += [] if round_trip is None else [f"--round-trip={round_trip}"]
        with subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None  # noqa: S101 - they were opened
            assert process.stdout is not None  # noqa: S101
            try:
                yield Server([int(port) for port in process.stdout.readline().split()])
            finally:
                process.stdin.close()

    def measure(
        self, function: str, arguments: Mapping[str, object], *, watch_sends: bool = False
    ) -> Any:
        """Call a function in a fresh process.

        Args:
            function: A module of this package, a colon, its function.
            arguments: The function's arguments.
            watch_sends: Whether that process notes when it sends.

        Returns:
            What it returned.

        Raises:
            BrokenError: It has failed; what it had to say about that is on standard error.
        """
        _, core = cores()
        command = [sys.executable, "-m", "benchmarks.speed.child", function, json.dumps(arguments)]
        command += [] if core is None else [f"--core={core}"]
        command += ["--watch-sends"] if watch_sends else []
        environment = {**os.environ, **self.certificates.environment}
        try:
            ended = subprocess.run(  # noqa: S603 - our own command
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                timeout=_PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BrokenError(f"{function} took more than {_PATIENCE:g} s") from None
        if ended.returncode:
            raise BrokenError(f"{function} with {arguments} ended with status {ended.returncode}")
        return json.loads(ended.stdout)

    def in_turn(self, peers: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
        """Measure peers in turn, round by round.

        Args:
            peers: What measures each, by its name.

        Returns:
            What was measured of each, in the order of the rounds.
        """
        results: dict[str, list[T]] = {name: [] for name in peers}
        for number in range(1, self.rounds + 1):
            for name, measure in peers.items():
                self.say(f"round {number} of {self.rounds}: {name}")
                results[name].append(measure())
        return results

    def by_ways(
        self, ways: Mapping[W, Mapping[str, Callable[[], T]]]
    ) -> dict[W, dict[str, list[T]]]:
        """Measure peers in turn, each in several ways, for example plain and over TLS.

        Args:
            ways: What measures each peer in each way, by its name.

        Returns:
            What was measured of each, in the order of the rounds.
        """
        names = dict.fromkeys(name for peers in ways.values() for name in peers)
        measures = {
            f"{name}, {way}": peers[name]
            for name in names
            for way, peers in ways.items()
            if name in peers
        }
        runs = self.in_turn(measures)
        return {way: {name: runs[f"{name}, {way}"] for name in ways[way]} for way in ways}


def cores() -> tuple[int | None, int | None]:
    """The cores for the server and for the clients; None where there is only one for both."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[-2], usable[-1]) if len(usable) > 1 else (None, None)
