"""A real browser, which sees of a page what people would."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import attrs
import pytest
import trio
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

T = TypeVar("T")

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER: Final = shutil.which("chromedriver")
needs_chromium: Final = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None,
    reason="needs chromium and chromedriver: Debian has them as chromium and chromium-driver",
)

DESKTOP: Final = (1280, 900)
PHONE: Final = (375, 812)


@contextmanager
def open_chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window, for as long as the block lasts."""
    assert CHROMIUM is not None
    assert CHROMEDRIVER is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Driver(CHROMEDRIVER))
    try:
        yield browser
    finally:
        browser.quit()


@attrs.frozen
class Page:
    """A tab. Selenium blocks, so each question is asked in a thread; it has one tab in front."""

    browser: webdriver.Chrome
    handle: str

    async def do(self, what: Callable[..., T], *args: Any) -> T:
        def in_front() -> T:
            self.browser.switch_to.window(self.handle)
            return what(*args)

        return await trio.to_thread.run_sync(in_front)

    async def show(
        self, url: str, *, size: tuple[int, int] = DESKTOP, scheme: str = "light"
    ) -> None:
        width, height = size
        metrics = {
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": size == PHONE,
        }
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        tell = self.browser.execute_cdp_cmd
        await self.do(tell, "Emulation.setDeviceMetricsOverride", metrics)
        await self.do(tell, "Emulation.setEmulatedMedia", media)
        await self.do(self.browser.get, url)

    async def run(self, script: str) -> Any:
        return await self.do(self.browser.execute_script, script)

    def element(self, where: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, where)

    async def text(self, where: str) -> str:
        return await self.do(lambda: self.element(where).text)

    async def click(self, where: str) -> None:
        def click() -> None:
            WebDriverWait(self.browser, 20).until(lambda _: self.element(where).is_enabled())
            self.element(where).click()

        await self.do(click)

    async def fill(self, where: str, text: str) -> None:
        def fill() -> None:
            self.element(where).clear()
            self.element(where).send_keys(text)

        await self.do(fill)

    async def choose(self, where: str, text: str) -> None:
        await self.do(lambda: Select(self.element(where)).select_by_visible_text(text))

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


# The contrast of each text on its ground, by the formula of WCAG 2.
CONTRASTS: Final = """
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
