"""Client of the HTTP service in a browser machine, which runs one login.

The connect workflow starts the login and reads its result; the API passes on what the user pastes.
The machine may be hostile. So answers are limited in size, checked against a schema, and their
texts are cleaned before they are shown. `providers` checks URLs and credentials.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from polydev.shared.domain import SessionId, VmId
from polydev.shared.errors import (
    ChannelLost,
    GuestMisbehaved,
    LoginFailed,
    LoginNotWaiting,
    MachineBusy,
    NoSuchMachine,
    PasteRefused,
)
from polydev.shared.host_client import HostClient
from polydev.shared.providers import clean_text

PORT = 8080
LONG_POLL_S = 25
_ANSWER_S = 20.0
_MAX_ANSWER_BYTES = 256 * 1024
_MAX_REASON_CHARS = 300


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


T = TypeVar("T", bound=_Answer)


class LoginUrl(_Answer):
    """URLs from the CLI, not checked yet."""

    url: str
    ownBrowserUrl: str | None = None  # noqa: N815  (name in the service's JSON)


class LoginState(_Answer):
    """State of the login. `version` increases with every change."""

    step: Literal["starting", "waiting_for_person", "ready", "failed"]
    version: int
    reason: str | None = None


class _Credentials(_Answer):
    ready: bool
    credentials: dict[str, Any] | None = None
    reason: str | None = None


class _Problem(_Answer):
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BrowserService:
    """Client of one browser machine's service.

    Every call raises: ChannelLost and HostUnreachable, like the host; LoginFailed if the machine
    has stopped; GuestMisbehaved for an invalid answer.
    """

    host: HostClient
    vm_id: VmId
    token: SecretStr

    async def is_healthy(self) -> bool:
        """Check whether the service answers."""
        answer = await self._ask("GET", "/health")
        return answer.status_code == 200

    async def start(self, provider: str, session_id: SessionId) -> None:
        """Start the CLI's login. Idempotent."""
        answer = await self._ask("POST", f"/auth/{provider}", json={"sessionId": session_id})
        self._require(answer, 202)

    async def url(self, provider: str, wait_s: int = LONG_POLL_S) -> LoginUrl | None:
        """Wait for the URL that the CLI wants opened. None if there is none within `wait_s`.

        Raises LoginFailed if the CLI exited before.
        """
        answer = await self._ask("GET", f"/auth/{provider}/oauth-url", params={"wait": wait_s})
        if answer.status_code == 404:
            problem = self._parsed(_Problem, answer)
            if problem.code == "not_known_yet":
                return None
            raise _failed(problem.detail)
        self._require(answer, 200)
        return self._parsed(LoginUrl, answer)

    async def state(self, provider: str, after: int, wait_s: int = LONG_POLL_S) -> LoginState:
        """Wait until the login's state is no longer at version `after`."""
        path = f"/auth/{provider}/state"
        answer = await self._ask("GET", path, params={"after": after, "wait": wait_s})
        self._require(answer, 200)
        return self._parsed(LoginState, answer)

    async def credentials(self, provider: str) -> dict[str, Any]:
        """Read the login's credentials, not checked yet. Raises LoginFailed."""
        path = f"/auth/{provider}/credentials/status"
        answer = await self._ask("GET", path, params={"wait": 0})
        self._require(answer, 200)
        found = self._parsed(_Credentials, answer)
        if not found.ready or found.credentials is None:
            raise _failed(found.reason or "it is not complete")
        return found.credentials

    async def paste(self, provider: str, what: Literal["code", "callbackUrl"], text: str) -> None:
        """Pass on what the user pasted. Raises PasteRefused, LoginNotWaiting."""
        answer = await self._ask("POST", f"/auth/{provider}/input", json={what: text})
        if answer.status_code in (404, 409):
            raise LoginNotWaiting("The login is not waiting for a pasted code or URL")
        if answer.status_code == 422:
            why = clean_text(self._parsed(_Problem, answer).detail, _MAX_REASON_CHARS)
            raise PasteRefused(f"The pasted text cannot be used: {why}")
        self._require(answer, 202)

    async def _ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        async with self._client() as client:
            return await client.request(method, path, **what)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        client = self.host.http(
            self.vm_id,
            PORT,
            headers={"authorization": f"Bearer {self.token.get_secret_value()}"},
            timeout_s=LONG_POLL_S + _ANSWER_S,
            max_body_bytes=_MAX_ANSWER_BYTES,
        )
        try:
            async with client:
                yield client
        except (MachineBusy, NoSuchMachine):
            raise LoginFailed(
                f"The browser machine {self.vm_id} stopped before the login was complete",
                hint="Connect again",
            ) from None
        except httpx.HTTPError as error:
            raise ChannelLost(
                f"The browser machine {self.vm_id} interrupted its answer ({type(error).__name__})"
            ) from None

    def _require(self, answer: httpx.Response, status: int) -> None:
        if answer.status_code != status:
            raise GuestMisbehaved(
                f"The browser machine {self.vm_id} answered {answer.status_code} "
                f"to {answer.request.method} {answer.request.url.path}"
            )

    def _parsed(self, kind: type[T], answer: httpx.Response) -> T:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError:
            raise GuestMisbehaved(
                f"The browser machine {self.vm_id} sent an invalid answer "
                f"to {answer.request.method} {answer.request.url.path}"
            ) from None


def _failed(reason: str) -> LoginFailed:
    text = clean_text(reason, _MAX_REASON_CHARS) or "no reason given"
    return LoginFailed(f"The CLI's login failed: {text}", hint="Connect again")
