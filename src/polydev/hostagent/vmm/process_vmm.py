"""The parts of `RunningVmm` that QEMU and Firecracker share."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from polydev.hostagent.vmm.contract import ExitReport, LaunchSpec
from polydev.hostagent.vmm.vmm_session import VmmSession
from polydev.shared.errors import DiskFull, VmmFailed

S = TypeVar("S", bound=VmmSession)


class ProcessVmm(Generic[S]):
    """A VMM and its session; drivers add channel, save and resume."""

    def __init__(self, spec: LaunchSpec, session: S) -> None:
        self._spec = spec
        self._session = session

    @property
    def pid(self) -> int:
        return self._session.process.pid

    async def wait_ready(self) -> None:
        """Wait for the ready marker; return at once if adopted or restored.

        Raises: VmmFailed if the VMM ends first; DiskFull if the guest cannot write because the
        host's disk is full.
        """
        session = self._session
        events = [
            asyncio.create_task(session.marker.seen.wait()),
            asyncio.create_task(session.host_disk_full.wait()),
            asyncio.create_task(session.ended()),
        ]
        try:
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in events:
                task.cancel()
        if session.marker.seen.is_set():
            return
        if session.host_disk_full.is_set():
            raise DiskFull(
                f"The host's disk that holds {self._spec.disk} is full",
                hint="Free some space there, then start the machine again",
            )
        report = await session.ended()
        output = " | ".join(filter(None, (report.output, session.last_console_output)))
        raise VmmFailed(
            f"{self._spec.vm_id} ended before it was ready: {output or 'no output'}",
            hint=f"See its console: {self._spec.folder / 'console.log'}",
        )

    def relocate(self, spec: LaunchSpec) -> None:
        """Switch to `spec`: the machine's folder was renamed."""
        self._spec = spec
        self._session.move(spec.folder)

    async def kill(self) -> None:
        """Kill the process; return once it has ended and its files are removed."""
        await self._session.kill()

    async def wait(self) -> ExitReport:
        """Return when the process has ended, however it ended."""
        return await self._session.ended()

    async def detach(self) -> None:
        """Release the process; the machine runs on."""
        await self._session.detach()
