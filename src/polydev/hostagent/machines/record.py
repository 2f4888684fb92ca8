"""A machine's folder, and the record in it.

The record holds the desired state; only an inspection shows if a VMM runs. It holds no secret: keys
and token are in separate files.
"""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from polydev.hostagent.system.error_mapping import problem_of
from polydev.hostagent.vmm.contract import ExitReport
from polydev.shared.atomic_files import sync_folder, write_whole
from polydev.shared.domain import FlatSize, MachineKind, MachineState
from polydev.shared.errors import VmmFailed
from polydev.shared.host_protocol import HostMachineView, Problem, Wake


class NetworkAttachment(BaseModel):
    """A machine's attachment to the VM network; see `network.Attachment`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    tap: str
    mac: str
    address: str
    prefix: int
    channel_port: int
    channel_mac: str


class MachineRecord(FlatSize, BaseModel):
    """`machine.json`: a machine as it was requested, and what it was assigned."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    vm_id: str
    machine_kind: MachineKind
    memory_mib: int
    vcpus: int
    disk_mib: int
    labels: dict[str, str]
    state: MachineState
    created_at: datetime
    uid: int
    image: str = ""
    kernel: str = ""
    place: NetworkAttachment | None = None
    is_clone: bool = False
    """Cloned from a template of the warm pool."""
    error: Problem | None = None
    wake: Wake | None = None
    memory_bytes: int = 0
    """Size of its saved memory while it is hibernated."""
    memory_lost: str = ""
    """Why its memory was discarded; the next boot reports it (`Wake.reason`)."""

    def updated(self, **changes: object) -> MachineRecord:
        """Return the record with some fields changed."""
        return self.model_copy(update=changes)


class MachineFolder:
    """The files of one machine. The methods block."""

    def __init__(self, root: Path, vm_id: str) -> None:
        self.path = root / vm_id
        self.vm_id = vm_id
        self.record = self.path / "machine.json"
        self.disk = self.path / "disk.img"
        self.memory = self.path / "memory.saved"
        self.config_drive = self.path / "config.tar"
        self.keys = self.path / "keys"
        self.token = self.path / "token"
        self.console_log = self.path / "console.log"
        self.error_log = self.path / "error.log"

    def write(self, record: MachineRecord) -> None:
        """Write the record, and create the folder if it is missing. Raises OSError."""
        if not self.path.exists():
            self.path.mkdir(mode=0o711)
            sync_folder(self.path.parent)
        write_whole(self.record, record.model_dump_json(indent=1).encode())

    def write_token(self, token: str) -> None:
        """Store the browser service's token, for the config drive of every start."""
        write_whole(self.token, token.encode())

    def read_token(self) -> str | None:
        """Return the browser service's token; None if the machine has none."""
        return self.token.read_text() if self.token.exists() else None

    def read(self) -> MachineRecord | None:
        """Read the record; None if it is missing or unreadable."""
        try:
            return MachineRecord.model_validate_json(self.record.read_bytes())
        except (OSError, ValidationError):
            return None

    def remove(self) -> None:
        """Remove the folder. The record goes last: half removed, it still names its machine."""
        if not self.path.exists():
            return
        self._remove_but(self.record)
        shutil.rmtree(self.path)

    def replace_folder_of(self, record: MachineRecord) -> None:
        """Replace the folder of the record's machine with this one; only its token stays.

        If the agent is killed here, the next one removes both: machines that are being created, one
        of them under another name than its folder's. Raises OSError.
        """
        new, replaced = MachineFolder(self.path.parent, record.vm_id), self.path / ".before"
        if (token := new.read_token()) is not None:
            self.write_token(token)
        self.write(record)
        new.path.rename(replaced)
        try:
            self.path.rename(new.path)
        except OSError:
            replaced.rename(new.path)
            raise
        shutil.rmtree(new.path / replaced.name)
        sync_folder(new.path.parent)

    def clear(self) -> None:
        """Remove everything but the record and the token."""
        self._remove_but(self.record, self.token)

    def _remove_but(self, *retained: Path) -> None:
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry not in retained:
                entry.unlink(missing_ok=True)


def view_of(record: MachineRecord, folder: MachineFolder, pid: int | None) -> HostMachineView:
    """Return a machine in its wire form."""
    return HostMachineView(
        vm_id=record.vm_id,
        machine_kind=record.machine_kind,
        state=record.state,
        ip_address=record.place.address if record.place else None,
        mac=record.place.mac if record.place else None,
        **record.size.fields(),
        labels=record.labels,
        image=record.image,
        created_at=record.created_at,
        pid=pid,
        console_log=str(folder.console_log),
        error_log=str(folder.error_log),
        error=record.error,
        is_clone=record.is_clone,
        wake=record.wake,
        memory_on_disk_bytes=record.memory_bytes,
    )


def end_changes(vm_id: str, report: ExitReport) -> dict[str, object]:
    """Return the changes of a record whose VMM ended unexpectedly."""
    output = f": {report.output}" if report.output else ""
    if report.status in (0, None):
        state = MachineState.STOPPED
        error = VmmFailed(f"Machine {vm_id} shut down unexpectedly{output}", hint="Start it again")
    else:
        state = MachineState.FAILED
        how = f"signal {-report.status}" if report.status < 0 else f"status {report.status}"
        error = VmmFailed(f"The VMM of {vm_id} ended with {how}{output}", hint="Start it again")
    return {"state": state, "error": problem_of(error)}
