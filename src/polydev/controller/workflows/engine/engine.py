"""The durable engine: workflows that survive a restart of the controller. Sole user of DBOS.

Each process has one engine, created by `bootstrap.py`. It knows no sessions, machines or users.
Guarantees: an enqueued workflow runs to its end, over any number of restarts; a completed step does
not run again, and its recorded result is returned; an interrupted step runs again.

Several engines may share one store. Each is an *executor* and owns the workflows that it started.
`leases.py` finds dead executors, and `take_over` requeues their workflows. It is safe to call twice
and for an executor that is still alive: DBOS requeues a workflow only while that executor owns it,
and a run that has lost its workflow cannot write to the store.

The store holds ids and plain values, as JSON. DBOS would use pickle, which lets every writer
of the file run code here. Errors are stored as code, message and hint. Never pass a secret to a
workflow, return one from a step or raise one in it.

Pitfalls of DBOS that this module hides:
- `cancel_workflow` and timeouts strand a waiting workflow, so a waiting step watches a row.
- Each waiting workflow polls SQLite for messages, so messages are not used.
- Queues must be registered before the launch.
- The application version is constant. Code that changes a workflow's steps uses `DBOS.patch`.
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
"""Longest delay of a workflow's start. Ten polls a second cost an idle controller 4 % of a core."""
_THREADS = 32
_ERROR_KEY = "$error"
_SOURCE_ROOT = Path(polydev.__file__).parent
_FRAMES = 5
"""Number of frames to log for an unexpected error, at its origin and in our own code."""
_ACTIVE = ("PENDING", "ENQUEUED", "DELAYED")


class Engine:
    """Runs durable workflows. One per process, since DBOS is a singleton.

    `fence` runs before each step. It does not return once another executor may own our workflows.
    """

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
        """Register a workflow before the start.

        The body gets the subject of `enqueue`, and must be deterministic between its steps.
        """
        self._bodies[name] = body

    async def start(self) -> None:
        """Open the store and run enqueued workflows.

        Workflows of other executors stay theirs until they are taken over.
        """
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
        DBOS.launch()  # on the event loop's thread, so workflows run on this loop
        await DBOS.register_queue_async(
            _QUEUE, polling_interval_sec=_QUEUE_POLLING_S, on_conflict="always_update"
        )

    async def list_executors(self) -> frozenset[str]:
        """List the executors that own unfinished workflows."""
        return await asyncio.to_thread(self._query_executors)

    async def take_over(self, executors: Set[str]) -> int:
        """Requeue the workflows of dead executors. Returns their number."""
        dead = sorted(executors - {self.executor_id})
        handles = await asyncio.to_thread(DBOS._recover_pending_workflows, dead)
        if handles:
            log.info("took over %d workflows of %d dead controllers", len(handles), len(dead))
        return len(handles)

    async def stop(self) -> None:
        """Stop without finishing the workflows. The next start continues them."""
        logging.getLogger("dbos").setLevel(
            logging.ERROR
        )  # it warns about each interrupted workflow
        tasks = [*self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(
            DBOS.destroy, workflow_completion_timeout_sec=0, destroy_registry=True
        )
        # DBOS had replaced the loop's default executor by its own, which is closed now.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        await asyncio.to_thread(self._store.engine.dispose)

    async def enqueue(self, name: str, subject: str) -> None:
        """Enqueue a workflow. Idempotent: there is one per name and subject."""
        with SetWorkflowID(_workflow_id(name, subject)):
            await DBOS.enqueue_workflow_async(_QUEUE, self._workflows[name], subject)

    async def has_ended(self, name: str, subject: str) -> bool:
        """Check whether a workflow has ended. False if it was never enqueued."""
        status = await DBOS.get_workflow_status_async(_workflow_id(name, subject))
        return status is not None and status.status not in _ACTIVE

    async def list_active(self, name: str) -> frozenset[str]:
        """List the subjects of the unfinished workflows of one name."""
        found = await DBOS.list_workflows_async(
            status=list(_ACTIVE), name=name, load_input=False, load_output=False
        )
        return frozenset(it.workflow_id.removeprefix(_workflow_id(name, "")) for it in found)

    async def prune(self, before: datetime) -> int:
        """Delete the records of ended workflows that were created before that time."""
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

    # -- inside a workflow -------------------------------------------------------------------------

    async def step(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run work once and record its outcome: a plain JSON value or a PolydevError.

        Raises what `work` raised. Any other exception is logged and becomes Failed.
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
    """Create the id of this process. A restarted controller is another executor."""
    return f"controller-{uuid.uuid4()}"


def _workflow_id(name: str, subject: str) -> str:
    return f"{name}:{subject}"


def _unexpected(name: str, error: Exception) -> Failed:
    """Log an unexpected error and convert it to Failed.

    Its text may contain secrets. So only its type, the type of its cause and its frames are logged.
    """
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
        f"Unexpected error in step '{name}' ({kind})",
        hint="Please report it with the traceback in the controller's log",
    )


class _PlainJson(Serializer):
    """Serializes to JSON, with errors as code, message and hint."""

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
    raise TypeError(f"{type(value).__name__} cannot be stored")
