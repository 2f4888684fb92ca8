"""The client of a browser machine's HTTP service (SPEC section 5): one login, from outside.

The connect workflow starts the login and reads what came of it; the API hands in what a person
pastes. The service runs in a machine that may be hostile: answers are small, of the right shape or
refused, and words from it are cleaned before anybody sees them. Which URLs and credentials are
good is `providers`' to say.
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
from polydev.shared.host_client import Host
from polydev.shared.providers import clean_text

PORT = 8080
LONG_POLL_S = 25
_ANSWER_S = 20.0
_MAX_ANSWER_BYTES = 256 * 1024
_MAX_WORDS = 300


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


T = TypeVar("T", bound=_Answer)


class LoginUrl(_Answer):
    """The URLs that the CLI gave; not checked yet."""

    url: str
    ownBrowserUrl: str | None = None  # noqa: N815  (the service's name)


class LoginState(_Answer):
    """How the login stands. `version` grows with every change."""

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
    """The service of one browser machine.

    Raises, from every call: ChannelLost, HostUnreachable as the host does; LoginFailed if the
    machine has ended, and its login with it; GuestMisbehaved for an answer that the service cannot
    give.
    """

    host: Host
    vm_id: VmId
    token: SecretStr

    async def is_healthy(self) -> bool:
        """Whether the service answers."""
        answer = await self._ask("GET", "/health")
        return answer.status_code == 200

    async def start(self, provider: str, session_id: SessionId) -> None:
        """Start the CLI's login; done also when it runs already."""
        answer = await self._ask("POST", f"/auth/{provider}", json={"sessionId": session_id})
        self._require(answer, 202)

    async def url(self, provider: str, wait_s: int = LONG_POLL_S) -> LoginUrl | None:
        """The URL that the CLI wants opened; None if it is not known within `wait_s`.

        Raises: LoginFailed if the CLI ended before.
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
        """How the login stands, as soon as it is no longer at version `after`."""
        path = f"/auth/{provider}/state"
        answer = await self._ask("GET", path, params={"after": after, "wait": wait_s})
        self._require(answer, 200)
        return self._parsed(LoginState, answer)

    async def credentials(self, provider: str) -> dict[str, Any]:
        """What the login left: secret, and not checked yet. Raises LoginFailed if there is none."""
        path = f"/auth/{provider}/credentials/status"
        answer = await self._ask("GET", path, params={"wait": 0})
        self._require(answer, 200)
        found = self._parsed(_Credentials, answer)
        if not found.ready or found.credentials is None:
            raise _failed(found.reason or "it is not complete")
        return found.credentials

    async def paste(self, provider: str, what: Literal["code", "callbackUrl"], text: str) -> None:
        """Hand in what a person pasted. Raises PasteRefused, LoginNotWaiting."""
        answer = await self._ask("POST", f"/auth/{provider}/input", json={what: text})
        if answer.status_code in (404, 409):
            raise LoginNotWaiting("The login does not wait for a pasted code or URL now")
        if answer.status_code == 422:
            why = clean_text(self._parsed(_Problem, answer).detail, _MAX_WORDS)
            raise PasteRefused(f"What was pasted cannot be used: {why}")
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
                f"The browser machine {self.vm_id} ended before the login was done",
                hint="Connect again",
            ) from None
        except httpx.HTTPError as error:
            raise ChannelLost(
                f"The browser machine {self.vm_id} broke off its answer ({type(error).__name__})"
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
                f"The browser machine {self.vm_id} answered something of the wrong shape "
                f"to {answer.request.method} {answer.request.url.path}"
            ) from None


def _failed(reason: str) -> LoginFailed:
    words = clean_text(reason, _MAX_WORDS) or "it did not say why"
    return LoginFailed(f"The CLI's login failed: {words}", hint="Connect again")
