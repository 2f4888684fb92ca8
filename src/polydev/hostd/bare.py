"""Machines without a guest: what the simulated driver's machines are furnished with.

For load tests of everything above the VMM. Such a machine has a record, an address, a process and
logs; its channel answers that there is nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polydev.domain import GuestFile, MachineKind
from polydev.errors import ChannelLost
from polydev.hostapi import ExecRequest
from polydev.hostd.record import MachineFolder, MachineRecord, Place
from polydev.hostd.site import BootFiles
from polydev.hostd.streams import GuestConnection, GuestProgram
from polydev.hostd.vmm.vmm import RunningVmm

_NOTHING = Path("/dev/null")


class BareFurnishing:
    """Furnishes machines that run no guest."""

    async def boot_files(self, kind: MachineKind) -> BootFiles:
        return BootFiles(f"{kind}-simulated", "kernel-simulated", _NOTHING, _NOTHING, _NOTHING)

    async def make_disk(self, folder: MachineFolder, record: MachineRecord) -> None:
        folder.disk.touch(mode=0o600)

    async def write_config(
        self, folder: MachineFolder, record: MachineRecord, place: Place, nonce: str
    ) -> None:
        folder.config_drive.touch(mode=0o600)

    async def channel(self, folder: MachineFolder, vmm: RunningVmm) -> NobodysChannel:
        return NobodysChannel()

    async def write_offline(self, record: MachineRecord, files: Sequence[GuestFile]) -> None:
        raise _nobody()

    async def remove_offline(self, record: MachineRecord, paths: Sequence[str]) -> None:
        raise _nobody()

    async def read_offline(self, record: MachineRecord, path: str, max_bytes: int) -> bytes:
        raise _nobody()


class NobodysChannel:
    """The channel of a machine without a guest."""

    async def connect(self, timeout_s: float | None = None) -> None:
        return

    async def exec(self, request: ExecRequest) -> GuestProgram:
        raise _nobody()

    async def open_tcp(self, port: int) -> GuestConnection:
        raise _nobody()

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        raise _nobody()

    async def write_files(self, files: Sequence[GuestFile]) -> None:
        raise _nobody()

    async def remove_files(self, paths: Sequence[str]) -> None:
        raise _nobody()

    async def close(self) -> None:
        return


def _nobody() -> ChannelLost:
    return ChannelLost("A simulated machine has no guest that could answer")
