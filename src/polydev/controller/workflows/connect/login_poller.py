"""Start a login in a browser machine, and poll it until it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from polydev.controller.workflows.connect.browser_service_client import BrowserService, LoginUrl
from polydev.shared.domain import ConnectSession
from polydev.shared.errors import HostLost, HostUnreachable, LoginFailed, Unavailable
from polydev.shared.providers import check_oauth_url, clean_text, provider

log = logging.getLogger("polydev.controller.workflows")

_PAUSE_S = 1.0
_BREATH_S = 0.25
"""Pause between two polls, in case a hostile machine answers long polls immediately."""
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class LoginPoller:
    """Polls one session's login."""

    service: BrowserService
    session: ConnectSession
    is_lost: Callable[[], Awaitable[bool]]
    """Checks whether the machine's host is dead."""

    async def start(self) -> LoginUrl:
        """Start the CLI's login and return its checked URLs. The caller sets the time limit."""
        about = provider(self.session.provider)
        await self.service.start(about.id, self.session.session_id)
        # a long poll: it answers once the URL is known
        while (urls := await self.service.url(about.id)) is None:  # noqa: ASYNC110
            await asyncio.sleep(_BREATH_S)
        own = urls.ownBrowserUrl
        return LoginUrl(
            url=check_oauth_url(about, urls.url),
            ownBrowserUrl=None if own is None else check_oauth_url(about, own),
        )

    async def wait_until_done(self) -> None:
        """Wait until the login is complete. Raises LoginFailed, HostLost.

        A host or channel that is unreachable for a while is no failure. The caller sets the user's
        deadline.
        """
        version = -1
        while True:
            try:
                state = await self.service.state(self.session.provider, version)
            except Unavailable as error:
                log.info("session %s: %s", self.session.session_id, error.message)
                if isinstance(error, HostUnreachable) and await self.is_lost():
                    raise HostLost(
                        "The host of the browser machine does not answer",
                        hint="Connect again",
                    ) from None
                await asyncio.sleep(_PAUSE_S)
                continue
            if state.step == "ready":
                return
            if state.step == "failed":
                why = clean_text(state.reason, _MAX_REASON) or "no reason given"
                raise LoginFailed(f"The CLI's login failed: {why}", hint="Connect again")
            version = state.version
            await asyncio.sleep(_BREATH_S)
