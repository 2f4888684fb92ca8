"""Wire protocol between controller and host agent, as pydantic models.

Client: `shared.host_client`; server: `hostagent.server`. HTTP and WebSockets over a Unix socket.

    GET  /health                                  Health
    PUT  /operations/{operation_id}               Operation -> OperationView (idempotent)
    GET  /operations/{operation_id}?wait_s=N      OperationView
    GET  /machines                                list[HostMachineView]
    GET  /machines/{vm_id}                        HostMachineView
    GET  /machines/{vm_id}/console?tail_bytes=N   text/plain   (bounded; control characters removed)
    GET  /machines/{vm_id}/errors?tail_bytes=N    text/plain
    GET  /machines/{vm_id}/files?path=/abs        application/octet-stream
    GET  /machines/{vm_id}/usage                  Usage
    GET  /machines/{vm_id}/folder?path=           FolderView; PUT creates it
    POST /machines/{vm_id}/move?path=&to=         moves a file or folder
    GET  /machines/{vm_id}/content?path=&max_bytes=  a file; PUT (&replace=): Uploaded;
                                                  DELETE (&with_content=) deletes it
    WS   /machines/{vm_id}/exec                   ExecRequest, then frames
    WS   /machines/{vm_id}/tcp/{port}             binary frames: TCP to its 127.0.0.1:port
    GET  /inventory                               Inventory
    POST /sweep                                   Swept: removed what belonged to no machine
    GET  /diagnosis                               Diagnosis
    GET  /warm                                    WarmView
    POST /warm                                    WarmShape -> WarmView: create the template

In `folder`, `move` and `content`, a path is percent-encoded bytes; files are streamed.

Errors are `{"code", "message", "hint"}` with the kind's status (errors.py).

PUT /operations answers when the operation has ended, or with 202 and state `running` after
`?wait_s` (25 s by default); GET waits in the same way. A failed operation is 200 with `error`.

Exec frames. Client: first a text frame, `ExecRequest`; then binary frames: stdin (an empty one is
end of file), and text frames: `ExecControl`. Server: binary frames whose first byte is the stream
(1 is stdout, 2 stderr), and at the end one text frame, `ExecEnd`. A frame with only that byte is
empty. TCP frames: an empty one closes that direction; text frames are ignored. A stream that cannot
be opened is refused with an error as above, before the upgrade. Frames have at most 256 KiB. When
the client disconnects, its program is ended and its connection closed.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, SecretStr, field_serializer

from polydev.shared.domain import (
    Finding,
    FlatSize,
    GuestFile,
    MachineKind,
    MachineSize,
    MachineState,
)

VM_ID_PATTERN = r"^vm-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
OPERATION_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"

VmIdText = Annotated[str, Field(pattern=VM_ID_PATTERN)]

MemoryMib = Annotated[int, Field(ge=128, le=262144)]
Vcpus = Annotated[int, Field(ge=1, le=64)]
DiskMib = Annotated[int, Field(ge=64, le=4194304)]

STDOUT = 1
STDERR = 2


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class CreateMachine(FlatSize, _Wire):
    """Create and start a machine. Done when its channel answers."""

    kind: Literal["machine.create"] = "machine.create"
    vm_id: VmIdText
    machine_kind: MachineKind
    memory_mib: MemoryMib
    vcpus: Vcpus
    disk_mib: DiskMib
    labels: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Owner and purpose (`user_id`, `session_id`); returned in views, never interpreted."""
    token: SecretStr | None = None
    """Bearer token of the browser service."""
    ready_timeout_s: float = Field(60, gt=0, le=3600)

    @field_serializer("token", when_used="json")
    def _revealed(self, token: SecretStr | None) -> str | None:
        return token.get_secret_value() if token else None


class DestroyMachine(_Wire):
    """Destroy a machine and all its data. Succeeds if it does not exist."""

    kind: Literal["machine.destroy"] = "machine.destroy"
    vm_id: VmIdText


class StopMachine(_Wire):
    """Shut the guest down, or kill it after a grace period. The disk stays."""

    kind: Literal["machine.stop"] = "machine.stop"
    vm_id: VmIdText


class StartMachine(_Wire):
    """Start a stopped machine. Done when its channel answers."""

    kind: Literal["machine.start"] = "machine.start"
    vm_id: VmIdText
    ready_timeout_s: float = Field(60, gt=0, le=3600)


class HibernateMachine(_Wire):
    """Save a machine's memory to disk and free it. Succeeds if it is hibernated already."""

    kind: Literal["machine.hibernate"] = "machine.hibernate"
    vm_id: VmIdText


class ResumeMachine(_Wire):
    """Resume a hibernated machine, or start a stopped one. Done when its channel answers.

    If the saved memory is not usable (damaged, of another version or host), it is deleted and the
    machine boots from its disk; `HostMachineView.wake` reports that and the reason.
    """

    kind: Literal["machine.resume"] = "machine.resume"
    vm_id: VmIdText
    ready_timeout_s: float = Field(60, gt=0, le=3600)


class ForgetMachine(_Wire):
    """Delete the archived logs of a destroyed machine. Succeeds if there are none."""

    kind: Literal["machine.forget"] = "machine.forget"
    vm_id: VmIdText


class WireFile(_Wire):
    """File for a machine (`domain.GuestFile` on the wire)."""

    path: str = Field(max_length=1024)
    content: Base64Bytes = Field(repr=False, max_length=4 * 1024 * 1024)
    mode: int = Field(0o600, ge=0, le=0o7777)
    uid: int = Field(0, ge=0, le=65535)
    gid: int = Field(0, ge=0, le=65535)
    if_absent: bool = False

    @classmethod
    def of(cls, file: GuestFile) -> WireFile:
        """Convert a file to its wire form."""
        return cls(
            path=file.path,
            content=base64.b64encode(file.content),
            mode=file.mode,
            uid=file.uid,
            gid=file.gid,
            if_absent=file.if_absent,
        )

    def guest_file(self) -> GuestFile:
        """Convert the wire form to a file."""
        return GuestFile(
            self.path, self.content, self.mode, self.uid, self.gid, if_absent=self.if_absent
        )


class WriteFiles(_Wire):
    """Write files: through the channel of a running machine, otherwise into its disk."""

    kind: Literal["files.write"] = "files.write"
    vm_id: VmIdText
    files: list[WireFile] = Field(max_length=32)


class RemoveFiles(_Wire):
    """Delete files of a machine. Succeeds if they do not exist."""

    kind: Literal["files.remove"] = "files.remove"
    vm_id: VmIdText
    paths: list[str] = Field(max_length=32)


Operation = Annotated[
    CreateMachine
    | DestroyMachine
    | StopMachine
    | StartMachine
    | HibernateMachine
    | ResumeMachine
    | ForgetMachine
    | WriteFiles
    | RemoveFiles,
    Field(discriminator="kind"),
]


class Problem(_Wire):
    """Error on the wire; `code` is `errors.PolydevError.code`."""

    code: str
    message: str
    hint: str = ""


class Wake(_Wire):
    """Result of the last resume or start of a machine."""

    how: Literal["resumed", "booted"]
    """`booted`: from its disk, without the saved memory."""
    reason: str = ""
    """Reason why a hibernated machine booted; otherwise empty."""
    at: datetime
    took_s: float = Field(ge=0)


PURPOSE = "purpose"
"""Label of machines that a host creates for itself and that are in no database, such as standby
clones. Its value is the purpose."""


class HostMachineView(FlatSize, _Wire):
    """Machine as its host sees it."""

    vm_id: str
    machine_kind: MachineKind
    state: MachineState
    ip_address: str | None
    mac: str | None
    memory_mib: int
    vcpus: int
    disk_mib: int
    labels: dict[str, str]
    image: str
    created_at: datetime
    pid: int | None
    console_log: str
    error_log: str
    error: Problem | None = None
    wake: Wake | None = None
    """None if it was never resumed or started again."""
    is_clone: bool = False
    """True if it was cloned from a running browser machine instead of booted."""
    memory_on_disk_bytes: int = Field(0, ge=0)
    """Size of a hibernated machine's memory on its host's disk."""


class OperationView(_Wire):
    """State of an operation, and the machine after it, if there is one."""

    operation_id: str
    state: Literal["running", "done", "failed"]
    machine: HostMachineView | None = None
    error: Problem | None = None


class WarmShape(FlatSize, _Wire):
    """Size of the browser machines for a template of warm ones."""

    memory_mib: MemoryMib
    vcpus: Vcpus
    disk_mib: DiskMib

    @classmethod
    def of(cls, size: MachineSize) -> Self:
        """Return a size in its wire form."""
        return cls(**size.fields())


class WarmView(_Wire):
    """State of the template from which browser machines are cloned."""

    state: Literal["off", "none", "making", "ready"]
    words: str
    """Reason or progress, as text."""
    waiting: int = 0
    """Number of standby clones for the next logins."""


class Health(_Wire):
    """Health of the host agent."""

    status: Literal["ok"] = "ok"
    version: str
    driver: str
    accelerator: str
    driver_version: str = ""
    """Version of the VMM, if the driver knows it."""
    memory_mib: int = Field(0, ge=0)
    """Total for its machines, as are `vcpus` and `max_machines`."""
    vcpus: int = Field(0, ge=0)
    max_machines: int = Field(0, ge=0)
    disk_free_mib: int = Field(0, ge=0)
    """Free space for its machines' disks."""
    warm: WarmView | None = None


class ExecRequest(_Wire):
    """Run a program as root in a machine, without a shell."""

    argv: list[str] = Field(min_length=1, max_length=256)
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    pty: tuple[int, int] | None = None
    """Columns and rows of a pseudo-terminal; None for no terminal."""


class ExecControl(_Wire):
    """Resize the terminal, or send a signal."""

    resize: tuple[int, int] | None = None
    signal: Literal["INT", "TERM", "KILL", "HUP"] | None = None


class ExecEnd(_Wire):
    """Exit code of a program, or the error that prevented it.

    Signal n gives code 128 + n.
    """

    exit_code: int | None = None
    error: Problem | None = None


class UsageSample(_Wire):
    """Usage of a machine's VMM since the previous sample."""

    at: datetime
    cpu: float = Field(ge=0)
    """Average number of processor cores."""
    memory_bytes: int = Field(ge=0)
    """Host memory in use at that moment."""


class Usage(_Wire):
    """Recent resource usage of a machine, oldest sample first."""

    period_s: float
    samples: list[UsageSample]


class FileEntry(_Wire):
    """Entry of a folder. The machine may choose any name."""

    name: str
    """Percent-encoded bytes."""
    kind: Literal["folder", "file", "link", "other"]
    size: int = Field(ge=0)
    modified_at: datetime
    mode: int


class FolderView(_Wire):
    """Content of a folder, unordered; `more` if it is not complete."""

    entries: list[FileEntry]
    more: bool


class Uploaded(_Wire):
    """Result of an upload."""

    size: int


class Inventory(_Wire):
    """Existing resources of a host, for doctor, reconciliation and tests."""

    machines: list[str]
    folders: list[str]
    processes: dict[str, int]
    """Pid of the VMM by vm_id."""
    taps: list[str]
    addresses: dict[str, str]
    """Address by vm_id."""
    firewall: list[str]
    """Interfaces in the anti-spoofing sets."""
    sockets: list[str]


class Swept(_Wire):
    """Resources that a sweep removed because they belonged to no machine."""

    processes: list[int] = Field(default_factory=list)
    """Pids of VMMs."""
    folders: list[str] = Field(default_factory=list)
    addresses: list[str] = Field(default_factory=list)
    """Ids with an address but no machine."""
    taps: list[str] = Field(default_factory=list)
    sockets: list[str] = Field(default_factory=list)


class Diagnosis(_Wire):
    """Findings of the health checks of a host."""

    findings: list[Finding]
