"""Snapshots of a guest through QEMU's migration.

QEMU receives one end of a socket pair over its control socket, since it may start no program and
open no file; the other end is read and written here. QEMU may be compromised by its guest: every
wait has a limit, and so has the amount of data. Source: docs/devel/migration.rst and
qapi/migration.json of QEMU 7.2.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from polydev.hostagent.system.logs import harmless
from polydev.hostagent.vmm.contract import SnapshotSink, SnapshotSource
from polydev.hostagent.vmm.qemu.session import QemuSession
from polydev.shared.errors import SnapshotUnusable, VmmFailed

T = TypeVar("T")

_NAME = "snapshot"
_PIECE = 256 * 1024
_BYTES_PER_S = 64 << 30
"""QEMU's default is 128 MiB/s."""
_OVERHEAD, _DEVICES_MIB = 1.01, 32
"""Data besides the memory's content: a few bytes a page, and the devices."""
_STALL_LIMIT_S = 60
"""The longest wait of either side for the next piece."""
_FINISHED = frozenset({"none", "completed", "failed", "cancelled"})
_PAUSED = frozenset({"paused", "postmigrate"})


async def save(session: QemuSession, sink: SnapshotSink, memory_mib: int) -> None:
    """Pause the guest and write it out; it stays paused, whatever is raised.

    Raises: VmmFailed, also for a QEMU that sends more than such a guest can hold; and what the sink
    raises.
    """
    qmp = session.qmp
    await qmp.execute("stop")
    await _enable_events(session)
    await qmp.execute("migrate-set-parameters", **{"max-bandwidth": _BYTES_PER_S})
    try:
        async with _open_stream(session) as ours:
            await qmp.execute("migrate", uri=f"fd:{_NAME}")
            loop = asyncio.get_running_loop()
            remaining = int((memory_mib * _OVERHEAD + _DEVICES_MIB) * 2**20)
            while piece := await _with_stall_limit(loop.sock_recv(ours, _PIECE)):
                if (remaining := remaining - len(piece)) < 0:
                    raise VmmFailed(f"QEMU sent more than a guest of {memory_mib} MiB can hold")
                await sink.write(piece)
        status = await _wait_finished(session)
    except BaseException:
        with suppress(VmmFailed):
            await cancel(session)
        raise
    if status != "completed":
        raise VmmFailed(
            f"QEMU did not write the machine's memory: {await _failure_reason(session, status)}"
        )


async def cancel(session: QemuSession) -> None:
    """Cancel a migration in progress, so that the guest can be resumed. Raises: VmmFailed."""
    if await _status(session) not in _FINISHED:
        await session.qmp.execute("migrate_cancel")
    await _wait_finished(session)


async def is_paused(session: QemuSession) -> bool:
    """Return True for a guest that is paused with all its memory.

    False for one that runs. Raises: VmmFailed for any other state, such as a guest that was never
    started.
    """
    state = await session.qmp.execute("query-status")
    status = state.get("status") if isinstance(state, dict) else None
    if status == "running":
        return False
    if status in _PAUSED or status == "finish-migrate":
        return True
    raise VmmFailed(f"The guest is not running: {state}")


async def load(session: QemuSession, source: SnapshotSource) -> None:
    """Load a guest into a QEMU that was started with `command.INCOMING`; it stays paused.

    Raises: SnapshotUnusable, VmmFailed; this QEMU cannot be used again then.
    """
    await _enable_events(session)
    async with _open_stream(session) as ours:
        await session.qmp.execute("migrate-incoming", uri=f"fd:{_NAME}")
        loop = asyncio.get_running_loop()
        try:
            while piece := await source.read():
                await _with_stall_limit(loop.sock_sendall(ours, piece))
        except (BrokenPipeError, ConnectionResetError):
            pass  # QEMU closed the stream; its status has the reason
        else:
            ours.shutdown(socket.SHUT_WR)
        status = await _wait_finished(session)
    if status != "completed":
        reason = await _failure_reason(session, status)
        raise SnapshotUnusable(f"QEMU failed to load the machine's memory: {reason}")


@asynccontextmanager
async def _open_stream(session: QemuSession) -> AsyncIterator[socket.socket]:
    """Yield our end of a socket pair whose other end QEMU holds."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        ours.setblocking(False)
        with theirs:
            await session.qmp.pass_fd(_NAME, theirs.fileno())
        yield ours
    finally:
        ours.close()


async def _with_stall_limit(moving: Awaitable[T]) -> T:
    """Await one piece; raise VmmFailed if it takes too long.

    A QEMU that exits closes its end, which ends this wait too.
    """
    try:
        async with asyncio.timeout(_STALL_LIMIT_S):
            return await moving
    except TimeoutError:
        raise VmmFailed(f"QEMU has transferred no memory for {_STALL_LIMIT_S} s") from None


async def _enable_events(session: QemuSession) -> None:
    """Enable migration events; QEMU refuses this once a migration has begun."""
    capabilities = [{"capability": "events", "state": True}]
    await session.qmp.execute("migrate-set-capabilities", capabilities=capabilities)


async def _wait_finished(session: QemuSession) -> str:
    """Wait for the final status. Raises: VmmFailed if QEMU exits, or takes too long."""
    while True:
        session.migration_changed.clear()
        if (status := await _status(session)) in _FINISHED:
            return status
        changed = asyncio.create_task(session.migration_changed.wait())
        ended = asyncio.create_task(session.ended())
        try:
            done, _ = await asyncio.wait(
                {changed, ended}, timeout=_STALL_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            changed.cancel()
            ended.cancel()
        if ended in done:
            raise VmmFailed(f"QEMU ended during the memory transfer: {_last_errors(session)}")
        if not done:
            raise VmmFailed(
                f"QEMU has not finished the memory transfer in {_STALL_LIMIT_S} s: {status}"
            )


async def _status(session: QemuSession) -> str:
    known = await session.qmp.execute("query-migrate")
    return str(known.get("status", "none")) if isinstance(known, dict) else "none"


async def _failure_reason(session: QemuSession, status: str) -> str:
    with suppress(VmmFailed):
        known = await session.qmp.execute("query-migrate")
        if isinstance(known, dict) and (reason := known.get("error-desc")):
            return harmless(str(reason))[:400]
    return f"{status} {_last_errors(session)}"


def _last_errors(session: QemuSession) -> str:
    return session.last_errors or "no reason given"
