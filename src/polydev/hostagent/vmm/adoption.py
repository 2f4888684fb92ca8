"""Adoption of VMMs that an earlier agent started.

Shared by QEMU and Firecracker; each driver says how to recognise its processes and attach to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from polydev.hostagent.vmm import process
from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.shared.errors import AlreadyRunning, VmmFailed

T = TypeVar("T")
Found = tuple[int, Path, bool]
"""A VMM's pid, its working folder, and whether the folder still exists."""


async def adopt(
    spec: LaunchSpec,
    take_over: Callable[[process.VmmProcess], Awaitable[T]],
    find_in_folder: Callable[[Path], Iterable[Found]],
) -> T | None:
    """Attach to the machine's VMM; kill one that hangs or was not fully started.

    `take_over` raises VmmFailed after killing a VMM that it cannot attach to; `find_in_folder`,
    which blocks, finds VMMs that work in a folder.
    """
    known = await asyncio.to_thread(process.ProcessIdentity.read, spec.folder)
    running = process.find_process(known, spec.uid) if known else None
    if running is not None:
        with suppress(VmmFailed):
            return await take_over(running)
    for pid in await _pids(spec, find_in_folder):
        if (stray := process.open_process(pid)) is not None:
            await stray.kill()
            stray.release()
    return None


async def require_not_running(
    spec: LaunchSpec, find_in_folder: Callable[[Path], Iterable[Found]]
) -> None:
    """Raise AlreadyRunning if a VMM runs in the machine's folder."""
    if pids := await _pids(spec, find_in_folder):
        raise AlreadyRunning(
            f"{spec.vm_id} already has a VMM: process {pids[0]}", hint="Adopt or kill it"
        )


def find_orphans(found: Iterable[Found], folders: Sequence[Path]) -> list[int]:
    """Return pids of found VMMs that run in none of these folders.

    A VMM that `vmm.json` names belongs to that folder, even if it was renamed since the start.
    """
    known = {folder.resolve() for folder in folders}
    strays = [pid for pid, where, exists in found if not exists or where not in known]
    named = find_recorded(known) if strays else {}
    return [pid for pid in strays if pid not in named]


def find_recorded(folders: Iterable[Path]) -> dict[int, Path]:
    """Map pids to folders for the VMMs in these folders' `vmm.json`. Blocking."""
    named = ((process.ProcessIdentity.read(folder), folder) for folder in folders)
    return {it.pid: folder for it, folder in named if it is not None and process.is_running(it)}


async def _pids(spec: LaunchSpec, find_in_folder: Callable[[Path], Iterable[Found]]) -> list[int]:
    found = await asyncio.to_thread(lambda: list(find_in_folder(spec.folder.resolve())))
    return [pid for pid, _, _ in found]
