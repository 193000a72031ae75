"""Every fault that the client is to survive, each with its tests.

A line for each: its number, and the tests that show it, here or in another file of this folder.
In the names here the numbers come first.

- 1: test_01_connection_refused_later_is_retried_with_jitter
  test_client.py::test_a_url_where_nobody_listens_fails_at_once
- 2: test_02_name_that_does_not_resolve_later_is_retried
  test_transport.py::test_unresolvable_name_is_named
- 3: test_transport.py::test_silent_server_meets_the_deadline
  test_transport.py::test_dripped_handshake_meets_the_deadline
  test_transport.py::test_slow_resolver_meets_the_deadline
- 4: test_04_certificate_that_is_not_trusted_is_final
- 5: test_05_status_that_is_about_the_request_is_final
- 6: test_06_status_that_passes_is_retried_when_the_broker_asked_for_it
- 7: test_07_redirect_is_final_and_tells_where_it_led
- 8: test_08_senseless_answer_to_the_handshake_is_retried
- 9: test_client.py::test_a_wrong_key_is_refused_at_once
  test_client.py::test_a_wrong_secret_is_refused_at_once
  test_connection.py::test_refused_it_raises_the_right_class_at_once
- 10: test_10_no_answer_to_auth_on_a_reconnection_is_tried_once_more
  test_10_no_answer_to_auth_twice_is_final
  test_connection.py::test_never_answered_it_ends_after_auth_timeout
- 11: test_11_12_cut_connection_fails_what_was_in_flight_and_is_replaced
  test_client.py::test_a_swap_whose_connection_is_lost_is_unknown
- 12: test_11_12_cut_connection_fails_what_was_in_flight_and_is_replaced
  test_client.py::test_a_swap_whose_connection_is_lost_is_unknown
- 13: test_13_close_of_a_broker_in_trouble_is_retried
- 14: test_14_close_1008_is_tried_once_more_and_then_final
- 15: test_15_close_1000_that_nobody_asked_for_is_retried
- 16: test_16_broker_that_always_hangs_up_uses_the_tries_up
- 17: test_17_half_open_connection_is_found_by_the_heartbeat
- 18: test_18_peer_that_stops_reading_is_replaced_at_the_writers_deadline
- 19: test_19_request_cancelled_while_it_is_sent_leaves_whole
  test_client.py::test_cancelled_at_any_checkpoint_a_call_leaves_nothing_behind
- 20: test_client.py::test_a_slow_consumer_holds_nobody_up_and_is_right_in_the_end
  test_subscription.py::test_a_subscription_that_nobody_reads_costs_bounded_memory
- 21: test_21_many_pings_are_answered_and_data_still_flows
- 22: test_22_message_in_three_fragments_is_the_same_message
  test_22_stream_of_single_bytes_gives_the_same_messages
- 23: test_23_message_over_the_limit_closes_with_1009_and_is_retried
- 24: test_24_what_is_strange_is_told_and_harms_nothing
- 25: test_25_breach_of_the_protocol_is_tried_once_more_and_then_final
- 26: test_26_malformed_message_is_lost_alone
  test_26_fifth_malformed_message_in_a_row_replaces_the_connection
- 27: test_27_what_is_no_amount_is_lost_alone
- 28: test_28_error_without_op_is_told_when_nothing_is_in_flight
- 29: test_29_error_without_op_fails_the_one_in_flight
- 30: test_30_three_reads_are_asked_again_alone_and_each_gets_its_own_answer
- 31: test_31_late_reply_resolves_nobody_else
  test_client.py::test_a_read_given_up_after_sending_keeps_its_answer_from_the_next
- 32: test_32_reply_that_nobody_asked_for_is_told
  test_session.py::test_the_previous_swaps_reply_again_is_discarded_by_its_order_id
- 33: test_33_swap_whose_reply_is_lost_is_found_on_the_next_connection
  test_33_swap_whose_order_is_not_found_is_unknown
- 34: test_34_swap_without_a_connection_fails_at_once_and_is_never_sent
- 35: test_35_nonces_of_two_clients_with_one_key_never_repeat
- 36: test_36_clock_that_is_a_minute_off_is_told_at_once
  test_36_clock_that_goes_off_later_is_tried_once_more
- 37: test_37_order_filled_while_nobody_is_connected_is_tracked_to_its_end
- 38: test_38_mute_stream_does_not_hold_a_tracked_order
- 39: test_39_many_clients_of_one_broker_come_back_spread_out
- 40: test_40_hundred_subscriptions_are_restored_within_the_limit
- 41: test_41_restored_channel_that_is_refused_ends_alone
- 42: test_client.py::test_cancelled_at_any_checkpoint_a_call_leaves_nothing_behind
  test_client.py::test_cancelled_at_any_checkpoint_the_client_itself_leaves_nothing_behind
  test_transport.py::test_cancelled_at_any_checkpoint_nothing_is_left
- 43: test_supervisor.py::test_ctrl_c_in_the_block_ends_cleanly
  test_supervisor.py::test_ctrl_c_during_a_swap_reports_it
  test_supervisor.py::test_a_cancelled_block_closes_within_half_a_second
- 44: test_connection.py::test_what_came_while_the_process_was_stopped_is_read_before_a_ping_decides
  test_heartbeat.py::test_time_for_which_the_loop_was_blocked_does_not_count_as_silence
  test_heartbeat.py::test_a_machine_that_slept_replaces_its_connection_at_once
- 45: test_45_client_not_yet_connected_works_in_a_forked_child
  test_supervisor.py::test_in_a_forked_child_every_call_is_refused
- 46: test_46_push_with_an_error_is_raised_and_the_stream_goes_on
  test_46_refusal_with_op_channel_and_error_fails_its_own_request
- 47: test_47_not_authenticated_in_the_middle_replaces_the_connection
- 48: test_client.py::test_a_snapshot_that_a_push_overtook_is_asked_for_again
- 49: test_49_broker_killed_again_and_again_every_stream_ends_right
"""

from __future__ import annotations

import ast
import json
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.rawserver import (
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
from tests.scripted import AUTHENTICATED, BALANCES, PATIENCE, Line, start
from trio_broker import (
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
    OddMessage,
    Order,
    ReconnectFailedError,
    ReconnectPolicy,
    RequestTimeoutError,
    Restored,
    ServerError,
    SwapOutcomeUnknownError,
    SwapResolved,
    SwapUnresolved,
)
from trio_broker.sandbox import Sandbox, open_sandbox
from trio_broker.subscription import BoundedReceiveChannel

pytestmark = pytest.mark.usefixtures("each_transport")

Events = BoundedReceiveChannel[ConnectionEvent]

# Of a clock that jumps: nothing here takes so long, and a hang ends at once.
LONG: Final = 3600.0


@asynccontextmanager
async def connected(
    rules: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Sandbox, BrokerWSClient, Events]]:
    """A sandbox, a client that is connected to it, and what the client tells from then on."""
    with trio.fail_after(LONG):
        async with open_sandbox(**(rules or {})) as sandbox, sandbox.client(**options) as client:
            with client.events() as events:
                yield sandbox, client, events


async def next_loss(events: Events) -> Disconnected:
    """The next event, which must be a loss that is followed by a try."""
    event = await events.receive()
    assert isinstance(event, Disconnected), event
    assert event.retry_in is not None, event
    return event


async def loss_and_connection(events: Events) -> Disconnected:
    """The loss that events tell of next, after which the first try must succeed."""
    lost = await next_loss(events)
    assert isinstance(await events.receive(), Connected)
    return lost


async def loss_and_return(events: Events) -> Disconnected:
    """The same, and all channels must be restored."""
    lost = await loss_and_connection(events)
    assert isinstance(await events.receive(), Restored)
    return lost


async def final_error(client: BrokerWSClient, events: Events) -> Exception:
    """What the client fails with for good, as the next events must tell too."""
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
    """Authenticate a client and be there for it."""
    await accept_websocket(stream)
    await Line(stream, AUTHENTICATED, pongs=True).serve()


@asynccontextmanager
async def open_fickle(*handlers: Handler) -> AsyncIterator[BrokerWSClient]:
    """A client, not yet connected, of a broker that serves each connection in another way."""
    left = list(handlers)

    async def handler(stream: trio.abc.Stream) -> None:
        await left.pop(0)(stream)

    with trio.fail_after(LONG):
        async with serve_raw(handler) as port:
            yield BrokerWSClient("key", "secret", f"ws://127.0.0.1:{port}/ws")


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


@pytest.mark.parametrize("status", [401, 403])
async def test_05_status_that_is_about_the_request_is_final(
    status: int, autojump_clock: MockClock
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.refuse_connections(status)
        sandbox.drop_connections()
        await next_loss(events)
        error = await final_error(client, events)
        assert isinstance(error, ConnectFailedError)
        assert error.status == status
        assert str(status) in str(error)


@pytest.mark.parametrize("status", [429, 503])
async def test_06_status_that_passes_is_retried_when_the_broker_asked_for_it(
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


async def test_07_redirect_is_final_and_tells_where_it_led(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.refuse_connections(307, {"Location": "wss://else.example/ws"})
        sandbox.drop_connections()
        await next_loss(events)
        error = await final_error(client, events)
        assert isinstance(error, ConnectFailedError)
        assert error.status == 307
        assert "wss://else.example/ws" in str(error)


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
async def test_08_senseless_answer_to_the_handshake_is_retried(
    answer: bytes, why: str, autojump_clock: MockClock
) -> None:
    async def answer_senselessly(stream: trio.abc.Stream) -> None:
        await receive_request(stream)
        await send(stream, answer)
        if answer != UPGRADE:
            await wait_gone(stream)

    async with open_fickle(serve_briefly, answer_senselessly, serve_well) as client, client:
        with client.events() as events:
            await next_loss(events)
            refused = await next_loss(events)
            assert isinstance(refused.error, ConnectFailedError)
            assert why in str(refused.error)
            assert isinstance(await events.receive(), Connected)


# --- Authenticating --------------------------------------------------------------------------


async def test_10_no_answer_to_auth_on_a_reconnection_is_tried_once_more(
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


async def test_10_no_answer_to_auth_twice_is_final(autojump_clock: MockClock) -> None:
    async with connected({"auth_timeout": 100}) as (sandbox, client, events):
        sandbox.faults.ignore(op="auth")
        sandbox.drop_connections()
        for _ in range(2):
            await next_loss(events)
        assert isinstance(await final_error(client, events), AuthenticationTimeoutError)
        assert len(sandbox.connections) == 3


# --- The end of a connection -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["reset", "fin"])
async def test_11_12_cut_connection_fails_what_was_in_flight_and_is_replaced(
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
        lost = await loss_and_return(events)
        assert isinstance(lost.error, ConnectionLostError)
        assert await client.get_balances()


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
async def test_13_close_of_a_broker_in_trouble_is_retried(
    code: int, autojump_clock: MockClock
) -> None:
    await check_close_is_retried(code)


async def test_15_close_1000_that_nobody_asked_for_is_retried(autojump_clock: MockClock) -> None:
    await check_close_is_retried(1000)


async def check_close_is_retried(code: int) -> None:
    async with connected() as (sandbox, client, events):
        # Again and again: only a breach of the rules makes the second in a row final.
        for _ in range(3):
            sandbox.faults.close(code, "for a while")
            lost = await loss_and_return(events)
            assert isinstance(lost.error, ConnectionLostError)
            assert lost.error.code == code
            assert "for a while" in str(lost.error)
        assert await client.get_balances()


async def test_14_close_1008_is_tried_once_more_and_then_final(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.close(1008)
        await loss_and_return(events)
        sandbox.faults.close(1008)
        error = await final_error(client, events)
        assert isinstance(error, ConnectionLostError)
        assert error.code == 1008
        assert len(sandbox.connections) == 2


async def test_16_broker_that_always_hangs_up_uses_the_tries_up(autojump_clock: MockClock) -> None:
    async with open_fickle(*[serve_briefly] * 6) as client:
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
        await loss_and_return(events)
        assert await client.get_balances()


async def test_19_request_cancelled_while_it_is_sent_leaves_whole(
    autojump_clock: MockClock,
) -> None:
    async with connected({"max_message_size": 2 * BULK}, limits=ROOM) as (sandbox, client, _):
        with sandbox.faults.stall_reading():
            with trio.move_on_after(1) as scope:
                await client.get_order_status("x" * BULK)
            assert scope.cancelled_caught
            # Much is on its way now, and on a busy machine nobody may have anything to do for a
            # moment: that is no time that passes.
            autojump_clock.autojump_threshold = 0.2
        assert await client.get_balances()
        (connection,) = sandbox.connections
        assert [message.op for message in connection.received] == [
            "auth",
            "order_status",
            "balances",
        ]


# --- What the broker sends -------------------------------------------------------------------


async def test_23_message_over_the_limit_closes_with_1009_and_is_retried(
    autojump_clock: MockClock,
) -> None:
    async with connected(limits=Limits(max_receive_size=10_000)) as (sandbox, client, events):
        for _ in range(2):
            sandbox.push("x" * 10_001)
            lost = await loss_and_return(events)
            assert isinstance(lost.error, ConnectionLostError)
            assert lost.error.code == 1009
        assert await client.get_balances()


@pytest.mark.parametrize(
    ("data", "code"),
    [(frame(b"caf\xe9"), 1007), (frame("masked", mask=True), 1002)],
    ids=["bad UTF-8", "masked"],
)
async def test_25_breach_of_the_protocol_is_tried_once_more_and_then_final(
    data: bytes, code: int, autojump_clock: MockClock
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.send_raw(data)
        lost = await loss_and_return(events)
        assert isinstance(lost.error, ConnectionLostError)
        assert lost.error.code == code
        sandbox.faults.send_raw(data)
        error = await final_error(client, events)
        assert isinstance(error, ConnectionLostError)
        assert error.code == code


async def test_21_many_pings_are_answered_and_data_still_flows(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        updates = await client.subscribe_balances(snapshot=False)
        sandbox.faults.send_pings(20_000)
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
            await loss_and_return(events)
            assert await client.get_balances() == before
            assert (await updates.receive()).data == before


async def test_24_what_is_strange_is_told_and_harms_nothing(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        updates = await client.subscribe_balances(snapshot=False)
        sandbox.faults.send_binary(b"\x00\xff")
        sandbox.push('{"op":"dance","data":{}}')
        sandbox.push('{"ch":"nobody","data":{}}')
        for _ in range(3):
            assert isinstance(await events.receive(), OddMessage)
        sandbox.push('{"ch":"balances","new":[1],"data":[{"asset":"USDT","total":"7","more":{}}]}')
        assert (await updates.receive()).data[0].total == 7
        assert await client.get_balances()
        assert client.statistics().odd_messages == 3
        assert len(sandbox.connections) == 1


MALFORMED: Final = (
    "{",
    '{"ch":"balances","data":7}',
    '{"ch":"balances"}',
    "[" * 100_000,
    '{"ch":"balances","data":[{"asset":"USDT"}]}',
)


@pytest.mark.parametrize("text", MALFORMED, ids=["cut", "type", "no body", "nested", "no field"])
async def test_26_malformed_message_is_lost_alone(text: str, autojump_clock: MockClock) -> None:
    await check_lost_alone(text)


async def test_26_fifth_malformed_message_in_a_row_replaces_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        await client.subscribe_balances(snapshot=False)
        for text in MALFORMED:
            sandbox.push(text)
        for _ in range(5):
            assert isinstance(await events.receive(), OddMessage)
        lost = await loss_and_return(events)
        assert "5 malformed" in str(lost.error)
        assert await client.get_balances()


@pytest.mark.parametrize(
    "amount",
    ["NaN", "Infinity", "1e999999999", "9" * 1000, '"NaN"', '"Infinity"', '"1e999999999"'],
    ids=lambda amount: amount[:12],
)
async def test_27_what_is_no_amount_is_lost_alone(amount: str, autojump_clock: MockClock) -> None:
    await check_lost_alone(f'{{"ch":"balances","data":[{{"asset":"USDT","total":{amount}}}]}}')


async def check_lost_alone(text: str) -> None:
    async with connected() as (sandbox, client, events):
        updates = await client.subscribe_balances(snapshot=False)
        sandbox.push(text)
        sandbox.push(PUSH)
        odd = await events.receive()
        assert isinstance(odd, OddMessage)
        assert (await updates.receive()).raw == PUSH
        assert client.statistics().odd_messages == 1
        assert len(sandbox.connections) == 1


async def test_28_error_without_op_is_told_when_nothing_is_in_flight(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.push('{"error":"Insufficient balance"}')
        odd = await events.receive()
        assert isinstance(odd, OddMessage)
        assert odd.raw == '{"error":"Insufficient balance"}'
        assert await client.get_balances()


async def test_29_error_without_op_fails_the_one_in_flight(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, _):
        sandbox.faults.replace({"error": "Go away"}, op="balances", times=1)
        with pytest.raises(ServerError, match="Go away") as caught:
            await client.get_balances()
        assert caught.value.op == "balances"
        assert await client.get_balances()


async def test_30_three_reads_are_asked_again_alone_and_each_gets_its_own_answer(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, _), trio.open_nursery() as nursery:
        receipt = await client.do_swap("1", "ETH", "USDT")
        # The reply that names nobody comes first, while all three are in flight.
        for op in ("estimate", "order_status"):
            sandbox.faults.delay(0.1, op=op)
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


async def test_31_late_reply_resolves_nobody_else(autojump_clock: MockClock) -> None:
    async with connected(request_timeout=2) as (sandbox, client, _):
        late = {**BALANCES, "data": {"balances": [{"asset": "ETH", "total": "666"}]}}
        with sandbox.faults.swallow(op="balances", times=1), pytest.raises(RequestTimeoutError):
            await client.get_balances()
        sandbox.push(json.dumps(late))
        assert not [b for b in await client.get_balances() if b.total == 666]


async def test_32_reply_that_nobody_asked_for_is_told(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.push(json.dumps(BALANCES))
        assert isinstance(await events.receive(), OddMessage)
        with sandbox.faults.duplicate(op="balances", times=1):
            assert await client.get_balances()
        assert isinstance(await events.receive(), OddMessage)
        assert len(sandbox.connections) == 1


async def test_47_not_authenticated_in_the_middle_replaces_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events):
        sandbox.faults.replace({"op": "balances", "error": "Not authenticated"}, times=1)
        with pytest.raises(NotAuthenticatedError):
            await client.get_balances()
        lost = await loss_and_return(events)
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


# --- Many at once, and again and again -------------------------------------------------------


async def test_39_many_clients_of_one_broker_come_back_spread_out(
    autojump_clock: MockClock,
) -> None:
    count = 200
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
            # Nor do most of them come in one piece of it.
            assert max(sum(at <= other < at + 0.05 for other in back) for at in back) < 60
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
        told = await events.receive()
        assert isinstance(told, ChannelRefused)
        assert told.channel == "orders:o1"
        restored = await events.receive()
        assert isinstance(restored, Restored)
        assert restored.channels == ("balances",)
        with pytest.raises(InvalidChannelError):
            await refused.receive()
        assert (await alive.receive()).origin == "snapshot"
        sandbox.push(PUSH)
        assert (await alive.receive()).raw == PUSH


async def test_49_broker_killed_again_and_again_every_stream_ends_right(
    autojump_clock: MockClock,
) -> None:
    # Back so soon that whoever subscribes meanwhile needn't give up.
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


# --- Orders that are tracked -----------------------------------------------------------------


async def test_37_order_filled_while_nobody_is_connected_is_tracked_to_its_end(
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


async def test_38_mute_stream_does_not_hold_a_tracked_order(autojump_clock: MockClock) -> None:
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
                # A clock that stands still, as one of low resolution does.
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
            # The broker refuses a nonce that it has seen: all of theirs differed.
            for connection in sandbox.connections:
                assert [message.op for message in connection.received] == ["auth", "balances"]


# --- Clocks ----------------------------------------------------------------------------------


async def test_36_clock_that_is_a_minute_off_is_told_at_once(autojump_clock: MockClock) -> None:
    with trio.fail_after(LONG):
        async with open_sandbox(clock=lambda: 1e9) as sandbox:
            with pytest.raises(ClockSkewError, match="NTP"):
                async with sandbox.client(clock=lambda: 1e9 + 60):
                    pytest.fail("it connected")
            assert len(sandbox.connections) == 1


async def test_36_clock_that_goes_off_later_is_tried_once_more(autojump_clock: MockClock) -> None:
    offset = 0.0
    async with connected({"clock": lambda: 1e9}, clock=lambda: 1e9 + offset) as (
        sandbox,
        client,
        events,
    ):
        offset = 60.0
        sandbox.drop_connections()
        await next_loss(events)
        refused = await next_loss(events)
        assert isinstance(refused.error, ClockSkewError)
        assert isinstance(await final_error(client, events), ClockSkewError)
        assert len(sandbox.connections) == 3


async def test_33_swap_whose_reply_is_lost_is_found_on_the_next_connection(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (sandbox, client, events), trio.open_nursery() as nursery:
        sandbox.faults.swallow(op="swap", times=1)
        call = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await wait_all_tasks_blocked()
        sandbox.faults.reset()
        await loss_and_return(events)
        receipt = await call.result()
        (order,) = sandbox.orders()
        assert (receipt.order_id, receipt.client_order_id) == (
            order.order_id,
            order.client_order_id,
        )
        sent = [one.op for line in sandbox.connections for one in line.received]
        assert sent.count("swap") == 1
        assert client.unresolved_swaps() == ()


async def test_33_swap_whose_order_is_not_found_is_unknown(autojump_clock: MockClock) -> None:
    async with connected() as (sandbox, client, events), trio.open_nursery() as nursery:
        sandbox.faults.swallow(op="swap", times=1)
        not_found = '{"op":"order_status","error":"Order not found"}'
        sandbox.faults.replace(not_found, op="order_status")
        call = start(nursery, client.do_swap, "1", "ETH", "USDT")
        await wait_all_tasks_blocked()
        sandbox.faults.reset()
        await loss_and_return(events)
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


async def test_34_swap_without_a_connection_fails_at_once_and_is_never_sent(
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
    told: set[int] = set()
    here, named_here = Path(__file__), set()
    for row, entries in re.findall(r"^- ([0-9, ]+): ((?:.|\n  )+)$", __doc__, re.MULTILINE):
        told |= {int(number) for number in row.split(",")}
        names = entries.replace(";", " ").split()
        assert names, row
        for name in names:
            file, _, test = name.rpartition("::")
            path = here.with_name(file) if file else here
            assert test in functions_of(path), name
            if not file:
                named_here.add(test)
    assert told == set(range(1, 50))
    assert {test for test in functions_of(here) if re.match(r"test_\d", test)} == named_here


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
