"""What it takes to stamp, print and sign one operation."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from benchmarks.speed.figures import Report, Table, at_most, ratio, spread
from benchmarks.speed.peers.callback import signed
from benchmarks.speed.processes import Bench
from trio_broker._protocol import codec, requests
from trio_broker.signing import Signer, canonical_string, hmac_key, new_nonce

ABOUT: Final = """
An `estimate` of three amounts and assets, {count:,} times a round, in one process. The library
signs at the moment when a message leaves, and its writer does for each what the first rows say.
What they are compared with is one call of `hmac.new(key, text, sha256).hexdigest()` over a text
that is there already. The callback client's whole way prints, signs and prints again with `json`,
`hashlib`, `hmac` and `secrets`.
"""

HMAC: Final = "hmac.new(…).hexdigest() alone"
LEAVES: Final = "library: stamp, sign and print a message"
SERIALIZED: Final = "library: the same, and print its body"
WHOLE: Final = "library: the same, and check the arguments"
CALLBACK: Final = "callback client's whole way"

_COLUMNS: Final = ("", "µs", "to hmac.new alone", "to the callback client's")
_SECRET: Final = "secret"  # noqa: S105 - anybody's
_WANTED: Final = {"amountIn": "100", "assetIn": "ETH", "assetOut": "USDT"}


def run(bench: Bench) -> Report:
    """Measure.

    Args:
        bench: How.
    """
    count = 2_000 if bench.quick else 50_000
    runs = bench.in_turn({"all": partial(bench.measure, "signing:timed", {"count": count})})["all"]
    times = {name: [one[name] for one in runs] for name in runs[0]}
    rows = [
        (
            name,
            spread(values, 1e6, 2),
            f"{ratio(values, times[HMAC]):.2f}",
            f"{ratio(values, times[CALLBACK]):.2f}",
        )
        for name, values in times.items()
    ]
    table = Table("Signing: median (least to most)", _COLUMNS, rows)
    what = "stamp, serialize and sign one operation"
    goals = [
        at_most(f"{what}, µs", 6, statistics.median(times[SERIALIZED]) * 1e6),
        at_most(
            f"{what}, to the callback client", 6 / 11, ratio(times[SERIALIZED], times[CALLBACK])
        ),
    ]
    return Report("signing", ABOUT.format(count=count), [table], goals)


# --- In a process of its own ----------------------------------------------------------------


def timed(count: int) -> dict[str, float]:
    """Time each way.

    Args:
        count: How often.

    Returns:
        Seconds for one operation.
    """
    return {name: _seconds(way, count) for name, way in _ways().items()}


def _seconds(way: Callable[[], object], count: int) -> float:
    for _ in range(count // 10):
        way()
    began = time.perf_counter()
    for _ in range(count):
        way()
    return (time.perf_counter() - began) / count


def _ways() -> dict[str, Callable[[], object]]:
    signer, key = Signer(_SECRET), hmac_key(_SECRET)
    callbacks_key = base64.urlsafe_b64encode(hashlib.sha256(_SECRET.encode()).digest())
    printed = codec.encode_body(_WANTED)
    text = canonical_string("estimate", int(time.time() * 1000), new_nonce(time.time()), printed)
    message = text.encode()

    def leave(body: str) -> str:
        # As `Connection` does for what leaves.
        wall_time = time.time()
        nonce, timestamp = new_nonce(wall_time), int(wall_time * 1000)
        signature = signer.sign("estimate", timestamp, nonce, body)
        return codec.signed_frame("estimate", body, timestamp, nonce, signature)

    def whole() -> str:
        request = requests.estimate(requests.Trade("100", "ETH", "USDT"), None, math.inf)
        return leave(request.body)

    return {
        HMAC: lambda: hmac.new(key, message, hashlib.sha256).hexdigest(),
        LEAVES: lambda: leave(printed),
        SERIALIZED: lambda: leave(codec.encode_body(_WANTED)),
        WHOLE: whole,
        CALLBACK: lambda: signed(callbacks_key, "estimate", _WANTED),
    }
