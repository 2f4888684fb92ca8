"""The QEMU driver: starts and adopts machines, and probes this host.

Implements `vmm/contract.py`. See `command.py` for the parts of a machine.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from polydev.hostagent.settings import HostSettings
from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.system.disk_full import raising_disk_full
from polydev.hostagent.system.sandbox import confined, tool
from polydev.hostagent.vmm import adoption, cgroups, process
from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.cgroups import CgroupLimits, Cgroups
from polydev.hostagent.vmm.console import Marker
from polydev.hostagent.vmm.contract import Capabilities, LaunchSpec, Probe, SnapshotSource
from polydev.hostagent.vmm.qemu import ipc, migration
from polydev.hostagent.vmm.qemu.command import (
    INCOMING,
    PACKAGE,
    PROGRAM,
    Acceleration,
    BootDescriptors,
    MachineDescriptors,
    machine_arguments,
    overhead_mib,
)
from polydev.hostagent.vmm.qemu.probe import Prober
from polydev.hostagent.vmm.qemu.running import RunningQemu
from polydev.hostagent.vmm.qemu.session import QemuSession
from polydev.hostagent.vmm.qemu.snapshot_compat import fingerprint
from polydev.hostagent.vmm.qemu.tap import open_tap
from polydev.shared.errors import MissingImage, PolydevError, VmmFailed
from polydev.shared.hints import Hint

_THREADS = 128
"""The most that QEMU starts itself: up to 64 of them read and write drives."""


class QemuDriver:
    """Machines on QEMU's `microvm`."""

    name = "qemu"
    capabilities = Capabilities(programs={PROGRAM: PACKAGE})

    def __init__(
        self,
        *,
        machines_dir: Path,
        cache_dir: Path,
        boot_files: Callable[[], BootFiles],
        accelerator: str = "auto",
        cgroups: Cgroups | None = None,
    ) -> None:
        """`boot_files` finds the kernel to probe with; it raises MissingImage.

        `accelerator`: `auto` probes; `kvm` and `tcg` are used without a probe. `cgroups` limit the
        VMMs.
        """
        self._machines_dir = machines_dir
        self._boot_files = boot_files
        self._prober = Prober(cache_dir, accelerator)
        self._cgroups = cgroups or Cgroups(None, "not configured")

    @classmethod
    def from_settings(
        cls, settings: HostSettings, boot_files: Callable[[], BootFiles]
    ) -> QemuDriver:
        """Create the driver, with control groups where the host has them. Blocks."""
        return cls(
            machines_dir=settings.state_dir / "machines",
            cache_dir=settings.state_dir / "cache",
            boot_files=boot_files,
            cgroups=Cgroups.create(settings.cgroup),
        )

    async def probe(self) -> Probe:
        """Report what this host can do; takes seconds the first time, then it is cached."""
        try:
            tool(PROGRAM, PACKAGE)
            boot_files = await asyncio.to_thread(self._boot_files)
            acceleration = await self._prober.acceleration(boot_files)
        except PolydevError as error:
            return Probe(False, "none", error.line())
        return Probe(True, acceleration.name, self._prober.reason)

    async def launch(self, spec: LaunchSpec) -> RunningQemu:
        """Start a machine.

        Raises: VmmFailed, MissingTool, DiskFull, MissingImage, NetworkFailed; AlreadyRunning if its
        VMM runs already.
        """
        session = await self._start_paused(spec)
        try:
            await session.qmp.execute("cont")
        except BaseException as error:
            await session.abort_start(error)
            raise
        return RunningQemu(spec, session)

    async def fingerprint(self, spec: LaunchSpec) -> str:
        """Describe which snapshots fit. Raises: MissingTool, VmmFailed, MissingImage."""
        acceleration = await self._prober.acceleration(BootFiles(spec.kernel, spec.initramfs))
        return await asyncio.to_thread(fingerprint, spec, acceleration)

    async def restore(self, spec: LaunchSpec, source: SnapshotSource) -> RunningQemu:
        """Load a saved guest, paused. Raises: SnapshotUnusable, and as `launch`."""
        session = await self._start_paused(spec, INCOMING)
        try:
            await migration.load(session, source)
        except BaseException as error:
            await session.abort_start(error)
            raise
        session.marker.seen.set()
        return RunningQemu(spec, session)

    async def adopt(self, spec: LaunchSpec) -> RunningQemu | None:
        """Attach to a running VMM; kill one that hangs or was not fully started."""
        taken_over = await adoption.adopt(spec, partial(self._take_over, spec), _in_folder)
        if taken_over is None:
            await asyncio.to_thread(ipc.remove_files, spec.folder)
        return taken_over

    def find_orphans(self, folders: Sequence[Path]) -> Sequence[int]:
        """List VMMs under `machines_dir` that run in none of `folders`. Blocking."""
        return adoption.find_orphans(_in_folder(self._machines_dir.resolve()), folders)

    async def _start_paused(self, spec: LaunchSpec, more: Sequence[str] = ()) -> QemuSession:
        """Start a QEMU whose guest does not run yet; with `more` arguments."""
        program = tool(PROGRAM, PACKAGE)
        try:
            with raising_disk_full(spec.folder), ExitStack() as stack:
                boot = _open_boot_files(stack, spec)
                acceleration = await self._prober.acceleration(
                    BootFiles(spec.kernel, spec.initramfs)
                )
                await adoption.require_not_running(spec, _in_folder)
                session = await _start(stack, [program, *more], spec, boot, acceleration)
        except OSError as error:
            raise VmmFailed(f"{spec.vm_id} failed to start: {error}") from error
        return await self._limited(session, spec, acceleration)

    async def _limited(
        self, session: QemuSession, spec: LaunchSpec, acceleration: Acceleration
    ) -> QemuSession:
        """Put the process into its cgroup before the guest touches any memory."""
        session.on_exit = partial(self._cgroups.release, spec.vm_id)
        memory_mib = spec.memory_mib + overhead_mib(acceleration, spec.memory_mib)
        bounds = CgroupLimits(memory_mib << 20, _THREADS + spec.vcpus, 100 * spec.vcpus)
        try:
            await run_in_thread_shielded(self._cgroups.add, spec.vm_id, session.process.pid, bounds)
        except BaseException as error:
            await session.abort_start(error)
            raise
        return session

    async def _take_over(self, spec: LaunchSpec, running: process.VmmProcess) -> RunningQemu:
        session = await QemuSession.resume(spec.folder, running)
        group = cgroups.group_name(running.pid) or spec.vm_id
        session.on_exit = partial(self._cgroups.release, group)
        try:
            await migration.is_paused(session)
        except BaseException:
            await session.kill()
            raise
        return RunningQemu(spec, session)


async def _start(
    stack: ExitStack,
    program: Sequence[str],
    spec: LaunchSpec,
    boot: tuple[int, int],
    acceleration: Acceleration,
) -> QemuSession:
    files = MachineDescriptors(
        root_image=_open(stack, spec.root_image, "golden image", spec.uid),
        disk=_open(stack, spec.disk, "disk", spec.uid),
        config_drive=_open(stack, spec.config_drive, "config drive", spec.uid),
        tap=await open_tap(spec.netns, spec.tap),
    )
    stack.callback(os.close, files.tap)
    endpoints = stack.enter_context(ipc.create_endpoints(spec.folder))
    descriptors = BootDescriptors(*boot, endpoints.qmp.fileno(), endpoints.console.fileno())
    arguments = machine_arguments(spec, descriptors, files, acceleration)
    # A compromised VMM must not fill the host: no file may grow beyond the disk's size.
    prlimit = [tool("prlimit", "util-linux"), f"--fsize={spec.disk.stat().st_size}", "--"]
    argv = confined(
        [*prlimit, *program, *arguments], uid=spec.uid, groups=acceleration.groups, netns=spec.netns
    )
    passed = (*boot, files.root_image, files.disk, files.config_drive, files.tap)
    return await QemuSession.start(spec.folder, argv, passed, endpoints, Marker(spec.ready_marker))


def _in_folder(folder: Path) -> Iterator[adoption.Found]:
    return process.find_in_folder(folder, PROGRAM)


def _open_boot_files(stack: ExitStack, spec: LaunchSpec) -> tuple[int, int]:
    kernel = _open(stack, spec.kernel, "guest kernel", spec.uid)
    return kernel, _open(stack, spec.initramfs, "initramfs", spec.uid)


def _open(stack: ExitStack, path: Path, what: str, uid: int) -> int:
    """Open a file with O_PATH, which reads nothing yet. Raises: MissingImage, VmmFailed."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingImage(f"The {what} {path} is missing", hint=Hint.LIST_IMAGES.text()) from None
    stack.callback(os.close, descriptor)
    state = os.fstat(descriptor)
    if state.st_uid != uid and not state.st_mode & stat.S_IROTH:
        raise VmmFailed(
            f"The {what} {path} is not readable by the VMM's user, {uid}",
            hint=f"Run: chmod o+r {path}",
        )
    return descriptor
