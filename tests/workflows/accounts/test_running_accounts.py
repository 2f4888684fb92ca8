"""Accounts on a real controller, from the socket to the store."""

from __future__ import annotations

from api_users import PASSWORD, create_user
from controller_world import World, open_world


async def test_session_starts_are_rate_limited_with_retry_after() -> None:
    async with open_world(POLYDEV_CONNECTS_PER_HOUR="6") as world:
        await world.controller.start()
        ann = await create_user(world.controller, "ann")
        ben = await create_user(world.controller, "ben")
        asked = {"provider": "codex"}
        async with ann.by_cookie() as client:
            first = await client.post("/api/auth/start", json=asked)
            second = await client.post("/api/vm/auth/start", json=asked)
        assert (first.status_code, second.status_code) == (202, 429)
        assert second.json()["code"] == "too-many-requests"
        assert 500 < int(second.headers["retry-after"]) <= 600
        async with await ben.by_token("connect") as client:
            assert (await client.post("/api/auth/start", json=asked)).status_code == 202
        for _ in range(3):
            await world.controller.connect("codex")  # the local administrator


async def test_client_address_cannot_be_forged(world: World) -> None:
    await world.controller.start()
    ann = await create_user(world.controller, "ann")
    headers = {"x-forwarded-for": "203.0.113.9", "forwarded": "for=203.0.113.9"}
    async with world.controller.client_as() as client:
        asked = {"email": ann.email, "password": PASSWORD}
        answer = await client.post("/api/account/sign-in", json=asked, headers=headers)
        assert answer.status_code == 200, answer.text
        listed = (await client.get("/api/account/sign-ins")).json()
    assert {it["source"] for it in listed} == {"127.0.0.1"}


async def test_restart_keeps_sign_ins_and_stores_no_secret(world: World) -> None:
    await world.controller.start()
    ann = await create_user(world.controller, "ann")
    _, token = await ann.token("read")
    await world.controller.kill()
    await world.controller.start()
    for client in (ann.by_cookie(), await ann.by_token("read")):
        async with client:
            assert (await client.get("/api/account")).json()["id"] == ann.user_id
    await world.controller.end()
    [cookie] = ann.cookies.values()
    world.assert_no_trace_of(PASSWORD, cookie, ann.csrf, token.split("_", 2)[2])
