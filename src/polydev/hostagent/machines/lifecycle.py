"""One machine, from what was asked to a running guest: `PreparedMachine` becomes `RunningMachine`.

`machines.py` and `recovery.py` call it, one at a time per machine. It makes and starts; what undoes
a machine is `machines.py`'s erasing, which takes any half-made machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from polydev.hostagent.machines.context import BootFiles, Channel, Site
from polydev.hostagent.machines.record import MachineFolder, MachineRecord, Place
from polydev.hostagent.system.cancellation import in_thread, to_its_end
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
    """A machine that has everything but a VMM."""

    record: MachineRecord
    folder: MachineFolder
    spec: LaunchSpec

    async def launch(self, site: Site) -> RunningMachine:
        """Start its VMM; the guest is not ready yet. Raises VmmFailed, MissingTool, DiskFull."""
        return await self._with(site, await site.driver.launch(self.spec))

    async def restore(self, site: Site, source: SnapshotSource) -> RunningMachine:
        """Put its guest back into a VMM, where it stands still.

        Raises: SnapshotUnusable, and what `launch` raises.
        """
        return await self._with(site, await site.driver.restore(self.spec, source))

    async def _with(self, site: Site, vmm: RunningVmm) -> RunningMachine:
        try:
            return await running(site, self.folder, vmm)
        except BaseException:
            await vmm.kill()
            raise


@dataclass(frozen=True, slots=True, eq=False)
class RunningMachine:
    """A machine with a VMM."""

    folder: MachineFolder
    vmm: RunningVmm
    channel: Channel

    async def until_ready(self, limit_s: float) -> None:
        """Return when the guest says that it is ready and its channel answers.

        Raises: MachineNotReady, VmmFailed.
        """
        try:
            async with asyncio.timeout(limit_s):
                await self.vmm.wait_ready()
                await self._or_end(self.channel.connect(limit_s))
        except TimeoutError:
            raise MachineNotReady(
                f"Machine {self.folder.vm_id} was not ready within {round(limit_s, 1):g} s"
            ) from None
        except ChannelLost as error:
            raise MachineNotReady(
                f"Machine {self.folder.vm_id} started, but its channel does not answer:"
                f" {error.message}"
            ) from None

    async def _or_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something with the guest, unless its VMM ends before.

        Raises: VmmFailed, and what the work raises.
        """
        working, ended = asyncio.create_task(work), asyncio.create_task(self.vmm.wait())
        try:
            await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            words = ended.result().output or "it said nothing"
            raise VmmFailed(f"{self.folder.vm_id} ended before its channel answered: {words}")
        finally:
            working.cancel()
            ended.cancel()
            await asyncio.gather(working, ended, return_exceptions=True)

    async def end(self, grace_s: float) -> None:
        """End the guest cleanly, or kill it after `grace_s`."""
        try:
            async with asyncio.timeout(grace_s):
                await self._ask_to_end()
                await self.vmm.wait()
        except TimeoutError:
            pass
        finally:
            await self.kill()

    async def kill(self) -> None:
        """End the VMM now, cancelled or not."""
        await to_its_end(self._kill())

    async def _kill(self) -> None:
        with contextlib.suppress(Exception):
            await self.channel.close()
        await self.vmm.kill()

    async def let_go(self) -> None:
        """Forget it without ending it."""
        with contextlib.suppress(Exception):
            await self.channel.close()
        await self.vmm.detach()

    async def _ask_to_end(self) -> None:
        try:
            async with asyncio.timeout(_POWEROFF_LIMIT_S):
                program = await self.channel.exec(ExecRequest(argv=["poweroff"]))
                with contextlib.suppress(PolydevError):
                    await program.wait()
        except (PolydevError, TimeoutError):
            await self.vmm.request_shutdown()


async def running(site: Site, folder: MachineFolder, vmm: RunningVmm) -> RunningMachine:
    """A machine with a VMM, and the channel that its folder has the keys of."""
    return RunningMachine(folder, vmm, await site.furnishing.channel(folder, vmm))


async def prepare(site: Site, record: MachineRecord, *, fresh: bool) -> PreparedMachine:
    """Give a machine its place in the network, its disk if `fresh`, and its config drive.

    The record it ends with is written. Raises: MissingImage, NoCapacity, NetworkFailed, DiskFull.
    """
    folder = site.folder(record.vm_id)
    boot = await site.furnishing.boot_files(record.machine_kind)
    place = Place.model_validate(await site.network.attach(record.vm_id, record.uid))
    record = record.now(image=boot.image, kernel=boot.kernel, place=place)
    await in_thread(folder.write, record)
    if fresh:
        await site.furnishing.make_disk(folder, record)
    nonce = secrets.token_hex(16)
    await site.furnishing.write_config(folder, record, place, nonce)
    return PreparedMachine(record, folder, _spec(site, record, boot, place, nonce))


async def prepare_again(site: Site, record: MachineRecord) -> PreparedMachine:
    """As it was started last, for a guest that has booted already and knows its configuration.

    Raises: MissingImage, NetworkFailed; SnapshotUnusable if it would not find its place again.
    """
    place = Place.model_validate(await site.network.attach(record.vm_id, record.uid))
    if place != record.place:
        raise SnapshotUnusable("The VM network has changed since its memory was saved")
    return PreparedMachine(record, site.folder(record.vm_id), await spec_of(site, record))


async def spec_of(site: Site, record: MachineRecord) -> LaunchSpec:
    """What a machine was started with last. Raises: MissingImage."""
    if record.place is None:
        raise MachineBusy(f"Machine {record.vm_id} was never started")
    boot = await site.furnishing.boot_files_of(record)
    return _spec(site, record, boot, record.place, nonce="")


async def adopt(site: Site, record: MachineRecord) -> RunningMachine | None:
    """The machine with the VMM that survived the agent, or None when none did.

    Looks only at the machine's folder and processes, so that a live machine is not disturbed.
    """
    if record.place is None:
        return None
    folder = site.folder(record.vm_id)
    boot = BootFiles(record.image, record.kernel, folder.disk, folder.disk, folder.disk)
    spec = _spec(site, record, boot, record.place, nonce="")
    vmm = await site.driver.adopt(spec)
    return await running(site, folder, vmm) if vmm else None


async def erase(site: Site, vm_id: str, machine: RunningMachine | None) -> None:
    """Remove all that is a machine's, however much of it there is. May be asked again.

    The folder goes even when the network fails: what the network forgot is swept at the next start.
    """
    if machine:
        await machine.kill()
    try:
        await site.network.detach(vm_id)
    finally:
        await in_thread(site.folder(vm_id).remove)


async def clear(site: Site, record: MachineRecord) -> None:
    """Take away what a machine that was not made was given, so that it can be made anew."""
    await in_thread(site.folder(record.vm_id).clear)
    await in_thread(site.folder(record.vm_id).write, record)


async def keep_logs(site: Site, vm_id: str) -> None:
    """Keep the logs of a machine that failed and is about to be erased."""
    folder = site.folder(vm_id)
    try:
        await asyncio.to_thread(site.kept_logs.keep, vm_id, folder.console_log, folder.error_log)
    except OSError as error:
        log.warning("the logs of %s could not be kept: %s", vm_id, error.strerror)


def has_logs(error: BaseException) -> bool:
    """True for an error that a machine's logs may explain."""
    return isinstance(error, (MachineNotReady, VmmFailed))


def naming_logs(error: PolydevError, site: Site, vm_id: str) -> PolydevError:
    """The same error, telling where the logs of the machine that failed are kept."""
    if not has_logs(error):
        return error
    console = site.kept_logs.console_log(vm_id)
    return type(error)(f"{error.message}; its console log is {console}", hint=error.hint)


def _spec(
    site: Site, record: MachineRecord, boot: BootFiles, place: Place, nonce: str
) -> LaunchSpec:
    folder = site.folder(record.vm_id)
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
        netns=site.network.netns,
        tap=place.tap,
        mac=place.mac,
        channel_mac=place.channel_mac,
        channel_port=place.channel_port,
        uid=record.uid,
        ready_marker=f"POLYDEV-READY {nonce}",
    )
