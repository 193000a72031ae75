"""The FastAPI example's page in a real browser, which sees what people would."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import attrs
import pytest
import trio
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.webservice import Service, broker_of, serving
from trio_broker import ReconnectPolicy
from trio_broker.sandbox import Sandbox, open_sandbox

T = TypeVar("T")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None,
    reason="needs chromium and chromedriver: Debian has them as chromium and chromium-driver",
)

DESKTOP, PHONE = (1280, 900), (375, 812)
QUICK: dict[str, Any] = {
    "seed": 7,
    "outcomes": {"filled": 1},
    "pending_delay": (0.05, 0.1),
    "processing_delay": (0.05, 0.1),
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    """One browser for all: it takes longest to start."""
    assert CHROMIUM is not None
    assert CHROMEDRIVER is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Driver(CHROMEDRIVER))
    yield browser
    browser.quit()


@attrs.frozen
class Page:
    """The page. Selenium blocks, so each question is asked in a thread."""

    browser: webdriver.Chrome
    sandbox: Sandbox
    service: Service

    async def do(self, what: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(partial(what, *args))

    async def run(self, script: str) -> Any:
        return await self.do(self.browser.execute_script, script)

    def _element(self, where: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, where)

    async def text(self, where: str) -> str:
        return await self.do(lambda: self._element(where).text)

    async def click(self, where: str) -> None:
        def click() -> None:
            WebDriverWait(self.browser, 20).until(lambda _: self._element(where).is_enabled())
            self._element(where).click()

        await self.do(click)

    async def fill(self, amount: str, asset_in: str, asset_out: str) -> None:
        def fill() -> None:
            place = self._element("#amount_in")
            place.clear()
            place.send_keys(amount)
            Select(self._element("#asset_in")).select_by_visible_text(asset_in)
            Select(self._element("#asset_out")).select_by_visible_text(asset_out)

        await self.do(fill)

    async def sees(self, where: str, text: str) -> str:
        """Wait until an element shows a text, and give all of what it shows."""

        def look(_: object) -> str | None:
            # In one question: what was found a moment ago may have been replaced.
            script = "return document.querySelector(arguments[0])?.innerText"
            shown: str | None = self.browser.execute_script(script, where)
            return shown if shown is not None and text in shown else None

        return await self.do(WebDriverWait(self.browser, 20, 0.02).until, look)

    async def complaints(self) -> list[str]:
        """What the browser has to say of the page's own script, lost connections apart."""
        said = await self.do(self.browser.get_log, "browser")
        return [each["message"] for each in said if each["source"] != "network"]


@asynccontextmanager
async def shown(
    browser: webdriver.Chrome,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: str = "light",
    is_sandbox: bool = True,
    **options: Any,
) -> AsyncIterator[Page]:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    async with open_sandbox(**QUICK) as sandbox:
        broker = attrs.evolve(broker_of(sandbox, **options), is_sandbox=is_sandbox)
        async with serving(broker) as service:
            page = Page(browser, sandbox, service)
            tell = browser.execute_cdp_cmd
            await page.do(tell, "Emulation.setDeviceMetricsOverride", metrics)
            await page.do(tell, "Emulation.setEmulatedMedia", media)
            await page.do(browser.get, service.url)
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
        await page.fill("1.5", "ETH", "USDT")
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
            await page.sees("#answer", "unknown")
            await page.sees("#unresolved", "Don't swap it a second time")
        await page.click("#go")  # again: it asks what became of the first
        await page.sees("#answer", "taken as order")
        await page.sees("#orders", "FILLED")
        assert len(page.sandbox.orders()) == 1
        assert not await page.run("return document.getElementById('unresolved').checkVisibility()")


async def test_another_filling_wants_another_estimate(chromium: webdriver.Chrome) -> None:
    async with shown(chromium) as page:
        await page.click("#estimate")
        await page.sees("#answer", "would bring")
        await page.fill("2", "BTC", "USDC")
        assert await page.run("return document.getElementById('go').disabled")
        await page.click("#estimate")
        await page.sees("#answer", "USDC")
        await page.click("#go")
        await page.sees("#orders", "2 BTC")
        (order,) = page.sandbox.orders()
        assert (order.terms.asset_in, order.terms.asset_out) == ("BTC", "USDC")


async def test_what_the_broker_refuses_is_said(chromium: webdriver.Chrome) -> None:
    async with shown(chromium) as page:
        await page.fill("5000", "ETH", "USDT")
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


# The contrast of each text on its ground, by the formula of WCAG 2.
CONTRASTS = """
const parse = (color) => color.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((each) => each / 255)
    .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const ground = (element) => {
  for (; element; element = element.parentElement) {
    const color = parse(getComputedStyle(element).backgroundColor);
    if (color.length === 3 || color[3] === 1) return color;
  }
  return [255, 255, 255];
};
document.getAnimations().forEach((each) => each.finish());
const found = {};
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility() || element.disabled) continue;
  const [a, b] = [parse(getComputedStyle(element).color), ground(element)].map(light);
  const name = `${element.tagName} ${element.className} ${element.textContent.slice(0, 20)}`;
  found[name] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
return found;
"""
