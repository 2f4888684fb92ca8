"""Wait until Chromium has painted a page. `settle` runs it with the guest's Python.

The caller sets the time limit. Source: chromedevtools.github.io/devtools-protocol,
`Page.captureScreenshot`, which answers when there is a picture to answer with.
"""

import asyncio

import aiohttp

LISTING = "http://127.0.0.1:9222/json/list"
TRY_AGAIN_S = 0.2
ANSWER_LIMIT_S = 60.0
ANSWER_BYTES = 16 * 1024 * 1024


async def wait_first_paint() -> None:
    """Wait for a painted page."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            try:
                if await _is_painted(session):
                    return
            except (aiohttp.ClientError, TimeoutError, ValueError, TypeError):
                pass  # not there yet
            await asyncio.sleep(TRY_AGAIN_S)  # there is no notification of the open port


async def _is_painted(session: aiohttp.ClientSession) -> bool:
    async with session.get(LISTING) as answer:
        targets = await answer.json(content_type=None)
    pages = [target["webSocketDebuggerUrl"] for target in targets if target.get("type") == "page"]
    if not pages:
        return False
    async with session.ws_connect(pages[0], max_msg_size=ANSWER_BYTES) as page:
        await page.send_json({"id": 1, "method": "Page.captureScreenshot"})
        while True:
            message = await page.receive_json(timeout=ANSWER_LIMIT_S)
            if message.get("id") == 1:
                return bool(message.get("result", {}).get("data"))


asyncio.run(wait_first_paint())
