"""Operations by id: a repeated request does not repeat the operation.

An operation continues when its client disconnects. A request with the same id joins it, or gets the
same answer, failures included; another attempt needs another id. An operation that was interrupted
by the end of the agent runs again on request: operations are idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from pydantic import TypeAdapter

from polydev.hostagent.operations.journal import JournalEntry, OperationJournal
from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.system.error_mapping import problem_of
from polydev.shared.errors import HostUnreachable, NoSuchOperation, OperationMismatch
from polydev.shared.host_protocol import HostMachineView, Operation, OperationView
from polydev.shared.logging import context

log = logging.getLogger("polydev.hostagent")

Perform = Callable[[Operation], Awaitable[HostMachineView | None]]

_operations: TypeAdapter[Operation] = TypeAdapter(Operation)


class Operations:
    """The operations of this host, and their results."""

    def __init__(self, journal: OperationJournal, perform: Perform) -> None:
        self._journal = journal
        self._perform = perform
        self._entries: dict[str, JournalEntry] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stopping = False

    async def open(self) -> None:
        """Read the journal. Call it first."""
        self._entries = await asyncio.to_thread(self._journal.open)

    async def submit(self, operation_id: str, operation: Operation, wait_s: float) -> OperationView:
        """Start or join an operation; return its state after at most `wait_s`.

        Raises: OperationMismatch if the id was used with another body.
        """
        digest = self._journal.digest(_operations.dump_json(operation))
        known = self._entries.get(operation_id)
        if known and known.digest != digest:
            raise OperationMismatch(
                f"Operation {operation_id} was already requested with another body",
                hint="Use a new id for every operation",
            )
        if known is None or known.state == "interrupted":
            self._start(operation_id, operation, digest)
        return await self.wait(operation_id, wait_s)

    async def wait(self, operation_id: str, wait_s: float) -> OperationView:
        """Return the state of an operation after waiting at most `wait_s` for its end.

        Raises: NoSuchOperation.
        """
        if task := self._running.get(operation_id):
            await asyncio.wait({task}, timeout=wait_s)
        entry = self._entries.get(operation_id)
        if entry is None:
            raise NoSuchOperation(f"No operation {operation_id} on this host")
        return _view(entry)

    async def stop(self, grace_s: float) -> None:
        """Cancel all operations, wait at most `grace_s` while they undo, accept no more."""
        self._stopping = True
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=grace_s)

    def _start(self, operation_id: str, operation: Operation, digest: str) -> None:
        if self._stopping:
            raise HostUnreachable("The host agent is stopping", hint="Try again")
        entry = JournalEntry(
            operation_id=operation_id,
            kind=operation.kind,
            vm_id=operation.vm_id,
            digest=digest,
            state="running",
            asked_at=time.time(),
        )
        self._entries.pop(operation_id, None)
        self._entries[operation_id] = entry
        task = asyncio.create_task(self._run(entry, operation), name=f"operation {operation_id}")
        self._running[operation_id] = task
        task.add_done_callback(lambda _: self._running.pop(operation_id, None))

    async def _run(self, entry: JournalEntry, operation: Operation) -> None:
        with context.bound(operation=entry.operation_id, machine=entry.vm_id):
            await self._perform_and_record(entry, operation)

    async def _perform_and_record(self, entry: JournalEntry, operation: Operation) -> None:
        started = time.monotonic()
        try:
            await self._write(entry)
            machine = await self._perform(operation)
            update: dict[str, object] = {"state": "done", "machine": machine}
        except asyncio.CancelledError:
            update = {"state": "interrupted"}
        except Exception as error:
            update = {"state": "failed", "error": problem_of(error)}
        ended = entry.model_copy(update={**update, "ended_at": time.time()})
        self._entries[entry.operation_id] = ended
        log.log(
            logging.INFO if ended.state == "done" else logging.WARNING,
            "%s of %s %s after %.2f s%s",
            ended.kind,
            ended.vm_id,
            ended.state,
            time.monotonic() - started,
            f" ({ended.error.code}: {ended.error.message})" if ended.error else "",
        )
        await self._write(ended)
        await self._prune()

    async def _write(self, entry: JournalEntry) -> None:
        """Write an entry; a full disk must not prevent the destruction of a machine."""
        try:
            await run_in_thread_shielded(self._journal.write, entry)
        except OSError as error:
            log.error("cannot write the operation journal: %s", error.strerror)

    async def _prune(self) -> None:
        for operation_id in self._journal.outdated(self._entries):
            self._entries.pop(operation_id, None)
            await asyncio.to_thread(self._journal.remove, operation_id)


def _view(entry: JournalEntry) -> OperationView:
    if entry.state == "interrupted":
        error = HostUnreachable("The host agent stopped during this operation", hint="Try again")
        return OperationView(
            operation_id=entry.operation_id, state="failed", error=problem_of(error)
        )
    return OperationView(
        operation_id=entry.operation_id,
        state=entry.state,
        machine=entry.machine,
        error=entry.error,
    )
