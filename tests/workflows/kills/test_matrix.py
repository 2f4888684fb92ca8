"""The kill matrix: every workflow fails, repeats or is killed at each step.

A step changes a workflow's persisted state twice: its work is done but not recorded ("inside"), and
DBOS has recorded its outcome ("after"). DBOS records the outcome before the step returns, and the
saga neither awaits nor writes between two steps, so "after" one step equals "before" the next. A
run is therefore killed before its first step, and inside and after each: 2n + 1 points for n steps.

SQLite runs every workflow; PostgreSQL runs those that `cases.py` marks, or all with
POLYDEV_MATRIX=all (`make soak`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

import pytest
from cases import CASES, ELSEWHERE, Case
from controller_process import At, SagaTable
from controller_world import World, open_world

EVERY_CASE_ON_BOTH = os.environ.get("POLYDEV_MATRIX") == "all"
ON_SQLITE = [("sqlite", case) for case in CASES]
ON_POSTGRESQL = [("postgresql", case) for case in CASES if case.is_on_both or EVERY_CASE_ON_BOTH]
each_case = pytest.mark.parametrize(
    ("database_url", "case"),
    [pytest.param(*pair, id=f"{pair[0]}-{pair[1].name}") for pair in ON_SQLITE + ON_POSTGRESQL],
    indirect=["database_url"],
)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with _world(database_url) as it:
        await it.controller.start()
        yield it


@pytest.fixture
async def world_twice(database_url: str) -> AsyncIterator[World]:
    """A world whose controller runs every step twice."""
    async with _world(database_url) as it:
        await it.controller.start(twice=True)
        yield it


def _world(database_url: str) -> AbstractAsyncContextManager[World]:
    settings = {"DATABASE_URL": database_url, "POLYDEV_SIGN_UPS_PER_HOUR": "1000"}
    return open_world({"channel": "direct"}, **settings)


def _points(steps: Sequence[str]) -> list[At]:
    """Every persisted state of a run of these steps."""
    return [At(steps[0], "before"), *(At(step, it) for step in steps for it in ("inside", "after"))]


async def _table(world: World, case: Case) -> SagaTable:
    """The saga's steps, as the controller reports them."""
    table = (await world.controller.sagas())[case.name]
    assert table is not None, f"no saga is named {case.name}"
    assert table.steps or table.always
    return table


async def _run_with_kills(world: World, case: Case, *at: At, fail: At | None = None) -> None:
    """Kill and restart the controller at each point, then check the outcome."""
    before = await case.prepare(world)
    world.controller.order(*at, fail=fail)
    with world.controller.delayed_workflows():
        subject = await case.begin(world, before)
    for _ in at:
        assert await world.controller.ended() == -9, f"not killed {', '.join(map(str, at))}"
        await world.expire_leases()
        await world.controller.start()
    await (case.failed if fail else case.completed)(world, subject)
    await world.assert_clean()
    assert world.controller.orders_left() == 0


async def test_every_workflow_is_in_the_matrix_or_has_its_own(world: World) -> None:
    known = {case.name for case in CASES} | set(ELSEWHERE)
    assert set(await world.controller.sagas()) == known


@each_case
async def test_failure_at_any_step_leaves_a_clean_world(world: World, case: Case) -> None:
    table = await _table(world, case)
    for step in table.steps:
        for point in ("before", "inside"):
            before = await case.prepare(world)
            world.controller.order(fail=At(step, point))
            await case.failed(world, await case.begin(world, before))
            await world.assert_clean()
            assert world.controller.orders_left() == 0, f"not failed {point} {step}"


@each_case
async def test_repeated_steps_have_effect_once(world_twice: World, case: Case) -> None:
    world = world_twice
    await case.completed(world, await case.begin(world, await case.prepare(world)))
    await world.assert_clean()
    table = await _table(world, case)
    if table.steps:
        before = await case.prepare(world)
        world.controller.order(fail=At(table.steps[-1], "inside"))
        await case.failed(world, await case.begin(world, before))
        await world.assert_clean()


@each_case
async def test_workflow_completes_after_a_kill_at_any_step(world: World, case: Case) -> None:
    table = await _table(world, case)
    points = _points([*table.steps, *table.always, f"end {case.name}"])
    if world.is_shared:  # all kills in one run; SQLite has a run per kill
        await _run_with_kills(world, case, *points)
    else:
        for at in points:
            await _run_with_kills(world, case, at)


@each_case
async def test_undo_completes_after_a_kill(world: World, case: Case) -> None:
    table = await _table(world, case)
    if not table.undone:
        pytest.skip("none of its steps can be undone")
    points = _points([f"undo {step}" for step in reversed(table.undone)])
    fail = At(table.steps[-1], "inside")
    if world.is_shared:
        await _run_with_kills(world, case, *points, fail=fail)
    else:
        for at in points:
            await _run_with_kills(world, case, at, fail=fail)
