"""The engine on both databases: stored results, secrets, and continuation after a crash."""

from __future__ import annotations

import asyncio
import pickle
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from polydev.controller.store.engine.database import open_database
from polydev.controller.workflows.engine.dbos_store import DbosStore, open_dbos_store
from polydev.controller.workflows.engine.engine import Engine
from polydev.shared.domain import now
from polydev.shared.errors import BadSettings, LoginFailed, PolydevError

LIMIT_S = 60.0


class Journal:
    """A journal, for several engines in turn."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self.done: list[object] = []

    def store(self) -> DbosStore:
        return open_dbos_store(self._url, self._folder)

    def engine(self) -> Engine:
        return Engine(self.store())

    async def run(self, *, interrupted: bool, takes_over: int = 1) -> list[object]:
        """Start an engine; run the workflow to its end or its interruption."""
        engine = self.engine()
        reached = asyncio.Event()

        async def one() -> dict[str, object]:
            self.done.append("one")
            return {"number": 1, "none": None, "list": [True, "ä"]}

        async def two() -> None:
            self.done.append("two")
            raise LoginFailed("it did", hint="try again")

        async def three() -> None:
            self.done.append("three")
            if interrupted:
                reached.set()
                await asyncio.Event().wait()

        async def body(subject: str) -> None:
            given: list[object] = [subject, await engine.step("one", one)]
            try:
                await engine.step("two", two)
            except PolydevError as error:
                given.append((type(error), error.message, error.hint))
            await engine.step("three", three)
            self.done.append(given)
            reached.set()

        engine.register("test", body)
        await engine.start()
        dead = await engine.list_executors()
        for _ in range(takes_over):
            await engine.take_over(dead)
        await engine.enqueue("test", "it")
        await asyncio.wait_for(reached.wait(), LIMIT_S)
        if not interrupted:
            await _released(engine)
        await engine.stop()
        return self.done


@pytest.fixture
def journal(database_url: str, tmp_path: Path) -> Journal:
    return Journal(database_url, tmp_path)


async def _released(engine: Engine) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await engine.has_ended("test", "it"):
            await asyncio.sleep(0.05)


GIVEN = [
    "it",
    {"number": 1, "none": None, "list": [True, "ä"]},
    (LoginFailed, "it did", "try again"),
]


async def test_step_result_is_replayed_after_a_restart(journal: Journal) -> None:
    assert await journal.run(interrupted=True) == ["one", "two", "three"]
    assert (await journal.run(interrupted=False))[3:] == ["three", GIVEN]


async def test_workflow_taken_over_twice_runs_once(journal: Journal) -> None:
    await journal.run(interrupted=True)
    assert (await journal.run(interrupted=False, takes_over=3))[3:] == ["three", GIVEN]


async def test_workflow_of_a_live_engine_is_not_taken_over(journal: Journal) -> None:
    engine, begun, go_on = journal.engine(), [], asyncio.Event()

    async def step() -> None:
        begun.append(1)
        await go_on.wait()

    engine.register("test", lambda _: engine.step("step", step))
    await engine.start()
    await engine.enqueue("test", "it")
    async with asyncio.timeout(LIMIT_S):
        while not begun:
            await asyncio.sleep(0.05)
    assert await engine.list_executors() == {engine.executor_id}
    assert await engine.take_over({"controller-that-died", engine.executor_id}) == 0
    go_on.set()
    await _released(engine)
    assert await engine.list_executors() == frozenset()
    assert begun == [1]
    await engine.stop()


async def test_no_step_starts_behind_the_fence(journal: Journal) -> None:
    """Another executor may have taken the workflow over by then."""
    asked, ran = asyncio.Event(), []

    class Stopped(BaseException):
        """Stands for the end of the process."""

    def fence() -> None:
        asked.set()
        raise Stopped

    async def step() -> None:
        ran.append(1)

    engine = Engine(journal.store(), fence=fence)
    engine.register("test", lambda _: engine.step("step", step))
    await engine.start()
    await engine.enqueue("test", "it")
    await asyncio.wait_for(asked.wait(), LIMIT_S)
    await engine.stop()
    assert ran == []


async def test_journal_holds_no_pickle(journal: Journal) -> None:
    await journal.run(interrupted=False)
    store = journal.store()
    tables = sa.MetaData(schema=store.schema)
    tables.reflect(store.engine)
    with store.engine.connect() as connection:
        cells = [
            cell
            for table in tables.sorted_tables
            for row in connection.execute(sa.select(table))
            for cell in row
            if isinstance(cell, str)
        ]
    store.engine.dispose()
    assert any("it did" in cell for cell in cells)
    for pickled in (pickle.dumps(0)[:2], b"\x80\x04", b"\x80\x05"):
        assert not any(pickled in cell.encode() for cell in cells)
    assert not any(cell.startswith(("gAS", "gAR", "gAW")) for cell in cells)


async def test_one_workflow_per_name_and_subject(journal: Journal) -> None:
    engine, runs = journal.engine(), []

    async def body(subject: str) -> None:
        runs.append(subject)

    engine.register("test", body)
    await engine.start()
    for _ in range(3):
        await engine.enqueue("test", "it")
    await _released(engine)
    await engine.enqueue("test", "it")
    assert runs == ["it"]
    assert not await engine.has_ended("test", "another")
    assert await engine.prune(now() - timedelta(minutes=1)) == 0
    assert await engine.prune(now() + timedelta(minutes=1)) == 1
    await engine.stop()


async def test_step_result_must_be_a_plain_value(journal: Journal) -> None:
    engine = journal.engine()
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def give() -> object:
        return object()

    async def body(subject: str) -> None:
        try:
            await engine.step("give", give)
        except Exception as error:
            failed.set_result(error)

    engine.register("test", body)
    await engine.start()
    await engine.enqueue("test", "it")
    assert isinstance(await asyncio.wait_for(failed, LIMIT_S), TypeError)
    await engine.stop()


async def test_unexpected_error_is_logged_as_type_and_place_only(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    # The text of a foreign error may hold a secret.
    engine, failures = journal.engine(), []

    async def break_down() -> None:
        try:
            open_database("mysql://somewhere", Path())
        except BadSettings as error:
            raise RuntimeError("hunter2") from error

    async def body(subject: str) -> None:
        try:
            await engine.step("break-down", break_down)
        except PolydevError as error:
            failures.append(error)

    engine.register("test", body)
    await engine.start()
    await engine.enqueue("test", "it")
    await _released(engine)
    await engine.stop()
    (failure,) = failures
    assert failure.code == "failed"
    assert "RuntimeError from BadSettings" in failure.message
    assert "test_engine.py" in caplog.text
    assert "engine.py" in caplog.text
    assert "hunter2" not in caplog.text + failure.line()
