"""How a VMM of an earlier agent is found again, and one too many is ended or refused.

The same for every real VMM; drivers say how theirs are told from other processes, and taken over.
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
"""A VMM's pid, the folder that it works in, and whether that still exists."""


async def adopt(
    spec: LaunchSpec,
    take_over: Callable[[process.VmmProcess], Awaitable[T]],
    in_folder: Callable[[Path], Iterable[Found]],
) -> T | None:
    """The machine's VMM, taken over. One that hangs, or whose start was cut short, is ended.

    `take_over` raises VmmFailed after ending what it cannot take over; `in_folder`, which blocks,
    finds VMMs that work in a folder.
    """
    known = await asyncio.to_thread(process.ProcessIdentity.read, spec.folder)
    running = process.find_process(known, spec.uid) if known else None
    if running is not None:
        with suppress(VmmFailed):
            return await take_over(running)
    for pid in await _pids(spec, in_folder):
        if (stray := process.open_process(pid)) is not None:
            await stray.kill()
            stray.release()
    return None


async def require_not_running(
    spec: LaunchSpec, in_folder: Callable[[Path], Iterable[Found]]
) -> None:
    """Raises: AlreadyRunning if a VMM works in the machine's folder."""
    if pids := await _pids(spec, in_folder):
        raise AlreadyRunning(
            f"{spec.vm_id} has a VMM already: process {pids[0]}", hint="Adopt it, or end it"
        )


def find_orphans(found: Iterable[Found], folders: Sequence[Path]) -> list[int]:
    """Of the VMMs that were found, those whose folder is none of these.

    One that a folder's `vmm.json` names is in that folder, whatever it was called when it started.
    """
    known = {folder.resolve() for folder in folders}
    strays = [pid for pid, where, exists in found if not exists or where not in known]
    named = find_recorded(known) if strays else {}
    return [pid for pid in strays if pid not in named]


def find_recorded(folders: Iterable[Path]) -> dict[int, Path]:
    """The VMMs that these folders' `vmm.json` name, and in which. Blocking."""
    named = ((process.ProcessIdentity.read(folder), folder) for folder in folders)
    return {it.pid: folder for it, folder in named if it is not None and process.is_running(it)}


async def _pids(spec: LaunchSpec, in_folder: Callable[[Path], Iterable[Found]]) -> list[int]:
    found = await asyncio.to_thread(lambda: list(in_folder(spec.folder.resolve())))
    return [pid for pid, _, _ in found]
