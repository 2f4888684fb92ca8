"""Requests with an `Idempotency-Key`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from datetime import UTC, datetime, timedelta

from api_users import TestUser, create_user
from controller_world import World

KEY = {"Idempotency-Key": "3f6c1d0e-make-my-machine"}
CREATE = "/api/vm/create"
CLI, BROWSER = {"vmType": "cli"}, {"vmType": "browser"}


async def _ann(world: World) -> TestUser:
    await world.controller.start()
    return await create_user(world.controller, "ann")


def _stored(world: World) -> list[tuple[str, str | None]]:
    """Keys and response bodies in the database."""
    file = world.controller.state_dir / "controller" / "polydev.db"
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        return list(database.execute("SELECT key, body FROM idempotency_keys"))


async def test_repeated_request_is_done_once_with_the_same_response(world: World) -> None:
    ann = await _ann(world)
    async with ann.by_cookie() as client:
        first = await client.post(CREATE, json=CLI, headers=KEY)
        again = await client.post(CREATE, json=CLI, headers=KEY)
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.text == again.text
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["content-type"] == "application/json"
        assert again.headers["x-content-type-options"] == "nosniff"
        assert len((await client.get("/api/vm/list")).json()) == 1


async def test_key_belongs_to_one_request_of_one_user(world: World) -> None:
    ann = await _ann(world)
    ben = await create_user(world.controller, "ben")
    async with ann.by_cookie() as client, ben.by_cookie() as bens:
        first = await client.post(CREATE, json=CLI, headers=KEY)
        for path, body in (
            (CREATE, BROWSER),
            (f"{CREATE}?x=1", CLI),
            ("/api/auth/start", {"provider": "codex"}),
        ):
            other = await client.post(path, json=body, headers=KEY)
            assert (other.status_code, other.json()["code"]) == (409, "idempotency-conflict")
        his = await bens.post(CREATE, json=CLI, headers=KEY)
        assert his.status_code == 202
        assert "idempotent-replayed" not in his.headers
        assert his.json()["vm_id"] != first.json()["vm_id"]
        another = await client.post(CREATE, json=CLI, headers={"Idempotency-Key": "another"})
        assert another.json()["vm_id"] != first.json()["vm_id"]


async def test_concurrent_requests_with_a_key_are_done_once(world: World) -> None:
    ann = await _ann(world)
    async with ann.by_cookie() as client:
        answers = await asyncio.gather(
            *(client.post(CREATE, json=CLI, headers=KEY) for _ in range(8))
        )
        statuses = Counter(it.status_code for it in answers)
        assert set(statuses) <= {202, 409}
        assert statuses[202] >= 1
        assert len({it.text for it in answers if it.status_code == 202}) == 1
        assert all(
            it.json()["code"] == "idempotency-conflict" for it in answers if it.status_code == 409
        )
        assert len((await client.get("/api/vm/list")).json()) == 1


async def test_failed_request_may_be_retried(world: World) -> None:
    ann = await _ann(world)
    async with ann.by_cookie() as client:
        for _ in range(2):
            answer = await client.post("/api/vm/destroy", json={"vmId": "vm-none"}, headers=KEY)
            assert answer.status_code == 404
            assert "idempotent-replayed" not in answer.headers
            answer = await client.post(CREATE, json={"vmType": "toaster"}, headers=KEY)
            assert answer.status_code == 422
        assert _stored(world) == []
        assert (await client.post(CREATE, json=CLI, headers=KEY)).status_code == 202


async def test_invalid_key_is_refused(world: World) -> None:
    ann = await _ann(world)
    async with ann.by_cookie() as client:
        for key in (b"", b"two words", b"x" * 256, b"\xff"):
            answer = await client.post(CREATE, json=CLI, headers={"Idempotency-Key": key})
            assert (answer.status_code, answer.json()["code"]) == (422, "bad-request"), key
        assert (await client.get("/api/vm/list")).json() == []


async def test_killed_controller_does_not_hold_the_key(world: World) -> None:
    ann = await _ann(world)
    async with ann.by_cookie() as client:
        first = await client.post(CREATE, json=CLI, headers=KEY)
        long_ago = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=2)
        await world.controller.kill()
        file = world.controller.state_dir / "controller" / "polydev.db"
        with sqlite3.connect(file) as database:  # as if it had died before storing the response
            database.execute(
                "UPDATE idempotency_keys SET status = NULL, body = NULL, taken_at = ?",
                (long_ago.isoformat(" "),),
            )
        await world.controller.start()
        again = await client.post(CREATE, json=CLI, headers=KEY)
        assert again.status_code == 202
        assert "idempotent-replayed" not in again.headers
        assert again.json()["vm_id"] == first.json()["vm_id"]
        assert len((await client.get("/api/vm/list")).json()) == 1


async def test_responses_with_secrets_are_not_stored(world: World) -> None:
    ann = await _ann(world)
    async with ann.by_cookie() as client:
        asked = {"name": "a script's", "scopes": ["read"]}
        answers = [await client.post("/api/account/tokens", json=asked, headers=KEY) for _ in "12"]
        assert len({it.json()["token"] for it in answers}) == 2
        assert _stored(world) == []
        document = (await client.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        about = methods.get("post", {})
        names = {it["name"] for it in about.get("parameters", [])}
        is_secret = about.get("operationId") in {
            *("signUp", "signIn", "createToken", "invite", "exportCredential"),
            *("changePassword", "pasteIntoSession", "takeTurn"),
        }
        assert not ("Idempotency-Key" in names and is_secret), path
