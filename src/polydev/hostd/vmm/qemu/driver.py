"""The QEMU driver: starts machines, finds them again, and says what this host can do.

It obeys `vmm.py`; `machines.py` calls it. See `command.py` for what a machine is made of.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from polydev.errors import (
    AlreadyRunning,
    MissingImage,
    PolydevError,
    VmmFailed,
)
from polydev.hostd.confine import confined, tool
from polydev.hostd.room import room_in
from polydev.hostd.vmm.qemu import ends, migration, process
from polydev.hostd.vmm.qemu.command import (
    INCOMING,
    PACKAGE,
    PROGRAM,
    Acceleration,
    BootDescriptors,
    MachineDescriptors,
    machine_arguments,
)
from polydev.hostd.vmm.qemu.console import Marker
from polydev.hostd.vmm.qemu.fingerprint import fingerprint
from polydev.hostd.vmm.qemu.probe import BootFiles, Prober
from polydev.hostd.vmm.qemu.running import RunningQemu
from polydev.hostd.vmm.qemu.session import Session
from polydev.hostd.vmm.qemu.tap import open_tap
from polydev.hostd.vmm.vmm import LaunchSpec, Probe, SnapshotSource


class QemuDriver:
    """Machines on QEMU's `microvm`."""

    name = "qemu"

    def __init__(
        self,
        *,
        machines_dir: Path,
        cache_dir: Path,
        boot_files: Callable[[], BootFiles],
        accelerator: str = "auto",
    ) -> None:
        """`boot_files` finds the kernel to probe with (raises MissingImage).

        `accelerator`: `auto` probes; `kvm` and `tcg` are taken at their word.
        """
        self._machines_dir = machines_dir
        self._boot_files = boot_files
        self._prober = Prober(cache_dir, accelerator)

    async def probe(self) -> Probe:
        """What this host can do. Takes seconds the first time, then it is remembered."""
        try:
            tool(PROGRAM, PACKAGE)
            boot_files = await asyncio.to_thread(self._boot_files)
            how = await self._prober.acceleration(boot_files)
        except PolydevError as error:
            return Probe(False, "none", error.line())
        return Probe(True, how.name, self._prober.reason)

    async def launch(self, spec: LaunchSpec) -> RunningQemu:
        """Start a machine.

        Raises: VmmFailed, MissingTool, DiskFull, MissingImage, NetworkFailed; AlreadyRunning if its
        VMM runs already.
        """
        session = await self._started(spec)
        try:
            await session.qmp.execute("cont")
        except BaseException:
            await session.kill()
            raise
        return RunningQemu(spec, session)

    async def fingerprint(self, spec: LaunchSpec) -> str:
        """What a snapshot of this machine fits. Raises: MissingTool, VmmFailed, MissingImage."""
        how = await self._prober.acceleration(BootFiles(spec.kernel, spec.initramfs))
        return await asyncio.to_thread(fingerprint, spec, how)

    async def restore(self, spec: LaunchSpec, source: SnapshotSource) -> RunningQemu:
        """A guest that was saved, standing still. Raises: SnapshotUnusable, and as `launch`."""
        session = await self._started(spec, INCOMING)
        try:
            await migration.load(session, source)
        except BaseException:
            await session.kill()
            raise
        session.marker.seen.set()
        return RunningQemu(spec, session)

    async def adopt(self, spec: LaunchSpec) -> RunningQemu | None:
        """Take a running VMM over. One that hangs, or whose launch was cut short, is ended."""
        known = await asyncio.to_thread(process.Identity.read, spec.folder)
        running = process.find(known, spec.uid) if known else None
        if running is not None:
            with suppress(VmmFailed):
                return await self._take_over(spec, running)
        for pid in await asyncio.to_thread(_pids_in, spec.folder):
            if (stray := process.hold(pid)) is not None:
                await stray.kill()
                stray.release()
        await asyncio.to_thread(ends.remove_from, spec.folder)
        return None

    def leftovers(self, folders: Sequence[Path]) -> Sequence[int]:
        """VMMs under `machines_dir` whose folder is none of these. Blocking."""
        known = {folder.resolve() for folder in folders}
        found = process.running_in(self._machines_dir.resolve(), PROGRAM)
        return [pid for pid, where, exists in found if not exists or where not in known]

    async def _started(self, spec: LaunchSpec, more: Sequence[str] = ()) -> Session:
        """A QEMU whose guest does not run yet; with `more` arguments."""
        program = tool(PROGRAM, PACKAGE)
        try:
            with room_in(spec.folder), ExitStack() as stack:
                boot = _open_boot_files(stack, spec)
                how = await self._prober.acceleration(BootFiles(spec.kernel, spec.initramfs))
                await self._refuse_second(spec)
                return await _start(stack, [program, *more], spec, boot, how)
        except OSError as error:
            raise VmmFailed(f"{spec.vm_id} cannot be started: {error}") from error

    async def _take_over(self, spec: LaunchSpec, running: process.VmmProcess) -> RunningQemu:
        session = await Session.resume(spec.folder, running)
        try:
            await migration.is_standing(session)
        except BaseException:
            await session.kill()
            raise
        return RunningQemu(spec, session)

    async def _refuse_second(self, spec: LaunchSpec) -> None:
        if pids := await asyncio.to_thread(_pids_in, spec.folder):
            raise AlreadyRunning(
                f"{spec.vm_id} has a VMM already: process {pids[0]}",
                hint="Adopt it, or end it",
            )


async def _start(
    stack: ExitStack,
    program: Sequence[str],
    spec: LaunchSpec,
    boot: tuple[int, int],
    how: Acceleration,
) -> Session:
    files = MachineDescriptors(
        root_image=_open(stack, spec.root_image, "golden image", spec.uid),
        disk=_open(stack, spec.disk, "disk", spec.uid),
        config_drive=_open(stack, spec.config_drive, "config drive", spec.uid),
        tap=await open_tap(spec.netns, spec.tap),
    )
    stack.callback(os.close, files.tap)
    given = stack.enter_context(ends.made_in(spec.folder))
    descriptors = BootDescriptors(*boot, given.qmp.fileno(), given.console.fileno())
    arguments = machine_arguments(spec, descriptors, files, how)
    # A VMM that a guest has taken over must not fill the host: its disk is all that may grow.
    most = [tool("prlimit", "util-linux"), f"--fsize={spec.disk.stat().st_size}", "--"]
    argv = confined(
        [*most, *program, *arguments], uid=spec.uid, groups=how.groups, netns=spec.netns
    )
    opened = (*boot, files.root_image, files.disk, files.config_drive, files.tap)
    return await Session.start(spec.folder, argv, opened, given, Marker(spec.ready_marker))


def _pids_in(folder: Path) -> list[int]:
    return [pid for pid, _, _ in process.running_in(folder.resolve(), PROGRAM)]


def _open_boot_files(stack: ExitStack, spec: LaunchSpec) -> tuple[int, int]:
    kernel = _open(stack, spec.kernel, "guest kernel", spec.uid)
    return kernel, _open(stack, spec.initramfs, "initramfs", spec.uid)


def _open(stack: ExitStack, path: Path, what: str, uid: int) -> int:
    """A descriptor that stands for a file, without opening it yet. Raises: MissingImage."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingImage(
            f"The {what} {path} is missing", hint="See what there is: polydev image list"
        ) from None
    stack.callback(os.close, descriptor)
    state = os.fstat(descriptor)
    if state.st_uid != uid and not state.st_mode & stat.S_IROTH:
        raise VmmFailed(
            f"The {what} {path} may not be read by user {uid}, as which its VMM runs",
            hint=f"Run: chmod o+r {path}",
        )
    return descriptor
