"""A guest's memory and devices, out of a QEMU and into one: QEMU's migration, to us and from us.

`running.py` saves with it, `driver.py` restores. QEMU is handed one end of a socket pair over its
control socket, since it may start no program and open no file; the other end is read and written
here. It may have been taken over by its guest: no wait is without a limit, nor what it sends.
Source: docs/devel/migration.rst and qapi/migration.json of QEMU 7.2.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from polydev.hostagent.health.logs import harmless
from polydev.hostagent.vmm.contract import SnapshotSink, SnapshotSource
from polydev.hostagent.vmm.qemu.session import QemuSession
from polydev.shared.errors import SnapshotUnusable, VmmFailed

T = TypeVar("T")

_NAME = "snapshot"
_PIECE = 256 * 1024
_BYTES_PER_S = 64 << 30
"""QEMU's default would be 128 MiB/s."""
_OVERHEAD, _DEVICES_MIB = 1.01, 32
"""What comes besides the content of memory: a few bytes a page, and the devices."""
_STALL_LIMIT_S = 60
"""How long either side may make the other wait for the next piece."""
_FINISHED = frozenset({"none", "completed", "failed", "cancelled"})
_PAUSED = frozenset({"paused", "postmigrate"})


async def save(session: QemuSession, sink: SnapshotSink, memory_mib: int) -> None:
    """Stop the guest and write it out. It stands still afterwards, whatever is raised.

    Raises: VmmFailed, also for a QEMU that sends more than such a guest can have; and what the sink
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
            room = int((memory_mib * _OVERHEAD + _DEVICES_MIB) * 2**20)
            while piece := await _with_stall_limit(loop.sock_recv(ours, _PIECE)):
                if (room := room - len(piece)) < 0:
                    raise VmmFailed(f"QEMU sends more than a guest of {memory_mib} MiB can have")
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
    """End whatever is still being written, so that the guest may go on. Raises: VmmFailed."""
    if await _status(session) not in _FINISHED:
        await session.qmp.execute("migrate_cancel")
    await _wait_finished(session)


async def is_paused(session: QemuSession) -> bool:
    """True for a guest that stands still with all it had; False for one that runs.

    Raises: VmmFailed for one that is neither, such as one that was never let go at its start.
    """
    state = await session.qmp.execute("query-status")
    status = state.get("status") if isinstance(state, dict) else None
    if status == "running":
        return False
    if status in _PAUSED or status == "finish-migrate":
        return True
    raise VmmFailed(f"The guest does not run: {state}")


async def load(session: QemuSession, source: SnapshotSource) -> None:
    """Read a guest into a QEMU that waits for one (`command.INCOMING`). It stands still then.

    Raises: SnapshotUnusable, VmmFailed; the QEMU is of no more use then.
    """
    await _enable_events(session)
    async with _open_stream(session) as ours:
        await session.qmp.execute("migrate-incoming", uri=f"fd:{_NAME}")
        loop = asyncio.get_running_loop()
        try:
            while piece := await source.read():
                await _with_stall_limit(loop.sock_sendall(ours, piece))
        except (BrokenPipeError, ConnectionResetError):
            pass  # It wants no more: why, its status tells.
        else:
            ours.shutdown(socket.SHUT_WR)
        status = await _wait_finished(session)
    if status != "completed":
        reason = await _failure_reason(session, status)
        raise SnapshotUnusable(f"QEMU failed to load the machine's memory: {reason}")


@asynccontextmanager
async def _open_stream(session: QemuSession) -> AsyncIterator[socket.socket]:
    """Our end of a pair whose other end QEMU was given."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        ours.setblocking(False)
        with theirs:
            await session.qmp.pass_fd(_NAME, theirs.fileno())
        yield ours
    finally:
        ours.close()


async def _with_stall_limit(moving: Awaitable[T]) -> T:
    """A piece that moves. A QEMU that ends closes its end, which ends this too.

    Raises: VmmFailed when it takes too long.
    """
    try:
        async with asyncio.timeout(_STALL_LIMIT_S):
            return await moving
    except TimeoutError:
        raise VmmFailed(f"QEMU has moved no memory for {_STALL_LIMIT_S} s") from None


async def _enable_events(session: QemuSession) -> None:
    """Have QEMU say so whenever it is a step further; it refuses once it has begun."""
    capabilities = [{"capability": "events", "state": True}]
    await session.qmp.execute("migrate-set-capabilities", capabilities=capabilities)


async def _wait_finished(session: QemuSession) -> str:
    """How it ended, once it has. Raises: VmmFailed if QEMU ends, or takes too long."""
    while True:
        session.migration_changed.clear()
        if (status := await _status(session)) in _FINISHED:
            return status
        news = asyncio.create_task(session.migration_changed.wait())
        over = asyncio.create_task(session.ended())
        try:
            done, _ = await asyncio.wait(
                {news, over}, timeout=_STALL_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            news.cancel()
            over.cancel()
        if over in done:
            raise VmmFailed(f"QEMU ended while it moved memory: {_words(session)}")
        if not done:
            raise VmmFailed(f"QEMU has not ended moving memory in {_STALL_LIMIT_S} s: {status}")


async def _status(session: QemuSession) -> str:
    known = await session.qmp.execute("query-migrate")
    return str(known.get("status", "none")) if isinstance(known, dict) else "none"


async def _failure_reason(session: QemuSession, status: str) -> str:
    with suppress(VmmFailed):
        known = await session.qmp.execute("query-migrate")
        if isinstance(known, dict) and (words := known.get("error-desc")):
            return harmless(str(words))[:400]
    return f"{status} {_words(session)}"


def _words(session: QemuSession) -> str:
    return session.last_errors or "it did not say why"
