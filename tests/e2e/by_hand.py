"""Fill in the fake providers' forms through the live view.

Finds the forms by their colours, then clicks and types as a user does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import Page

EMAIL, PASSWORD = "ada@example.test", "analytical-engine"

_PATIENCE_S = 240
_LOOK_EVERY_S = 0.5
_ABOVE_THE_BUTTON_PX = 150
"""Distance of the e-mail field above the form's button, between their centres."""
_HALF_A_FIELD_PX = 22
_LOOK_AT = """(canvas, { x, y }) => {
  const copy = new OffscreenCanvas(360, 44).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, x, y, 360, 44, 0, 0, 360, 44);
  return copy.getImageData(0, 0, 360, 44).data.join();
}"""
_FIND_BUTTON = """(canvas) => {
  // The forms' buttons are #2456c8, but the screen may be compressed.
  const BROWSERS_OWN = 100; // the browser's own tabs and buttons, some of them blue
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const pixels = copy.getImageData(0, 0, width, height).data;
  let left = width, top = height, right = -1, bottom = -1;
  for (let at = 0, i = 0; i < pixels.length; i += 4, at += 1) {
    const [red, green, blue] = [pixels[i] - 36, pixels[i + 1] - 86, pixels[i + 2] - 200];
    if (Math.abs(red) + Math.abs(green) + Math.abs(blue) > 30) continue;
    const x = at % width, y = Math.floor(at / width);
    if (y < BROWSERS_OWN) continue;
    left = Math.min(left, x); right = Math.max(right, x);
    top = Math.min(top, y); bottom = Math.max(bottom, y);
  }
  if (right - left < 30 || bottom - top < 15) return null;
  return { left, top, right, bottom, width, height };
}"""


@dataclass(frozen=True)
class Button:
    """Position of a form's button, in pixels of the browser machine's screen."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


class Hand:
    """User at one connect page."""

    def __init__(self, page: Page, calls: Path) -> None:
        self._page = page
        self._screen = page.locator("#screen-view canvas")
        self._calls = calls

    async def log_in(self) -> None:
        """Sign in as Ada and authorize the CLI."""
        before = self._codes()
        button = await self.button(lambda it: it.top > it.height // 4)
        x, y = button.middle
        fields = {"x": button.left, "y": y - _ABOVE_THE_BUTTON_PX - _HALF_A_FIELD_PX}
        async with self._answered(fields):  # the focused field changes its look
            await self._click(x, y - _ABOVE_THE_BUTTON_PX, button)
        await self._page.keyboard.type(EMAIL, delay=40)
        fields["y"] = button.top - _HALF_A_FIELD_PX * 3
        async with self._answered(fields):
            await self._page.keyboard.press("Tab")
        await self._page.keyboard.type(PASSWORD, delay=40)
        await self._page.keyboard.press("Enter")
        consent = await self.button(lambda it: abs(it.top - button.top) > 40)
        await self._click(*consent.middle, consent)
        await _until(lambda: self._codes() > before, "authorized")

    async def button(self, matches: Callable[[Button], bool]) -> Button:
        """Return a form's button once its position is stable."""
        last = None
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                found = None
                if await self._screen.count():
                    found = await self._screen.evaluate(_FIND_BUTTON)
                seen = Button(**found) if found else None
                if seen is not None and seen == last and matches(seen):
                    return seen
                last = seen
                await asyncio.sleep(_LOOK_EVERY_S)

    @asynccontextmanager
    async def _answered(self, where: dict[str, float]) -> AsyncIterator[None]:
        """Wait until that part of the screen changes."""
        before = await self._screen.evaluate(_LOOK_AT, where)
        yield
        async with asyncio.timeout(_PATIENCE_S):
            while await self._screen.evaluate(_LOOK_AT, where) == before:
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _click(self, x: float, y: float, on: Button) -> None:
        box = await self._screen.bounding_box()
        assert box is not None
        scale = box["width"] / on.width
        await self._page.mouse.click(box["x"] + x * scale, box["y"] + y * scale)

    def _codes(self) -> int:
        """Count the authorized logins."""
        lines = self._calls.read_text().splitlines()
        return sum(json.loads(line)["event"] == "code-issued" for line in lines)


async def _until(holds: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while not holds():
                await asyncio.sleep(_LOOK_EVERY_S)
    except TimeoutError:
        raise AssertionError(f"not {what} within {_PATIENCE_S} s") from None
