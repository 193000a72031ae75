"""The list of the doctor's steps."""

from __future__ import annotations

from typing import Final

from trio_broker.cli.doctor import checks, handshake, probe
from trio_broker.cli.doctor.steps import Step

# Seconds. The help of the command repeats these numbers.
_SLOW: Final = 1.0
_SLOW_AUTHENTICATION: Final = 3.0

_NETWORK: Final = "check the network between here and the broker"
_BROKER_IS_SLOW: Final = "the broker is slow: try again later"

STEPS: Final = (
    Step(name="configuration", check=checks.configure),
    Step(
        name="dns", check=probe.resolve, needs="configuration",
        slow_above=_SLOW, if_slow="check the DNS resolver of this machine",
    ),
    Step(
        name="tcp", check=probe.connect, needs="dns", slow_above=_SLOW, if_slow=_NETWORK,
        has_own_timeout=True,
    ),
    Step(name="tls", check=probe.start_tls, needs="tcp", slow_above=_SLOW, if_slow=_NETWORK),
    Step(
        name="handshake", check=handshake.check_handshake, needs="tls", slow_above=_SLOW,
        if_slow="the broker, or a proxy in front of it, is slow: try again later",
    ),
    Step(
        name="authentication", check=checks.authenticate, needs="handshake",
        slow_above=_SLOW_AUTHENTICATION, if_slow=_BROKER_IS_SLOW, has_own_timeout=True,
    ),
    # It doesn't depend on authentication, which fails if the clock is off.
    Step(name="clock", check=checks.compare_clocks, needs="tls"),
    Step(
        name="latency", check=checks.measure_latency, needs="authentication", has_own_timeout=True
    ),
    Step(
        name="subscription", check=checks.subscribe, needs="latency",
        slow_above=_SLOW, if_slow=_BROKER_IS_SLOW, has_own_timeout=True,
    ),
    Step(name="versions", check=checks.list_versions),
)  # fmt: skip
