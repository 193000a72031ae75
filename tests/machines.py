"""Runs a state machine for longer than the suite: `python -m tests.machines session 5000`."""

from __future__ import annotations

import argparse
from typing import Any, Final

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.connection.test_outages_machine import OutagesMachine
from tests.protocol.test_session_machine import SessionMachine
from tests.streams.test_subscription import Streams
from tests.swaps.test_swaps_machine import SwapsMachine

MACHINES: Final[dict[str, type[RuleBasedStateMachine]]] = {
    "outages": OutagesMachine,
    "session": SessionMachine,
    "streams": Streams,
    "swaps": SwapsMachine,
}


def main() -> None:
    """Run as many histories of a machine as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.machines")
    parser.add_argument("machine", choices=sorted(MACHINES))
    parser.add_argument("histories", type=int)
    arguments = parser.parse_args()
    machine: Any = MACHINES[arguments.machine]
    usual = machine.TestCase.settings
    longer = settings(usual, max_examples=arguments.histories, print_blob=True)
    run_state_machine_as_test(machine, settings=longer)
    print(f"{arguments.machine}: {arguments.histories} histories, and no failure")  # noqa: T201
    for name, count in sorted(getattr(machine, "figures", {}).items()):
        print(f"{name:<22} {count:>8}")  # noqa: T201


if __name__ == "__main__":
    main()
