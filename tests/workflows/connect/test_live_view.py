"""The live view of a session's browser machine, only for the session's owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from api_users import TestUser, create_user
from controller_world import World, open_world
from rfb import (
    ENTER,
    RfbClient,
    auth_headers,
    open_live_view,
    ticket_for,
    view_url,
    wait_for_screen_events,
)
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from polydev.controller.api.http import streams
from polydev.controller.api.http.concurrency_limits import LIVE_VIEWS
from polydev.controller.api.routes.connect.live_view import CloseCode
from polydev.shared.domain import MachineKind, SessionId, vm_id_for
from polydev.testing.simulated_vmm.browser.screen import HEIGHT, WIDTH

LIMIT_S = 60
NEVER = {"login_end": "never"}
DOT_BYTES = 6 * 6 * 4
"""Size of the dot that a click leaves on the simulated screen."""


@asynccontextmanager
async def _world(**settings: str) -> AsyncIterator[World]:
    async with open_world(NEVER, **settings) as it:
        await it.controller.start()
        yield it


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with _world() as it:
        yield it


@pytest.fixture(params=["ssh", "direct"])
async def world_over(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A world for each channel of simulated machines."""
    async with open_world({**NEVER, "channel": request.param}) as it:
        await it.controller.start()
        yield it


@pytest.fixture
async def ann(world: World) -> TestUser:
    return await create_user(world.controller, "ann")


async def _start_waiting_session(client: httpx.AsyncClient, world: World) -> str:
    """Start a session and wait until it waits for its user."""
    started = await client.post("/api/auth/start", json={"provider": "codex"})
    assert started.status_code == 202, started.text
    session_id = str(started.json()["sessionId"])
    await _wait_for_session(client, session_id, "waiting_for_person")
    return session_id


async def _wait_for_session(client: httpx.AsyncClient, session_id: str, status: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        view = (await client.get(f"/api/auth/session/{session_id}")).json()
        while view["status"] != status:
            asked = {"after": view["version"], "wait": 20}
            view = (await client.get(f"/api/auth/session/{session_id}", params=asked)).json()


async def _refusal(url: str, **options: object) -> tuple[int, str]:
    """The status and body of a refused WebSocket."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, **options):  # type: ignore[arg-type]
            pass
    response = refused.value.response
    return response.status_code, bytes(response.body or b"").decode()


async def _wait_for_close(view: RfbClient, limit_s: float = LIMIT_S) -> tuple[int, str]:
    """The close code and reason of a view."""
    async with asyncio.timeout(limit_s):
        await view.socket.wait_closed()
    assert view.socket.close_code is not None
    return view.socket.close_code, view.socket.close_reason or ""


async def test_view_carries_clicks_keys_and_the_login(world_over: World) -> None:
    world = world_over
    ann = await create_user(world.controller, "ann")
    async with ann.by_cookie() as client:
        session_id = await _start_waiting_session(client, world)
        async with open_live_view(client, session_id, subprotocols=["binary"]) as view:
            assert view.socket.subprotocol == "binary"
            assert await view.shake_hands() == (WIDTH, HEIGHT)
            assert len(await view.picture()) == WIDTH * HEIGHT * 4
            await view.click(200, 190)
            await view.key(ord("a"))
            events = await wait_for_screen_events(world.controller.host(), session_id, 2)
            assert events == [{"click": [200, 190]}, {"key": ord("a")}]
            assert len(await view.picture()) == DOT_BYTES, "the click is visible"
            await view.key(ENTER)
            await _wait_for_session(client, session_id, "completed")
            assert (await _wait_for_close(view))[0] == CloseCode.GONE
        refused = await client.post(f"/api/auth/session/{session_id}/view")
        assert (refused.status_code, refused.json()["code"]) == (409, "no-live-view")


async def test_only_the_owner_gets_and_uses_a_ticket(world: World, ann: TestUser) -> None:
    ben = await create_user(world.controller, "ben")
    async with ann.by_cookie() as client, ben.by_cookie() as bens:
        session_id = await _start_waiting_session(client, world)
        theirs = await bens.post(f"/api/auth/session/{session_id}/view")
        unknown = await bens.post("/api/auth/session/00000000-0000-4000-8000-000000000000/view")
        assert theirs.status_code == unknown.status_code == 404
        root = await world.controller.client().post(f"/api/auth/session/{session_id}/view")
        assert root.status_code == 404, "administrators see machines, but no logins of users"
        ticket = await ticket_for(client, session_id)
        url = view_url(client, session_id, ticket)
        assert (await _refusal(url))[0] == 401
        status, _ = await _refusal(url, additional_headers=auth_headers(bens))
        assert status == 404
        by_token = await ann.by_token("connect")
        status, body = await _refusal(url, additional_headers=auth_headers(by_token))
        assert (status, "expired ticket" in body) == (403, True)
        reader = await ann.by_token("read")
        assert (await reader.post(f"/api/auth/session/{session_id}/view")).status_code == 403
        assert (await _refusal(url, additional_headers=auth_headers(reader)))[0] == 403
        from_elsewhere = auth_headers(client) | {"Origin": "http://elsewhere.example"}
        status, body = await _refusal(url, additional_headers=from_elsewhere)
        assert (status, "another site" in body) == (403, True)
        without = auth_headers(client)
        del without["Origin"]
        assert (await _refusal(url, additional_headers=without))[0] == 403


async def test_ticket_opens_one_view(world: World, ann: TestUser) -> None:
    async with ann.by_cookie() as client:
        session_id = await _start_waiting_session(client, world)
        own = auth_headers(client)
        for wrong in ("", "x", "é" * 50):
            status, _ = await _refusal(view_url(client, session_id, wrong), additional_headers=own)
            assert status == 403
        url = view_url(client, session_id, await ticket_for(client, session_id))
        async with connect(url, additional_headers=own) as socket:
            await RfbClient(socket).shake_hands()
            assert (await _refusal(url, additional_headers=own))[0] == 403


async def test_ticket_of_one_controller_is_valid_at_another(database_url: str) -> None:
    async with _world(DATABASE_URL=database_url) as world:
        ann = await create_user(world.controller, "ann")
        async with ann.by_cookie() as client:
            session_id = await _start_waiting_session(client, world)
            here = client
            if world.is_shared:
                other = world.add_controller()
                await other.start()
                there = TestUser(other, ann.user_id, "", ann.cookies, ann.csrf, ann.sign_in_id)
                here = there.by_cookie()
                assert (await here.get("/api/account")).status_code == 200
            url = view_url(here, session_id, await ticket_for(client, session_id))
            async with connect(url, additional_headers=auth_headers(here)) as socket:
                assert await RfbClient(socket).shake_hands() == (WIDTH, HEIGHT)
            used = view_url(client, session_id, url.rpartition("=")[2])
            assert (await _refusal(used, additional_headers=auth_headers(client)))[0] == 403


async def test_session_end_closes_its_view(world: World, ann: TestUser) -> None:
    async with ann.by_cookie() as client:
        session_id = await _start_waiting_session(client, world)
        async with open_live_view(client, session_id) as view:
            await view.shake_hands()
            cancelled = await client.post(f"/api/auth/session/{session_id}/cancel")
            assert cancelled.status_code == 202
            code, reason = await _wait_for_close(view)
            assert (code, reason) == (CloseCode.GONE, "The browser machine is gone")
        await _wait_for_session(client, session_id, "cancelled")
        assert (await client.post(f"/api/auth/session/{session_id}/view")).status_code == 409


async def test_signing_out_closes_the_view(world: World, ann: TestUser) -> None:
    async with ann.by_cookie() as client:
        session_id = await _start_waiting_session(client, world)
        async with open_live_view(client, session_id) as view:
            await view.shake_hands()
            assert (await client.post("/api/account/sign-out")).status_code == 204
            code, reason = await _wait_for_close(view, streams.PERMISSION_CHECK_S + LIMIT_S)
            assert code == CloseCode.SIGNED_OUT
            assert "has ended" in reason


async def test_lost_machine_closes_the_view(world: World, ann: TestUser) -> None:
    async with ann.by_cookie() as client:
        session_id = await _start_waiting_session(client, world)
        async with open_live_view(client, session_id) as view:
            await view.shake_hands()
            await world.agent.kill()
            code, _ = await _wait_for_close(view)
            assert code == CloseCode.CUT


async def test_open_views_are_limited(world: World, ann: TestUser) -> None:
    async with ann.by_cookie() as client:
        session_id = await _start_waiting_session(client, world)
        held = [open_live_view(client, session_id) for _ in range(LIVE_VIEWS.limit)]
        for it in held:
            await (await it.__aenter__()).shake_hands()
        async with open_live_view(client, session_id) as one_more:
            code, reason = await _wait_for_close(one_more)
            assert code == CloseCode.TOO_MANY
            assert f"{LIVE_VIEWS.limit} live views" in reason
        await held.pop().__aexit__(None, None, None)
        async with asyncio.timeout(LIMIT_S):
            while True:  # the server notices the close a moment later
                async with open_live_view(client, session_id) as again:
                    try:
                        assert await again.shake_hands() == (WIDTH, HEIGHT)
                    except ConnectionClosed:
                        continue
                break
        for it in held:
            await it.__aexit__(None, None, None)


async def test_view_needs_a_browser_machine() -> None:
    async with open_world({**NEVER, "becomes_ready": False}) as world:
        await world.controller.start()
        ann = await create_user(world.controller, "ann")
        async with ann.by_cookie() as client:
            started = await client.post("/api/auth/start", json={"provider": "codex"})
            session_id = started.json()["sessionId"]
            refused = await client.post(f"/api/auth/session/{session_id}/view")
            assert (refused.status_code, refused.json()["code"]) == (409, "no-live-view")
            assert refused.json()["hint"]


async def test_view_shows_the_sessions_own_browser_machine(world: World, ann: TestUser) -> None:
    async with ann.by_cookie() as client:
        one = await _start_waiting_session(client, world)
        started = await client.post("/api/auth/start", json={"provider": "claude_code"})
        other = started.json()["sessionId"]
        await _wait_for_session(client, other, "waiting_for_person")
        async with open_live_view(client, other) as view:
            await view.shake_hands()
            await view.click(10, 10)
            host = world.controller.host()
            assert await wait_for_screen_events(host, other, 1) == [{"click": [10, 10]}]
            listed = await host.machines()
            silent = vm_id_for(SessionId(one), MachineKind.BROWSER)
            assert silent in {it.vm_id for it in listed}
        ticket = await ticket_for(client, one)
        own = auth_headers(client)
        assert (await _refusal(view_url(client, other, ticket), additional_headers=own))[0] == 403
