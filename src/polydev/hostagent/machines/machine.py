"""One machine: prepare it, launch or restore its VMM, use it.

`prepare` returns a `PreparedMachine`, and that a `RunningMachine`. `erase` removes any machine,
complete or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from polydev.hostagent.channel.contract import GuestChannel
from polydev.hostagent.machines.context import BootImages, HostContext
from polydev.hostagent.machines.record import MachineFolder, MachineRecord, NetworkAttachment
from polydev.hostagent.system.cancellation import run_in_thread_shielded, run_shielded
from polydev.hostagent.vmm.contract import LaunchSpec, RunningVmm, SnapshotSource
from polydev.shared.errors import (
    ChannelLost,
    MachineBusy,
    MachineNotReady,
    PolydevError,
    SnapshotUnusable,
    VmmFailed,
)
from polydev.shared.host_protocol import ExecRequest

log = logging.getLogger("polydev.hostagent")

_POWEROFF_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class PreparedMachine:
    """A machine with everything but a VMM."""

    record: MachineRecord
    folder: MachineFolder
    spec: LaunchSpec

    async def launch(self, host: HostContext) -> RunningMachine:
        """Start its VMM; the guest still boots. Raises VmmFailed, MissingTool, DiskFull."""
        return await self._with_channel(host, await host.driver.launch(self.spec))

    async def restore(self, host: HostContext, source: SnapshotSource) -> RunningMachine:
        """Restore its guest in a VMM, paused.

        Raises: SnapshotUnusable, and what `launch` raises.
        """
        return await self._with_channel(host, await host.driver.restore(self.spec, source))

    async def _with_channel(self, host: HostContext, vmm: RunningVmm) -> RunningMachine:
        try:
            return await _attach_channel(host, self.folder, vmm)
        except BaseException:
            await vmm.kill()
            raise


@dataclass(frozen=True, slots=True, eq=False)
class RunningMachine:
    """A machine with a VMM."""

    folder: MachineFolder
    vmm: RunningVmm
    channel: GuestChannel

    async def wait_until_ready(self, limit_s: float) -> None:
        """Wait until the guest reports that it is ready and its channel answers.

        Raises: MachineNotReady, VmmFailed.
        """
        try:
            async with asyncio.timeout(limit_s):
                await self.vmm.wait_ready()
                await self._unless_ended(self.channel.connect(limit_s))
        except TimeoutError:
            raise MachineNotReady(
                f"Machine {self.folder.vm_id} was not ready within {round(limit_s, 1):g} s"
            ) from None
        except ChannelLost as error:
            raise MachineNotReady(
                f"Machine {self.folder.vm_id} started, but its channel does not answer:"
                f" {error.message}"
            ) from None

    async def _unless_ended(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work with the guest, unless its VMM ends first.

        Raises: VmmFailed, and what the work raises.
        """
        working, ended = asyncio.create_task(work), asyncio.create_task(self.vmm.wait())
        try:
            await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            output = ended.result().output or "no output"
            raise VmmFailed(f"{self.folder.vm_id} ended before its channel answered: {output}")
        finally:
            working.cancel()
            ended.cancel()
            await asyncio.gather(working, ended, return_exceptions=True)

    async def shut_down(self, grace_s: float) -> None:
        """Shut the guest down, or kill it after `grace_s`."""
        try:
            async with asyncio.timeout(grace_s):
                await self._request_shutdown()
                await self.vmm.wait()
        except TimeoutError:
            pass
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Kill the VMM, shielded from cancellation."""
        await run_shielded(self._kill())

    async def _kill(self) -> None:
        with contextlib.suppress(Exception):
            await self.channel.close()
        await self.vmm.kill()

    async def detach(self) -> None:
        """Detach from the VMM; it runs on."""
        with contextlib.suppress(Exception):
            await self.channel.close()
        await self.vmm.detach()

    async def _request_shutdown(self) -> None:
        try:
            async with asyncio.timeout(_POWEROFF_LIMIT_S):
                program = await self.channel.exec(ExecRequest(argv=["poweroff"]))
                with contextlib.suppress(PolydevError):
                    await program.wait()
        except (PolydevError, TimeoutError):
            await self.vmm.request_shutdown()


async def _attach_channel(
    host: HostContext, folder: MachineFolder, vmm: RunningVmm
) -> RunningMachine:
    """Return a machine with the channel that its folder has the keys of."""
    return RunningMachine(folder, vmm, await host.provisioner.channel(folder, vmm))


async def prepare(host: HostContext, record: MachineRecord, *, fresh: bool) -> PreparedMachine:
    """Attach a machine to the network; write its disk if `fresh`, and its config drive.

    It saves the record that it returns. Raises: MissingImage, NoCapacity, NetworkFailed, DiskFull.
    """
    folder = host.folder(record.vm_id)
    boot = await host.provisioner.boot_files(record.machine_kind)
    attachment = NetworkAttachment.model_validate(
        await host.network.attach(record.vm_id, record.uid)
    )
    record = record.updated(image=boot.image, kernel=boot.kernel, place=attachment)
    await run_in_thread_shielded(folder.write, record)
    if fresh:
        await host.provisioner.make_disk(folder, record)
    nonce = secrets.token_hex(16)
    await host.provisioner.write_config(folder, record, attachment, nonce)
    return PreparedMachine(record, folder, _spec(host, record, boot, attachment, nonce))


async def prepare_restore(host: HostContext, record: MachineRecord) -> PreparedMachine:
    """Prepare a machine as it was started last, for a restored guest.

    Raises: MissingImage, NetworkFailed; SnapshotUnusable if its network address has changed.
    """
    attachment = NetworkAttachment.model_validate(
        await host.network.attach(record.vm_id, record.uid)
    )
    if attachment != record.place:
        raise SnapshotUnusable("The VM network has changed since its memory was saved")
    return PreparedMachine(record, host.folder(record.vm_id), await last_spec(host, record))


async def last_spec(host: HostContext, record: MachineRecord) -> LaunchSpec:
    """Return the spec that a machine was started with last. Raises MissingImage."""
    if record.place is None:
        raise MachineBusy(f"Machine {record.vm_id} was never started")
    boot = await host.provisioner.boot_files_of(record)
    return _spec(host, record, boot, record.place, nonce="")


async def adopt(host: HostContext, record: MachineRecord) -> RunningMachine | None:
    """Find the VMM that survived an earlier agent; None if there is none.

    It inspects only the machine's folder and processes, so that a live machine is not disturbed.
    """
    if record.place is None:
        return None
    folder = host.folder(record.vm_id)
    boot = BootImages(record.image, record.kernel, folder.disk, folder.disk, folder.disk)
    spec = _spec(host, record, boot, record.place, nonce="")
    vmm = await host.driver.adopt(spec)
    return await _attach_channel(host, folder, vmm) if vmm else None


async def erase(host: HostContext, vm_id: str, machine: RunningMachine | None) -> None:
    """Remove everything that belongs to a machine, complete or not. Idempotent.

    The folder is removed even if the network fails: the next start sweeps the network.
    """
    if machine:
        await machine.kill()
    try:
        await host.network.detach(vm_id)
    finally:
        await run_in_thread_shielded(host.folder(vm_id).remove)


async def clear(host: HostContext, record: MachineRecord) -> None:
    """Remove what a failed attempt left, so that another can begin."""
    await run_in_thread_shielded(host.folder(record.vm_id).clear)
    await run_in_thread_shielded(host.folder(record.vm_id).write, record)


def _spec(
    host: HostContext,
    record: MachineRecord,
    boot: BootImages,
    attachment: NetworkAttachment,
    nonce: str,
) -> LaunchSpec:
    folder = host.folder(record.vm_id)
    return LaunchSpec(
        vm_id=record.vm_id,
        folder=folder.path,
        kernel=boot.vmlinux,
        initramfs=boot.initramfs,
        root_image=boot.root_image,
        disk=folder.disk,
        config_drive=folder.config_drive,
        memory_mib=record.memory_mib,
        vcpus=record.vcpus,
        netns=host.network.netns,
        tap=attachment.tap,
        mac=attachment.mac,
        channel_mac=attachment.channel_mac,
        channel_port=attachment.channel_port,
        uid=record.uid,
        ready_marker=f"POLYDEV-READY {nonce}",
    )
