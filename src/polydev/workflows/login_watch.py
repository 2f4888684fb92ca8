"""Starting the login in a browser machine, and watching it until it has come to something.

The connect workflow's steps use it. Watching is plain code outside the journal: whoever runs the
workflow watches, and sends it one message; a workflow that was taken up again watches anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from polydev.domain import ConnectSession
from polydev.errors import LoginFailed, PolydevError, Unavailable
from polydev.providers import check_oauth_url, cleaned, provider
from polydev.workflows.login import BrowserService, LoginUrl
from polydev.workflows.session_notes import SessionNotes

log = logging.getLogger("polydev.workflows")

_PAUSE_S = 1.0
_BREATH_S = 0.25
"""Between two questions: a machine that answers at once instead of when it has news would keep the
controller and the host agent busy for as long as the person may take."""
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class LoginWatch:
    """One session's login."""

    service: BrowserService
    session: ConnectSession

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

    async def outcome(self, notes: SessionNotes) -> Mapping[str, str]:
        """The message for the workflow: `ready`, `failed` with its reason, or `cancel`."""
        login = asyncio.create_task(self._login_end())
        wish = asyncio.create_task(notes.interrupted(self.session.session_id))
        both: set[asyncio.Task[PolydevError | None]] = {login, wish}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if wish.done():
                return {"outcome": "cancel"}
            failure = login.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        if failure is None:
            return {"outcome": "ready"}
        return {"outcome": "failed", "message": failure.message, "hint": failure.hint}

    async def _login_end(self) -> PolydevError | None:
        """Returns when the login is complete, or with why it will not be. A host agent or channel
        that is away for a while ends nothing: the person's time does."""
        version = -1
        while True:
            try:
                state = await self.service.state(self.session.provider, version)
            except Unavailable as error:
                log.info("session %s: %s", self.session.session_id, error.message)
                await asyncio.sleep(_PAUSE_S)
                continue
            except PolydevError as error:
                return error
            if state.step == "ready":
                return None
            if state.step == "failed":
                why = cleaned(state.reason, _MAX_REASON) or "it did not say why"
                return LoginFailed(f"The CLI's login failed: {why}", hint="Connect again")
            version = state.version
            await asyncio.sleep(_BREATH_S)
