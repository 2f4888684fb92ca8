"""Users of a controller under test: invited, signed up, with tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
from controller_process import ControllerProcess

PASSWORD = "a password of the tests only"


@dataclass(frozen=True)
class TestUser:
    """A user with an account."""

    __test__ = False

    controller: ControllerProcess
    user_id: str
    email: str
    cookies: dict[str, str]
    csrf: str
    sign_in_id: str

    def by_cookie(self) -> httpx.AsyncClient:
        """Return a client with the sign-in cookie."""
        return self._client({"X-CSRF-Token": self.csrf}, self.cookies)

    async def token(self, *scopes: str) -> tuple[str, str]:
        """Create an API token with these scopes; return its id and text."""
        async with self.by_cookie() as client:
            asked = {"name": "a test's", "scopes": list(scopes)}
            answer = await client.post("/api/account/tokens", json=asked)
            assert answer.status_code == 201, answer.text
            return answer.json()["tokenId"], answer.json()["token"]

    async def by_token(self, *scopes: str) -> httpx.AsyncClient:
        """Return a client with a new API token of these scopes."""
        _, text = await self.token(*scopes)
        return self._client({"Authorization": f"Bearer {text}"}, {})

    def _client(self, headers: dict[str, str], cookies: dict[str, str]) -> httpx.AsyncClient:
        return self.controller.client_as(headers=headers, cookies=cookies)


async def create_user(controller: ControllerProcess, name: str) -> TestUser:
    """Invite a user and sign them up."""
    email = f"{name}@example.org"
    invited: dict[str, Any] = await controller.call("POST", "/api/admin/invitations", {})
    asked = {"email": email, "password": PASSWORD, "invitation": invited["code"]}
    async with controller.client_as() as client:
        answer = await client.post("/api/account/sign-up", json=asked)
        assert answer.status_code == 201, answer.text
        view = answer.json()
        return TestUser(
            controller=controller,
            user_id=view["id"],
            email=email,
            cookies=dict(client.cookies),
            csrf=view["csrfToken"],
            sign_in_id=view["signInId"],
        )
