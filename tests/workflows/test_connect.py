"""The connect session as its table has it: every step fails, runs twice, and is cut by kill -9."""

from __future__ import annotations

import pytest
from conftest import World, tokens_in
from controller_process import At

STEPS = (
    "create-machines",
    "browser-ready",
    "start-login",
    "wait-for-person",
    "capture",
    "write",
    "destroy-browser",
    "end",
)
POINTS = ("before", "inside", "after")


async def _assert_completed(world: World, session_id: str, provider: str = "codex") -> str:
    session = await world.controller.until(session_id)
    assert session["status"] == "completed", session["error"]
    cli = session["cliVM"]["vmId"]
    await world.assert_clean(cli)
    world.assert_no_trace_of(*tokens_in(await world.credentials(cli, provider)))
    return str(cli)


async def test_a_session_completes_and_leaves_only_the_cli_machine(world: World) -> None:
    await world.controller.start()
    session_id = await world.controller.connect("codex")
    cli = await _assert_completed(world, session_id)
    session = await world.controller.session(session_id)
    assert [step["step"] for step in session["steps"]] == list(STEPS[:-1])
    assert {step["outcome"] for step in session["steps"]} == {"done"}
    done = await world.controller.ask("POST", f"/api/auth/session/{session_id}/complete")
    assert done["success"] is True
    assert done["cliVM"]["vmId"] == cli


async def test_a_second_provider_takes_the_machine_that_there_is(world: World) -> None:
    await world.controller.start()
    codex = await _assert_completed(world, await world.controller.connect("codex"))
    session_id = await world.controller.connect("claude_code")
    assert await _assert_completed(world, session_id, "claude_code") == codex


async def test_two_providers_at_once_share_one_machine(world: World) -> None:
    await world.controller.start()
    first, second = [await world.controller.connect(it) for it in ("codex", "claude_code")]
    views = [await world.controller.until(it) for it in (first, second)]
    assert [view["status"] for view in views] == ["completed", "completed"]
    assert views[0]["cliVM"] == views[1]["cliVM"]
    await world.assert_clean(views[0]["cliVM"]["vmId"])


async def test_connecting_again_replaces_the_credentials(world: World) -> None:
    await world.controller.start()
    cli = await _assert_completed(world, await world.controller.connect("codex"))
    before = await world.credentials(cli, "codex")
    assert await _assert_completed(world, await world.controller.connect("codex")) == cli
    assert await world.credentials(cli, "codex") != before


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", STEPS)
async def test_killed_anywhere_it_completes(world: World, step: str, point: str) -> None:
    await world.controller.start(kill=At(step, point))
    session_id = await world.controller.connect("codex")
    assert await world.controller.ended() == -9
    await world.controller.start()
    await _assert_completed(world, session_id)
    assert await world.controller.end() == 0


@pytest.mark.parametrize("point", ["before", "inside"])
@pytest.mark.parametrize("step", STEPS[:-2])
async def test_failed_anywhere_it_leaves_a_clean_world(world: World, step: str, point: str) -> None:
    await world.controller.start(fail=At(step, point))
    session = await world.controller.until(await world.controller.connect("codex"))
    assert session["status"] == "failed"
    assert session["error"]["code"] == "login-failed"
    assert session["cliVM"] is None
    await world.assert_clean()
    world.assert_no_trace_of()


@pytest.mark.parametrize("step", ["capture", "write"])
async def test_a_machine_that_was_there_is_left_as_it_was(world: World, step: str) -> None:
    await world.controller.start()
    cli = await _assert_completed(world, await world.controller.connect("codex"))
    before = await world.credentials(cli, "codex")
    await world.controller.end()
    await world.controller.start(fail=At(step, "inside"))
    session = await world.controller.until(await world.controller.connect("codex"))
    assert session["status"] == "failed"
    await world.assert_clean(cli)
    assert await world.credentials(cli, "codex") == before


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", ["undo write", "undo capture", "undo create-machines"])
async def test_killed_while_undoing_it_is_undone(world: World, step: str, point: str) -> None:
    await world.controller.start(fail=At("write", "inside"), kill=At(step, point))
    session_id = await world.controller.connect("codex")
    assert await world.controller.ended() == -9
    await world.controller.start()
    session = await world.controller.until(session_id)
    assert session["status"] == "failed"
    await world.assert_clean()
