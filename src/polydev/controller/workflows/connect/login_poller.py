"""Starting the login in a browser machine, and watching it until it has come to something.

The connect workflow's steps use it. A workflow that was taken up again watches anew.
"""

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
"""Between two questions: a machine that answers at once instead of when it has news would keep the
controller and the host agent busy for as long as the person may take."""
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class LoginPoller:
    """One session's login."""

    service: BrowserService
    session: ConnectSession
    is_lost: Callable[[], Awaitable[bool]]
    """Whether the machine's host has not answered for too long."""

    async def start(self) -> LoginUrl:
        """Start the CLI's login and return its URLs, checked. The caller limits the time."""
        about = provider(self.session.provider)
        await self.service.start(about.id, self.session.session_id)
        # It answers when it knows, or after its long poll.
        while (urls := await self.service.url(about.id)) is None:  # noqa: ASYNC110
            await asyncio.sleep(_BREATH_S)
        own = urls.ownBrowserUrl
        return LoginUrl(
            url=check_oauth_url(about, urls.url),
            ownBrowserUrl=None if own is None else check_oauth_url(about, own),
        )

    async def wait_until_done(self) -> None:
        """Return when the login is complete. A host agent or channel that is away for a while ends
        nothing: the person's time does, and the caller keeps it. Raises: LoginFailed, HostLost."""
        version = -1
        while True:
            try:
                state = await self.service.state(self.session.provider, version)
            except Unavailable as error:
                log.info("session %s: %s", self.session.session_id, error.message)
                if isinstance(error, HostUnreachable) and await self.is_lost():
                    raise HostLost(
                        "The host on which the login was done does not answer any more",
                        hint="Connect again",
                    ) from None
                await asyncio.sleep(_PAUSE_S)
                continue
            if state.step == "ready":
                return
            if state.step == "failed":
                why = clean_text(state.reason, _MAX_REASON) or "it did not say why"
                raise LoginFailed(f"The CLI's login failed: {why}", hint="Connect again")
            version = state.version
            await asyncio.sleep(_BREATH_S)
