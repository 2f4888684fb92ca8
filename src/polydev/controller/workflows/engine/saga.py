"""Sagas: tables of steps with compensations and time limits, and their runner.

A step may run twice and may be interrupted anywhere. So `do` and `undo` must be idempotent, and
`undo` must also undo an incomplete `do`. Steps pass no values to each other: their results are in
rows and on hosts.

    forward    run the steps in order; retry `Unavailable` until the step's limit
    backward   after a failure, undo the started steps in reverse order
    always     run these in any case; retry them whatever they raise
    end        report the outcome; the saga's rows are final after that
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from polydev.controller.telemetry import metrics, traces
from polydev.controller.workflows.engine.engine import Engine
from polydev.shared.domain import UNDO_PREFIX
from polydev.shared.errors import PolydevError, StepTimedOut, Unavailable
from polydev.shared.hints import Hint
from polydev.shared.logging import context

log = logging.getLogger("polydev.controller.workflows")

Work = Callable[[str], Awaitable[None]]
"""Called with the saga's subject, such as the id of a session or a machine."""

Point = Literal["before", "inside", "after"]
OnPoint = Callable[[str, Point], None]

_SUBJECT_KINDS = {
    "connect": "session",
    "connect-by-key": "session",
    "create-machine": "machine",
    "destroy-machine": "machine",
    "stop-machine": "machine",
    "start-machine": "machine",
    "hibernate-machine": "machine",
    "resume-machine": "machine",
    "delete-person": "person",
    "revoke-credential": "credential",
}
"""Key of each saga's subject in logs and traces."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Step:
    """A row of a saga's table."""

    name: str
    do: Work
    limit_s: float
    undo: Work | None = None
    interruptible: bool = True
    """A cancel request interrupts the step."""
    retry_on: type[PolydevError] = Unavailable
    """Errors of this type are retried until the limit."""


class SagaObserver(Protocol):
    """Receives a saga's progress, and reports its cancellation."""

    async def step_started(self, subject: str, step: str) -> None: ...

    async def step_ended(self, subject: str, step: str, outcome: str) -> None: ...

    async def wait_for_cancel(self, subject: str) -> PolydevError:
        """Return the reason once the saga is to be cancelled; otherwise never return."""

    async def saga_ended(self, subject: str, failure: PolydevError | None) -> None:
        """Record the outcome. The saga's rows do not change after this."""


@dataclass(frozen=True, slots=True)
class Saga:
    """A table of steps and its runner."""

    name: str
    steps: Sequence[Step]
    always: Sequence[Step]
    observer: SagaObserver
    undo_limit_s: float
    on_point: OnPoint = lambda _step, _point: None
    """Called before a step, after its work, and after its outcome is stored. For tests."""

    async def run(self, engine: Engine, subject: str) -> None:
        """Run the saga to its end. Errors of steps are recorded, not raised."""
        subject_id = subject.partition("/")[0]
        ids = {_SUBJECT_KINDS.get(self.name, "subject"): subject_id, "workflow": self.name}
        with context.bound(**ids), traces.span(self.name, trace=subject, **ids):
            await self._run(engine, subject)

    async def _run(self, engine: Engine, subject: str) -> None:
        failure = await self._forward(engine, subject)
        for step in self.always:
            await self._do_anyway(engine, subject, step.name, step.do, step.limit_s)

        name = f"end {self.name}"

        async def end() -> None:
            await self.observer.saga_ended(subject, failure)
            self.on_point(name, "inside")

        self.on_point(name, "before")
        await engine.step(name, end)
        self.on_point(name, "after")

    async def _forward(self, engine: Engine, subject: str) -> PolydevError | None:
        begun: list[Step] = []
        for step in self.steps:
            begun.append(step)
            try:
                await self._do(engine, subject, step)
            except PolydevError as failure:
                log.warning("%s: step '%s' failed: %s", subject, step.name, failure.line())
                await self._backward(engine, subject, begun)
                return failure
        return None

    async def _backward(self, engine: Engine, subject: str, begun: Sequence[Step]) -> None:
        for step in reversed(begun):
            if step.undo is not None:
                name = f"{UNDO_PREFIX}{step.name}"
                await self._do_anyway(engine, subject, name, step.undo, self.undo_limit_s)

    async def _do(self, engine: Engine, subject: str, step: Step) -> None:
        async def work() -> None:
            await self.observer.step_started(subject, step.name)
            try:
                with self._measured(step.name):
                    await self._do_within_limit(subject, step)
            except PolydevError:
                await self.observer.step_ended(subject, step.name, "failed")
                raise
            self.on_point(step.name, "inside")
            await self.observer.step_ended(subject, step.name, "done")

        self.on_point(step.name, "before")
        await engine.step(step.name, work)
        self.on_point(step.name, "after")

    async def _do_anyway(
        self, engine: Engine, subject: str, name: str, do: Work, limit_s: float
    ) -> None:
        """Run a step that must succeed. After its limit, the reconciler takes care of it."""

        async def work() -> None:
            await self.observer.step_started(subject, name)
            outcome = "done"
            try:
                with self._measured(name):
                    async with asyncio.timeout(limit_s):
                        await _retry(lambda: do(subject), PolydevError, name)
            except TimeoutError:
                outcome = "failed"
                log.error("%s: '%s' did not finish within %g s", subject, name, limit_s)
            self.on_point(name, "inside")
            await self.observer.step_ended(subject, name, outcome)

        self.on_point(name, "before")
        try:
            await engine.step(name, work)
        except PolydevError as error:
            log.error("%s: '%s' failed: %s", subject, name, error.line())
        self.on_point(name, "after")

    @contextmanager
    def _measured(self, step: str) -> Iterator[None]:
        """Time and trace a step."""
        with metrics.timed(metrics.step_duration, self.name, step), traces.span(step):
            yield

    async def _do_within_limit(self, subject: str, step: Step) -> None:
        attempts = _Attempts()
        try:
            async with asyncio.timeout(step.limit_s):
                work = _retry(lambda: step.do(subject), step.retry_on, step.name, attempts)
                if step.interruptible:
                    await _run_until_cancelled(self.observer.wait_for_cancel(subject), work)
                else:
                    await work
        except TimeoutError:
            why = attempts.last.message if attempts.last else "no answer"
            raise StepTimedOut(
                f"'{step.name}' did not finish within {step.limit_s:g} s: {why}",
                hint=attempts.last.hint if attempts.last else Hint.RUN_DOCTOR.text(),
            ) from None


@dataclass(slots=True)
class _Attempts:
    last: PolydevError | None = None


async def _retry(
    work: Callable[[], Awaitable[None]],
    what: type[PolydevError],
    name: str,
    attempts: _Attempts | None = None,
) -> None:
    """Retry on errors of one type, with growing pauses. The caller sets the time limit."""
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return await work()
        except what as error:
            log.info("retrying '%s': %s", name, error.message)
            if attempts is not None:
                attempts.last = error
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


async def _run_until_cancelled(
    interruption: Coroutine[Any, Any, PolydevError], work: Coroutine[Any, Any, None]
) -> None:
    """Await `work`. If the interruption comes first, cancel `work` and raise the reason."""
    stop, working = asyncio.create_task(interruption), asyncio.create_task(work)
    both: set[asyncio.Task[Any]] = {stop, working}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise stop.result()
        working.result()
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
