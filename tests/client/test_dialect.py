"""The two forms of requests: as the broker's clients send them, and as its documentation shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from tests.scripted import (
    BALANCES,
    ESTIMATE,
    PATIENCE,
    SECRET_KEY,
    SWAPPED,
    scripted_client,
    start,
)
from trio_broker import BrokerWSClient, ConfigurationError, InvalidSignatureError, ServerError
from trio_broker.models import Dialect
from trio_broker.sandbox import Sandbox, open_sandbox
from trio_broker.signing import Signer, SigningKey

pytestmark = pytest.mark.usefixtures("each_transport")


def docs_client(sandbox: Sandbox, **options: Any) -> BrokerWSClient:
    return BrokerWSClient(
        sandbox.api_key, sandbox.secret_key, sandbox.url, **{"dialect": "docs", **options}
    )


def is_signed(message: dict[str, Any], signing_key: SigningKey) -> bool:
    data = json.dumps(message["data"], separators=(",", ":")) if "data" in message else ""
    signer = Signer(SECRET_KEY, signing_key)
    signature: str = message["sig"]
    return signature == signer.sign(message["op"], message["ts"], message["nonce"], data)


@pytest.mark.parametrize(
    ("dialect", "names", "signing_key"),
    [
        ("clients", ("amountIn", "assetIn", "assetOut"), "derived"),
        ("docs", ("amount", "from", "to"), "raw"),
    ],
)
async def test_requests_have_the_names_and_signatures_of_the_dialect(
    dialect: Dialect, names: tuple[str, str, str], signing_key: SigningKey
) -> None:
    trade = dict(zip(names, ("1.5", "ETH", "USDT"), strict=True))
    with trio.fail_after(PATIENCE):
        async with scripted_client(dialect=dialect) as (client, line), trio.open_nursery() as tasks:
            assert line.auth is not None
            assert is_signed(line.auth, signing_key)
            call: Any = start(tasks, client.get_balances)
            message = await line.receive("balances")
            assert message.get("data", "none") == ({} if dialect == "docs" else "none")
            assert is_signed(message, signing_key)
            await line.send(BALANCES)
            await call.result()
            call = start(tasks, client.estimate_swap, "1.5", "ETH", "USDT")
            message = await line.receive("estimate")
            assert message["data"] == trade
            assert is_signed(message, signing_key)
            await line.send(ESTIMATE)
            await call.result()
            call = start(tasks, client.do_swap, "1.5", "ETH", "USDT")
            message = await line.receive("swap")
            assert trade.items() <= message["data"].items()
            assert message["data"].keys() - trade.keys() == {"clientOrderId"}
            assert is_signed(message, signing_key)
            await line.send(SWAPPED)
            await call.result()
            call = start(tasks, client.get_order_status, "o1")
            assert (await line.receive("order_status"))["data"] == {"id": "o1"}
            await line.send({"op": "order_status", "data": {"orderId": "o1", "status": "FILLED"}})
            await call.result()


async def test_documented_broker_serves_a_client_of_its_dialect() -> None:
    with trio.fail_after(PATIENCE):
        async with open_sandbox(dialect="docs") as sandbox, docs_client(sandbox) as client:
            async with client.subscribe_balances() as updates:
                assert (await updates.receive()).origin == "snapshot"
            assert await client.get_balances()
            order = await client.swap_and_wait("1", "ETH", "USDT", min_out="1")
            assert order.is_final


async def test_documented_broker_refuses_a_client_of_the_other_dialect() -> None:
    with trio.fail_after(PATIENCE):
        async with open_sandbox(dialect="docs") as sandbox:
            with pytest.raises(InvalidSignatureError):
                async with docs_client(sandbox, dialect="clients"):
                    pass
            async with docs_client(sandbox, dialect="clients", signing_key="raw") as client:
                with pytest.raises(ServerError):
                    await client.get_balances()


async def test_signing_key_overrides_the_dialects() -> None:
    with trio.fail_after(PATIENCE):
        async with (
            open_sandbox(dialect="docs", signing_key="derived") as sandbox,
            docs_client(sandbox, signing_key="derived") as client,
        ):
            assert await client.get_balances()


async def test_environment_sets_the_dialect() -> None:
    with trio.fail_after(PATIENCE):
        async with open_sandbox(dialect="docs") as sandbox:
            environ = {
                "BROKER_API_KEY": sandbox.api_key,
                "BROKER_SECRET_KEY": sandbox.secret_key,
                "BROKER_WS_URL": sandbox.url,
                "BROKER_DIALECT": " Docs ",
            }
            async with BrokerWSClient.from_env(environ) as client:
                assert await client.get_balances()
            with pytest.raises(InvalidSignatureError):
                async with BrokerWSClient.from_env(environ, dialect="clients"):
                    pass


def test_unknown_dialect_is_refused_without_its_text() -> None:
    unknown: Any = "hush"
    environ = {
        "BROKER_API_KEY": "key",
        "BROKER_SECRET_KEY": "secret",
        "BROKER_WS_URL": "wss://broker.example",
    }
    with pytest.raises(ConfigurationError, match="BROKER_DIALECT must be clients or docs") as first:
        BrokerWSClient.from_env({**environ, "BROKER_DIALECT": unknown})
    with pytest.raises(ConfigurationError, match="dialect must be 'clients' or 'docs'") as second:
        BrokerWSClient.from_env(environ, dialect=unknown)
    assert "hush" not in f"{first.value}{second.value}"
