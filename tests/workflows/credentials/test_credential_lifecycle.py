"""Delivered credentials: validation, synchronization, export and revocation."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from controller_world import FILES, World, open_world, tokens_in

from polydev.shared.domain import GuestFile
from polydev.shared.errors import NoSuchFile
from polydev.shared.host_protocol import RemoveFiles, StopMachine, WireFile, WriteFiles

CODEX = FILES["codex"]


async def _connected(world: World, provider: str = "codex") -> tuple[str, str]:
    """Connect; return the credential's id and its CLI machine."""
    session = await world.controller.wait_for_session(await world.controller.connect(provider))
    assert session["status"] == "completed", session["error"]
    found = next(it for it in await _listed(world) if it["provider"] == provider)
    assert found["vmId"] == session["cliVM"]["vmId"]
    return found["credentialId"], found["vmId"]


async def _listed(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await world.controller.call("GET", "/api/credentials")
    return found


async def _post(world: World, credential_id: str, verb: str) -> Any:
    return await world.controller.call("POST", f"/api/credentials/{credential_id}/{verb}")


async def _write(world: World, vm_id: str, credentials: object) -> None:
    """Write a credentials file as a CLI or a user in the machine would."""
    content = credentials if isinstance(credentials, bytes) else json.dumps(credentials).encode()
    files = [WireFile.of(GuestFile(CODEX, content))]
    async with world.agent.host() as host:
        await host.run(f"guest-{hash(content)}", WriteFiles(vm_id=vm_id, files=files), 30)


async def _wait_until_gone(world: World, credential_id: str) -> None:
    async with asyncio.timeout(60):
        while any(it["credentialId"] == credential_id for it in await _listed(world)):
            await asyncio.sleep(0.1)


async def _has_file(world: World, vm_id: str) -> bool:
    async with world.agent.host() as host:
        try:
            await host.read_file(vm_id, CODEX)
        except NoSuchFile:
            return False
        return True


async def test_listing_has_everything_but_the_secret(world: World) -> None:
    await world.controller.start()
    credential_id, vm_id = await _connected(world)
    await _connected(world, "claude_code")
    claude, codex = await _listed(world)
    assert (codex["credentialId"], codex["validity"]) == (credential_id, "valid")
    assert codex["expiresAt"] is None
    assert claude["expiresAt"] > claude["createdAt"]
    listing = json.dumps([claude, codex])
    for secret in tokens_in(await world.credentials(vm_id, "codex")):
        assert secret not in listing


async def test_existing_login_is_valid_and_a_removed_one_is_not(world: World) -> None:
    await world.controller.start()
    credential_id, vm_id = await _connected(world)
    assert (await _post(world, credential_id, "validate"))["validity"] == "valid"
    async with world.agent.host() as host:
        await host.run("lose", RemoveFiles(vm_id=vm_id, paths=[CODEX]), 30)
    verdict = await _post(world, credential_id, "validate")
    assert (verdict["validity"], "not logged in" in verdict["reason"]) == ("invalid", True)
    async with world.agent.host() as host:
        await host.run("stop", StopMachine(vm_id=vm_id), 30)
    verdict = await _post(world, credential_id, "validate")
    assert verdict["validity"] == "unknown"
    assert (await _listed(world))[0]["validity"] == "unknown"
    await world.agent.kill()
    assert (await _post(world, credential_id, "validate"))["validity"] == "unknown"


async def test_tokens_renewed_by_the_cli_return_to_the_vault(world: World) -> None:
    await world.controller.start()
    credential_id, vm_id = await _connected(world)
    renewed = await world.credentials(vm_id, "codex")
    renewed["tokens"]["refresh_token"] = "a-renewed-token-that-is-made-up"
    await _write(world, vm_id, renewed)
    verdict = await _post(world, credential_id, "validate")
    assert (verdict["validity"], verdict["refreshed"]) == ("valid", True)
    assert (await _post(world, credential_id, "export"))["credentials"] == renewed
    assert (await _post(world, credential_id, "validate"))["refreshed"] is False
    world.assert_no_trace_of("a-renewed-token-that-is-made-up")


async def test_credentials_of_a_hostile_machine_are_rejected(world: World) -> None:
    await world.controller.start()
    credential_id, vm_id = await _connected(world)
    before = await world.credentials(vm_id, "codex")
    foreign = {**before, "tokens": {**before["tokens"], "account_id": "another-account"}}
    for held in (
        foreign,
        {"tokens": {}},
        b"not JSON",
        b'{"tokens": ' + b"[" * 5000,
        b"x" * 1_000_000,
        {**before, "more": "x" * 40_000},
    ):
        await _write(world, vm_id, held)
        verdict = await _post(world, credential_id, "validate")
        assert (verdict["validity"], verdict["refreshed"]) == ("unknown", False), held
        assert "xxxx" not in verdict["reason"]
    assert (await _post(world, credential_id, "export"))["credentials"] == before


async def test_export_is_for_its_owner_and_not_stored(world: World) -> None:
    await world.controller.start()
    credential_id, vm_id = await _connected(world)
    async with world.controller.client() as client:
        answer = await client.post(f"/api/credentials/{credential_id}/export")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json()["credentials"] == await world.credentials(vm_id, "codex")
        missing = await client.post("/api/credentials/none/export")
        assert (missing.status_code, missing.json()["code"]) == (404, "no-such-credential")
    world.assert_no_trace_of(*tokens_in(answer.json()["credentials"]))


@pytest.mark.parametrize("state", ["running", "stopped", "destroyed"])
async def test_revoked_credential_is_removed_everywhere(world: World, state: str) -> None:
    await world.controller.start()
    credential_id, vm_id = await _connected(world)
    if state == "destroyed":
        await world.destroy(vm_id)
    elif state == "stopped":
        async with world.agent.host() as host:
            await host.run("stop", StopMachine(vm_id=vm_id), 30)
    for _ in range(2):
        async with world.controller.client() as client:
            answer = await client.post(f"/api/credentials/{credential_id}/revoke")
            assert answer.status_code in (202, 404)
    await _wait_until_gone(world, credential_id)
    if state != "destroyed":
        assert not await _has_file(world, vm_id)
    async with world.controller.client() as client:
        for verb in ("validate", "revoke", "export"):
            gone = await client.post(f"/api/credentials/{credential_id}/{verb}")
            assert gone.status_code == 404


async def test_revocation_completes_when_an_absent_host_returns(world: World) -> None:
    await world.controller.start()
    credential_id, vm_id = await _connected(world)
    await world.agent.kill()
    revoking = await _post(world, credential_id, "revoke")
    assert revoking["revoking"] is True
    assert (await _listed(world))[0]["revoking"] is True
    await world.agent.start()
    await _wait_until_gone(world, credential_id)
    assert not await _has_file(world, vm_id)


async def test_revocation_leaves_an_active_login_unchanged() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        path = "/api/auth/session/{}/input"
        url = {"callbackUrl": "http://localhost:1455/auth/callback?code=x&state=x"}
        first = await world.controller.connect("codex")
        await world.controller.wait_for_session(first, "waiting_for_person")
        await world.controller.call("POST", path.format(first), url)
        vm_id = (await world.controller.wait_for_session(first))["cliVM"]["vmId"]
        credential_id = (await _listed(world))[0]["credentialId"]
        second = await world.controller.connect("codex")
        await world.controller.wait_for_session(second, "waiting_for_person")
        await _post(world, credential_id, "revoke")
        await world.controller.call("POST", path.format(second), url)
        assert (await world.controller.wait_for_session(second))["status"] == "completed"
        await _wait_until_gone(world, credential_id)
        assert await _has_file(world, vm_id)
