"""Opens a page in the machine's Chromium, through its debugging port on localhost.

The port comes up many seconds after the machine, so opening is tried again until a limit.
"""

import asyncio
import re
from urllib.parse import quote

import aiohttp
from yarl import URL

TRY_AGAIN_S = 0.5
REQUEST_TIMEOUT_S = 30.0
ANSWER_BYTES = 64 * 1024
_TARGET_ID = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9-]{1,64})"')


class BrowserUnavailable(Exception):
    """Chromium did not open the page within the limit."""


async def open_page(debugging_port: int, url: str, limit_s: float) -> None:
    """Open a checked URL in a new tab and bring it to the front."""
    base = f"http://127.0.0.1:{debugging_port}/json"
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    why = "it did not answer"
    try:
        async with asyncio.timeout(limit_s), aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                try:
                    await _open(session, base, url)
                    return
                except (aiohttp.ClientError, TimeoutError) as error:
                    why = type(error).__name__
                await asyncio.sleep(TRY_AGAIN_S)  # nothing tells when the port opens
    except TimeoutError:
        raise BrowserUnavailable(f"Chromium opened no page in {limit_s:.0f} s ({why})") from None


async def _open(session: aiohttp.ClientSession, base: str, url: str) -> None:
    # The whole URL is escaped, and Chromium undoes exactly that.
    target = URL(f"{base}/new?{quote(url, safe='')}", encoded=True)
    async with session.put(target) as answer:
        answer.raise_for_status()
        made = await answer.content.read(ANSWER_BYTES)
    found = _TARGET_ID.search(made)
    if found is not None:
        async with session.get(f"{base}/activate/{found.group(1).decode()}") as answer:
            await answer.content.read(ANSWER_BYTES)
