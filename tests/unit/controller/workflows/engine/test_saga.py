"""Sagas over the real engine: order, undo, time limits, retries and interruption."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import sqlite_template

from polydev.controller.workflows.engine.dbos_store import open_dbos_store
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.engine.saga import Saga, Step
from polydev.shared.errors import (
    ChannelLost,
    LoginCancelled,
    LoginFailed,
    PolydevError,
    StepTimedOut,
)

LIMIT_S = 20.0


class SagaObserver:
    """Records a saga's reports, and cancels it on request."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.ended: asyncio.Future[PolydevError | None] = asyncio.get_running_loop().create_future()
        self.unwanted = asyncio.Event()

    async def step_started(self, subject: str, step: str) -> None:
        self.reports.append(step)

    async def step_ended(self, subject: str, step: str, outcome: str) -> None:
        self.reports.append(f"{step}: {outcome}")

    async def wait_for_cancel(self, subject: str) -> PolydevError:
        await self.unwanted.wait()
        return LoginCancelled("unwanted")

    async def saga_ended(self, subject: str, failure: PolydevError | None) -> None:
        self.ended.set_result(failure)


class Bench:
    """Runs one saga to completion."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.observer = SagaObserver()
        self.done: list[str] = []

    def does(self, name: str, *errors: Exception) -> Callable[[str], Awaitable[None]]:
        """Return work that records its name and raises each error once, then succeeds."""
        left = list(errors)

        async def work(subject: str) -> None:
            self.done.append(name)
            if left:
                raise left.pop(0)

        return work

    async def run(
        self, *steps: Step, always: tuple[Step, ...] = (), undo_limit_s: float = 1
    ) -> PolydevError | None:
        saga = Saga("test", steps, always, self.observer, undo_limit_s=undo_limit_s)
        self.engine.register("test", lambda subject: saga.run(self.engine, subject))
        await self.engine.start()
        await self.engine.enqueue("test", "it")
        return await asyncio.wait_for(asyncio.shield(self.observer.ended), LIMIT_S)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    await asyncio.to_thread(sqlite_template.put_journal, tmp_path)
    engine = Engine(open_dbos_store(None, tmp_path))
    yield Bench(engine)
    await engine.stop()


def _step(bench: Bench, name: str, *errors: Exception, limit_s: float = 5) -> Step:
    return Step(name, bench.does(name, *errors), limit_s, undo=bench.does(f"undo {name}"))


async def test_steps_run_in_order_and_then_the_final_ones(bench: Bench) -> None:
    failure = await bench.run(
        _step(bench, "one"), _step(bench, "two"), always=(_step(bench, "last"),)
    )
    assert failure is None
    assert bench.done == ["one", "two", "last"]
    assert bench.observer.reports == [
        *("one", "one: done", "two", "two: done"),
        *("last", "last: done"),
    ]


async def test_failure_undoes_started_steps_in_reverse_order(bench: Bench) -> None:
    failure = await bench.run(
        _step(bench, "one"),
        _step(bench, "two"),
        _step(bench, "three", LoginFailed("no")),
        _step(bench, "never"),
        always=(_step(bench, "last"),),
    )
    assert isinstance(failure, LoginFailed)
    assert bench.done == [
        *("one", "two", "three"),
        *("undo three", "undo two", "undo one"),
        "last",
    ]


async def test_unavailable_step_is_retried(bench: Bench) -> None:
    failure = await bench.run(_step(bench, "one", ChannelLost("cut"), ChannelLost("cut")))
    assert failure is None
    assert bench.done == ["one"] * 3


async def test_retries_end_at_the_limit_with_the_last_error(bench: Bench) -> None:
    always_cut = [ChannelLost("cut", hint="look")] * 100
    failure = await bench.run(_step(bench, "one", *always_cut, limit_s=0.5))
    assert isinstance(failure, StepTimedOut)
    assert failure.line() == "'one' did not finish within 0.5 s: cut. look"
    assert bench.done[-1] == "undo one"


async def test_hanging_step_ends_at_its_limit(bench: Bench) -> None:
    async def hang(subject: str) -> None:
        await asyncio.Event().wait()

    failure = await bench.run(Step("one", hang, 0.3))
    assert isinstance(failure, StepTimedOut)


async def test_failed_undo_is_retried(bench: Bench) -> None:
    stubborn = Step(
        "one", bench.does("one"), 5, undo=bench.does("undo", LoginFailed("a"), ChannelLost("b"))
    )
    failing = _step(bench, "two", LoginFailed("no"))
    failure = await bench.run(stubborn, failing, undo_limit_s=60)
    assert failure is not None
    assert bench.done == ["one", "two", "undo two", "undo", "undo", "undo"]


async def test_failing_undo_does_not_prevent_the_others(
    bench: Bench,
) -> None:
    hopeless = Step("two", bench.does("two"), 5, undo=bench.does("-", *[LoginFailed("no")] * 99))
    failure = await bench.run(
        _step(bench, "one"), hopeless, _step(bench, "three", LoginFailed("first"))
    )
    assert str(failure) == "first"
    assert bench.done[-1] == "undo one"
    assert "undo two: failed" in bench.observer.reports


async def test_cancellation_ends_a_step_immediately(bench: Bench) -> None:
    async def hang(subject: str) -> None:
        bench.observer.unwanted.set()
        await asyncio.Event().wait()

    failure = await bench.run(Step("one", hang, 60, undo=bench.does("undo one")))
    assert isinstance(failure, LoginCancelled)
    assert bench.done == ["undo one"]


async def test_uninterruptible_step_is_completed(bench: Bench) -> None:
    bench.observer.unwanted.set()
    step = Step("one", bench.does("one"), 5, interruptible=False)
    assert await bench.run(step) is None


async def test_foreign_error_fails_the_saga_without_its_text(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    failure = await bench.run(_step(bench, "one", KeyError("a-secret-token")))
    assert failure is not None
    assert "KeyError" in failure.message
    assert "a-secret-token" not in failure.line() + caplog.text
    assert bench.done == ["one", "undo one"]
