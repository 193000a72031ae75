"""The FastAPI example's page in a real browser, which sees what people would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from selenium import webdriver

from examples.fastapi_service import board as service_board
from tests.examples.browser import (
    CONTRASTS,
    DESKTOP,
    PHONE,
    Page as AnyPage,
    needs_chromium,
    open_chromium,
)
from tests.examples.web_service import Service, broker_of, serving, until
from trio_broker import ConnectionState, ReconnectPolicy
from trio_broker.sandbox import Sandbox, open_sandbox

pytestmark = needs_chromium

QUICK: dict[str, Any] = {
    "seed": 7,
    "outcomes": {"filled": 1},
    "pending_delay": (0.05, 0.1),
    "processing_delay": (0.05, 0.1),
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    """One browser for all: it takes longest to start."""
    with open_chromium() as browser:
        yield browser


@attrs.frozen
class Page(AnyPage):
    """The page, and what is behind it."""

    sandbox: Sandbox
    service: Service

    async def fill_in(self, amount: str, asset_in: str, asset_out: str) -> None:
        await self.fill("#amount_in", amount)
        await self.choose("#asset_in", asset_in)
        await self.choose("#asset_out", asset_out)


@asynccontextmanager
async def shown(
    browser: webdriver.Chrome,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: str = "light",
    is_sandbox: bool = True,
    **options: Any,
) -> AsyncIterator[Page]:
    async with open_sandbox(**QUICK) as sandbox:
        broker = attrs.evolve(broker_of(sandbox, **options), is_sandbox=is_sandbox)
        async with serving(broker) as service:
            page = Page(browser, browser.current_window_handle, sandbox, service)
            await page.show(service.url, size=size, scheme=scheme)
            await page.sees("#connection", "connected")
            await page.sees("#balances", "USDT")
            yield page
            assert await page.complaints() == []
            # So that it doesn't go on asking for a service that has ended.
            await page.do(browser.get, "about:blank")


def balance(asset: str, total: str) -> str:
    return json.dumps({"ch": "balances", "data": [{"asset": asset, "total": total}]})


async def test_a_swap_on_the_page_reaches_filled(chromium: webdriver.Chrome) -> None:
    async with shown(chromium) as page:
        assert await page.text("#broker") == "SANDBOX"
        await page.fill_in("1.5", "ETH", "USDT")
        await page.click("#estimate")
        await page.sees("#answer", "would bring")
        await page.click("#go")
        await page.sees("#answer", "taken as order")
        line = await page.sees("#orders", "FILLED")
        (order,) = page.sandbox.orders()
        assert f"1.5 ETH → {order.filled_out.normalize():,f} USDT" in line
        assert order.order_id in line
        assert await page.sees("[data-asset=ETH]", "998.5")
        assert await page.sees("[data-asset=USDT]", f"+{order.filled_out.normalize():,f}")


async def test_an_outage_is_shown_and_ends(chromium: webdriver.Chrome) -> None:
    patient = ReconnectPolicy(max_attempts=None, initial_delay=2.0, max_delay=2.0)
    async with shown(chromium, reconnect=patient) as page:
        page.sandbox.drop_connections()
        await page.sees("#connection", "reconnecting, next try in")
        assert "Not connected to the broker" in await page.text("#problem")
        assert await page.run("return document.getElementById('estimate').disabled")
        await page.sees("#state", "connected")
        assert not await page.run("return document.getElementById('problem').checkVisibility()")
        assert await page.text("#countdown") == ""


async def test_a_service_that_is_gone_is_shown(chromium: webdriver.Chrome) -> None:
    async with shown(chromium) as page:
        page.service.stop.set()
        await page.sees("#connection", "service not reachable")
        assert "The service doesn't answer" in await page.text("#problem")


async def test_a_service_that_was_started_anew_shows_its_own_orders(
    chromium: webdriver.Chrome,
) -> None:
    async with shown(chromium) as page:
        await page.service.swap("0.25")
        await page.sees("#orders", "0.25 ETH")
        page.service.stop.set()
        await until(lambda: page.service.client.state is ConnectionState.CLOSED)
        bind = page.service.url.removeprefix("http://")
        async with serving(broker_of(page.sandbox), bind=bind) as anew:
            await page.sees("#connection", "connected")
            await page.sees("#no-orders", "None since this service began.")
            assert await page.text("#orders") == ""
            await anew.swap("0.75")
            assert "0.25 ETH" not in await page.sees("#orders", "0.75 ETH")
            await page.do(chromium.get, "about:blank")


async def test_two_clicks_are_one_swap(chromium: webdriver.Chrome) -> None:
    async with shown(chromium) as page:
        await page.click("#estimate")
        await page.sees("#answer", "would bring")
        with page.sandbox.faults.delay(0.2, op="swap"):
            await page.run("const go = document.getElementById('go'); go.click(); go.click()")
            await page.sees("#answer", "taken as order")
        await page.sees("#orders", "FILLED")
        assert len(page.sandbox.orders()) == 1


async def test_one_filling_of_the_form_is_one_swap(chromium: webdriver.Chrome) -> None:
    async with shown(chromium, request_timeout=0.1, resolve_timeout=0.1, reply_grace=0.1) as page:
        await page.click("#estimate")
        await page.sees("#answer", "would bring")
        faults = page.sandbox.faults
        with faults.swallow(op="swap"), faults.swallow(op="order_status"):
            await page.click("#go")
            said = await page.sees("#answer", "unknown")
            assert "before you swap again. Swap asks for the same one again." in said
            await page.sees("#unresolved", "Don't swap it a second time")
        await page.click("#go")  # again: it asks what became of the first
        await page.sees("#answer", "taken as order")
        await page.sees("#orders", "FILLED")
        assert len(page.sandbox.orders()) == 1
        assert not await page.run("return document.getElementById('unresolved').checkVisibility()")


async def test_what_is_not_known_is_asked_for_on_the_page(
    chromium: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_board, "ASK_AGAIN_AFTER", 1000.0)
    async with shown(chromium, request_timeout=0.1, resolve_timeout=0.1, reply_grace=0.1) as page:
        faults = page.sandbox.faults
        with faults.swallow(op="swap"), faults.swallow(op="order_status"):
            assert (await page.service.swap("0.25")).status_code == 202
            await page.sees("#unresolved", "What became of 0.25 ETH")
            await page.click("#unresolved button")
            await page.sees("#unresolved", "Still not known.")
        # The lane of a lookup may still be kept for the lost reply: then asking brings nothing yet.
        ask = "document.querySelector('#unresolved button:enabled')?.click()"
        while "FILLED" not in await page.text("#orders"):
            await page.run(ask)
        assert not await page.run("return document.getElementById('unresolved').checkVisibility()")
        assert len(page.sandbox.orders()) == 1


# A proxy before the service, which answers in its stead, once, after the swap has gone through.
PROXY = """
const real = window.fetch;
window.fetch = async (path, options) => {
  const response = await real(path, options);
  if (path !== "/swap") return response;
  window.fetch = real;
  return new Response('%s', {status: %d, headers: {"Content-Type": "application/json"}});
};
"""


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (504, '{"message": "The upstream server is timing out"}'),
        (502, '{"detail": "bad gateway"}'),
        (503, '{"error": "no healthy upstream"}'),
        (500, '{"success": false, "detail": "internal error"}'),
        (404, '{"message": "no Route matched"}'),
        (504, "<html>"),
        (504, "null"),
    ],
)
async def test_what_a_proxy_answers_is_no_end_of_a_swap(
    chromium: webdriver.Chrome, status: int, body: str
) -> None:
    async with shown(chromium) as page:
        await page.click("#estimate")
        await page.sees("#answer", "would bring")
        await page.run(PROXY % (body, status))
        await page.click("#go")
        await page.sees("#answer", "What became of the swap isn't known")
        (order,) = page.sandbox.orders()
        await page.click("#estimate")  # for the same: that is no other swap
        await page.sees("#answer", "would bring")
        await page.click("#go")
        await page.sees("#answer", f"taken as order {order.order_id}")
        assert len(page.sandbox.orders()) == 1
        assert await page.run("return document.getElementById('go').disabled")


async def test_what_is_said_of_a_second_try_is_no_end_of_the_first(
    chromium: webdriver.Chrome,
) -> None:
    async with shown(chromium) as page:
        await page.click("#estimate")
        await page.sees("#answer", "would bring")
        await page.run(PROXY % ("{}", 504))
        await page.click("#go")
        await page.sees("#answer", "What became of the swap isn't known")
        # The first one's outcome can't be had for now, and the answer is the service's own.
        await page.run("""
            const real = window.fetch;
            window.fetch = async (path, options) => {
              if (path === "/swap") return real(path, options);
              window.fetch = real;
              return new Response('{"success": false, "detail": "not now"}', {status: 403});
            };
        """)
        await page.click("#go")
        await page.sees("#answer", "the answer isn't the service's")
        await page.click("#go")
        await page.sees("#answer", "taken as order")
        assert len(page.sandbox.orders()) == 1


async def test_another_filling_wants_another_estimate(chromium: webdriver.Chrome) -> None:
    async with shown(chromium) as page:
        await page.click("#estimate")
        await page.sees("#answer", "would bring")
        await page.fill_in("2", "BTC", "USDC")
        assert await page.run("return document.getElementById('go').disabled")
        await page.click("#estimate")
        await page.sees("#answer", "USDC")
        await page.click("#go")
        await page.sees("#orders", "2 BTC")
        (order,) = page.sandbox.orders()
        assert (order.terms.asset_in, order.terms.asset_out) == ("BTC", "USDC")


async def test_what_the_broker_refuses_is_said(chromium: webdriver.Chrome) -> None:
    async with shown(chromium) as page:
        await page.fill_in("5000", "ETH", "USDT")
        await page.click("#estimate")
        await page.sees("#answer", "would bring")
        await page.click("#go")
        await page.sees("#answer", "Insufficient balance")
        assert page.sandbox.orders() == ()


async def test_real_money_is_only_shown(chromium: webdriver.Chrome) -> None:
    async with shown(chromium, is_sandbox=False) as page:
        assert await page.text("#broker") == "LIVE"
        assert "doesn't swap" in await page.text("#no-swap")
        assert not await page.run("return document.getElementById('swap').checkVisibility()")


async def test_what_the_broker_says_is_text(chromium: webdriver.Chrome) -> None:
    name = "<img src=x onerror=document.title='caught'>"
    async with shown(chromium) as page:
        page.sandbox.push(balance(name, "1"))
        await page.sees("#balances", name)
        assert await page.run("return document.title") == "trio-broker"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
async def test_it_fits_and_can_be_read(
    chromium: webdriver.Chrome, size: tuple[int, int], scheme: str
) -> None:
    async with shown(chromium, size=size, scheme=scheme) as page:
        for amount in ("0.123456789012345678", "100"):
            await page.service.swap(amount)
        await page.sees("#orders", "FILLED")
        page.sandbox.push(balance("WEI", "7" * 60))
        await page.sees("#balances", "777")
        assert await page.run("return document.documentElement.scrollWidth") == size[0]
        contrasts = await page.run(CONTRASTS)
        assert contrasts
        assert min(contrasts.values()) >= 4.5, contrasts  # WCAG 2, level AA


async def test_everything_to_fill_in_has_a_name(chromium: webdriver.Chrome) -> None:
    async with shown(chromium) as page:
        nameless = await page.run(
            "return [...document.querySelectorAll('input, select')]"
            ".filter((each) => !each.labels.length).map((each) => each.id)"
        )
        assert nameless == []
