"""What `machines.py` sees of a machine (`vmm.RunningVmm`) and is the same for every real VMM."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from polydev.hostagent.vmm.contract import ExitReport, LaunchSpec
from polydev.hostagent.vmm.vmm_session import VmmSession
from polydev.shared.errors import DiskFull, VmmFailed

S = TypeVar("S", bound=VmmSession)


class ProcessVmm(Generic[S]):
    """A VMM and its session. Each driver adds how its guest is reached, saved and let go on."""

    def __init__(self, spec: LaunchSpec, session: S) -> None:
        self._spec = spec
        self._session = session

    @property
    def pid(self) -> int:
        return self._session.process.pid

    async def wait_ready(self) -> None:
        """Return when the guest printed its ready marker; at once if it was adopted or restored.

        Raises: VmmFailed if the VMM ends before; DiskFull if the guest could not write because the
        host has no room.
        """
        session = self._session
        news = [
            asyncio.create_task(session.marker.seen.wait()),
            asyncio.create_task(session.host_disk_full.wait()),
            asyncio.create_task(session.ended()),
        ]
        try:
            await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in news:
                task.cancel()
        if session.marker.seen.is_set():
            return
        if session.host_disk_full.is_set():
            raise DiskFull(
                f"The host's disk that holds {self._spec.disk} is full",
                hint="Free some space there, then start the machine again",
            )
        report = await session.ended()
        words = " | ".join(filter(None, (report.output, session.last_console_output)))
        raise VmmFailed(
            f"{self._spec.vm_id} ended before it was ready: {words or 'it said nothing'}",
            hint=f"Its console is in {self._spec.folder / 'console.log'}",
        )

    def relocate(self, spec: LaunchSpec) -> None:
        """It is the machine of `spec` from now on: its folder was renamed."""
        self._spec = spec
        self._session.move(spec.folder)

    async def kill(self) -> None:
        """End the process now; returns when it has ended and nothing of it is left."""
        await self._session.kill()

    async def wait(self) -> ExitReport:
        """Return when the process has ended, whoever ended it."""
        return await self._session.ended()

    async def detach(self) -> None:
        """Let go of it; the machine goes on."""
        await self._session.detach()
