"""Every workflow on both databases: it fails at each step, does each twice, and is cut by kill -9
before, inside and after each; whatever happens, the world's inventory is exact afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from cases import CASES, ELSEWHERE, Case
from controller_process import At, SagaTable
from controller_world import World, a_world

POINTS = ("before", "inside", "after")


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with _world(database_url) as it:
        await it.controller.start()
        yield it


@pytest.fixture
async def world_twice(database_url: str) -> AsyncIterator[World]:
    """One whose controller does every step twice."""
    async with _world(database_url) as it:
        await it.controller.start(twice=True)
        yield it


def _world(database_url: str) -> AbstractAsyncContextManager[World]:
    return a_world(DATABASE_URL=database_url, POLYDEV_SIGN_UPS_PER_HOUR="1000")


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    it: Case = request.param
    return it


async def _table(world: World, case: Case) -> SagaTable:
    """The saga's steps, which the controller tells."""
    table = (await world.controller.sagas())[case.name]
    assert table is not None, f"no saga is named {case.name}"
    assert table.steps or table.always
    return table


async def _killed(world: World, case: Case, *at: At, fail: At | None = None) -> None:
    """Kill it at points, one after another, and start it each time; then it ends as it should."""
    before = await case.prepare(world)
    world.controller.order(*at, fail=fail)
    with world.controller.held():
        subject = await case.begin(world, before)
    for _ in at:
        assert await world.controller.ended() == -9, f"not killed {', '.join(map(str, at))}"
        await world.bury()
        await world.controller.start()
    await (case.failed if fail else case.completed)(world, subject)
    await world.assert_clean()
    assert world.controller.orders_left() == 0


async def test_every_workflow_is_in_the_matrix_or_has_its_own(world: World) -> None:
    known = {case.name for case in CASES} | set(ELSEWHERE)
    assert set(await world.controller.sagas()) == known


async def test_failed_anywhere_it_leaves_a_clean_world(world: World, case: Case) -> None:
    table = await _table(world, case)
    for step in table.steps:
        for point in ("before", "inside"):
            before = await case.prepare(world)
            world.controller.order(fail=At(step, point))
            await case.failed(world, await case.begin(world, before))
            await world.assert_clean()
            assert world.controller.orders_left() == 0, f"not failed {point} {step}"


async def test_done_twice_every_step_is_done_once(world_twice: World, case: Case) -> None:
    world = world_twice
    await case.completed(world, await case.begin(world, await case.prepare(world)))
    await world.assert_clean()
    table = await _table(world, case)
    if table.steps:
        before = await case.prepare(world)
        world.controller.order(fail=At(table.steps[-1], "inside"))
        await case.failed(world, await case.begin(world, before))
        await world.assert_clean()


async def test_killed_anywhere_it_completes(world: World, case: Case) -> None:
    table = await _table(world, case)
    steps = [*table.steps, *table.always, f"end {case.name}"]
    points = [At(step, point) for step in steps for point in POINTS]
    if world.is_shared:  # one life with all its deaths; SQLite has each alone
        await _killed(world, case, *points)
    else:
        for at in points:
            await _killed(world, case, at)


async def test_killed_while_undoing_it_is_undone(world: World, case: Case) -> None:
    table = await _table(world, case)
    undoing = [f"undo {step}" for step in reversed(table.undone)]
    points = [At(step, point) for step in undoing for point in POINTS]
    if not points:
        pytest.skip("none of its steps can be undone")
    fail = At(table.steps[-1], "inside")
    if world.is_shared:
        await _killed(world, case, *points, fail=fail)
    else:
        for at in points:
            await _killed(world, case, at, fail=fail)
