"""The Django Channels example's page in a real browser, which sees what people would."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from selenium import webdriver

from tests.examples.browser import CONTRASTS, DESKTOP, PHONE, Page, needs_chromium, open_chromium
from tests.examples.test_django import COMMAND, QUICK, READY, both_users, serving
from tests.examples.web_service import until
from tests.servers import Server, started, variables
from trio_broker.sandbox import Account, Sandbox, open_sandbox

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    """One browser for all: it takes longest to start."""
    with open_chromium() as browser:
        yield browser


@attrs.frozen
class Site:
    sandbox: Sandbox
    server: Server
    browser: webdriver.Chrome

    async def page(self, *, user: str = "alice", another: bool = False, **how: Any) -> Page:
        """The page in the browser's first tab, or in another one."""
        page = Page(self.browser, self.browser.window_handles[0])
        if another:
            await page.do(self.browser.switch_to.new_window, "tab")
            page = Page(self.browser, self.browser.current_window_handle)
        await page.show(f"http://{self.server.address}/{user}/", **how)
        await page.sees("#state", "connected")
        await page.sees("#balances", "USDT")
        return page


@asynccontextmanager
async def site(browser: webdriver.Chrome) -> AsyncIterator[Site]:
    async with open_sandbox(**QUICK) as sandbox, serving(**both_users(sandbox)) as server:
        yield Site(sandbox, server, browser)
        first, *others = browser.window_handles
        for handle in others:
            await Page(browser, handle).do(browser.close)
        page = Page(browser, first)
        assert await page.complaints() == []
        # So that it doesn't go on asking for a site that has ended.
        await page.do(browser.get, "about:blank")


async def test_a_swap_on_the_page_reaches_filled_in_every_tab(chromium: webdriver.Chrome) -> None:
    async with site(chromium) as it:
        one, other = await it.page(), await it.page(another=True)
        bobs = await it.page(another=True, user="bob")
        assert await one.text("#broker") == "SANDBOX"
        await one.fill("#amount_in", "1.5")
        await one.choose("#asset_out", "USDC")
        await one.click("#go")
        await one.sees("#answer", "taken as order")
        line = await one.sees("#orders", "FILLED")
        (order,) = it.sandbox.orders()
        assert f"1.5 ETH → {order.filled_out.normalize():,f} USDC" in line
        assert order.order_id in line
        for page in (one, other):
            await page.sees("[data-asset=ETH]", "998.5")
            assert await page.sees("#orders", "FILLED") == line
        assert await bobs.text("#orders") == ""
        await bobs.sees("[data-asset=ETH]", "1,000")


async def test_outages_are_shown_and_end(chromium: webdriver.Chrome) -> None:
    async with site(chromium) as it:
        page = await it.page()
        it.sandbox.faults.kill()
        await page.sees("#connection", "reconnecting, next try in")
        assert "Not connected to the broker" in await page.text("#problem")
        assert await page.run("return document.getElementById('go').disabled")
        await it.sandbox.faults.revive()
        await page.sees("#state", "connected")
        assert not await page.run("return document.getElementById('problem').checkVisibility()")
        await page.click("#go")
        await page.sees("#orders", "FILLED")
        assert await it.server.stop(signal.SIGINT) == 0
        await page.sees("#connection", "site not reachable")
        assert "The site doesn't answer" in await page.text("#problem")


async def test_one_filling_of_the_form_is_one_swap(chromium: webdriver.Chrome) -> None:
    async with site(chromium) as it:
        page = await it.page()
        with it.sandbox.faults.delay(1.5, op="swap"):
            await page.run("const go = document.getElementById('go'); go.click(); go.click()")
            await page.sees("#answer", "swapping")
            # As if the answer had been lost: it is asked for again, and under the same key.
            await page.run("waiting = false; showConnection(); at('go').click()")
            # The line to the site is lost and comes back.
            await page.run("socket.close()")
            await page.sees("#connection", "site not reachable")
            await page.sees("#answer", "What became of this swap isn't known")
            await page.sees("#answer", "taken as order")
        await page.sees("#orders", "FILLED")
        assert len(it.sandbox.orders()) == 1


async def test_what_was_said_before_the_site_was_lost_counts_no_more(
    chromium: webdriver.Chrome,
) -> None:
    async with site(chromium) as it:
        page = await it.page()
        # The site comes back, and hasn't said yet how it stands with the broker.
        await page.run("heardConnection = () => {}; socket.close()")
        await page.sees("#connection", "site not reachable")
        await page.sees("#state", "connecting …")
        assert await page.run("return document.getElementById('go').disabled")


async def test_a_swap_that_a_new_site_knows_nothing_of_is_not_known(
    chromium: webdriver.Chrome,
) -> None:
    async with open_sandbox(**QUICK) as sandbox:
        async with serving(**variables(sandbox)) as server:
            page = await Site(sandbox, server, chromium).page()
            with sandbox.faults.swallow(op="swap"):
                await page.click("#go")
                await page.sees("#orders", "under way")
                await until(sandbox.orders)  # shown before it is sent
                await server.stop(signal.SIGKILL)
            await page.sees("#answer", "What became of this swap isn't known")
            assert "unknown" in await page.text("#orders")
        command = COMMAND.replace("8000", server.address.partition(":")[2])
        async with started(command, READY, **variables(sandbox)):
            await page.sees("#state", "connected")
            await page.sees("#orders", "the site knows nothing of it")
            await page.sees("#answer", "Look at the balances")
            assert await page.run("return document.getElementById('go').disabled")
            submit = "at('swap').requestSubmit(); return at('answer').textContent"
            assert "Look at the balances" in await page.run(submit)  # and not: swapping
            await page.fill("#amount_in", "2")  # somebody who has looked
            await page.click("#go")
            await page.sees("#answer", "taken as order")
            assert len(sandbox.orders()) == 2
            await page.do(chromium.get, "about:blank")


async def test_what_goes_wrong_is_said(chromium: webdriver.Chrome) -> None:
    async with site(chromium) as it:
        page = await it.page()
        await page.fill("#amount_in", "5000")
        await page.click("#go")
        await page.sees("#answer", "refused: Insufficient balance")
        await page.fill("#order_id", "ord_<b>")
        await page.click("#look")
        await page.sees("#orders", "ord_<b>")
        await page.sees("#orders", "order_id")
        await page.fill("#order_id", "ord_12345678")
        await page.click("#look")
        await page.sees("#orders", "Order not found")


async def test_real_money_is_only_shown(chromium: webdriver.Chrome) -> None:
    mine = Account("my_key", "my_secret")
    async with open_sandbox(**QUICK, accounts=[mine]) as sandbox:
        async with sandbox.client("my_key") as client:
            order_id = (await client.do_swap("1", "ETH", "USDT")).order_id
        async with serving(**variables(sandbox, 2)) as server:
            page = await Site(sandbox, server, chromium).page()
            assert await page.text("#broker") == "LIVE"
            assert "real money" in await page.text("#no-swap")
            assert not await page.run("return document.getElementById('swap').checkVisibility()")
            await page.fill("#order_id", order_id)
            await page.click("#look")
            await page.sees("#orders", "FILLED")
            await page.do(chromium.get, "about:blank")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
async def test_it_fits_and_can_be_read(
    chromium: webdriver.Chrome, size: tuple[int, int], scheme: str
) -> None:
    async with site(chromium) as it:
        page = await it.page(size=size, scheme=scheme)
        await page.fill("#amount_in", "0.123456789012345678")
        await page.click("#go")
        await page.sees("#orders", "FILLED")
        await page.fill("#order_id", "7" * 64)
        await page.click("#look")
        await page.sees("#orders", "Order not found")
        it.sandbox.push(
            '{"ch": "balances", "data": [{"asset": "WEI", "total": "%s"}]}' % ("7" * 60)
        )
        await page.sees("#balances", "777")
        assert await page.run("return document.documentElement.scrollWidth") == size[0]
        contrasts = await page.run(CONTRASTS)
        assert contrasts
        assert min(contrasts.values()) >= 4.5, contrasts  # WCAG 2, level AA
        nameless = await page.run(
            "return [...document.querySelectorAll('input, select')]"
            ".filter((each) => !each.labels.length).map((each) => each.id)"
        )
        assert nameless == []
