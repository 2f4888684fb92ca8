"""Connecting with an API key: one credential per provider, and no leaked keys."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from controller_world import LIMIT_S, World, open_world

from polydev.shared.domain import GuestFile, VmId
from polydev.shared.errors import BadApiKey, LoginUnderway, NoSuchFile, SettingsUnreadable
from polydev.shared.host_protocol import WireFile, WriteFiles
from polydev.shared.providers import all_providers, credential_paths, provider

KEY = "standin-key-of-ann-0123456789abcdef"
OTHER_KEY = "standin-key-of-ann-fedcba9876543210"
PROVIDERS = [it.id for it in all_providers()]


@pytest.fixture
async def world(some_database_url: str) -> AsyncIterator[World]:
    async with open_world(DATABASE_URL=some_database_url) as it:
        await it.controller.start()
        yield it


async def submit_key(world: World, provider_id: str, key: str = KEY) -> str:
    asked = {"provider": provider_id, "apiKey": key}
    return str((await world.controller.call("POST", "/api/auth/key", asked))["sessionId"])


async def wait_until_connected(world: World, session_id: str) -> VmId:
    session = await world.controller.wait_for_session(session_id)
    assert session["status"] == "completed", session["error"]
    return VmId(session["cliVM"]["vmId"])


async def credential_contents(world: World, vm_id: VmId, provider_id: str) -> dict[str, bytes]:
    """Read the provider's credential files and the backups that delivery makes."""
    found = {}
    async with world.agent.host() as host:
        for path in credential_paths(provider(provider_id)):
            for it in (path, f"{path}.before-connect"):
                try:
                    found[it] = await host.read_file(vm_id, it)
                except NoSuchFile:
                    continue
    return found


async def write_file(world: World, vm_id: VmId, path: str, content: bytes) -> None:
    async with world.agent.host() as host:
        files = [WireFile.of(GuestFile(path, content))]
        await host.run(f"put-{uuid.uuid4()}", WriteFiles(vm_id=vm_id, files=files), 30)


async def get_credential(world: World) -> dict[str, Any]:
    (listed,) = await world.controller.call("GET", "/api/credentials")
    return dict(listed)


@pytest.mark.parametrize("provider_id", PROVIDERS)
async def test_api_key_connects_without_a_browser_machine(world: World, provider_id: str) -> None:
    session_id = await submit_key(world, provider_id)
    cli = await wait_until_connected(world, session_id)
    await world.assert_clean(cli)
    view = await world.controller.call("GET", f"/api/auth/session/{session_id}")
    assert view["method"] == "api_key"
    done = [step["step"] for step in view["steps"]]
    assert done == ["wait-for-room", "create-cli-machine", "write", "settle"]
    listed = await get_credential(world)
    assert (listed["kind"], listed["provider"], listed["vmId"]) == ("api_key", provider_id, cli)
    path = f"/api/credentials/{listed['credentialId']}"
    verdict = await world.controller.call("POST", f"{path}/validate")
    assert verdict["validity"] == "valid", verdict
    exported = await world.controller.call("POST", f"{path}/export")
    assert exported["credentials"] == {"apiKey": KEY}
    assert exported["path"] == provider(provider_id).api_key.path


@pytest.mark.parametrize("provider_id", PROVIDERS)
async def test_login_and_api_key_replace_each_other(world: World, provider_id: str) -> None:
    about = provider(provider_id)
    cli = await wait_until_connected(world, await world.controller.connect(provider_id))
    after_login = await credential_contents(world, cli, provider_id)
    assert await wait_until_connected(world, await submit_key(world, provider_id)) == cli
    after_key = await credential_contents(world, cli, provider_id)
    assert KEY.encode() in after_key[about.api_key.path]
    if about.api_key.path != about.credentials.path:
        assert about.credentials.path not in after_key
    assert (await get_credential(world))["kind"] == "api_key"
    assert await wait_until_connected(world, await world.controller.connect(provider_id)) == cli
    back = await credential_contents(world, cli, provider_id)
    assert KEY.encode() not in b"".join(back.values())
    assert set(back) == set(after_login)
    assert (await get_credential(world))["kind"] == "login"


async def test_users_own_settings_survive(world: World) -> None:
    cli = await wait_until_connected(world, await submit_key(world, "claude_code"))
    settings = "/root/.gemini/settings.json"
    theirs = {"ui": {"theme": "Ünique"}, "security": {"auth": {"enforced": True}}}
    await write_file(world, cli, settings, json.dumps(theirs).encode())
    await write_file(world, cli, "/root/.gemini/.env", b"# mine\nHTTP_TIMEOUT=3")
    await wait_until_connected(world, await submit_key(world, "gemini_cli"))
    found = await credential_contents(world, cli, "gemini_cli")
    assert found["/root/.gemini/.env"].decode() == f"# mine\nHTTP_TIMEOUT=3\nGEMINI_API_KEY={KEY}\n"
    merged = json.loads(found[settings])
    assert merged["ui"] == theirs["ui"]
    assert merged["security"]["auth"] == {"enforced": True, "selectedType": "gemini-api-key"}
    listed = await world.controller.call("GET", "/api/credentials")
    which = next(it for it in listed if it["provider"] == "gemini_cli")
    await revoke(world, which["credentialId"])
    found = await credential_contents(world, cli, "gemini_cli")
    assert found["/root/.gemini/.env"] == b"# mine\nHTTP_TIMEOUT=3\n"
    assert json.loads(found[settings]) == theirs


async def test_unreadable_settings_fail_the_session_and_stay_unchanged(
    world: World,
) -> None:
    cli = await wait_until_connected(world, await submit_key(world, "codex"))
    mine = b'{"theme": "dark", // the one I like\n}'
    await write_file(world, cli, "/root/.claude/settings.json", mine)
    session = await world.controller.wait_for_session(await submit_key(world, "claude_code"))
    assert session["status"] == "failed"
    assert session["error"]["code"] == SettingsUnreadable.code
    assert "/root/.claude/settings.json" in session["error"]["message"]
    assert await credential_contents(world, cli, "claude_code") == {
        "/root/.claude/settings.json": mine
    }
    assert (await get_credential(world))["provider"] == "codex"


@pytest.mark.parametrize("provider_id", PROVIDERS)
async def test_revoked_key_is_removed_from_a_stopped_machine(
    world: World, provider_id: str
) -> None:
    cli = await wait_until_connected(world, await submit_key(world, provider_id))
    await world.controller.call("POST", f"/api/vm/{cli}/stop")
    await world.wait_for_machine(cli, "stopped")
    await revoke(world, (await get_credential(world))["credentialId"])
    left = await credential_contents(world, cli, provider_id)
    assert KEY.encode() not in b"".join(left.values())
    assert b"apiKeyHelper" not in b"".join(left.values())


async def test_new_key_replaces_the_old_one(world: World) -> None:
    cli = await wait_until_connected(world, await submit_key(world, "codex"))
    first = await get_credential(world)
    assert await wait_until_connected(world, await submit_key(world, "codex", OTHER_KEY)) == cli
    second = await get_credential(world)
    assert first["credentialId"] != second["credentialId"]
    stored = await world.credentials(cli, "codex")
    assert stored["OPENAI_API_KEY"] == OTHER_KEY
    verdict = await validate(world, second)
    assert verdict["validity"] == "valid"
    await write_file(
        world, cli, "/root/.codex/auth.json", json.dumps({"OPENAI_API_KEY": KEY}).encode()
    )
    assert "another API key" in (await validate(world, second))["reason"]


async def test_same_key_joins_the_session_and_another_is_refused(
    world: World,
) -> None:
    with world.controller.delayed_workflows():  # otherwise they might have ended already
        login = await world.controller.connect("claude_code")
        status, problem = await submit_refused_key(world, "claude_code", KEY)
        assert (status, problem["code"]) == (409, LoginUnderway.code)
        assert login in problem["detail"]
        again = await asyncio.gather(*(submit_key(world, "codex") for _ in range(3)))
        assert len(set(again)) == 1
    await wait_until_connected(world, again[0])


NO_KEYS = {
    "too short": ("codex", "short"),
    "too long": ("codex", "k" * 600),
    "far too long": ("codex", "k" * 5000),
    "another provider's": ("codex", "sk-ant-api03-0123456789abcdef0123456789"),
    "a login's token": ("claude_code", "sk-ant-oat01-0123456789abcdef0123456789"),
    "not Google's": ("gemini_cli", "sk-proj-0123456789abcdef0123456789"),
    "two words": ("codex", "key-with-spaces 0123456789 0123456789"),
    "two lines": ("gemini_cli", "key-0123456789-0123456789\nGOOGLE_API_KEY=0123456789"),
    "quotes": ("gemini_cli", "key-0123456789-'0123456789'"),
    "controls": ("codex", "key\x00with\x1bcontrols0123456789"),
    "digits of another script": ("codex", "٠١٢٣٤٥٦٧٨٩" * 4),
}


async def test_invalid_key_is_refused_before_anything_is_created(world: World) -> None:
    for provider_id, text in NO_KEYS.values():
        status, problem = await submit_refused_key(world, provider_id, text)
        assert status == 422
        assert problem["code"] in (BadApiKey.code, "bad-request")
        assert text not in json.dumps(problem, ensure_ascii=False)
    assert await world.controller.call("GET", "/api/auth/sessions") == []
    await world.assert_clean()


async def test_key_is_only_in_the_machine_and_sealed(world: World, tmp_path: Path) -> None:
    await wait_until_connected(world, await submit_key(world, "codex"))
    await submit_refused_key(world, "claude_code", f"{KEY} {KEY}")
    await validate(world, await get_credential(world))
    with world.controller.delayed_workflows():
        session_id = await submit_key(world, "gemini_cli")
        await world.controller.call("POST", f"/api/auth/session/{session_id}/cancel")
    assert (await world.controller.wait_for_session(session_id))["status"] == "cancelled"
    await world.controller.end()
    world.assert_no_trace_of(KEY)
    for file in tmp_path.rglob("*"):  # the database, if it is not PostgreSQL's
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert world.is_shared or (tmp_path / "polydev.db").stat().st_size > 0


async def submit_refused_key(
    world: World, provider_id: str, key: str
) -> tuple[int, dict[str, Any]]:
    """Hand in a key that must be refused; return the status and the problem."""
    async with world.controller.client() as client:
        asked = {"provider": provider_id, "apiKey": key}
        answer = await client.post("/api/auth/key", json=asked)
    assert answer.is_error, answer.text
    return answer.status_code, answer.json()


async def validate(world: World, credential: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/credentials/{credential['credentialId']}/validate"
    return dict(await world.controller.call("POST", path))


async def revoke(world: World, credential_id: str) -> None:
    await world.controller.call("POST", f"/api/credentials/{credential_id}/revoke")
    async with asyncio.timeout(LIMIT_S):
        while credential_id in {
            it["credentialId"] for it in await world.controller.call("GET", "/api/credentials")
        }:
            await asyncio.sleep(0.05)
