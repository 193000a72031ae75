"""Every fault that the client must survive, with its tests.

Each line has the number of a fault and its tests, here or in another folder of the tests.
The names of the tests here begin with the numbers.

- 1: test_01_connection_refused_later_is_retried_with_jitter
  client/test_client.py::test_url_without_a_server_fails_at_once
- 2: test_02_name_that_does_not_resolve_later_is_retried
  transports/test_both.py::test_error_shows_the_unresolvable_name
- 3: transports/test_both.py::test_silent_server_meets_the_deadline
  transports/test_both.py::test_dripped_handshake_meets_the_deadline
  transports/test_both.py::test_slow_resolver_meets_the_deadline
- 4: test_04_certificate_that_is_not_trusted_is_final
- 5: test_05_status_about_the_request_is_final_at_the_first_connection
  test_05_07_status_about_the_request_is_retried_slowly_later
- 6: test_06_temporary_status_is_retried_after_retry_after
- 7: test_07_redirect_is_final_and_names_its_target
- 8: test_08_invalid_handshake_response_is_retried
- 9: client/test_client.py::test_wrong_key_is_refused_at_once
  client/test_client.py::test_wrong_secret_is_refused_at_once
  connection/test_connection.py::test_refused_authentication_raises_its_class_at_once
- 10: test_10_unanswered_auth_on_a_reconnection_is_retried_slowly
  test_10_unanswered_auth_is_retried_until_attempts_are_exhausted
  connection/test_connection.py::test_unanswered_authentication_ends_after_auth_timeout
- 11: test_11_12_cut_connection_fails_its_requests_and_is_replaced
  client/test_client.py::test_swap_is_unknown_after_a_lost_connection
- 12: test_11_12_cut_connection_fails_its_requests_and_is_replaced
  client/test_client.py::test_swap_is_unknown_after_a_lost_connection
- 13: test_13_close_by_a_failing_broker_is_retried
- 14: test_14_close_1008_is_retried_once_and_then_final
- 15: test_15_unrequested_close_1000_is_retried
- 16: test_16_broker_that_always_hangs_up_exhausts_the_attempts
- 17: test_17_half_open_connection_is_found_by_the_heartbeat
- 18: test_18_peer_that_stops_reading_is_replaced_at_the_writers_deadline
- 19: test_19_request_cancelled_while_it_is_sent_is_sent_whole
  client/test_client.py::test_cancelled_call_leaves_nothing_behind
- 20: client/test_client.py::test_slow_consumer_delays_no_other_and_converges
  streams/test_subscription.py::test_unread_subscription_has_bounded_memory
- 21: test_21_many_pings_are_answered_and_data_still_flows
- 22: test_22_message_in_three_fragments_is_the_same_message
  test_22_stream_of_single_bytes_gives_the_same_messages
- 23: test_23_message_over_the_limit_closes_with_1009_and_is_retried
- 24: test_24_unexpected_messages_are_reported_and_do_no_harm
- 25: test_25_protocol_breach_is_retried_once_and_then_final
- 26: test_26_only_the_malformed_message_is_lost
  test_26_fifth_malformed_message_in_a_row_replaces_the_connection
- 27: test_27_only_the_message_with_an_amount_that_is_no_json_is_lost
  client/test_tolerance.py::test_unreadable_balance_stays_in_the_account
  client/test_tolerance.py::test_unreadable_required_field_fails_its_message_alone
- 28: test_28_error_without_op_is_reported_when_nothing_is_in_flight
- 29: test_29_error_without_op_fails_the_only_request_in_flight
- 30: test_30_three_reads_are_sent_again_alone
- 31: test_31_late_reply_resolves_no_other_request
  client/test_client.py::test_reply_to_a_cancelled_read_does_not_answer_the_next
- 32: test_32_reply_without_a_request_is_reported
  protocol/test_session.py::test_repeated_receipt_of_the_previous_swap_is_discarded
- 33: test_33_swap_with_a_lost_reply_is_found_after_reconnecting
  test_33_swap_without_a_found_order_is_unknown
- 34: test_34_swap_without_a_connection_fails_and_is_never_sent
- 35: test_35_nonces_of_two_clients_with_one_key_never_repeat
- 36: test_36_clock_that_is_a_minute_off_is_reported_at_once
  test_36_60_corrected_clock_lets_the_client_reconnect
- 37: test_37_order_filled_during_an_outage_is_tracked_to_its_end
- 38: test_38_tracked_order_ends_without_pushes
- 39: test_39_many_clients_reconnect_spread_out
- 40: test_40_hundred_subscriptions_are_restored_within_the_limit
- 41: test_41_restored_channel_that_is_refused_ends_alone
- 42: client/test_client.py::test_cancelled_call_leaves_nothing_behind
  client/test_client.py::test_cancelled_client_leaves_nothing_behind
  transports/test_both.py::test_cancelled_at_any_checkpoint_nothing_is_left
- 43: connection/test_supervisor.py::test_ctrl_c_in_the_block_ends_cleanly
  connection/test_supervisor.py::test_ctrl_c_during_a_swap_reports_it
  connection/test_supervisor.py::test_cancelled_block_closes_within_half_a_second
- 44: connection/test_connection.py::test_data_received_while_stopped_is_read_first
  connection/test_heartbeat.py::test_blocked_loop_does_not_count_as_silence
  connection/test_heartbeat.py::test_suspend_replaces_the_connection_at_once
- 45: test_45_client_not_yet_connected_works_in_a_forked_child
  connection/test_supervisor.py::test_every_call_is_refused_in_a_forked_process
- 46: test_46_push_with_an_error_is_raised_and_the_stream_goes_on
  test_46_refusal_with_op_channel_and_error_fails_its_own_request
- 47: test_47_not_authenticated_error_replaces_the_connection
- 48: client/test_client.py::test_snapshot_overtaken_by_a_push_is_requested_again
- 49: test_49_streams_converge_after_repeated_kills_of_the_broker
- 50: client/test_tolerance.py::test_numeric_ids_become_exact_text_everywhere
  protocol/test_tolerance.py::test_number_as_an_id_becomes_its_exact_text
- 51: client/test_tolerance.py::test_unreadable_balance_stays_in_the_account
  protocol/test_tolerance.py::test_empty_locked_amount_is_none
  protocol/test_tolerance.py::test_entry_without_an_asset_is_left_out
- 52: client/test_tolerance.py::test_largest_uint256_is_read_exactly
- 53: client/test_tolerance.py::test_status_is_delivered_without_the_fields_that_cannot_be_read
  protocol/test_tolerance.py::test_unreadable_optional_field_of_an_order_is_none
  protocol/test_tolerance.py::test_time_in_milliseconds_is_read_in_every_form
- 54: channels/test_registry.py::test_order_goes_on_when_the_brokers_clock_is_set_back
  channels/test_registry.py::test_snapshot_goes_on_when_the_brokers_clock_is_set_back
  channels/test_order_tracker.py::test_tracked_order_goes_on_when_the_brokers_clock_is_set_back
- 56: client/test_tolerance.py::test_subscribe_that_is_not_acknowledged_as_subscribed_is_refused
  channels/test_registry.py::test_restored_channel_that_is_not_acknowledged_as_subscribed_is_refused
- 57: client/test_tolerance.py::test_error_in_any_form_fails_its_request_at_once_with_its_code
  protocol/test_tolerance.py::test_error_in_any_form_has_text_and_code
- 55: protocol/test_session.py::test_session_ended_in_any_words_replaces_the_connection
  protocol/test_session.py::test_missing_permission_keeps_the_connection
- 58: test_58_error_without_op_is_the_request_that_has_no_reply_of_its_own
  protocol/test_session.py::test_error_belongs_to_the_request_that_has_no_reply_of_its_own
  protocol/test_session.py::test_bare_error_is_the_swaps_once_the_read_has_its_own_reply
- 59: client/test_slow_broker.py::test_reply_that_is_never_sent_delays_only_its_operation
  client/test_slow_broker.py::test_lost_acknowledgement_does_not_keep_the_last_channel
  client/test_slow_broker.py::test_broker_that_takes_twelve_seconds_is_not_disconnected_for_ever
- 60: test_36_60_corrected_clock_lets_the_client_reconnect
  test_60_key_refused_three_times_in_a_row_is_final
  test_60_key_refused_twice_and_then_accepted_is_not_final
- 61: transports/test_handshake.py::test_retry_after_is_parsed_in_every_format
  transports/test_handshake.py::test_repeated_retry_after_counts_for_an_hour_at_most
- 62: transports/test_handshake.py::test_valid_handshake_response_is_accepted
  transports/test_handshake.py::test_error_names_the_fault_of_a_handshake_response
  transports/test_handshake.py::test_every_handshake_response_is_parsed_quickly
- 63: test_63_large_reply_fails_its_request_the_second_time
  test_63_large_reply_to_a_lookup_is_not_requested_in_a_loop
  test_63_large_snapshot_is_not_requested_in_a_loop
  test_63_large_reply_among_others_fails_only_its_own_request
  test_63_other_losses_do_not_count_as_large_replies
  test_63_close_1009_by_the_broker_is_no_large_reply
- 64: transports/test_dialing.py::test_names_resolve_while_the_program_uses_all_threads
- 65: transports/test_tls.py::test_client_makes_one_context_for_all_its_connections
  transports/test_tls.py::test_ten_clients_make_no_context_on_the_event_loop
- 66: swaps/test_registry.py::test_late_error_of_a_found_swap_does_not_refuse_the_next
- 67: swaps/test_refusals.py::test_text_about_a_duplicate_does_not_refuse_a_swap
  swaps/test_registry.py::test_duplicate_with_an_order_names_that_order
- 68: swaps/test_refusals.py::test_text_that_admits_doubt_does_not_refuse_a_swap
- 69: swaps/test_registry.py::test_bare_refusal_with_an_earlier_text_refuses_at_once
- 70: swaps/test_registry.py::test_reply_that_names_something_else_is_not_a_swaps
  channels/test_registry.py::test_push_that_names_another_order_is_not_delivered
- 71: swaps/test_registry.py::test_late_receipt_corrects_a_refusal
  swaps/test_registry.py::test_unowed_receipt_is_attributed_by_looking_its_order_up
- 72: journal/test_damage.py::test_flipped_bit_is_refused_or_harmless
  journal/test_damage.py::test_cut_file_is_refused
  journal/test_damage.py::test_deleted_file_is_refused_as_long_as_another_remains
  journal/test_damage.py::test_lock_file_is_only_a_mark
  journal/test_damage.py::test_flipped_bit_in_an_open_file_is_noticed
  journal/test_damage.py::test_cut_open_file_is_noticed
  journal/test_damage.py::test_deleted_open_file_is_noticed
  journal/test_damage.py::test_second_client_after_the_lock_file_was_deleted_repeats_no_swap
  journal/test_damage.py::test_damaged_rollback_journal_is_refused_or_harmless
  journal/test_damage.py::test_hard_link_is_refused_under_both_names
  journal/test_damage.py::test_copied_or_moved_file_must_be_adopted
  journal/test_damage.py::test_other_reader_in_the_process_frees_no_lock
  journal/test_journal.py::test_unresolved_swaps_at_another_spelling_of_the_host_are_reported
  journal/test_version_1.py::test_flipped_bit_of_the_wal_loses_nothing
- 73: swaps/test_swap_executor.py::test_order_of_the_journal_is_no_other_swaps_receipt
- 74: swaps/test_registry.py::test_wall_clock_that_is_set_does_not_change_what_may_execute
- 75: client/test_checkpoints.py::test_loop_of_failing_swaps_lets_the_client_reconnect
  client/test_checkpoints.py::test_call_is_a_checkpoint_in_every_state
- 76: test_76_many_long_errors_use_little_memory
  client/test_tolerance.py::test_long_errors_that_answer_requests_use_little_memory
- 77: connection/test_interrupts.py::test_ctrl_c_at_random_moments_is_never_lost
- 78: transports/test_tls.py::test_client_reconnects_after_running_out_of_descriptors
  transports/test_tls.py::test_missing_certificates_do_not_prevent_a_reconnection
- 79: client/test_client.py::test_overflow_before_the_acknowledgement_is_raised_at_once
- 80: test_80_unknown_tracked_orders_use_half_of_the_messages
  client/test_unknown_orders.py::test_unknown_tracked_orders_leave_half_of_the_messages_and_delay_nobody
- 81: client/test_checkpoints.py::test_exception_of_a_block_in_a_cancelled_scope_is_raised
- 82: client/test_checkpoints.py::test_unsubscribe_in_a_cancelled_scope_ends_the_streams
- 83: connection/test_supervisor.py::test_reply_received_while_the_loop_was_blocked_counts
  connection/test_supervisor.py::test_auth_reply_received_while_the_loop_was_blocked_counts
  transports/test_dialing.py::test_response_received_while_the_loop_was_blocked_counts
- 84: protocol/test_redactor.py::test_unexpected_messages_and_closings_show_no_key
  protocol/test_redactor.py::test_pushes_show_no_key
  protocol/test_redactor.py::test_handshake_shows_no_key
  transports/test_handshake.py::test_handshake_error_quotes_no_part_of_a_key
  client/test_client_log.py::test_no_record_has_a_key
"""

from __future__ import annotations

import ast
import json
import os
import re
import ssl
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.scripted import (
    AUTHENTICATED,
    BALANCES,
    ESTIMATE,
    PATIENCE,
    ScriptedConnection,
    acknowledgement,
    start,
    wait_until,
)
from tests.transports.raw_server import (
    CLOSE,
    Handler,
    accept_websocket,
    frame,
    receive_frame,
    receive_request,
    send,
    serve_raw,
    wait_gone,
)
from trio_broker import (
    AuthenticationError,
    AuthenticationTimeoutError,
    Balance,
    BrokerWSClient,
    CertificateError,
    ChannelError,
    ChannelRefused,
    ClockSkewError,
    Connected,
    ConnectFailedError,
    ConnectionEvent,
    ConnectionLostError,
    Disconnected,
    GaveUp,
    InvalidChannelError,
    Limits,
    NotAuthenticatedError,
    NotConnectedError,
    Order,
    ReconnectFailedError,
    ReconnectPolicy,
    ReplyTooLargeError,
    RequestTimeoutError,
    Restored,
    ServerError,
    SnapshotUnavailable,
    SwapOutcomeUnknownError,
    SwapResolved,
    SwapUnresolved,
    UnexpectedMessage,
)
from trio_broker._streams.subscription import BoundedReceiveChannel
from trio_broker.sandbox import Sandbox, open_sandbox

pytestmark = pytest.mark.usefixtures("each_transport")

Events = BoundedReceiveChannel[ConnectionEvent]

# With a mock clock, a test that hangs ends at once.
LONG: Final = 3600.0


@asynccontextmanager
async def connected(
    rules: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Sandbox, BrokerWSClient, Events]]:
    """Open a sandbox and a connected client: both, and the client's further events."""
    with trio.fail_after(LONG):
        async with open_sandbox(**(rules or {})) as sandbox, sandbox.client(**options) as client:
            with client.events() as events:
                yield sandbox, client, events


async def next_loss(events: Events) -> Disconnected:
    """Return the next event, which must be a loss that is followed by an attempt."""
    event = await events.receive()
    assert isinstance(event, Disconnected), event
    assert event.retry_in is not None, event
    return event


async def loss_and_connection(events: Events) -> Disconnected:
    """Return the next reported loss, after which the first attempt must succeed."""
    lost = await next_loss(events)
    assert isinstance(await events.receive(), Connected)
    return lost


async def loss_and_restored(events: Events) -> Disconnected:
    """Like `loss_and_connection`, and all channels must be restored."""
    lost = await loss_and_connection(events)
    assert isinstance(await events.receive(), Restored)
    return lost


async def final_error(client: BrokerWSClient, events: Events) -> Exception:
    """Return the final error of the client, which the next events must report too."""
    lost, gave_up = await events.receive(), await events.receive()
    assert isinstance(lost, Disconnected), lost
    assert lost.retry_in is None, lost
    assert isinstance(gave_up, GaveUp), gave_up
    with pytest.raises(type(gave_up.error)) as caught:
        await client.wait_closed()
    return caught.value


async def serve_briefly(stream: trio.abc.Stream) -> None:
    """Authenticate a client and hang up."""
    await accept_websocket(stream)
    await receive_frame(stream)
    await send(stream, frame('{"op":"auth","data":{"status":"authenticated"}}'))


async def serve_well(stream: trio.abc.Stream) -> None:
    """Authenticate a client, and serve it until it disconnects."""
    await accept_websocket(stream)
    await ScriptedConnection(stream, AUTHENTICATED, pongs=True).serve()


@asynccontextmanager
async def open_client_of_handlers(
    *handlers: Handler, **options: Any
) -> AsyncIterator[BrokerWSClient]:
    """Open a broker with a handler for each connection, and a client that isn't connected."""
    left = list(handlers)

    async def handler(stream: trio.abc.Stream) -> None:
        await left.pop(0)(stream)

    with trio.fail_after(LONG):
        async with serve_raw(handler) as port:
            yield BrokerWSClient("key", "secret", f"ws://127.0.0.1:{port}/ws", **options)


# --- Connecting ------------------------------------------------------------------------------


async def test_01_connection_refused_later_is_retried_with_jitter(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.kill()
        losses = [await next_loss(events) for _ in range(4)]
        for number, lost in enumerate(losses):
            assert lost.retry_in is not None
            assert 0.5 * 2**number <= lost.retry_in <= 2**number
        for lost in losses[1:]:
            assert isinstance(lost.error, ConnectFailedError)
            assert "refused" in str(lost.error)
        await sandbox.faults.revive()
        assert isinstance(await events.receive(), Connected)
        assert await client.get_balances()


async def test_02_name_that_does_not_resolve_later_is_retried(autojump_clock: MockClock) -> None:
    class Resolver(trio.abc.HostnameResolver):
        knows = True

        async def getaddrinfo(self, host: Any, port: Any, *rest: Any) -> Any:
            assert host == b"broker.example"
            await trio.lowlevel.checkpoint()
            if not self.knows:
                raise OSError("Name or service not known")
            return await trio.socket.getaddrinfo("127.0.0.1", port, *rest)

        async def getnameinfo(self, *_: Any) -> tuple[str, str]:
            raise AssertionError("nobody asks what an address is called")

    resolver = Resolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    with trio.fail_after(LONG):
        async with open_sandbox() as sandbox:
            client = BrokerWSClient(
                sandbox.api_key,
                sandbox.secret_key,
                sandbox.url.replace("127.0.0.1", "broker.example"),
                allow_insecure=True,
            )
            async with client:
                with client.events() as events:
                    resolver.knows = False
                    sandbox.drop_connections()
                    await next_loss(events)
                    lost = await next_loss(events)
                    assert "broker.example" in str(lost.error)
                    resolver.knows = True
                    assert isinstance(await events.receive(), Connected)


@pytest.mark.parametrize("host", ["127.0.0.1", "other.example"])
async def test_04_certificate_that_is_not_trusted_is_final(
    host: str, autojump_clock: MockClock
) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    user = ssl.create_default_context()
    authority.issue_cert(host).configure_cert(server)
    if host != "127.0.0.1":
        authority.configure_trust(user)
    connections: list[object] = []

    async def handler(stream: trio.abc.Stream) -> None:
        connections.append(stream)
        await wait_gone(stream)

    with trio.fail_after(LONG):
        async with serve_raw(handler, ssl_context=server) as port:
            client = BrokerWSClient(
                "key",
                "secret",
                f"wss://127.0.0.1:{port}/ws",
                ssl_context=user,
                reconnect=ReconnectPolicy(retry_first=True),
            )
            with pytest.raises(CertificateError, match="certificate"):
                async with client:
                    pytest.fail("it connected")
    assert len(connections) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_05_status_about_the_request_is_final_at_the_first_connection(
    status: int, autojump_clock: MockClock
) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox() as sandbox:
            sandbox.faults.refuse_connections(status)
            with pytest.raises(ConnectFailedError, match=str(status)) as caught:
                async with sandbox.client(reconnect=ReconnectPolicy(retry_first=True)):
                    pytest.fail("it connected")
            assert caught.value.status == status


@pytest.mark.parametrize("status", [307, 401, 403, 404])
async def test_05_07_status_about_the_request_is_retried_slowly_later(
    status: int, autojump_clock: MockClock
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.refuse_connections(status, {"Location": "/login"}, times=2)
        sandbox.drop_connections()
        await next_loss(events)
        for _ in range(2):
            refused = await next_loss(events)
            assert isinstance(refused.error, ConnectFailedError)
            assert refused.error.status == status
            assert refused.retry_in is not None
            assert refused.retry_in >= 30
        assert isinstance(await events.receive(), Connected)
        assert await client.get_balances()


@pytest.mark.parametrize("status", [429, 503])
async def test_06_temporary_status_is_retried_after_retry_after(
    status: int, autojump_clock: MockClock
) -> None:
    async with connected() as (sandbox, _, events):
        sandbox.faults.refuse_connections(status, {"Retry-After": "45"}, times=1)
        sandbox.drop_connections()
        await next_loss(events)
        refused = await next_loss(events)
        refused_at = trio.current_time()
        assert isinstance(refused.error, ConnectFailedError)
        assert (refused.error.status, refused.error.retry_after) == (status, 45)
        assert isinstance(await events.receive(), Connected)
        assert 45 <= trio.current_time() - refused_at <= 46.5


async def test_07_redirect_is_final_and_names_its_target(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox() as sandbox:
            sandbox.faults.refuse_connections(307, {"Location": "wss://else.example/ws"})
            with pytest.raises(ConnectFailedError, match=r"wss://else\.example/ws") as caught:
                async with sandbox.client():
                    pytest.fail("it connected")
            assert caught.value.status == 307


UPGRADE: Final = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (UPGRADE, "hung up"),
        (
            UPGRADE + b"Connection: Upgrade\r\nSec-WebSocket-Accept: d3Jvbmc=\r\n\r\n",
            "wrong answer to the WebSocket handshake",
        ),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "something other than HTTP"),
    ],
    ids=["truncated", "wrong accept", "no HTTP"],
)
async def test_08_invalid_handshake_response_is_retried(
    answer: bytes, why: str, autojump_clock: MockClock
) -> None:
    async def send_invalid_response(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        await send(stream, answer)
        if answer != UPGRADE:
            await wait_gone(stream)

    async with (
        open_client_of_handlers(serve_briefly, send_invalid_response, serve_well) as client,
        client,
    ):
        with client.events() as events:
            await next_loss(events)
            refused = await next_loss(events)
            assert isinstance(refused.error, ConnectFailedError)
            assert why in str(refused.error)
            assert isinstance(await events.receive(), Connected)


# --- Authenticating --------------------------------------------------------------------------


async def test_10_unanswered_auth_on_a_reconnection_is_retried_slowly(
    autojump_clock: MockClock,
) -> None:
    async with connected({"auth_timeout": 100}) as (sandbox, client, events):
        sandbox.faults.ignore(op="auth", times=1)
        sandbox.drop_connections()
        await next_loss(events)
        began = trio.current_time()
        unanswered = await next_loss(events)
        assert isinstance(unanswered.error, AuthenticationTimeoutError)
        assert 10.5 <= trio.current_time() - began <= 11
        assert isinstance(await events.receive(), Connected)
        assert await client.get_balances()


async def test_10_unanswered_auth_is_retried_until_attempts_are_exhausted(
    autojump_clock: MockClock,
) -> None:
    policy = ReconnectPolicy(max_attempts=3)
    async with connected({"auth_timeout": 100}, reconnect=policy) as (sandbox, client, events):
        sandbox.faults.ignore(op="auth")
        sandbox.drop_connections()
        for _ in range(3):
            await next_loss(events)
        error = await final_error(client, events)
        assert isinstance(error, ReconnectFailedError)
        assert isinstance(error.__cause__, AuthenticationTimeoutError)
        assert len(sandbox.connections) == 4


# --- The end of a connection -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["reset", "fin"])
async def test_11_12_cut_connection_fails_its_requests_and_is_replaced(
    way: str, autojump_clock: MockClock
) -> None:
    async with connected() as (sandbox, client, events), trio.open_nursery() as nursery:
        sandbox.faults.ignore(op="balances", times=1)
        call = start(nursery, client.get_balances)
        await wait_all_tasks_blocked()
        if way == "reset":
            sandbox.faults.reset(mid_frame=True)
        else:
            sandbox.faults.hang_up()
        with pytest.raises(ConnectionLostError) as caught:
            await call.result()
        assert caught.value.code is None
        lost = await loss_and_restored(events)
        assert isinstance(lost.error, ConnectionLostError)
        assert await client.get_balances()


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
async def test_13_close_by_a_failing_broker_is_retried(
    code: int, autojump_clock: MockClock
) -> None:
    await check_close_is_retried(code)


async def test_15_unrequested_close_1000_is_retried(autojump_clock: MockClock) -> None:
    await check_close_is_retried(1000)


async def check_close_is_retried(code: int) -> None:
    async with connected() as (sandbox, client, events):
        # Repeatedly: only a second protocol breach in a row is final.
        for _ in range(3):
            sandbox.faults.close(code, "for a while")
            lost = await loss_and_restored(events)
            assert isinstance(lost.error, ConnectionLostError)
            assert lost.error.code == code
            assert "for a while" in str(lost.error)
        assert await client.get_balances()


async def test_14_close_1008_is_retried_once_and_then_final(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.close(1008)
        await loss_and_restored(events)
        sandbox.faults.close(1008)
        error = await final_error(client, events)
        assert isinstance(error, ConnectionLostError)
        assert error.code == 1008
        assert len(sandbox.connections) == 2


async def test_16_broker_that_always_hangs_up_exhausts_the_attempts(
    autojump_clock: MockClock,
) -> None:
    async with open_client_of_handlers(*[serve_briefly] * 6) as client:
        began = trio.current_time()
        async with client:
            with pytest.raises(ReconnectFailedError) as caught:
                await client.wait_closed()
        assert caught.value.attempts == 5
        assert 15.5 <= trio.current_time() - began <= 31


async def test_17_half_open_connection_is_found_by_the_heartbeat(
    autojump_clock: MockClock,
) -> None:
    async with connected(heartbeat_interval=20, heartbeat_timeout=5) as (sandbox, client, events):
        began = trio.current_time()
        sandbox.faults.go_silent()
        lost = await next_loss(events)
        assert trio.current_time() - began <= 25
        assert "after a ping" in str(lost.error)
        assert isinstance(await events.receive(), Connected)
        assert await client.get_balances()


BULK: Final = 8_000_000
ROOM: Final = Limits(max_message_size=2 * BULK)


async def test_18_peer_that_stops_reading_is_replaced_at_the_writers_deadline(
    autojump_clock: MockClock,
) -> None:
    async with connected(write_timeout=7, limits=ROOM) as (sandbox, client, events):
        sandbox.faults.stall_reading()
        began = trio.current_time()
        with pytest.raises(ConnectionLostError, match="hasn't read for 7 s"):
            await client.get_order_status("x" * BULK)
        assert trio.current_time() - began == pytest.approx(7)
        await loss_and_restored(events)
        assert await client.get_balances()


async def test_19_request_cancelled_while_it_is_sent_is_sent_whole(
    autojump_clock: MockClock,
) -> None:
    async with connected({"max_message_size": 2 * BULK}, limits=ROOM) as (sandbox, client, _):
        with sandbox.faults.stall_reading():
            with trio.move_on_after(1) as scope:
                await client.get_order_status("x" * BULK)
            assert scope.cancelled_caught
            # The sockets are full of data. On a busy machine, all tasks may be blocked for a
            # moment, and the clock must not jump then.
            autojump_clock.autojump_threshold = 0.2
        assert await client.get_balances()
        (connection,) = sandbox.connections
        assert [message.op for message in connection.received] == [
            "auth",
            "order_status",
            "balances",
        ]


# --- Messages of the broker ------------------------------------------------------------------


async def test_23_message_over_the_limit_closes_with_1009_and_is_retried(
    autojump_clock: MockClock,
) -> None:
    async with connected(limits=Limits(max_receive_size=10_000)) as (sandbox, client, events):
        for _ in range(2):
            sandbox.push("x" * 10_001)
            lost = await loss_and_restored(events)
            assert isinstance(lost.error, ConnectionLostError)
            assert lost.error.code == 1009
        assert await client.get_balances()


@pytest.mark.parametrize(
    ("data", "code"),
    [(frame(b"caf\xe9"), 1007), (frame("masked", mask=True), 1002)],
    ids=["bad UTF-8", "masked"],
)
async def test_25_protocol_breach_is_retried_once_and_then_final(
    data: bytes, code: int, autojump_clock: MockClock
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.send_raw(data)
        lost = await loss_and_restored(events)
        assert isinstance(lost.error, ConnectionLostError)
        assert lost.error.code == code
        sandbox.faults.send_raw(data)
        error = await final_error(client, events)
        assert isinstance(error, ConnectionLostError)
        assert error.code == code


async def test_21_many_pings_are_answered_and_data_still_flows(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        updates = await client.subscribe_balances(snapshot=False)
        sandbox.faults.send_pings(5000)
        sandbox.push('{"ch":"balances","data":[{"asset":"USDT","total":"7"}]}')
        assert (await updates.receive()).data[0].total == 7
        assert await client.get_balances()
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()


PUSH: Final = '{"ch":"balances","data":[{"asset":"USDT","total":"7","locked":"1"}]}'


async def test_22_message_in_three_fragments_is_the_same_message(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, _):
        updates = await client.subscribe_balances(snapshot=False)
        sandbox.faults.send_text(PUSH)
        sandbox.faults.send_fragments(PUSH)
        whole, in_parts = await updates.receive(), await updates.receive()
        assert (in_parts.data, in_parts.raw) == (whole.data, whole.raw)


async def test_22_stream_of_single_bytes_gives_the_same_messages(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        updates = await client.subscribe_balances(snapshot=False)
        before = await client.get_balances()
        with sandbox.faults.drip():
            sandbox.drop_connections()
            await loss_and_restored(events)
            assert await client.get_balances() == before
            assert (await updates.receive()).data == before


async def test_24_unexpected_messages_are_reported_and_do_no_harm(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        updates = await client.subscribe_balances(snapshot=False)
        sandbox.faults.send_binary(b"\x00\xff")
        sandbox.push('{"op":"dance","data":{}}')
        sandbox.push('{"ch":"nobody","data":{}}')
        for _ in range(3):
            assert isinstance(await events.receive(), UnexpectedMessage)
        sandbox.push('{"ch":"balances","new":[1],"data":[{"asset":"USDT","total":"7","more":{}}]}')
        assert (await updates.receive()).data[0].total == 7
        assert await client.get_balances()
        assert client.statistics().unexpected_messages == 3
        assert len(sandbox.connections) == 1


MALFORMED: Final = (
    "{",
    '{"ch":"balances","data":7}',
    '{"ch":"balances"}',
    "[" * 100_000,
    '{"op":"subscribe","ch":"balances",}',
    "5",
)


@pytest.mark.parametrize(
    "text", MALFORMED, ids=["cut", "type", "no body", "nested", "comma", "no object"]
)
async def test_26_only_the_malformed_message_is_lost(text: str, autojump_clock: MockClock) -> None:
    await check_lost_alone(text)


async def test_26_fifth_malformed_message_in_a_row_replaces_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        await client.subscribe_balances(snapshot=False)
        for text in MALFORMED * 5:
            sandbox.push(text)  # At most two in a row are no JSON.
        for _ in MALFORMED * 5:
            assert isinstance(await events.receive(), UnexpectedMessage)
        assert await client.get_balances()
        assert len(sandbox.connections) == 1
        for text in ("{", "[", "{]", "NaN", '{"op":"x"'):
            sandbox.push(text)
        for _ in range(5):
            assert isinstance(await events.receive(), UnexpectedMessage)
        lost = await loss_and_restored(events)
        assert "5 malformed" in str(lost.error)
        assert await client.get_balances()


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-Infinity"])
async def test_27_only_the_message_with_an_amount_that_is_no_json_is_lost(
    amount: str, autojump_clock: MockClock
) -> None:
    await check_lost_alone(f'{{"ch":"balances","data":[{{"asset":"USDT","total":{amount}}}]}}')


async def check_lost_alone(text: str) -> None:
    async with connected() as (sandbox, client, events):
        updates = await client.subscribe_balances(snapshot=False)
        sandbox.push(text)
        sandbox.push(PUSH)
        odd = await events.receive()
        assert isinstance(odd, UnexpectedMessage)
        assert (await updates.receive()).raw == PUSH
        assert client.statistics().unexpected_messages == 1
        assert len(sandbox.connections) == 1


async def test_28_error_without_op_is_reported_when_nothing_is_in_flight(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.push('{"error":"Insufficient balance"}')
        odd = await events.receive()
        assert isinstance(odd, UnexpectedMessage)
        assert odd.raw == '{"error":"Insufficient balance"}'
        assert await client.get_balances()


async def test_29_error_without_op_fails_the_only_request_in_flight(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, _):
        sandbox.faults.replace({"error": "Go away"}, op="balances", times=1)
        with pytest.raises(ServerError, match="Go away") as caught:
            await client.get_balances()
        assert caught.value.op == "balances"
        assert await client.get_balances()


async def test_30_three_reads_are_sent_again_alone(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, _), trio.open_nursery() as nursery:
        receipt = await client.do_swap("1", "ETH", "USDT")
        # Two replies name no request, and the third is lost.
        sandbox.faults.swallow(op="order_status", times=1)
        sandbox.faults.replace({"error": "Too slow"}, op="estimate", times=1)
        with sandbox.faults.replace({"error": "Too busy"}, op="balances", times=1):
            balances = start(nursery, client.get_balances)
            estimate = start(nursery, client.estimate_swap, "1", "BTC", "USDT")
            status = start(nursery, client.get_order_status, receipt.order_id)
            assert {balance.asset for balance in await balances.result()} >= {"BTC", "USDT"}
            assert (await estimate.result()).expected_out > 1000
            assert (await status.result()).order_id == receipt.order_id
        ops = [message.op for message in sandbox.connections[0].received][2:]
        assert max(ops.count(op) for op in ops) <= 2
        assert ops.count("balances") == 2


async def test_58_error_without_op_is_the_request_that_has_no_reply_of_its_own(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events), trio.open_nursery() as nursery:
        sandbox.faults.delay(0.1, op="estimate")
        with sandbox.faults.replace({"error": "Too busy"}, op="balances", times=1):
            balances = start(nursery, client.get_balances)
            estimate = start(nursery, client.estimate_swap, "1", "BTC", "USDT")
            assert (await estimate.result()).expected_out > 1000
            with pytest.raises(ServerError, match="Too busy"):
                await balances.result()
        ops = [message.op for message in sandbox.connections[0].received]
        assert {*ops} == {"auth", "balances", "estimate"}
        assert len(ops) == 3
        assert events.statistics().current_buffer_used == 0


async def test_31_late_reply_resolves_no_other_request(autojump_clock: MockClock) -> None:
    async with connected(request_timeout=2) as (sandbox, client, _):
        late = {**BALANCES, "data": {"balances": [{"asset": "ETH", "total": "666"}]}}
        with sandbox.faults.swallow(op="balances", times=1), pytest.raises(RequestTimeoutError):
            await client.get_balances()
        sandbox.push(json.dumps(late))
        assert not [b for b in await client.get_balances() if b.total == 666]


async def test_32_reply_without_a_request_is_reported(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.push(json.dumps(BALANCES))
        assert isinstance(await events.receive(), UnexpectedMessage)
        # Replies could be confused from now on. Once a minute, that replaces the connection.
        await loss_and_restored(events)
        for _ in range(3):
            with sandbox.faults.duplicate(op="balances", times=1):
                assert await client.get_balances()
            assert isinstance(await events.receive(), UnexpectedMessage)
        assert len(sandbox.connections) == 2


async def test_47_not_authenticated_error_replaces_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.replace({"op": "balances", "error": "Not authenticated"}, times=1)
        with pytest.raises(NotAuthenticatedError):
            await client.get_balances()
        lost = await loss_and_restored(events)
        assert "Not authenticated" in str(lost.error)
        assert await client.get_balances()


async def test_46_push_with_an_error_is_raised_and_the_stream_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, _):
        updates = await client.subscribe_balances(snapshot=False)
        sandbox.push('{"ch":"balances","error":"Feed is stale"}')
        sandbox.push(PUSH)
        with pytest.raises(ChannelError, match="Feed is stale"):
            await updates.receive()
        assert (await updates.receive()).raw == PUSH


async def test_46_refusal_with_op_channel_and_error_fails_its_own_request(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, _), trio.open_nursery() as nursery:
        refusal = {"op": "subscribe", "ch": "orders:o1", "error": "Invalid channel format"}
        sandbox.faults.replace(refusal, op="subscribe", channel="orders:o1")
        refused = start(nursery, client.subscribe, "orders:o1")
        accepted = start(nursery, client.subscribe, "orders:o2")
        with pytest.raises(InvalidChannelError):
            await refused.result()
        (await accepted.result()).close()


# --- Many clients, and repeated outages ------------------------------------------------------


async def test_39_many_clients_reconnect_spread_out(
    autojump_clock: MockClock,
) -> None:
    count = 100
    with trio.fail_after(LONG):
        async with open_sandbox(max_connections=count) as sandbox, trio.open_nursery() as users:
            clients = [sandbox.client() for _ in range(count)]
            async with trio.open_nursery() as connecting:
                for client in clients:
                    connecting.start_soon(client.connect, users)
            lost_at = trio.current_time()
            assert sandbox.drop_connections() == count
            await trio.sleep(30)
            assert all(client.is_connected() for client in clients)
            back = sorted(connection.opened_at for connection in sandbox.connections[count:])
            assert len(back) == count
            assert back[0] >= lost_at + 0.5
            assert back[-1] - back[0] >= 0.4
            # Most of them don't come within a short part of it.
            assert max(sum(at <= other < at + 0.05 for other in back) for at in back) < 30
            users.cancel_scope.cancel()


async def test_40_hundred_subscriptions_are_restored_within_the_limit(
    autojump_clock: MockClock,
) -> None:
    channels = [f"orders:o{number}" for number in range(100)]
    async with connected() as (sandbox, client, events):
        for channel in channels:
            await client.subscribe(channel, snapshot=False)
        sandbox.drop_connections()
        await loss_and_connection(events)
        restored = await events.receive()
        assert isinstance(restored, Restored)
        assert set(restored.channels) == set(channels)
        await trio.sleep(10)
        connection = sandbox.connections[-1]
        assert set(connection.channels) == set(channels)
        times = [message.at for message in connection.received]
        assert len(times) > 100
        for at in times:
            assert sum(at <= other < at + 1 for other in times) <= 100


async def test_41_restored_channel_that_is_refused_ends_alone(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        refused = await client.subscribe("orders:o1", snapshot=False)
        alive = await client.subscribe_balances(snapshot=False)
        sandbox.faults.refuse_channel("orders:o1")
        sandbox.drop_connections()
        await loss_and_connection(events)
        event = await events.receive()
        assert isinstance(event, ChannelRefused)
        assert event.channel == "orders:o1"
        restored = await events.receive()
        assert isinstance(restored, Restored)
        assert restored.channels == ("balances",)
        with pytest.raises(InvalidChannelError):
            await refused.receive()
        assert (await alive.receive()).origin == "snapshot"
        sandbox.push(PUSH)
        assert (await alive.receive()).raw == PUSH


async def test_49_streams_converge_after_repeated_kills_of_the_broker(
    autojump_clock: MockClock,
) -> None:
    # The reconnection is quick enough for calls that subscribe meanwhile.
    policy = ReconnectPolicy(max_attempts=None, max_delay=1.0)
    holdings: dict[str, Balance] = {}
    progress: dict[str, Order] = {}

    async def watch_balances() -> None:
        async for message in await client.subscribe_balances():
            holdings.update({balance.asset: balance for balance in message.data})

    async def watch_order(order_id: str) -> None:
        async for message in await client.subscribe_order(order_id):
            progress[order_id] = message.data

    async with (
        connected(reconnect=policy) as (sandbox, client, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch_balances)
        order_ids: list[str] = []

        async def trade() -> None:
            while len(order_ids) < 60:
                with suppress(NotConnectedError, SwapOutcomeUnknownError):
                    receipt = await client.do_swap("0.01", "ETH", "USDT")
                    order_ids.append(receipt.order_id)
                    nursery.start_soon(watch_order, receipt.order_id)
                await trio.sleep(0.1)

        async with trio.open_nursery() as load:
            load.start_soon(trade)
            for seconds in (0.05, 3.0, 0.6, 0.0, 1.5):
                await trio.sleep(1.03)
                sandbox.faults.kill()
                await trio.sleep(seconds)
                await sandbox.faults.revive()
                await client.wait_connected()
        await trio.sleep(10)
        assert len(sandbox.connections) == 6
        assert len(sandbox.orders()) >= len(order_ids) == 60
        assert holdings == sandbox.balances()
        for order_id in order_ids:
            assert progress[order_id].is_final
            assert progress[order_id].status == sandbox.order(order_id).status
        nursery.cancel_scope.cancel()


# --- Tracked orders --------------------------------------------------------------------------


async def test_37_order_filled_during_an_outage_is_tracked_to_its_end(
    autojump_clock: MockClock,
) -> None:
    rules = {"pending_delay": (5.0, 5.0), "processing_delay": (5.0, 5.0)}
    async with connected(rules) as (sandbox, client, _):
        sandbox.next_outcome("filled")
        receipt = await client.do_swap("0.01", "ETH", "USDT")
        async with client.track_order(receipt.order_id) as progress:
            assert (await progress.receive()).data.status == "PENDING"
            sandbox.faults.kill()
            await trio.sleep(12)
            assert sandbox.order(receipt.order_id).status == "FILLED"
            await sandbox.faults.revive()
            messages = [message async for message in progress]
        assert [message.data.status for message in messages] == ["FILLED"]
        assert messages[0].gap is not None
        assert messages[0].gap.reasons == {"reconnected"}


async def test_38_tracked_order_ends_without_pushes(autojump_clock: MockClock) -> None:
    async with connected(heartbeat_interval=1.0) as (sandbox, client, _):
        sandbox.next_outcome("filled")
        with sandbox.faults.stop_pushing():
            receipt = await client.do_swap("0.01", "ETH", "USDT")
            async with client.track_order(receipt.order_id) as progress:
                statuses = [message.data.status async for message in progress]
        assert statuses == ["PENDING", "FILLED"]
        assert len(sandbox.connections) == 1


# --- Processes and keys ----------------------------------------------------------------------


async def test_35_nonces_of_two_clients_with_one_key_never_repeat(
    autojump_clock: MockClock,
) -> None:
    nonces: list[str] = []

    async def note(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream)
        while True:
            opcode, payload = await receive_frame(stream)
            if opcode == CLOSE:
                return
            message = json.loads(payload)
            nonces.append(message["nonce"])
            reply = AUTHENTICATED if message["op"] == "auth" else BALANCES
            await send(stream, frame(json.dumps(reply)))

    with trio.fail_after(LONG):
        async with serve_raw(note) as port, trio.open_nursery() as nursery:

            async def use() -> None:
                # A clock that stands still, like one with a low resolution.
                url = f"ws://127.0.0.1:{port}/ws"
                async with BrokerWSClient("key", "secret", url, clock=lambda: 1e9) as client:
                    for _ in range(50):
                        await client.get_balances()

            for _ in range(2):
                nursery.start_soon(use)
    assert len(nonces) == len(set(nonces)) == 102


FORKED: Final = """
import os, sys, trio
from trio_broker import BrokerWSClient, new_client_order_id

client = BrokerWSClient("test_key_1", "test_secret_1", sys.argv[1])
new_client_order_id()

async def main():
    async with client:
        with client.messages() as messages:
            await client.get_balances()
    os.write(1, new_client_order_id().encode() + b"\\n")

child = os.fork()
trio.run(main)
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(status != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_45_client_not_yet_connected_works_in_a_forked_child() -> None:
    with trio.fail_after(PATIENCE):
        async with open_sandbox() as sandbox:
            done = await trio.run_process(
                [sys.executable, "-c", FORKED, sandbox.url], capture_stdout=True
            )
            ids = done.stdout.split()
            assert len(ids) == len(set(ids)) == 2
            assert len(sandbox.connections) == 2
            # The broker refuses a repeated nonce, so all nonces differed.
            for connection in sandbox.connections:
                assert [message.op for message in connection.received] == ["auth", "balances"]


# --- Clocks ----------------------------------------------------------------------------------


async def test_36_clock_that_is_a_minute_off_is_reported_at_once(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(clock=lambda: 1e9) as sandbox:
            with pytest.raises(ClockSkewError, match="NTP"):
                async with sandbox.client(clock=lambda: 1e9 + 60):
                    pytest.fail("it connected")
            assert len(sandbox.connections) == 1


async def test_36_60_corrected_clock_lets_the_client_reconnect(
    autojump_clock: MockClock,
) -> None:
    offset = 0.0
    async with connected(
        {"clock": lambda: 1e9},
        clock=lambda: 1e9 + offset,
        reconnect=ReconnectPolicy(max_attempts=None, max_delay=2),
    ) as (sandbox, client, events):
        offset = 60.0
        sandbox.drop_connections()
        await next_loss(events)
        began = trio.current_time()
        while trio.current_time() < began + 60:
            refused = await next_loss(events)
            assert isinstance(refused.error, ClockSkewError)
            assert refused.retry_in is not None
            await trio.sleep(refused.retry_in - 0.1)
        offset = 0.0
        assert isinstance(await events.receive(), Connected)
        assert await client.get_balances()
        assert len(sandbox.connections) <= 5


@pytest.mark.parametrize("text", ["Invalid API key", "Invalid signature"])
async def test_60_key_refused_three_times_in_a_row_is_final(
    text: str, autojump_clock: MockClock
) -> None:
    policy = ReconnectPolicy(max_attempts=None)
    async with connected(reconnect=policy) as (sandbox, client, events):
        sandbox.faults.refuse_auth(text)
        sandbox.drop_connections()
        await next_loss(events)
        for _ in range(2):
            refused = await next_loss(events)
            assert isinstance(refused.error, AuthenticationError)
            assert refused.retry_in is not None
            assert refused.retry_in >= 30
        assert isinstance(await final_error(client, events), AuthenticationError)
        assert len(sandbox.connections) == 4


async def test_60_key_refused_twice_and_then_accepted_is_not_final(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.refuse_auth("Invalid signature", times=2)
        sandbox.drop_connections()
        for _ in range(3):
            await next_loss(events)
        assert isinstance(await events.receive(), Connected)
        assert await client.get_balances()


# --- Many tracked orders ---------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [{}, {"op": "order_status"}])
async def test_80_unknown_tracked_orders_use_half_of_the_messages(
    refusal: dict[str, Any], autojump_clock: MockClock
) -> None:
    background: list[float] = []

    class RefusingConnection(ScriptedConnection):
        """Refuses the requests of tracked orders."""

        async def _take(self, message: dict[str, Any]) -> None:
            replies: dict[str, Any] = {
                "balances": BALANCES,
                "swap": {"op": "swap", "data": {"orderId": str(trio.current_time())}},
                "order_status": {**refusal, "error": "Order not found"},
                "subscribe": {"error": "Invalid channel format"},
            }
            if message["op"] in {"order_status", "subscribe"}:
                background.append(trio.current_time())
            reply = replies.get(message["op"])
            await (self.send(reply) if reply else super()._take(message))

    async def handler(stream: trio.abc.Stream) -> None:
        await accept_websocket(stream)
        await RefusingConnection(stream, AUTHENTICATED, pongs=True).serve()

    async def track(number: int) -> None:
        async with client.track_order(f"order{number}") as progress:
            async for message in progress:
                pytest.fail(f"nothing is known of it: {message}")

    async with open_client_of_handlers(handler) as client, client, trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(track, number)
        for _ in range(10):
            began = trio.current_time()
            await client.get_balances()
            await client.do_swap("1", "ETH", "USDT")
            assert trio.current_time() - began < 1
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert len(background) > 300
    # In any rolling second, except for the few requests that a user's read repeats.
    for first, last in zip(background, background[55:], strict=False):
        assert last - first >= 1.0
    assert len(background) <= 55 + 50 * (background[-1] - background[0]) / 1.1


# --- Replies that are too large --------------------------------------------------------------

LARGE_BALANCES: Final = {
    "op": "balances",
    "data": {"balances": [{"asset": f"A{n}", "total": "1", "locked": "0"} for n in range(1000)]},
}


async def test_63_large_reply_fails_its_request_the_second_time(autojump_clock: MockClock) -> None:
    limits = Limits(max_receive_size=10_000)
    async with (
        open_client_of_handlers(*[serve_large_balances] * 4, limits=limits) as client,
        client,
        client.events() as events,
    ):
        with pytest.raises(ConnectionLostError) as lost:
            await client.get_balances()
        assert lost.value.code == 1009
        await loss_and_connection(events)
        for _ in range(2):
            with pytest.raises(ReplyTooLargeError, match="max_receive_size"):
                await client.get_balances()
        assert (await client.estimate_swap("1", "ETH", "USDT")).price == 2


async def test_63_large_reply_to_a_lookup_is_not_requested_in_a_loop(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(max_receive_size=10_000)
    policy = ReconnectPolicy(max_attempts=None)
    async with (
        open_client_of_handlers(
            *[serve_large_lookups] * 20, limits=limits, reconnect=policy
        ) as client,
        client,
        client.events() as events,
    ):
        with pytest.raises(SwapOutcomeUnknownError, match="max_receive_size"):
            await client.do_swap("1", "ETH", "USDT")
        with pytest.raises(SwapOutcomeUnknownError, match="max_receive_size"):
            await client.resolve_swap("other")
        await trio.sleep(600)
        assert client.is_connected()
        losses = [event for event in events_so_far(events) if isinstance(event, Disconnected)]
        assert len(losses) == 4  # Two for each swap.


async def test_63_large_snapshot_is_not_requested_in_a_loop(autojump_clock: MockClock) -> None:
    limits = Limits(max_receive_size=10_000)
    policy = ReconnectPolicy(max_attempts=None)
    async with (
        open_client_of_handlers(
            *[serve_large_balances] * 20, limits=limits, reconnect=policy
        ) as client,
        client,
        client.events() as events,
    ):
        updates = await client.subscribe_balances()
        await trio.sleep(600)
        assert client.is_connected()
        seen = events_so_far(events)
        assert sum(isinstance(event, Connected) for event in seen) == 2
        unavailable = [event for event in seen if isinstance(event, SnapshotUnavailable)]
        assert isinstance(unavailable[-1].error, ReplyTooLargeError)
        # The stream goes on with pushes, also over the next connection.
        await client.reconnect()
        await trio.sleep(600)
        assert client.is_connected()
        assert sum(isinstance(event, Connected) for event in events_so_far(events)) == 1
        assert updates.statistics().current_buffer_used == 0


async def test_63_large_reply_among_others_fails_only_its_own_request(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(max_receive_size=10_000)
    policy = ReconnectPolicy(max_attempts=None)
    handlers = [serve_large_balances] * 20
    async with open_client_of_handlers(*handlers, limits=limits, reconnect=policy) as client:
        errors: list[type[Exception]] = []
        async with client, trio.open_nursery() as nursery:

            async def ask_for_balances() -> None:
                while not errors or errors[-1] is not ReplyTooLargeError:
                    try:
                        await client.get_balances()
                    except (ConnectionLostError, ReplyTooLargeError) as error:
                        errors.append(type(error))

            async def estimate(amount: str) -> None:
                while True:
                    with suppress(ConnectionLostError):
                        await client.estimate_swap(amount, "ETH", "USDT")
                        return

            nursery.start_soon(ask_for_balances)
            for amount in ("1", "2", "3"):
                nursery.start_soon(estimate, amount)
        assert len(errors) <= 4


async def test_63_other_losses_do_not_count_as_large_replies(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(max_receive_size=10_000)
    handlers = [*[serve_large_balances] * 3, serve_well]
    async with (
        open_client_of_handlers(*handlers, limits=limits) as client,
        client,
        client.events() as events,
        trio.open_nursery() as nursery,
    ):
        for _ in range(2):
            with pytest.raises((ConnectionLostError, ReplyTooLargeError)):
                await client.get_balances()
            await loss_and_restored(events)
        await client.reconnect()
        call = start(nursery, client.get_balances)
        await wait_all_tasks_blocked()
        await client.aclose()
        with pytest.raises(ConnectionLostError):
            await call.result()


async def test_63_close_1009_by_the_broker_is_no_large_reply(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events), trio.open_nursery() as nursery:
        for _ in range(3):
            sandbox.faults.swallow(op="balances", times=1)
            call = start(nursery, client.get_balances)
            await wait_all_tasks_blocked()
            sandbox.faults.close(1009)
            with pytest.raises(ConnectionLostError):
                await call.result()
            await loss_and_restored(events)


class LargeBalancesConnection(ScriptedConnection):
    """Answers everything, with balances over 10,000 bytes."""

    async def _take(self, message: dict[str, Any]) -> None:
        if message["op"] == "auth":
            await super()._take(message)
        elif message["op"] == "balances":
            await self.send(LARGE_BALANCES)
        elif message["op"] == "estimate":
            await self.send(ESTIMATE)
        else:
            await self.send(acknowledgement(message))


class LargeLookupsConnection(ScriptedConnection):
    """Answers no swap, and looks every order up in over 10,000 bytes."""

    async def _take(self, message: dict[str, Any]) -> None:
        if message["op"] == "auth":
            await super()._take(message)
        elif message["op"] == "order_status":
            data = {"orderId": "o1", "status": "FILLED", "txHash": 10_000 * "a"}
            await self.send({"op": "order_status", "data": data})


async def serve_large_lookups(stream: trio.abc.Stream) -> None:
    """Serve a connection with orders over 10,000 bytes."""
    await accept_websocket(stream)
    await LargeLookupsConnection(stream, AUTHENTICATED, pongs=True).serve()


async def serve_large_balances(stream: trio.abc.Stream) -> None:
    """Serve a connection with balances over 10,000 bytes."""
    await accept_websocket(stream)
    await LargeBalancesConnection(stream, AUTHENTICATED, pongs=True).serve()


def events_so_far(events: Events) -> list[ConnectionEvent]:
    """The events so far."""
    seen: list[ConnectionEvent] = []
    with suppress(trio.WouldBlock):
        while True:
            seen.append(events.receive_nowait())
    return seen


@pytest.mark.parametrize("kind", ["unowed", "named", "pushed", "unexpected"])
async def test_76_many_long_errors_use_little_memory(kind: str, autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        shapes = {
            "unowed": {},
            "named": {"op": "estimate"},
            "pushed": {"ch": "balances"},
            "unexpected": {"op": "unheard of"},
        }
        if kind in {"unowed", "named"}:
            # The first reply that nobody is owed replaces the connection, once a minute.
            sandbox.push(json.dumps({**shapes[kind], "error": "No"}))
            assert isinstance(await events.receive(), UnexpectedMessage)
            await loss_and_restored(events)
        updates = await client.subscribe("balances", buffer_size=1000, snapshot=False)
        before = client.statistics().messages_received

        async def arrived(count: int) -> None:
            # A message doesn't fit into the socket's buffer, so tasks may wait in the middle of it.
            await wait_until(lambda: client.statistics().messages_received - before == count)

        tracemalloc.start()
        try:
            for number in range(20):
                error = f"{number:010d}" * 10_000
                sandbox.faults.send_text(json.dumps({**shapes[kind], "error": error}))
                await arrived(number + 1)
            assert tracemalloc.get_traced_memory()[0] < 700_000
        finally:
            tracemalloc.stop()
        assert client.is_connected()
        assert updates.statistics().current_buffer_used == (20 if kind == "pushed" else 0)
        assert events.statistics().current_buffer_used == (0 if kind == "pushed" else 20)


async def test_33_swap_with_a_lost_reply_is_found_after_reconnecting(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events), trio.open_nursery() as nursery:
        sandbox.faults.swallow(op="swap", times=1)
        call = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await wait_all_tasks_blocked()
        sandbox.faults.reset()
        await loss_and_restored(events)
        receipt = await call.result()
        (order,) = sandbox.orders()
        assert (receipt.order_id, receipt.client_order_id) == (
            order.order_id,
            order.client_order_id,
        )
        sent = [one.op for line in sandbox.connections for one in line.received]
        assert sent.count("swap") == 1
        assert client.unresolved_swaps() == ()


async def test_33_swap_without_a_found_order_is_unknown(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events), trio.open_nursery() as nursery:
        sandbox.faults.swallow(op="swap", times=1)
        not_found = '{"op":"order_status","error":"Order not found"}'
        sandbox.faults.replace(not_found, op="order_status")
        call = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await wait_all_tasks_blocked()
        sandbox.faults.reset()
        await loss_and_restored(events)
        with pytest.raises(SwapOutcomeUnknownError, match="Order not found") as caught:
            await call.result()
        (order,) = sandbox.orders()  # executed all the same
        assert caught.value.client_order_id == order.client_order_id
        assert isinstance(await events.receive(), SwapUnresolved)
        sandbox.faults.clear()
        assert (await client.resolve_swap(caught.value.client_order_id)).order_id == order.order_id
        assert isinstance(await events.receive(), SwapResolved)
        sent = [one.op for line in sandbox.connections for one in line.received]
        assert sent.count("swap") == 1


async def test_34_swap_without_a_connection_fails_and_is_never_sent(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.hang_up()
        lost = await next_loss(events)
        assert lost.retry_in is not None
        began = trio.current_time()
        with pytest.raises(NotConnectedError, match="nothing was sent"):
            await client.do_swap("1", "ETH", "USDT")
        assert trio.current_time() == began
        await client.wait_connected()
        await client.get_balances()
        assert client.unresolved_swaps() == ()
        assert sandbox.orders() == ()
        assert not any(one.op == "swap" for line in sandbox.connections for one in line.received)


# --- The table -------------------------------------------------------------------------------


def test_every_fault_has_a_test_that_exists() -> None:
    assert __doc__ is not None
    numbers: set[int] = set()
    here, named_here = Path(__file__), set()
    for row, entries in re.findall(r"^- ([0-9, ]+): ((?:.|\n  )+)$", __doc__, re.MULTILINE):
        numbers |= {int(number) for number in row.split(",")}
        names = entries.replace(";", " ").split()
        assert names, row
        for name in names:
            file, _, test = name.rpartition("::")
            path = here.parents[1] / file if file else here
            assert test in functions_of(path), name
            if not file:
                named_here.add(test)
    assert numbers == {*range(1, 85)}
    assert {test for test in functions_of(here) if re.match(r"test_\d", test)} == named_here


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
