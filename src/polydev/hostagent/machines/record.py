"""A machine's own folder and the record in it: what the host must remember about a machine.

`machine.py` and `recovery.py` write and read it. The record is the truth of what is wanted; whether
a VMM really runs is found by looking. It holds no secret: keys and token have files of their own.
"""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from polydev.hostagent.system.error_mapping import problem_of
from polydev.hostagent.vmm.contract import ExitReport
from polydev.shared.atomic_files import sync_folder, write_whole
from polydev.shared.domain import MachineKind, MachineState
from polydev.shared.errors import VmmFailed
from polydev.shared.host_protocol import MachineView, Problem, Wake


class NetworkAttachment(BaseModel):
    """A machine's place in the VM network, as `network.Attachment` told it."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    tap: str
    mac: str
    address: str
    prefix: int
    channel_port: int
    channel_mac: str


class MachineRecord(BaseModel):
    """`machine.json`: a machine as it was asked for, and what it was given."""

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
    """Made of a template of warm machines; see `hostd/warm/`."""
    error: Problem | None = None
    wake: Wake | None = None
    memory_bytes: int = 0
    """Of its saved memory, while it hibernates."""
    memory_lost: str = ""
    """Why its memory was thrown away, until it is booted and that was told (`Wake.reason`)."""

    def updated(self, **changes: object) -> MachineRecord:
        """The record with some fields changed."""
        return self.model_copy(update=changes)


class MachineFolder:
    """Names of what lies in a machine's folder. Its methods block."""

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
        """Make the folder if need be, and keep the record. Raises OSError."""
        if not self.path.exists():
            self.path.mkdir(mode=0o711)
            sync_folder(self.path.parent)
        write_whole(self.record, record.model_dump_json(indent=1).encode())

    def write_token(self, token: str) -> None:
        """Keep the browser service's token, for the config drive of every start."""
        write_whole(self.token, token.encode())

    def read_token(self) -> str | None:
        """The browser service's token; None when the machine has none."""
        return self.token.read_text() if self.token.exists() else None

    def read(self) -> MachineRecord | None:
        """The record; None when there is none that can be read."""
        try:
            return MachineRecord.model_validate_json(self.record.read_bytes())
        except (OSError, ValidationError):
            return None

    def remove(self) -> None:
        """Remove all of it. The record goes last: half removed, it still says what it was."""
        if not self.path.exists():
            return
        self._remove_but(self.record)
        shutil.rmtree(self.path)

    def become(self, record: MachineRecord) -> None:
        """Be the folder of that record's machine, in place of the one that it has, whose token is
        kept. An agent that is killed meanwhile leaves what the next one removes: machines that are
        still being made, one of them under another name than its folder's. Raises: OSError."""
        new, aside = MachineFolder(self.path.parent, record.vm_id), self.path / ".before"
        if (token := new.read_token()) is not None:
            self.write_token(token)
        self.write(record)
        new.path.rename(aside)
        try:
            self.path.rename(new.path)
        except OSError:
            aside.rename(new.path)
            raise
        shutil.rmtree(new.path / aside.name)
        sync_folder(new.path.parent)

    def clear(self) -> None:
        """Remove all but what was asked for: record and token."""
        self._remove_but(self.record, self.token)

    def _remove_but(self, *kept: Path) -> None:
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry not in kept:
                entry.unlink(missing_ok=True)


def view_of(record: MachineRecord, folder: MachineFolder, pid: int | None) -> MachineView:
    """The wire's form of a machine."""
    return MachineView(
        vm_id=record.vm_id,
        machine_kind=record.machine_kind,
        state=record.state,
        ip_address=record.place.address if record.place else None,
        mac=record.place.mac if record.place else None,
        memory_mib=record.memory_mib,
        vcpus=record.vcpus,
        disk_mib=record.disk_mib,
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


def ended(vm_id: str, report: ExitReport) -> dict[str, object]:
    """What to change in the record of a machine whose VMM ended without being asked to."""
    words = f": {report.output}" if report.output else ""
    if report.status in (0, None):
        state = MachineState.STOPPED
        error = VmmFailed(f"Machine {vm_id} ended by itself{words}", hint="Start it again")
    else:
        state = MachineState.FAILED
        how = f"signal {-report.status}" if report.status < 0 else f"status {report.status}"
        error = VmmFailed(f"The VMM of {vm_id} ended with {how}{words}", hint="Start it again")
    return {"state": state, "error": problem_of(error)}
