"""Rotation of ENCRYPTION_KEY during sessions, and after kills."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import quick_hashing
from controller_process import KEY, At, ControllerProcess
from controller_world import World, open_world
from pydantic import SecretStr

from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.connect import credentials
from polydev.controller.vault import Binding, Vault, unlock
from polydev.shared.domain import CredentialId, SealedCredential, User, UserId, now

NEW = "another encryption key of the tests only"
OTHERS = "POLYDEV_OTHER_ENCRYPTION_KEYS"
ANN = UserId("ann")
MANY = 45


@pytest.fixture(autouse=True)
def _hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the controllers' cheap hashing, to open what they sealed."""
    quick_hashing.apply(monkeypatch.setattr)


async def _start_with_keys(world: World, key: str, *others: str) -> None:
    world.controller.env |= {"ENCRYPTION_KEY": key, OTHERS: "\n".join(others)}
    await world.controller.start()
    await world.controller.call("GET", "/health")


async def _assert_start_refused(world: World, key: str, message: str) -> None:
    world.controller.env |= {"ENCRYPTION_KEY": key, OTHERS: ""}
    await world.controller.start()
    assert await world.controller.ended() == 1
    assert message in world.controller.log.read_text()


async def _plaintexts(world: World, *texts: str) -> dict[str, bytes]:
    """Decrypt every credential with these keys."""
    async with world.database() as database:
        async with database.write() as connection:
            first, *others = [SecretStr(text) for text in texts]
            vault = await unlock(connection, first, now(), others)
        async with database.read() as connection:
            rows = await credentials.list_not_sealed_with(connection, "none", "", 10_000)
        return {row.credential_id: await vault.open(row) for row in rows}


async def _insert_rows(world: World) -> None:
    """Insert rows, and one of an earlier version that is bound to no user."""
    async with world.database() as database, database.write() as connection:
        vault = await unlock(connection, SecretStr(KEY), now())
        await users.insert(connection, User(ANN, "ann@example.test", now()))
        for number in range(MANY):
            binding = Binding(CredentialId(f"c-{number}"), ANN, "codex")
            row = await vault.seal(f"made up {number}".encode(), binding, now())
            await credentials.upsert(connection, row)
        await credentials.upsert(connection, await _legacy_credential(vault))


async def _legacy_credential(vault: Vault) -> SealedCredential:
    box = await vault._sealer(vault.key_id).seal(b"made up by node", None)
    return SealedCredential(
        credential_id=CredentialId("earlier"),
        user_id=ANN,
        provider="claude_code",
        encrypted_credentials=box.ciphertext,
        encryption_iv=box.iv,
        encryption_tag=box.tag,
        encryption_salt=box.salt,
        key_id=None,
        created_at=now(),
    )


async def _rotate(world: World) -> dict[str, Any]:
    """Run a rotation to its end."""
    asked = await world.controller.call("POST", "/api/admin/keys/rotate")
    return await _wait_for_rotation(world, asked["rotationId"])


async def _wait_for_rotation(world: World, rotation_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            seen: dict[str, Any] = await world.controller.call(
                "GET", f"/api/admin/keys/rotate/{rotation_id}"
            )
            if seen["over"]:
                return seen
            await asyncio.sleep(0.1)


async def _list_keys(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await world.controller.call("GET", "/api/admin/keys")
    return found


async def test_key_is_rotated_during_sessions(world: World) -> None:
    controller = world.controller
    await _start_with_keys(world, KEY)
    await _insert_rows(world)
    first = await controller.wait_for_session(await controller.connect("codex"))
    cli = first["cliVM"]["vmId"]
    before = await _plaintexts(world, KEY)
    assert await controller.end() == 0

    await _start_with_keys(world, KEY, NEW)
    assert [key["seals"] for key in await _list_keys(world) if key["keyId"]] == [False, True]
    await controller.wait_for_session(await controller.connect("codex"))
    assert await controller.end() == 0

    await _start_with_keys(world, NEW, KEY)
    new, old, earlier = await _list_keys(world)
    assert (new["seals"], new["credentials"], old["opens"]) == (True, 0, True)
    assert (old["credentials"], earlier["keyId"], earlier["credentials"]) == (MANY + 1, None, 1)
    session_id = await controller.connect("claude_code")
    seen = await _rotate(world)
    assert (seen["left"], seen["keyId"]) == (0, new["keyId"])
    assert (await controller.wait_for_session(session_id))["cliVM"]["vmId"] == cli
    after = await _plaintexts(world, NEW)
    assert {it: after[it] for it in before if it in after} == {
        it: text for it, text in before.items() if it in after
    }
    assert len(after) == MANY + 3  # the new Codex login replaced the old one; Claude Code's is new
    async with controller.client() as client:
        answer = await client.delete(f"/api/admin/keys/{old['keyId']}")
        assert (answer.status_code, "were started" in answer.text) == (409, True)
    assert await controller.end() == 0

    await _assert_start_refused(world, KEY, "ENCRYPTION_KEY opens no row of this database")
    await _start_with_keys(world, NEW)
    assert (await controller.wait_for_session(await controller.connect("codex")))[
        "status"
    ] == "completed"
    async with controller.client() as client:
        assert (await client.delete(f"/api/admin/keys/{old['keyId']}")).status_code == 204
    assert [key["keyId"] for key in await _list_keys(world)] == [new["keyId"]]
    assert await controller.end() == 0
    await _assert_start_refused(world, KEY, "ENCRYPTION_KEY does not open this database")
    world.assert_no_trace_of(NEW)


async def test_key_in_use_is_not_removed(world: World) -> None:
    await _start_with_keys(world, KEY)
    await _insert_rows(world)
    assert await world.controller.end() == 0
    await _start_with_keys(world, NEW, KEY)
    new, old, _ = await _list_keys(world)
    async with world.controller.client() as client:
        for key_id, why in ((old["keyId"], "still seals"), (new["keyId"], "were started")):
            answer = await client.delete(f"/api/admin/keys/{key_id}")
            assert answer.status_code == 409
            assert answer.json()["code"] == "key-in-use"
            assert why in answer.json()["detail"]
        assert (await client.delete("/api/admin/keys/key-unknown")).status_code == 404


@pytest.mark.parametrize("point", ["before", "inside", "after"])
async def test_rotation_continues_after_a_kill(world: World, point: str) -> None:
    await _start_with_keys(world, KEY)
    await _insert_rows(world)
    before = await _plaintexts(world, KEY)
    assert await world.controller.end() == 0
    await _start_with_keys(world, NEW, KEY)
    world.controller.order(At("reseal", point))
    with world.controller.delayed_workflows():
        asked = await world.controller.call("POST", "/api/admin/keys/rotate")
    assert await world.controller.ended() == -9
    assert await _plaintexts(world, NEW, KEY) == before
    await world.controller.start()
    assert (await _wait_for_rotation(world, asked["rotationId"]))["left"] == 0
    assert await _plaintexts(world, NEW) == before


async def test_unreadable_row_stays_and_is_counted(world: World) -> None:
    await _start_with_keys(world, KEY)
    await _insert_rows(world)
    assert await world.controller.end() == 0
    async with world.database() as database, database.write() as connection:
        row = await credentials.find_sealed(connection, CredentialId("c-7"))
        assert row is not None
        await credentials.update_sealed(connection, row, await _seal_for_another(row))
    await _start_with_keys(world, NEW, KEY)
    assert (await _rotate(world))["left"] == 1
    assert "cannot reseal credential c-7" in world.controller.log.read_text()


async def _seal_for_another(row: SealedCredential) -> SealedCredential:
    return await Vault(SecretStr(NEW), row.key_id or "").seal(
        b"x", Binding(CredentialId("other"), row.user_id, row.provider), now()
    )


async def _restart_all(controllers: Sequence[ControllerProcess], key: str, *others: str) -> None:
    """Restart controllers with other keys in turn, so that one always answers."""
    for controller in controllers:
        assert await controller.end() == 0
        controller.env |= {"ENCRYPTION_KEY": key, OTHERS: "\n".join(others)}
        await controller.start()
        await controller.call("GET", "/health")


async def _wait_for_first_kill(controllers: Sequence[ControllerProcess]) -> ControllerProcess:
    """Wait for the first controller that its order kills."""
    waiting = {asyncio.create_task(it.ended()): it for it in controllers}
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    (killed,) = done
    assert killed.result() == -9
    return waiting[killed]


async def test_two_controllers_roll_through_a_key_change(postgresql_url: str) -> None:
    """Sessions continue during the change, and the controller that reseals is killed."""
    async with open_world(DATABASE_URL=postgresql_url) as world:
        both = [world.controller, world.add_controller()]
        first, second = both
        for controller in both:
            await controller.start()
            await controller.call("GET", "/health")
        await _insert_rows(world)
        for key, other in ((KEY, NEW), (NEW, KEY)):
            for controller, another in ((first, second), (second, first)):
                session_id = await another.connect("codex")
                await _restart_all([controller], key, other)
                assert (await controller.wait_for_session(session_id))["status"] == "completed"
        before = await _plaintexts(world, NEW, KEY)
        for controller in both:
            controller.order(At("reseal", "inside"))
        with first.delayed_workflows(), second.delayed_workflows():
            asked = await second.call("POST", "/api/admin/keys/rotate")
        killed = await _wait_for_first_kill(both)
        survivor = first if killed is second else second
        survivor.order()
        assert await _plaintexts(world, NEW, KEY) == before
        world.controller = survivor
        assert (await _wait_for_rotation(world, asked["rotationId"]))["left"] == 0
        assert await _plaintexts(world, NEW) == before
        old = next(key["keyId"] for key in await _list_keys(world) if not key["seals"])
        await _restart_all([survivor], NEW)
        async with survivor.client() as client:
            assert (await client.delete(f"/api/admin/keys/{old}")).status_code == 204
        assert await survivor.end() == 0
        await _assert_start_refused(world, KEY, "ENCRYPTION_KEY does not open this database")
