"""Nobody reaches what is another person's, by any operation, WebSocket or stream of the API.

All of them are taken from the OpenAPI document and the app's routes: a new one is tested by itself,
and fails here if this test does not know what to send it.
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
from api_users import PASSWORD, TestUser, a_user
from controller_world import World, a_world
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
"""What a stranger may ask: nothing here tells of anybody."""

_OF_THE_MOMENT = re.compile(r'"seenAt":"[^"]*"')
"""Of the sign-in that looks: it is told to the minute, and looking is enough to change it."""
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
"""Ids that name nothing: whoever sends another person's must be answered as for these."""

WORDS: dict[str, Any] = {
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
"""What else operations take, as it could be meant."""

ALSO = {"code": "a-code"}
"""What an operation may want one of several of."""

WAITING = {"after": "0", "wait": 0.2}
_LISTENED_S = 1.0


@dataclass(frozen=True)
class Tenants:
    """Two people; the first has everything that a person can have."""

    world: World
    first: TestUser
    second: TestUser
    firsts: dict[str, str]
    """The ids of what is the first's."""
    document: dict[str, Any]

    @property
    def operations(self) -> list[Operation]:
        return list(operations(self.document))

    async def estate(self) -> str:
        """All that is the first's, as they see it themselves and as the host has it."""
        seen: dict[str, Any] = {"host": await self.world.machines()}
        async with self.first.by_cookie() as client:
            for it in self.operations:
                if it.method == "get" and not it.is_open and it.scope != "admin":
                    if it.is_stream:
                        continue
                    answer = await client.request(**it.request(self.firsts | WORDS))
                    assert answer.status_code != 401, it
                    if not it.path.endswith("/usage"):  # a machine uses more and more by itself
                        seen[str(it)] = _OF_THE_MOMENT.sub("", answer.text)
        return json.dumps(seen, indent=1)


async def _connected(client: httpx.AsyncClient) -> str:
    """A credential of whoever's client it is."""
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
    async with a_world({"login_end": "never"}, **settings) as world:
        await world.controller.start()
        first = await a_user(world.controller, "first")
        second = await a_user(world.controller, "second")
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
    """A new chat in which the CLI waits to be allowed something."""
    chat = (await client.post("/api/chats", json={"provider": "claude_code"})).json()
    path = f"/api/chats/{chat['chatId']}"
    asked = await client.post(f"{path}/turns", json={"text": "write a.txt: something"})
    assert asked.status_code == 202, asked.text
    async with asyncio.timeout(20):
        while chat["status"] != "waiting":
            await asyncio.sleep(0.05)
            chat = (await client.get(path)).json()
    return str(chat["chatId"])


async def _login(client: httpx.AsyncClient, provider: str, step: str) -> dict[str, Any]:
    """A new connect session that has come to a step."""
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
    """The setting that names the database."""
    if request.param == "sqlite":
        return {}
    return {"DATABASE_URL": request.getfixturevalue("postgres").database(with_journal=True)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(database: dict[str, str]) -> AsyncIterator[Tenants]:
    async with _tenants(**database) as it:
        yield it


def _without_ids(text: str, *ids: dict[str, str]) -> str:
    """An answer in which ids that were sent are all the same."""
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
                asked = it.request(tenants.firsts | WORDS)
                answer = await client.request(**asked, headers=headers)
                assert answer.status_code == 401, (str(it), answer.text)
    assert opened <= OPEN, "a stranger may ask something new: say so in OPEN"
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
                theirs = await client.request(**it.request(tenants.firsts | WORDS, **more, **own))
                nobodys = await client.request(**it.request(UNOWNED | WORDS, **more, **none))
                assert theirs.status_code in (403, 404), (str(it), theirs.text)
                assert theirs.status_code == nobodys.status_code, (str(it), theirs.text)
                ids = (tenants.firsts, UNOWNED)
                assert _without_ids(theirs.text, *ids) == _without_ids(nobodys.text, *ids), str(it)
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
            text = await _heard(client, it) if it.is_stream else await _audit_entries_of(client, it)
            for secret in secrets:
                assert secret not in text, str(it)


async def _audit_entries_of(client: httpx.AsyncClient, operation: Operation) -> str:
    answer = await client.request(**operation.request(WORDS))
    assert answer.status_code != 401, str(operation)
    return answer.text


async def _heard(client: httpx.AsyncClient, operation: Operation) -> str:
    """What a stream that does not end tells from its first event on."""
    heard = ""
    with suppress(TimeoutError):
        async with (
            asyncio.timeout(_LISTENED_S),
            client.stream(**operation.request(WORDS, after=0)) as answer,
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
                answer = await client.request(**it.request(tenants.firsts | WORDS))
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
                    answer = await by.request(**it.request(ids | WORDS))
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
        statuses = {who: {status for status, _ in told} for who, told in answers.items()}
        assert statuses == {"stranger": {401}, "second": {404}, "unscoped": {403}}, path
        assert all(len(told) == 1 for told in answers.values()), answers


def _filled(path: str, ids: dict[str, str]) -> str:
    for name, value in ids.items():
        path = path.replace("{" + name + "}", value)
    assert "{" not in path, f"tell this test what is meant in {path}"
    return path


def _without_tokens(estate: str) -> dict[str, Any]:
    """The estate but for the tokens, which the test itself made, and what is noted of them."""
    seen = json.loads(estate)
    return {it: seen[it] for it in seen if "tokens" not in it and "audit" not in it}
