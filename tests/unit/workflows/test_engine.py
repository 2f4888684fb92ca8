"""The engine: what is kept of a workflow, and what is not."""

from __future__ import annotations

import asyncio
import pickle
import sqlite3
from datetime import timedelta
from pathlib import Path

from polydev.domain import now
from polydev.errors import LoginFailed, PolydevError
from polydev.workflows.engine import Engine
from polydev.workflows.journal import journal_of

LIMIT_S = 20.0


class Journal:
    """A folder with a journal, over which one engine after another is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[object] = []

    async def run(self, *, cut: bool) -> list[object]:
        """Start an engine, and let the workflow go on to its end, or to where it is cut."""
        engine = Engine(journal_of(None, self.folder))
        reached = asyncio.Event()

        async def one() -> dict[str, object]:
            self.done.append("one")
            return {"number": 1, "none": None, "list": [True, "ä"]}

        async def two() -> None:
            self.done.append("two")
            raise LoginFailed("it did", hint="try again")

        async def three() -> None:
            self.done.append("three")
            if cut:
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

        engine.add("test", body)
        await engine.start()
        await engine.take_over(await engine.executors())
        await engine.enqueue("test", "it")
        await asyncio.wait_for(reached.wait(), LIMIT_S)
        await engine.stop()
        return self.done


GIVEN = [
    "it",
    {"number": 1, "none": None, "list": [True, "ä"]},
    (LoginFailed, "it did", "try again"),
]


async def test_what_a_step_gave_is_given_again_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert await journal.run(cut=True) == ["one", "two", "three"]
    assert (await journal.run(cut=False))[3:] == ["three", GIVEN]


async def test_nothing_in_the_journal_is_a_pickle(tmp_path: Path) -> None:
    await Journal(tmp_path).run(cut=False)
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        cells = [
            cell
            for (table,) in tables.fetchall()
            for row in connection.execute(f'SELECT * FROM "{table}"')  # noqa: S608
            for cell in row
            if isinstance(cell, str)
        ]
    assert any("it did" in cell for cell in cells)
    for told in (pickle.dumps(0)[:2], b"\x80\x04", b"\x80\x05"):
        assert not any(told in cell.encode() for cell in cells)
    assert not any(cell.startswith(("gAS", "gAR", "gAW")) for cell in cells)


async def test_one_workflow_per_name_and_subject(tmp_path: Path) -> None:
    engine, runs = Engine(journal_of(None, tmp_path)), []

    async def body(subject: str) -> None:
        runs.append(subject)

    engine.add("test", body)
    await engine.start()
    for _ in range(3):
        await engine.enqueue("test", "it")
    async with asyncio.timeout(LIMIT_S):
        while not await engine.is_over("test", "it"):
            await asyncio.sleep(0.05)
    await engine.enqueue("test", "it")
    assert runs == ["it"]
    assert not await engine.is_over("test", "another")
    assert await engine.forget(now() - timedelta(minutes=1)) == 0
    assert await engine.forget(now() + timedelta(minutes=1)) == 1
    await engine.stop()


async def test_a_step_cannot_give_what_is_no_plain_value(tmp_path: Path) -> None:
    engine = Engine(journal_of(None, tmp_path))
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def give() -> object:
        return object()

    async def body(subject: str) -> None:
        try:
            await engine.step("give", give)
        except Exception as error:
            failed.set_result(error)

    engine.add("test", body)
    await engine.start()
    await engine.enqueue("test", "it")
    assert isinstance(await asyncio.wait_for(failed, LIMIT_S), TypeError)
    await engine.stop()
