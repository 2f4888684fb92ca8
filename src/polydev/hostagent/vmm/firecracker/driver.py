"""The Firecracker driver: starts and adopts machines, and probes this host.

Implements `vmm/contract.py`. See `configuration.py` for the parts of a machine, and `jail/` for its
jail.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from polydev.hostagent.settings import HostSettings
from polydev.hostagent.system.disk_full import raising_disk_full
from polydev.hostagent.vmm import adoption, process
from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.cgroups import group_name
from polydev.hostagent.vmm.console import Marker
from polydev.hostagent.vmm.contract import Capabilities, LaunchSpec, Probe, SnapshotSource
from polydev.hostagent.vmm.firecracker import configuration, ipc, snapshot
from polydev.hostagent.vmm.firecracker.api import ApiError
from polydev.hostagent.vmm.firecracker.binaries import Binaries, read_version
from polydev.hostagent.vmm.firecracker.jail import jail
from polydev.hostagent.vmm.firecracker.jail.cgroup import JailerCgroups
from polydev.hostagent.vmm.firecracker.jail.jailer import JailConfig
from polydev.hostagent.vmm.firecracker.limits import RateLimits
from polydev.hostagent.vmm.firecracker.probe import Prober
from polydev.hostagent.vmm.firecracker.running import MEMORY, SNAPSHOT, STATE, RunningFirecracker
from polydev.hostagent.vmm.firecracker.session import (
    FirecrackerSession,
    VmmLocation,
    remove_vmm_files,
)
from polydev.hostagent.vmm.firecracker.snapshot_compat import fingerprint
from polydev.shared.errors import PolydevError, SnapshotUnusable, VmmFailed

_MIB = 1024 * 1024
_STATE_ROOM_BYTES = 64 * _MIB

Preparing = Callable[[FirecrackerSession], Coroutine[Any, Any, None]]


class FirecrackerDriver:
    """Machines on Firecracker, each under its own jailer."""

    name = "firecracker"
    capabilities = Capabilities(channel_nic=False)
    """Its channel is vsock: docs/machines.md, "Network devices"."""

    def __init__(
        self,
        *,
        machines_dir: Path,
        cache_dir: Path,
        boot_files: Callable[[], BootFiles],
        binaries: Callable[[], Binaries],
        rates: RateLimits,
        parent_cgroup: str = "polydev",
    ) -> None:
        """`parent_cgroup` belongs to this agent alone.

        `boot_files` finds the kernel to probe with (raises MissingImage), `binaries` finds
        Firecracker and its jailer (raises MissingTool).
        """
        self._machines_dir = machines_dir
        self._boot_files = boot_files
        self._programs = binaries
        self._rates = rates
        self._cgroups = JailerCgroups(parent_cgroup)
        self._prober = Prober(cache_dir, self._cgroups)
        self._version: tuple[object, str] | None = None
        """Identity of the binary, and its version."""

    @classmethod
    def from_settings(
        cls, settings: HostSettings, boot_files: Callable[[], BootFiles]
    ) -> FirecrackerDriver:
        """Create the driver with the limits of the settings."""
        return cls(
            machines_dir=settings.state_dir / "machines",
            cache_dir=settings.state_dir / "cache",
            boot_files=boot_files,
            binaries=lambda: Binaries.find(settings.firecracker, settings.jailer),
            rates=RateLimits(
                disk_mib_s=settings.disk_limit_mib_s,
                disk_operations_s=settings.disk_limit_operations_s,
                network_mib_s=settings.network_limit_mib_s,
            ),
            parent_cgroup=settings.cgroup,
        )

    async def probe(self) -> Probe:
        """Report what this host can do; slow the first time, then it is cached."""
        try:
            binaries, version = await self._installed()
            boot_files = await asyncio.to_thread(self._boot_files)
            await self._prober.require_guest(binaries, boot_files)
        except PolydevError as error:
            return Probe(False, "none", error.line())
        return Probe(True, "kvm", f"Firecracker {version} ran a guest under KVM", version)

    async def launch(self, spec: LaunchSpec) -> RunningFirecracker:
        """Start a machine.

        Raises: VmmFailed, MissingTool, DiskFull, MissingImage; AlreadyRunning if its VMM runs
        already.
        """

        async def configure(session: FirecrackerSession) -> None:
            await configuration.machine(session.api, spec, self._rates)
            await session.api.start()

        return await self._start(spec, Marker(spec.ready_marker), configure)

    async def fingerprint(self, spec: LaunchSpec) -> str:
        """Describe which snapshots fit. Raises: MissingTool, VmmFailed."""
        _, version = await self._installed()
        return await asyncio.to_thread(fingerprint, spec, version)

    async def restore(self, spec: LaunchSpec, source: SnapshotSource) -> RunningFirecracker:
        """Load a saved guest, paused.

        Raises: SnapshotUnusable, and everything that `launch` raises; nothing is left behind then.
        """
        marker = Marker("-")
        marker.seen.set()

        async def load(session: FirecrackerSession) -> None:
            await configuration.set_outputs(session.api)
            await _fill(session.root, spec, source)
            try:
                await session.api.load_snapshot(
                    SNAPSHOT, interface=configuration.INTERFACE, tap=spec.tap
                )
            except ApiError as error:
                raise SnapshotUnusable(
                    f"{spec.vm_id} cannot be resumed: {error.message}"
                ) from error
            # The guest's memory stays mapped to this file; the next snapshot uses a new file.
            jail.remove_file(session.root, STATE)
            jail.remove_file(session.root, MEMORY)

        return await self._start(spec, marker, load)

    async def adopt(self, spec: LaunchSpec) -> RunningFirecracker | None:
        """Attach to a VMM; kill one that hangs or was not fully started."""
        taken_over = await adoption.adopt(spec, partial(self._take_over, spec), jail.find_in_folder)
        if taken_over is None:
            await remove_vmm_files(self._location(spec))
        return taken_over

    def find_orphans(self, folders: Sequence[Path]) -> Sequence[int]:
        """List VMMs under `machines_dir` that run in none of `folders`. Blocking.

        Also remove empty cgroups of machines that have no folder.
        """
        found = list(jail.find_in_folder(self._machines_dir.resolve()))
        there = self._machines_dir.iterdir() if self._machines_dir.is_dir() else ()
        keep = {folder.name for folder in there}
        self._cgroups.sweep(keep | {where.name for _, where, _ in found})
        return adoption.find_orphans(found, folders)

    async def _start(
        self, spec: LaunchSpec, marker: Marker, prepare: Preparing
    ) -> RunningFirecracker:
        binaries, _ = await self._installed()
        try:
            with raising_disk_full(spec.folder), ExitStack() as stack:
                await adoption.require_not_running(spec, jail.find_in_folder)
                config = _jail_config(spec, self._cgroups.parent)
                pipes = stack.enter_context(ipc.create_endpoints(spec.folder, spec.uid))
                files = configuration.machine_files(spec)
                starting = partial(jail.start, spec.folder, config, files, binaries, pipes)
                session = await self._session(spec, starting, marker)
        except OSError as error:
            raise VmmFailed(f"{spec.vm_id} failed to start: {error}") from error
        try:
            await prepare(session)
        except BaseException as error:
            await session.abort_start(error)
            raise
        return RunningFirecracker(spec, session)

    async def _installed(self) -> tuple[Binaries, str]:
        """Return binaries and version; read it again if the file changed.

        Raises: MissingTool, VmmFailed if it is too old.
        """
        binaries = await asyncio.to_thread(self._programs)
        file = binaries.firecracker.stat()
        found = (binaries, file.st_ino, file.st_mtime_ns)
        if self._version is None or self._version[0] != found:
            self._version = (found, await read_version(binaries))
        return binaries, self._version[1]

    async def _session(
        self, spec: LaunchSpec, starting: Callable[[], jail.JailedProcess], marker: Marker
    ) -> FirecrackerSession:
        location = self._location(spec)
        try:
            return await FirecrackerSession.start(location, starting, marker)
        except BaseException:
            await remove_vmm_files(location)
            raise

    async def _take_over(self, spec: LaunchSpec, running: process.VmmProcess) -> RunningFirecracker:
        jailed = await asyncio.to_thread(jail.attach, running)
        location = self._location(spec)
        if group := group_name(running.pid):
            location = replace(location, name=group)
        session = await FirecrackerSession.resume(location, jailed)
        try:
            if await session.api.state() == "Not started":
                raise VmmFailed("The guest was never started")
        except BaseException:
            await session.kill()
            raise
        return RunningFirecracker(spec, session)

    def _location(self, spec: LaunchSpec) -> VmmLocation:
        return VmmLocation(spec.folder, spec.uid, spec.vm_id, self._cgroups)


def _jail_config(spec: LaunchSpec, parent_cgroup: str) -> JailConfig:
    memory_bytes = spec.memory_mib * _MIB + _STATE_ROOM_BYTES
    return JailConfig(
        id=spec.vm_id,
        base=spec.folder / jail.FOLDER,
        uid=spec.uid,
        parent_cgroup=parent_cgroup,
        netns=spec.netns,
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        largest_file_bytes=max(spec.disk.stat().st_size, memory_bytes),
    )


async def _fill(root: int, spec: LaunchSpec, source: SnapshotSource) -> None:
    """Copy a snapshot's two files into the jail. Raises: SnapshotUnusable, VmmFailed."""
    with ExitStack() as stack:
        try:
            files = []
            for name in (STATE, MEMORY):
                files.append(jail.create_file(root, name, spec.uid))
                stack.callback(os.close, files[-1])
            await snapshot.read(source, files[0], files[1], spec.memory_mib * _MIB)
        except OSError as error:
            raise VmmFailed(f"{spec.vm_id}'s snapshot cannot be loaded: {error}") from error
