"""The result of a swap command, and how it is printed.

The client keeps a record of each swap. After any error or cancellation, the record shows whether
the swap was accepted, refused, possibly sent or not sent. So no error needs to be interpreted, and
a reply that arrives while the client closes still counts.
"""

from __future__ import annotations

from contextlib import suppress

import attrs
import click

from trio_broker import (
    BrokerError,
    BrokerWSClient,
    DuplicateClientOrderIdError,
    Order,
    OrderStatus,
    ServerError,
    SwapOutcome,
    SwapReceipt,
)
from trio_broker.cli.errors import Status, describe_error, status_of
from trio_broker.cli.terminal.output import (
    Output,
    one_line,
    plain,
    print_json,
    print_traceback,
)
from trio_broker.cli.terminal.stdout import ignore_stdout_errors
from trio_broker.cli.trading.next_commands import NextCommands


@attrs.frozen(kw_only=True)
class SwapResult:
    """The result of a swap command.

    Attributes:
        client_order_id: The client order ID of the swap.
        outcome: The outcome of the swap.
        receipt: The broker's receipt, if the swap was accepted.
        reason: Why the swap was refused, or why its outcome is unknown.
        order: The final state of the order, if the order was followed until then.
        error: The error that ended the command early; also None after Ctrl-C.
    """

    client_order_id: str
    outcome: SwapOutcome
    receipt: SwapReceipt | None = None
    reason: str = ""
    order: Order | None = None
    error: Exception | None = None


@attrs.frozen
class Verdict:
    """The exit status for a result, and the text for the user.

    Attributes:
        status: The exit status.
        text: A description; None if the error describes the result, or nothing needs to be printed.
        command: The follow-up command, if there is one.
    """

    status: int
    text: str | None = None
    command: str | None = None


async def find_result(
    client: BrokerWSClient,
    client_order_id: str,
    order: Order | None,
    error: Exception | None,
    *,
    was_requested: bool,
) -> SwapResult:
    """Find the outcome of a swap in the record of the client, which must be closed.

    Args:
        client: The closed client.
        client_order_id: The client order ID of the swap.
        order: The final state of the order, if the order was followed until then.
        error: The error that ended the command.
        was_requested: Whether `BrokerWSClient.do_swap` was called.
    """
    outcome, receipt, reason = SwapOutcome.NOT_SENT, None, ""
    unresolved = {swap.client_order_id: swap for swap in client.unresolved_swaps()}
    is_duplicate = isinstance(error, DuplicateClientOrderIdError) and not error.was_sent
    if not was_requested or is_duplicate:
        pass  # The record belongs to another swap with this ID.
    elif client_order_id in unresolved:
        outcome, reason = SwapOutcome.UNKNOWN, unresolved[client_order_id].reason
    else:
        try:
            receipt = await client.resolve_swap(client_order_id)
        except ServerError as refusal:
            outcome, reason = SwapOutcome.REFUSED, str(refusal)
        except (BrokerError, TypeError, ValueError):
            pass  # No record, and a closed client doesn't ask the broker: nothing was sent.
        else:
            outcome = SwapOutcome.CONFIRMED
    return SwapResult(
        client_order_id=client_order_id,
        outcome=outcome,
        receipt=receipt,
        reason=reason,
        order=order,
        error=error,
    )


def verdict_on(result: SwapResult, commands: NextCommands) -> Verdict:
    """Choose the exit status, the text and the next command for a result."""
    if result.outcome is SwapOutcome.UNKNOWN:
        command = commands.resolve(result.client_order_id)
        return Verdict(
            Status.UNKNOWN,
            f"the outcome of swap {result.client_order_id} is unknown ({result.reason}): it may "
            f"have been executed, so don't repeat it; to find out, run: {command}",
            command,
        )
    if result.order is not None:
        return _verdict_on_order(result.order)
    if result.receipt is not None:
        command = commands.follow(result.receipt.order_id)
        contradiction = _contradiction(result.error, result.receipt)
        if contradiction is None:
            return _verdict_on_unfinished(result, result.receipt, command)
        text = f"{contradiction}; to follow the order, run: {command}"
        return Verdict(Status.HAS_ORDER, text, command)
    if result.error is not None:
        return Verdict(
            result.error.exit_code
            if isinstance(result.error, click.ClickException)
            else status_of(result.error)
        )
    refused = result.outcome is SwapOutcome.REFUSED
    why = f"{result.reason}: nothing was executed" if refused else "nothing was sent"
    return Verdict(Status.INTERRUPTED, f"interrupted; {why}")


def _verdict_on_order(order: Order) -> Verdict:
    if order.status is OrderStatus.FILLED:
        return Verdict(Status.OK)
    filled = f", after {plain(order.filled_out)} were bought" if order.filled_out else ""
    return Verdict(Status.FAILURE, f"the order ended {order.status}{filled}")


def _contradiction(error: Exception | None, receipt: SwapReceipt) -> str | None:
    """Describe a swap that the broker refused, although it has an order for it."""
    if isinstance(error, DuplicateClientOrderIdError):
        return describe_error(error)
    if isinstance(error, ServerError) and error.op == "swap":
        then = f"it accepted the swap as order {receipt.order_id}: don't repeat it"
        return f"{describe_error(error)}, but then {then}"
    return None


def _verdict_on_unfinished(result: SwapResult, receipt: SwapReceipt, command: str) -> Verdict:
    accepted = (
        f"the swap was accepted as order {receipt.order_id} "
        f"(client order id {result.client_order_id})"
    )
    if result.error is None:
        return Verdict(
            Status.INTERRUPTED,
            f"interrupted; {accepted} and continues at the broker; to follow it, run: {command}",
            command,
        )
    return Verdict(
        Status.CONNECTION,
        f"{accepted}, but the order can't be followed ({describe_error(result.error)}): "
        f"don't repeat the swap; to follow the order, run: {command}",
        command,
    )


def report(result: SwapResult, verdict: Verdict, output: Output) -> int:
    """Print the result of a swap, and return the exit status.

    Raises:
        Exception: The error of the result, if the verdict has no text of its own.
    """
    # The exit status must be right even if nothing can be printed.
    if verdict.text is not None:
        with suppress(OSError):
            if output.debug and result.error is not None:
                print_traceback(result.error)
            prefix = "" if verdict.status == Status.INTERRUPTED else "Error: "
            click.echo(prefix + one_line(verdict.text), err=True)
    if output.as_json:
        with ignore_stdout_errors():
            print_json(event="end", **_members(result, verdict))
    if verdict.text is None and result.error is not None:
        raise result.error
    return verdict.status


def _members(result: SwapResult, verdict: Verdict) -> dict[str, object]:
    text = verdict.text
    if text is None and isinstance(result.error, click.ClickException):
        text = result.error.format_message()
    elif text is None and result.error is not None:
        text = describe_error(result.error)
    return {
        "status": verdict.status,
        "outcome": result.outcome,
        "client_order_id": result.client_order_id,
        "order_id": result.receipt.order_id if result.receipt is not None else None,
        "order_status": result.order.status if result.order is not None else None,
        "filled_out": result.order.filled_out if result.order is not None else None,
        "error": text,
        "command": verdict.command,
    }
