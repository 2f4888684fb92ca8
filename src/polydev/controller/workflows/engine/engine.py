"""The durable engine: runs workflows that survive the death of the controller. Sole user of DBOS.

`app.py` makes one per process; `saga.py` and the workflows use it. It must not know sessions,
machines or people. What it promises: a workflow that was enqueued runs to its end, over any number
of restarts; a step that ended is not run again, and gives what it gave; a step that was cut runs
again.

Several engines may share one journal: each is an *executor*, and a workflow that was begun is one
executor's. Which executors are dead is for `leases.py` to know; `take_over` then gives their
workflows back to the queue. That is safe to ask for twice, and of one that is not quite dead: DBOS
gives a workflow back only while it is still that executor's, and a run that has lost its workflow
writes nothing more into the journal.

What goes into the journal are ids and plain values, as JSON (DBOS would pickle, and who could write
its file could then run code here). Errors are kept as code, message and hint. Nothing secret may
be passed to a workflow, returned from a step, or raised in one.

Traps that this module keeps away from the others: `cancel_workflow` and workflow timeouts strand a
waiting workflow (a step that waits watches a row instead); so do messages cost, which on SQLite
are polled for by each workflow that waits; queues are named before the launch; the application
version is constant (code that changes a workflow's steps asks `DBOS.patch`); threads are bounded;
polling is quick enough for a person.
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos._serialization import Serializer

import polydev
from polydev.controller.workflows.engine.dbos_store import DbosStore
from polydev.shared.errors import Failed, PolydevError, by_code

log = logging.getLogger("polydev.controller.workflows")

Body = Callable[[str], Awaitable[None]]

_QUEUE = "polydev"
_VERSION = "1"
_QUEUE_POLLING_S = 0.25
"""What a person waits before a session starts, at most; ten times a second costs an idle
controller 4 % of a core."""
_THREADS = 32
_ERROR_KEY = "$error"
_SOURCE_ROOT = Path(polydev.__file__).parent
_FRAMES = 5
"""How many places of an unforeseen error are told: of where it was raised, and of our own code."""
_ACTIVE = ("PENDING", "ENQUEUED", "DELAYED")


class Engine:
    """One per process: DBOS itself is a singleton. `fence` is called before each step's work, and
    does not return once this executor's workflows may be another's."""

    def __init__(
        self,
        store: DbosStore,
        executor_id: str | None = None,
        fence: Callable[[], None] = lambda: None,
    ) -> None:
        self.executor_id = executor_id or new_executor_id()
        self._store = store
        self._fence = fence
        self._bodies: dict[str, Body] = {}
        self._workflows: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {}
        self._running: set[asyncio.Task[Any]] = set()

    def register(self, name: str, body: Body) -> None:
        """Make a workflow known, before the start. Its body gets the subject that it is enqueued
        with, and must be deterministic between its steps."""
        self._bodies[name] = body

    async def start(self) -> None:
        """Open the journal and run what is enqueued. What other executors had begun stays theirs
        until it is taken over."""
        config: DBOSConfig = {
            "name": "polydev",
            "system_database_engine": self._store.engine,
            "application_version": _VERSION,
            "executor_id": self.executor_id,
            "serializer": _PlainJson(),
            "max_executor_threads": _THREADS,
            "log_level": "WARNING",
            "enable_otlp": False,
        }
        if self._store.schema is not None:
            config["dbos_system_schema"] = self._store.schema
        DBOS(config=config)
        for name, body in self._bodies.items():
            self._workflows[name] = self._register(name, body)
        DBOS.listen_queues([_QUEUE])
        DBOS.launch()  # on the event loop's thread: workflows then run on this loop
        await DBOS.register_queue_async(
            _QUEUE, polling_interval_sec=_QUEUE_POLLING_S, on_conflict="always_update"
        )

    async def list_executors(self) -> frozenset[str]:
        """Every executor that has begun a workflow that has not ended."""
        return await asyncio.to_thread(self._query_executors)

    async def take_over(self, executors: Set[str]) -> int:
        """Have this executor, or whichever is quicker, go on with the workflows of dead ones.
        Returns how many there were."""
        dead = sorted(executors - {self.executor_id})
        handles = await asyncio.to_thread(DBOS._recover_pending_workflows, dead)
        if handles:
            log.info("%d workflows of %d dead controllers go on", len(handles), len(dead))
        return len(handles)

    async def stop(self) -> None:
        """Let go of the workflows where they are; the next start takes them up."""
        logging.getLogger("dbos").setLevel(logging.ERROR)  # it warns of each one that is let go
        tasks = [*self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(
            DBOS.destroy, workflow_completion_timeout_sec=0, destroy_registry=True
        )
        # DBOS had made its own threads the loop's, and has ended them.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        await asyncio.to_thread(self._store.engine.dispose)

    async def enqueue(self, name: str, subject: str) -> None:
        """Have a workflow run. There is one per name and subject: asking twice is asking once."""
        with SetWorkflowID(_workflow_id(name, subject)):
            await DBOS.enqueue_workflow_async(_QUEUE, self._workflows[name], subject)

    async def has_ended(self, name: str, subject: str) -> bool:
        """Whether a workflow has run to its end; not so for one that was never enqueued."""
        status = await DBOS.get_workflow_status_async(_workflow_id(name, subject))
        return status is not None and status.status not in _ACTIVE

    async def list_active(self, name: str) -> frozenset[str]:
        """The subjects of all workflows of that name that have not ended, in one question."""
        found = await DBOS.list_workflows_async(
            status=list(_ACTIVE), name=name, load_input=False, load_output=False
        )
        return frozenset(it.workflow_id.removeprefix(_workflow_id(name, "")) for it in found)

    async def prune(self, before: datetime) -> int:
        """Remove the journal of workflows that have ended and were made before that time."""
        old = await DBOS.list_workflows_async(
            status=["SUCCESS", "ERROR"],
            end_time=before.isoformat(),
            load_input=False,
            load_output=False,
            limit=500,
        )
        if old:
            await DBOS.delete_workflows_async([it.workflow_id for it in old])
        return len(old)

    # -- in a workflow ---------------------------------------------------------------------------

    async def step(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run work whose outcome is kept: plain JSON values or an error of ours.

        Raises: what `work` raised; Failed in place of an error that is not ours, which is logged.
        """

        async def stored_step() -> Any:
            self._fence()
            try:
                return await work()
            except PolydevError:
                raise
            except Exception as error:
                raise _unexpected(name, error) from None

        return await DBOS.run_step_async({"name": str(name)}, stored_step)

    def _query_executors(self) -> frozenset[str]:
        status = sa.table(
            "workflow_status",
            sa.column("executor_id"),
            sa.column("status"),
            schema=self._store.schema,
        )
        query = sa.select(status.c.executor_id).where(status.c.status == "PENDING").distinct()
        with self._store.engine.connect() as connection:
            return frozenset(row.executor_id for row in connection.execute(query))

    def _register(self, name: str, body: Body) -> Callable[[str], Coroutine[Any, Any, None]]:
        async def run(subject: str) -> None:
            if task := asyncio.current_task():
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            await body(subject)

        return DBOS.workflow(name=name, max_recovery_attempts=None)(run)


def new_executor_id() -> str:
    """Of one process: whoever starts again is another executor."""
    return f"controller-{uuid.uuid4()}"


def _workflow_id(name: str, subject: str) -> str:
    return f"{name}:{subject}"


def _unexpected(name: str, error: Exception) -> Failed:
    """An error that nobody foresaw. Its text may hold anything, so only its kind, that of its
    cause, and its place are told: where it was raised, and where in our own code."""
    kind = type(error).__name__
    if error.__cause__ is not None:
        kind += f" from {type(error.__cause__).__name__}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames[:-_FRAMES] if Path(frame.filename).is_relative_to(_SOURCE_ROOT)
    ]
    where = " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in reversed(ours[-_FRAMES:] + frames[-_FRAMES:])
    )
    log.error("step %s failed unexpectedly: %s at %s", name, kind, where)
    return Failed(
        f"Something unexpected happened in the step '{name}' ({kind})",
        hint="The controller's log says where; please report it",
    )


class _PlainJson(Serializer):
    """What goes into the journal: JSON, with errors as code, message and hint."""

    def name(self) -> str:
        return "polydev_json"

    def serialize(self, data: Any) -> str:
        return json.dumps(data, default=_plain)

    def deserialize(self, serialized_data: str) -> Any:
        data = json.loads(serialized_data)
        if isinstance(data, dict) and _ERROR_KEY in data:
            code, message, hint = data[_ERROR_KEY]
            return by_code(code)(message, hint=hint)
        return data


def _plain(value: object) -> object:
    if isinstance(value, PolydevError):
        return {_ERROR_KEY: [value.code, value.message, value.hint]}
    if isinstance(value, BaseException):
        return {_ERROR_KEY: [Failed.code, f"Internal error ({type(value).__name__})", ""]}
    raise TypeError(f"{type(value).__name__} does not go into the journal")
