"""Commands for users, tokens, credentials and keys against a real controller."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from api_users import create_user
from controller_world import World


class PolydevCommand:
    """Run `polydev` with a user's token or the administrator's."""

    def __init__(self, world: World) -> None:
        controller = world.controller
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "POLYDEV_URL": f"http://127.0.0.1:{controller.port}",
            "POLYDEV_ADMIN_TOKEN": controller.env["POLYDEV_ADMIN_TOKEN"],
        }

    async def __call__(self, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "polydev.cli", *arguments),
            env=self.environment | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == code, f"{arguments}: {err.decode()}"
        return out.decode(), err.decode()

    async def json(self, *arguments: str, **environment: str) -> Any:
        out, _ = await self(*arguments, "--json", **environment)
        return json.loads(out)


@pytest.fixture
async def polydev(world: World) -> PolydevCommand:
    await world.controller.start()
    await world.controller.call("GET", "/health")
    return PolydevCommand(world)


async def _connected(world: World) -> str:
    session = await world.controller.wait_for_session(await world.controller.connect("codex"))
    assert session["status"] == "completed", session
    return str(session["cliVM"]["vmId"])


async def test_users_are_invited_disabled_enabled_and_deleted(
    world: World, polydev: PolydevCommand
) -> None:
    invited = await polydev.json("user", "invite", "zoe@example.org", "--days", "1")
    assert (invited["email"], invited["role"]) == ("zoe@example.org", "person")
    out, _ = await polydev("user", "invite")
    assert "shown only once" in out
    ann = await create_user(world.controller, "ann")
    assert (await polydev.json("user", "disable", ann.email))["disabledAt"]
    out, _ = await polydev("user", "list")
    assert "disabled" in out
    assert not (await polydev.json("user", "enable", ann.user_id[:8]))["disabledAt"]
    changed = await polydev.json("user", "role", ann.email, "administrator")
    assert changed["role"] == "administrator"
    _, err = await polydev("user", "delete", ann.email, code=1)
    assert "--yes" in err
    assert (await polydev.json("user", "delete", ann.email, "--yes"))["deleted"] is True
    assert ann.email not in json.dumps(await polydev.json("user", "list"))
    _, err = await polydev("user", "delete", ann.email, "--yes", code=1)
    assert "polydev user list" in err


async def test_commands_act_as_the_user_of_the_token(world: World, polydev: PolydevCommand) -> None:
    ann = await create_user(world.controller, "ann")
    _, text = await ann.token("read", "account")
    own = {"POLYDEV_TOKEN": text}
    made = await polydev.json("token", "create", "nightly", "-s", "read", "--days", "1", **own)
    listed = await polydev.json("token", "list", **own)
    assert {it["tokenId"] for it in listed} >= {made["tokenId"]}
    assert made["token"] not in json.dumps(listed)
    _, err = await polydev("user", "list", code=1, **own)
    assert "Administrators only" in err
    await polydev("token", "revoke", made["tokenId"][:8], **own)
    _, err = await polydev("machine", "list", code=1, POLYDEV_TOKEN=made["token"])
    assert err.startswith("polydev: ")


async def test_credentials_are_listed_validated_exported_and_revoked(
    world: World, polydev: PolydevCommand, tmp_path: Path
) -> None:
    vm_id = await _connected(world)
    out, _ = await polydev("credential", "list")
    assert vm_id in out
    verdict = await polydev.json("credential", "validate", "codex")
    assert (verdict["validity"], verdict["vmId"]) == ("valid", vm_id)
    file = tmp_path / "auth.json"
    await polydev("credential", "export", "codex", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    held = await world.credentials(vm_id, "codex")
    assert json.loads(file.read_text()) == held
    _, err = await polydev("credential", "export", "codex", str(file), code=1)
    assert "Overwrite" in err
    out, _ = await polydev("credential", "export", "codex", "-")
    assert json.loads(out) == held
    await polydev("credential", "revoke", "codex", "--yes")
    assert await polydev.json("credential", "list") == []
    _, err = await polydev("credential", "validate", "codex", code=1)
    assert "polydev credential list" in err


async def test_keys_are_listed_rotated_and_removed(world: World, polydev: PolydevCommand) -> None:
    await _connected(world)
    (old,) = await polydev.json("key", "list")
    assert await world.controller.end() == 0
    controller = world.controller
    controller.env["POLYDEV_OTHER_ENCRYPTION_KEYS"] = controller.env["ENCRYPTION_KEY"]
    controller.env["ENCRYPTION_KEY"] = "another key of the tests only"
    await controller.start()
    await controller.call("GET", "/health")
    _, err = await polydev("key", "retire", old["keyId"], "--yes", code=1)
    assert "still seals" in err
    out, _ = await polydev("key", "rotate")
    assert f"polydev key retire {old['keyId']}" in out
    assert await controller.end() == 0
    del controller.env["POLYDEV_OTHER_ENCRYPTION_KEYS"]
    await controller.start()
    await controller.call("GET", "/health")
    await polydev("key", "retire", old["keyId"], "--yes")
    (new,) = await polydev.json("key", "list")
    assert new["seals"]
    assert new["credentials"] == 1


async def test_audit_log_is_listed_filtered_and_followed(
    world: World, polydev: PolydevCommand
) -> None:
    made = await polydev.json("token", "create", "nightly", "-s", "read")
    vm_id = (await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"}))["vm_id"]
    entries = await polydev.json("audit")
    assert [it["action"] for it in entries][-2:] == ["token.create", "machine.create"]
    for about in (f"subject={vm_id}", "action=machine.", "action=machine.create"):
        assert [it["subject"] for it in await polydev.json("audit", about, "--since", "1h")] == [
            vm_id
        ]
    assert await polydev.json("audit", "actor=nobody-here", "--last", "5") == []
    shown, _ = await polydev("audit", "--mine")
    assert "machine.create" in shown
    assert made["token"] not in shown
    for bad in (("audit", "who=ann"), ("audit", "actor=x", "--mine"), ("audit", "--since", "x")):
        _, err = await polydev(*bad, code=1)
        assert err.startswith("polydev: ")

    following = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "polydev.cli", "audit", "-f", "--json", "--last", "1"),
        env=polydev.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            assert following.stdout is not None
            assert json.loads(await following.stdout.readline())["subject"] == vm_id
            await world.controller.call("POST", "/api/vm/destroy", {"vmId": vm_id})
            assert json.loads(await following.stdout.readline())["action"] == "machine.destroy"
    finally:
        following.terminate()
        await following.wait()


async def test_hosts_are_listed_drained_and_activated(
    world: World, polydev: PolydevCommand
) -> None:
    vm_id = await _connected(world)
    why = ("--reason", "new disks")
    [host] = await polydev.json("host", "list")
    assert (host["hostId"], host["state"], host["machines"]) == ("local", "active", 1)
    drained, _ = await polydev("host", "drain", "local", *why)
    assert drained == "local: draining, 1 machines\n"
    table, _ = await polydev("host", "list")
    assert "draining" in table
    _, err = await polydev("host", "remove", "local", "--yes", code=1)
    assert "local" in err
    again = await polydev.json("host", "activate", "local", *why)
    assert (again["state"], again["machines"]) == ("active", 1)
    _, err = await polydev("host", "drain", "none", *why, code=1)
    assert "none" in err
    assert vm_id in {it["vm_id"] for it in await polydev.json("machine", "list")}
