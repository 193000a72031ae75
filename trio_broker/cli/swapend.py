"""What is known of a swap once its command is over, whatever has ended it, and how that is told.

The library knows: whatever was raised or cancelled, the client's own book says afterwards whether
the swap may have left, was taken, or never left. So nothing is concluded from where an error came
from, and the answer that came while the client said goodbye still counts.
"""

from __future__ import annotations

import traceback
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
from trio_broker.cli.ending import Status, status_of, told
from trio_broker.cli.journals import NextCommands
from trio_broker.cli.output import Output, plain, print_json, printable, whether_read_or_not


@attrs.frozen(kw_only=True)
class End:
    """How a swap's command has ended.

    Attributes:
        client_order_id: The swap's client order id.
        outcome: What is known of the swap.
        receipt: The broker's receipt, if it was taken.
        reason: Why it wasn't, or why nobody knows.
        order: The order's last state, if it was followed to its end.
        error: What has ended the command too early; None also if that was Ctrl-C.
    """

    client_order_id: str
    outcome: SwapOutcome
    receipt: SwapReceipt | None = None
    reason: str = ""
    order: Order | None = None
    error: Exception | None = None


@attrs.frozen
class Verdict:
    """What an end means.

    Attributes:
        status: The exit status.
        text: It in words; None where the error speaks for itself, or there is nothing to say.
        command: What can be done about it, as a command.
    """

    status: int
    text: str | None = None
    command: str | None = None


async def find_end(
    client: BrokerWSClient,
    client_order_id: str,
    order: Order | None,
    error: Exception | None,
    *,
    was_begun: bool,
) -> End:
    """Look up what became of a swap, in the book of a client that is closed by now.

    Args:
        client: The client.
        client_order_id: The swap's client order id.
        order: The order's last state, if it was followed to its end.
        error: What has ended the command.
        was_begun: Whether the client was told to swap at all.
    """
    outcome, receipt, reason = SwapOutcome.NOT_SENT, None, ""
    unresolved = {swap.client_order_id: swap for swap in client.unresolved_swaps()}
    if not was_begun or isinstance(error, DuplicateClientOrderIdError):
        pass  # What the book says of this id is about another swap.
    elif client_order_id in unresolved:
        outcome, reason = SwapOutcome.UNKNOWN, unresolved[client_order_id].reason
    else:
        try:
            receipt = await client.resolve_swap(client_order_id)
        except ServerError as refusal:
            outcome, reason = SwapOutcome.REFUSED, str(refusal)
        except (BrokerError, TypeError, ValueError):
            pass  # The book has no such swap, and a closed client asks nobody: nothing has left.
        else:
            outcome = SwapOutcome.CONFIRMED
    return End(
        client_order_id=client_order_id,
        outcome=outcome,
        receipt=receipt,
        reason=reason,
        order=order,
        error=error,
    )


def judge(end: End, commands: NextCommands) -> Verdict:
    """What an end means for the user.

    Args:
        end: The end.
        commands: The commands that go on from there.
    """
    if end.outcome is SwapOutcome.UNKNOWN:
        command = commands.ask(end.client_order_id)
        return Verdict(
            Status.UNKNOWN,
            f"the outcome of swap {end.client_order_id} is unknown ({end.reason}): it may have "
            f"been executed, so don't repeat it; this asks what became of it: {command}",
            command,
        )
    if end.order is not None:
        return _judge_order(end.order)
    if end.receipt is not None:
        return _judge_unfinished(end, end.receipt, commands.follow(end.receipt.order_id))
    if end.error is not None:
        return Verdict(
            end.error.exit_code
            if isinstance(end.error, click.ClickException)
            else status_of(end.error)
        )
    refused = end.outcome is SwapOutcome.REFUSED
    why = f"{end.reason}: nothing was executed" if refused else "nothing was sent"
    return Verdict(Status.INTERRUPTED, f"interrupted; {why}")


def _judge_order(order: Order) -> Verdict:
    if order.status is OrderStatus.FILLED:
        return Verdict(Status.OK)
    filled = f", after {plain(order.filled_out)} were bought" if order.filled_out else ""
    return Verdict(Status.FAILURE, f"the order ended {order.status}{filled}")


def _judge_unfinished(end: End, receipt: SwapReceipt, command: str) -> Verdict:
    taken = (
        f"the swap was taken as order {receipt.order_id} (client order id {end.client_order_id})"
    )
    if end.error is None:
        return Verdict(
            Status.INTERRUPTED,
            f"interrupted; {taken}, and goes on at the broker; this follows it: {command}",
            command,
        )
    return Verdict(
        Status.CONNECTION,
        f"{taken}, and its end can't be waited for ({told(end.error)}): "
        f"don't repeat it; this follows the order: {command}",
        command,
    )


def tell_end(end: End, verdict: Verdict, output: Output) -> int:
    """Tell how a swap has ended.

    Args:
        end: The end.
        verdict: What it means.
        output: How to print.

    Returns:
        The exit status.

    Raises:
        Exception: The end's error, where the swap never left or was refused: it says so itself.
    """
    # Whether anybody reads it or not, the status must be right.
    if verdict.text is not None:
        with suppress(OSError):
            if output.debug and end.error is not None:
                traceback.print_exception(end.error)
            begin = "" if verdict.status == Status.INTERRUPTED else "Error: "
            click.echo(begin + _one_line(verdict.text), err=True)
    if output.as_json:
        with whether_read_or_not():
            print_json(event="end", **_facts(end, verdict))
    if verdict.text is None and end.error is not None:
        raise end.error
    return verdict.status


def _facts(end: End, verdict: Verdict) -> dict[str, object]:
    text = verdict.text
    if text is None and isinstance(end.error, click.ClickException):
        text = end.error.format_message()
    elif text is None and end.error is not None:
        text = told(end.error)
    return {
        "status": verdict.status,
        "outcome": end.outcome,
        "client_order_id": end.client_order_id,
        "order_id": end.receipt.order_id if end.receipt is not None else None,
        "order_status": end.order.status if end.order is not None else None,
        "filled_out": end.order.filled_out if end.order is not None else None,
        "error": text,
        "command": verdict.command,
    }


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
