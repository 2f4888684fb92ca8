"""No user reaches another user's resources by any operation, WebSocket or stream.

The tests take them from the OpenAPI document and the app's routes, so they cover new ones. A new
one fails here until the test knows what to send.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from api_operations import Operation, operations
from api_users import PASSWORD, TestUser, create_user
from controller_world import World, open_world
from fastapi.routing import APIWebSocketRoute, iter_route_contexts
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from polydev.controller.api.server import build_routes
from polydev.shared.domain import Scope

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCOPES = [it.value for it in Scope if it is not Scope.ADMIN]
OPEN = {
    "getGreeting",
    "getHealth",
    "waysIn",
    "signUp",
    "signIn",
    "startAtProvider",
    "backFromProvider",
}
"""Public operations, which reveal nothing of users."""

_OF_THE_MOMENT = re.compile(r'"seenAt":"[^"]*"')
"""The time of the current sign-in, which every request changes."""
UNOWNED = {
    "vmId": "vm-00000000-0000-4000-8000-000000000000",
    "sessionId": "00000000-0000-4000-8000-000000000000",
    "credential_id": "00000000-0000-5000-8000-000000000000",
    "token_id": "0123456789abcdef",
    "sign_in_id": "0123456789abcdef",
    "invitation_id": "0123456789abcdef",
    "user_id": "00000000-0000-4000-8000-000000000001",
    "userId": "00000000-0000-4000-8000-000000000001",
    "hostId": "nowhere",
    "key_id": "key-000000000000",
    "rotation_id": "key-000000000000.000000000000",
    "chatId": "00000000-0000-4000-8000-000000000000",
    "requestId": "1-1",
    "path": "/root/x",
    "to": "/root/y",
}
"""Ids of nothing; another user's ids must get the same responses."""

VALUES: dict[str, Any] = {
    "provider": "codex",
    "vmType": "cli",
    "text": "hello",
    "reason": "to see whether it can be done",
    "role": "administrator",
    "name": "a token",
    "scopes": ["read"],
    "email": "somebody@example.org",
    "password": PASSWORD,
    "current": PASSWORD,
    "new": f"{PASSWORD}, another one",
    "code": "a-code",
    "state": "a-state",
    "title": "A title",
    "optionId": "allow_once",
    "apiKey": "standin-key-0123456789abcdefghijklmnop",
}
"""Valid values for other parameters."""

ALSO = {"code": "a-code"}
"""A parameter for operations that need one of several."""

WAITING = {"after": "0", "wait": 0.2}
_LISTENED_S = 1.0


@dataclass(frozen=True)
class Tenants:
    """Two users, of whom the first has every kind of resource."""

    world: World
    first: TestUser
    second: TestUser
    firsts: dict[str, str]
    """The ids of the first user's resources."""
    document: dict[str, Any]

    @property
    def operations(self) -> list[Operation]:
        return list(operations(self.document))

    async def estate(self) -> str:
        """All resources of the first user, from the API and the host."""
        seen: dict[str, Any] = {"host": await self.world.machines()}
        async with self.first.by_cookie() as client:
            for it in self.operations:
                if it.method == "get" and not it.is_open and it.scope != "admin":
                    if it.is_stream:
                        continue
                    answer = await client.request(**it.request(self.firsts | VALUES))
                    assert answer.status_code != 401, it
                    if not it.path.endswith("/usage"):  # a machine's usage always changes
                        seen[str(it)] = _OF_THE_MOMENT.sub("", answer.text)
        return json.dumps(seen, indent=1)


async def _connected(client: httpx.AsyncClient) -> str:
    """Connect as the client's user; return the credential's id."""
    started = (await client.post("/api/auth/start", json={"provider": "claude_code"})).json()
    path = f"/api/auth/session/{started['sessionId']}"
    session = (await client.get(path)).json()
    while session["endedAt"] is None:
        if session["status"] == "waiting_for_person":
            await client.post(f"{path}/input", json={"code": "made-up#code"})
        after = {"after": session["version"], "wait": 20}
        session = (await client.get(path, params=after)).json()
    assert session["status"] == "completed", session
    (credential,) = (await client.get("/api/credentials")).json()
    return str(credential["credentialId"])


@asynccontextmanager
async def _tenants(**settings: str) -> AsyncIterator[Tenants]:
    async with open_world({"login_end": "never"}, **settings) as world:
        await world.controller.start()
        first = await create_user(world.controller, "first")
        second = await create_user(world.controller, "second")
        async with first.by_cookie() as client:
            connected = await _login(client, "claude_code", "wait-for-person")
            path = f"/api/auth/session/{connected['sessionId']}"
            await client.post(f"{path}/input", json={"code": "a-code"})
            while connected["endedAt"] is None:
                connected = await _next(client, connected)
            assert connected["status"] == "completed", connected
            [credential] = (await client.get("/api/credentials")).json()
            going_on = await _login(client, "codex", "wait-for-person")
            chat_id = await _chatting(client)
            document = (await client.get("/openapi.json")).json()
        token_id, _ = await first.token("read")
        firsts = UNOWNED | {
            "vmId": connected["cliVM"]["vmId"],
            "sessionId": going_on["sessionId"],
            "credential_id": credential["credentialId"],
            "token_id": token_id,
            "sign_in_id": first.sign_in_id,
            "user_id": first.user_id,
            "userId": first.user_id,
            "hostId": "local",
            "chatId": chat_id,
        }
        yield Tenants(world, first, second, firsts, document)


async def _chatting(client: httpx.AsyncClient) -> str:
    """Create a chat whose CLI waits for a permission."""
    chat = (await client.post("/api/chats", json={"provider": "claude_code"})).json()
    path = f"/api/chats/{chat['chatId']}"
    asked = await client.post(f"{path}/turns", json={"text": "write a.txt: something"})
    assert asked.status_code == 202, asked.text
    async with asyncio.timeout(60):
        while chat["status"] != "waiting":
            await asyncio.sleep(0.05)
            chat = (await client.get(path)).json()
    return str(chat["chatId"])


async def _login(client: httpx.AsyncClient, provider: str, step: str) -> dict[str, Any]:
    """Start a connect session and wait until it reaches a step."""
    started = (await client.post("/api/auth/start", json={"provider": provider})).json()
    session = (await client.get(f"/api/auth/session/{started['sessionId']}")).json()
    while session["step"] != step:
        assert session["endedAt"] is None, session
        session = await _next(client, session)
    return dict(session)


async def _next(client: httpx.AsyncClient, session: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/auth/session/{session['sessionId']}?after={session['version']}&wait=20"
    return dict((await client.get(path)).json())


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The setting of the database."""
    if request.param == "sqlite":
        return {}
    return {"DATABASE_URL": request.getfixturevalue("postgres").database(with_journal=True)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(database: dict[str, str]) -> AsyncIterator[Tenants]:
    async with _tenants(**database) as it:
        yield it


def _without_ids(text: str, *ids: dict[str, str]) -> str:
    """Replace all sent ids in a response by the same text."""
    for every in ids:
        for value in every.values():
            text = text.replace(value, "<id>")
    return text


async def test_anonymous_requests_get_401_from_all_but_public_operations(
    tenants: Tenants,
) -> None:
    before = await tenants.estate()
    opened = set()
    async with tenants.world.controller.client_as() as client:
        for it in tenants.operations:
            if it.is_open:
                opened.add(it.id)
                continue
            for headers in ({}, {"authorization": "Bearer pdt_nobody_nothing"}, {"cookie": "x=y"}):
                asked = it.request(tenants.firsts | VALUES)
                answer = await client.request(**asked, headers=headers)
                assert answer.status_code == 401, (str(it), answer.text)
    assert opened <= OPEN, "a new public operation: add it to OPEN"
    assert await tenants.estate() == before


async def test_resources_of_another_user_are_not_found(tenants: Tenants) -> None:
    before = await tenants.estate()
    asked_with_ids = 0
    async with await tenants.second.by_token(*SCOPES) as client:
        for it in tenants.operations:
            if it.is_open or it.scope == "admin" or not it.names & set(UNOWNED):
                continue
            own = {"userId": tenants.first.user_id} if "userId" in it.names else {}
            none = {"userId": UNOWNED["userId"]} if own else {}
            for more in (ALSO, ALSO | WAITING):
                theirs = await client.request(**it.request(tenants.firsts | VALUES, **more, **own))
                unknown = await client.request(**it.request(UNOWNED | VALUES, **more, **none))
                assert theirs.status_code in (403, 404), (str(it), theirs.text)
                assert theirs.status_code == unknown.status_code, (str(it), theirs.text)
                ids = (tenants.firsts, UNOWNED)
                assert _without_ids(theirs.text, *ids) == _without_ids(unknown.text, *ids), str(it)
            asked_with_ids += 1
    assert asked_with_ids >= 15
    assert await tenants.estate() == before


async def test_responses_reveal_nothing_of_other_users(tenants: Tenants) -> None:
    secrets = {tenants.first.email, tenants.first.user_id} | set(tenants.firsts.values())
    secrets -= set(UNOWNED.values()) | {"local"}
    async with await tenants.second.by_token(*SCOPES) as client:
        for it in tenants.operations:
            if it.method != "get" or it.scope == "admin" or it.names & set(UNOWNED):
                continue
            text = (
                await _read_stream(client, it) if it.is_stream else await _read_response(client, it)
            )
            for secret in secrets:
                assert secret not in text, str(it)


async def _read_response(client: httpx.AsyncClient, operation: Operation) -> str:
    answer = await client.request(**operation.request(VALUES))
    assert answer.status_code != 401, str(operation)
    return answer.text


async def _read_stream(client: httpx.AsyncClient, operation: Operation) -> str:
    """Read an endless stream from its first event for a moment."""
    heard = ""
    with suppress(TimeoutError):
        async with (
            asyncio.timeout(_LISTENED_S),
            client.stream(**operation.request(VALUES, after=0)) as answer,
        ):
            assert answer.status_code == 200, str(operation)
            async for text in answer.aiter_text():
                heard += text
    return heard


async def test_token_without_the_scope_is_refused(tenants: Tenants) -> None:
    before = await tenants.estate()
    for lacking in SCOPES:
        wanted = [it for it in tenants.operations if it.scope == lacking]
        assert wanted, lacking
        client = await tenants.first.by_token(*(it for it in SCOPES if it != lacking))
        async with client:
            for it in wanted:
                answer = await client.request(**it.request(tenants.firsts | VALUES))
                assert answer.status_code == 403, (str(it), answer.text)
                assert answer.json()["code"] == "not-allowed"
    assert _without_tokens(await tenants.estate()) == _without_tokens(before)


async def test_administrator_operations_are_refused_to_users(tenants: Tenants) -> None:
    before = await tenants.estate()
    wanted = [it for it in tenants.operations if it.scope == "admin"]
    assert len(wanted) >= 10
    async with await tenants.second.by_token(*SCOPES) as client, tenants.second.by_cookie() as page:
        for it in wanted:
            for ids in (tenants.firsts, UNOWNED):
                for by in (client, page):
                    answer = await by.request(**it.request(ids | VALUES))
                    assert answer.status_code == 403, (str(it), answer.text)
                    assert answer.json()["detail"] == "Administrators only"
    assert await tenants.estate() == before


async def test_streams_of_another_user_are_refused_before_they_begin(tenants: Tenants) -> None:
    port = tenants.world.controller.port
    found = [
        it.path
        for it in iter_route_contexts(build_routes(None).routes)
        if isinstance(it.original_route, APIWebSocketRoute)
    ]
    assert found
    _, full = await tenants.second.token(*SCOPES)
    _, reader = await tenants.first.token("read")
    for path in found:
        answers = {}
        for who, token in (("stranger", None), ("second", full), ("unscoped", reader)):
            for ids in (tenants.firsts, UNOWNED):
                url = f"ws://127.0.0.1:{port}{_filled(path, ids)}"
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                with pytest.raises(InvalidStatus) as refused:
                    async with connect(url, additional_headers=headers):
                        pass
                response = refused.value.response
                text = _without_ids(bytes(response.body or b"").decode(), tenants.firsts, UNOWNED)
                answers.setdefault(who, set()).add((response.status_code, text))
        statuses = {who: {status for status, _ in it} for who, it in answers.items()}
        assert statuses == {"stranger": {401}, "second": {404}, "unscoped": {403}}, path
        assert all(len(it) == 1 for it in answers.values()), answers


def _filled(path: str, ids: dict[str, str]) -> str:
    for name, value in ids.items():
        path = path.replace("{" + name + "}", value)
    assert "{" not in path, f"this test has no value for a parameter of {path}"
    return path


def _without_tokens(estate: str) -> dict[str, Any]:
    """The estate without tokens and audit entries, which the test itself creates."""
    seen = json.loads(estate)
    return {it: seen[it] for it in seen if "tokens" not in it and "audit" not in it}
