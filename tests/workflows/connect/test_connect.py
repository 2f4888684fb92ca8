"""Connect sessions that complete, fail, expire or are cancelled.

`test_matrix.py` tests failures, repeats and kills at each step.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import httpx
import pytest
from controller_process import At
from controller_world import World, open_world, tokens_in

from polydev.shared.domain import LOGIN_STEPS
from polydev.shared.host_protocol import StopMachine
from polydev.shared.providers import all_providers

STEPS = LOGIN_STEPS


async def _assert_completed(world: World, session_id: str, provider: str = "codex") -> str:
    session = await world.controller.wait_for_session(session_id)
    assert session["status"] == "completed", session["error"]
    cli = session["cliVM"]["vmId"]
    await world.assert_clean(cli)
    world.assert_no_trace_of(*tokens_in(await world.credentials(cli, provider)))
    return str(cli)


async def test_completed_session_leaves_only_the_cli_machine(world: World) -> None:
    await world.controller.start()
    session_id = await world.controller.connect("codex")
    cli = await _assert_completed(world, session_id)
    session = await world.controller.session(session_id)
    assert [step["step"] for step in session["steps"]] == list(STEPS)
    assert {step["outcome"] for step in session["steps"]} == {"done"}
    done = await world.controller.call("POST", f"/api/auth/session/{session_id}/complete")
    assert done["success"] is True
    assert done["cliVM"]["vmId"] == cli


async def test_other_providers_reuse_the_cli_machine(world: World) -> None:
    await world.controller.start()
    codex = await _assert_completed(world, await world.controller.connect("codex"))
    for other in ("claude_code", "gemini_cli"):
        session_id = await world.controller.connect(other)
        assert await _assert_completed(world, session_id, other) == codex


async def test_all_providers_at_once_share_one_machine(world: World) -> None:
    await world.controller.start()
    sessions = [await world.controller.connect(it.id) for it in all_providers()]
    views = [await world.controller.wait_for_session(it) for it in sessions]
    assert [view["status"] for view in views] == ["completed"] * 3
    assert views[0]["cliVM"] == views[1]["cliVM"] == views[2]["cliVM"]
    await world.assert_clean(views[0]["cliVM"]["vmId"])


async def test_connecting_again_replaces_the_credentials(world: World) -> None:
    await world.controller.start()
    cli = await _assert_completed(world, await world.controller.connect("codex"))
    before = await world.credentials(cli, "codex")
    assert await _assert_completed(world, await world.controller.connect("codex")) == cli
    assert await world.credentials(cli, "codex") != before


@pytest.mark.parametrize("step", ["capture", "write"])
async def test_existing_machine_is_unchanged_after_failure(world: World, step: str) -> None:
    await world.controller.start()
    cli = await _assert_completed(world, await world.controller.connect("codex"))
    before = await world.credentials(cli, "codex")
    world.controller.order(fail=At(step, "inside"))
    session = await world.controller.wait_for_session(await world.controller.connect("codex"))
    assert session["status"] == "failed"
    await world.assert_clean(cli)
    assert await world.credentials(cli, "codex") == before


async def test_cancelled_session_leaves_nothing() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        waiting = await world.controller.wait_for_session(session_id, "waiting_for_person")
        assert waiting["oauthUrl"].startswith("https://auth.openai.com/")
        await world.controller.call("POST", f"/api/auth/session/{session_id}/cancel")
        session = await world.controller.wait_for_session(session_id)
        assert (session["status"], session["error"]["code"]) == ("cancelled", "login-cancelled")
        await world.assert_clean()


async def test_cancel_interrupts_machine_creation() -> None:
    async with open_world({"boot_s": 45}) as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        await world.controller.wait_for_session(session_id, "running")
        began = time.monotonic()
        await world.controller.call("POST", f"/api/auth/session/{session_id}/cancel")
        session = await world.controller.wait_for_session(session_id)
        assert session["status"] == "cancelled"
        assert time.monotonic() - began < 30
        await world.assert_clean()


async def test_cancel_survives_a_killed_controller() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        await world.controller.wait_for_session(session_id, "waiting_for_person")
        world.controller.order(At("undo create-machines", "before"))
        with suppress(httpx.TransportError):  # it may die before it answers
            await world.controller.call("POST", f"/api/auth/session/{session_id}/cancel")
        assert await world.controller.ended() == -9
        await world.controller.start()
        assert (await world.controller.wait_for_session(session_id))["status"] == "cancelled"
        await world.assert_clean()


async def test_session_expires_across_a_restart() -> None:
    async with open_world({"login_end": "never"}, POLYDEV_PERSON_LIMIT_S="8") as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        waiting = await world.controller.wait_for_session(session_id, "waiting_for_person")
        await world.controller.kill()
        await world.controller.start()
        session = await world.controller.wait_for_session(session_id)
        assert (session["status"], session["error"]["code"]) == ("expired", "login-expired")
        assert session["expiresAt"] == waiting["expiresAt"]
        await world.assert_clean()


async def test_pasted_callback_completes_the_login_and_is_not_stored() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        await world.controller.wait_for_session(session_id, "waiting_for_person")
        code = "a-pasted-code-that-is-a-secret"
        path = f"/api/auth/session/{session_id}/input"
        url = f"http://localhost:1455/auth/callback?code={code}&state=x"
        assert await world.controller.call("POST", path, {"callbackUrl": url}) == {"accepted": True}
        await _assert_completed(world, session_id)
        world.assert_no_trace_of(code)


async def test_failed_login_has_an_error() -> None:
    async with open_world({"login_end": "failure"}) as world:
        await world.controller.start()
        session = await world.controller.wait_for_session(await world.controller.connect("codex"))
        assert session["status"] == "failed"
        assert session["error"]["code"] == "login-failed"
        assert "makes this login fail" in session["error"]["message"]
        await world.assert_clean()


async def test_error_of_an_unready_machine_names_its_console_log() -> None:
    async with open_world({"becomes_ready": False}, POLYDEV_MACHINE_LIMIT_S="2") as world:
        await world.controller.start()
        session = await world.controller.wait_for_session(await world.controller.connect("codex"))
        assert session["error"]["code"] == "machine-not-ready"
        assert "console" in session["error"]["message"]
        await world.assert_clean()


async def test_session_survives_a_host_agent_outage(world: World) -> None:
    await world.controller.start()
    await world.agent.kill()
    session_id = await world.controller.connect("codex")
    view = await world.controller.wait_for_session(session_id, "queued", "running")
    assert view["error"] is None
    await world.agent.start()
    await _assert_completed(world, session_id)


async def test_second_request_returns_the_same_session() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        first = await world.controller.connect("codex")
        assert await world.controller.connect("codex") == first
        assert await world.controller.connect("claude_code") != first


async def test_failed_undo_is_retried_by_the_reconciler(world: World) -> None:
    await world.controller.start()
    world.controller.order(At("undo create-machines", "before"), fail=At("write", "inside"))
    session_id = await world.controller.connect("codex")
    assert await world.controller.ended() == -9
    await world.agent.kill()
    world.controller.env["POLYDEV_DESTROY_LIMIT_S"] = "1"
    await world.controller.start()
    assert (await world.controller.wait_for_session(session_id))["status"] == "failed"
    await world.agent.start()
    await world.controller.end()
    await world.controller.start()  # the reconciler runs at its start
    async with asyncio.timeout(60):
        while await world.rows():
            await asyncio.sleep(0.2)
    await world.assert_clean()


async def test_stopped_cli_machine_is_started_to_write_credentials() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        waiting = await world.controller.wait_for_session(session_id, "waiting_for_person")
        async with world.agent.host() as host:
            await host.run("stop-it", StopMachine(vm_id=waiting["cliVM"]["vmId"]), 30)
        path = f"/api/auth/session/{session_id}/input"
        await world.controller.call("POST", path, {"callbackUrl": "http://localhost:1455/x?code=x"})
        await _assert_completed(world, session_id)


@pytest.mark.parametrize("boot_s", [0, 3])
async def test_session_continues_after_a_controller_restart(boot_s: int) -> None:
    """Restart it while it waits for the user, and while it creates machines."""
    async with open_world({"login_end": "never", "boot_s": boot_s}) as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        reached = "running" if boot_s else "waiting_for_person"
        await world.controller.wait_for_session(session_id, reached)
        assert await world.controller.end() == 0
        await world.controller.start()
        await world.controller.wait_for_session(session_id, "waiting_for_person")
        path = f"/api/auth/session/{session_id}/input"
        await world.controller.call("POST", path, {"callbackUrl": "http://localhost:1455/x?code=x"})
        await _assert_completed(world, session_id)
        assert "Traceback" not in world.controller.log.read_text()
