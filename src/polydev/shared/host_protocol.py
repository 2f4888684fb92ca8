"""What controller and host agent say to each other: the wire, as pydantic models.

`hosts.py` sends these, `hostd/server.py` answers them; neither imports the other. HTTP over a Unix
socket; the streams are WebSockets over the same socket.

    GET  /health                                  Health
    PUT  /operations/{operation_id}               Operation -> OperationView (idempotent)
    GET  /operations/{operation_id}?wait_s=N      OperationView
    GET  /machines                                list[MachineView]
    GET  /machines/{vm_id}                        MachineView
    GET  /machines/{vm_id}/console?tail_bytes=N   text/plain   (bounded; control characters removed)
    GET  /machines/{vm_id}/errors?tail_bytes=N    text/plain
    GET  /machines/{vm_id}/files?path=/abs        application/octet-stream
    GET  /machines/{vm_id}/usage                  Usage
    GET  /machines/{vm_id}/folder?path=           FolderView; PUT: makes it
    POST /machines/{vm_id}/move?path=&to=         gives something another name
    GET  /machines/{vm_id}/content?path=&max_bytes=  a file; PUT (&replace=): takes one -> Uploaded;
                                                  DELETE (&with_content=): removes it
    WS   /machines/{vm_id}/exec                   ExecRequest, then frames
    WS   /machines/{vm_id}/tcp/{port}             binary frames: TCP to its 127.0.0.1:port
    GET  /inventory                               Inventory
    POST /sweep                                   Swept: what belonged to no machine and is gone
    GET  /diagnosis                               Diagnosis
    GET  /warm                                    WarmView
    POST /warm                                    WarmShape: have a template of warm browser
                                                  machines made -> WarmView

In `folder`, `move` and `content` a path is bytes, percent-encoded within its parameter; they are
for people who look around in a machine that runs, and stream files of any size.

Errors are `{"code", "message", "hint"}` with the kind's status (errors.py).

PUT /operations answers when the operation has ended, or 202 with state `running` after `?wait_s`
(25 s by default); GET waits likewise. A failed operation is 200 with `error`: the asking worked.

Exec frames. Client: first a text frame, `ExecRequest`; then binary frames: stdin (an empty one is
end of file), and text frames: `ExecControl`. Server: binary frames whose first byte is the stream
(1 is stdout, 2 stderr), and at the end one text frame, `ExecEnd`. A frame with that byte alone
carries nothing. TCP frames: an empty one ends that direction, text frames carry nothing. A stream
that cannot be opened is refused with an error as above, before the upgrade. Frames have at most
256 KiB. When the client goes, its program is ended and its connection closed.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, SecretStr, field_serializer

from polydev.shared.domain import Finding, GuestFile, MachineKind, MachineState

VM_ID_PATTERN = r"^vm-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
OPERATION_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}$"

VmIdText = Annotated[str, Field(pattern=VM_ID_PATTERN)]

STDOUT = 1
STDERR = 2


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class CreateMachine(_Wire):
    """Make a machine and start it. Done when its channel answers."""

    kind: Literal["machine.create"] = "machine.create"
    vm_id: VmIdText
    machine_kind: MachineKind
    memory_mib: int = Field(ge=128, le=262144)
    vcpus: int = Field(ge=1, le=64)
    disk_mib: int = Field(ge=64, le=4194304)
    labels: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Whose it is and what for (`user_id`, `session_id`): told back in views, never interpreted."""
    token: SecretStr | None = None
    """Bearer token of the browser service."""
    ready_timeout_s: float = Field(60, gt=0, le=3600)

    @field_serializer("token", when_used="json")
    def _revealed(self, token: SecretStr | None) -> str | None:
        return token.get_secret_value() if token else None


class DestroyMachine(_Wire):
    """End a machine and remove all that is its. Done also when it never was."""

    kind: Literal["machine.destroy"] = "machine.destroy"
    vm_id: VmIdText


class StopMachine(_Wire):
    """End the guest cleanly, or kill it after a grace time. The disk stays."""

    kind: Literal["machine.stop"] = "machine.stop"
    vm_id: VmIdText


class StartMachine(_Wire):
    """Start a stopped machine. Done when its channel answers."""

    kind: Literal["machine.start"] = "machine.start"
    vm_id: VmIdText
    ready_timeout_s: float = Field(60, gt=0, le=3600)


class HibernateMachine(_Wire):
    """Write a machine's memory to disk and free the host's. Done also when it sleeps already."""

    kind: Literal["machine.hibernate"] = "machine.hibernate"
    vm_id: VmIdText


class ResumeMachine(_Wire):
    """Wake a machine that hibernates, or start one that is stopped. Done when its channel answers.

    Memory that cannot be used (damaged, of another version or host) is thrown away and the disk is
    booted instead; `MachineView.wake` says which it was, and why.
    """

    kind: Literal["machine.resume"] = "machine.resume"
    vm_id: VmIdText
    ready_timeout_s: float = Field(60, gt=0, le=3600)


class ForgetMachine(_Wire):
    """Remove what is kept of a machine that is gone: its last words. Done also when nothing is."""

    kind: Literal["machine.forget"] = "machine.forget"
    vm_id: VmIdText


class WireFile(_Wire):
    """A file for a machine (domain.GuestFile on the wire)."""

    path: str = Field(max_length=1024)
    content: Base64Bytes = Field(repr=False, max_length=4 * 1024 * 1024)
    mode: int = Field(0o600, ge=0, le=0o7777)
    uid: int = Field(0, ge=0, le=65535)
    gid: int = Field(0, ge=0, le=65535)
    if_absent: bool = False

    @classmethod
    def of(cls, file: GuestFile) -> WireFile:
        """The wire's form of a file."""
        return cls(
            path=file.path,
            content=base64.b64encode(file.content),
            mode=file.mode,
            uid=file.uid,
            gid=file.gid,
            if_absent=file.if_absent,
        )

    def guest_file(self) -> GuestFile:
        """The file that the wire's form stands for."""
        return GuestFile(
            self.path, self.content, self.mode, self.uid, self.gid, if_absent=self.if_absent
        )


class WriteFiles(_Wire):
    """Put files into a machine: through the channel while it runs, else into its disk."""

    kind: Literal["files.write"] = "files.write"
    vm_id: VmIdText
    files: list[WireFile] = Field(max_length=32)


class RemoveFiles(_Wire):
    """Delete files of a machine; done also when they are not there."""

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
    """An error on the wire: `code` is `errors.PolydevError.code`."""

    code: str
    message: str
    hint: str = ""


class Wake(_Wire):
    """How a machine last came to run after it was asked to wake or start."""

    how: Literal["resumed", "booted"]
    """`booted`: from its disk, without what was in its memory."""
    reason: str = ""
    """Why it was booted although it hibernated, in words; empty otherwise."""
    at: datetime
    took_s: float = Field(ge=0)


PURPOSE = "purpose"
"""The label of machines that a host makes for itself, such as those that wait for a login, and that
are in no controller's database: what for."""


class MachineView(_Wire):
    """A machine as its host sees it."""

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
    """None for a machine that has only ever been made."""
    is_clone: bool = False
    """Made of a browser machine that was up already, instead of booted."""
    memory_on_disk_bytes: int = Field(0, ge=0)
    """What the memory of a machine that hibernates takes on its host's disk."""


class OperationView(_Wire):
    """How an operation stands. `machine` is what it left, where that makes sense."""

    operation_id: str
    state: Literal["running", "done", "failed"]
    machine: MachineView | None = None
    error: Problem | None = None


class WarmShape(_Wire):
    """How large the browser machines are that a template of warm ones is to be for."""

    memory_mib: int = Field(ge=128, le=262144)
    vcpus: int = Field(ge=1, le=64)
    disk_mib: int = Field(ge=64, le=4194304)


class WarmView(_Wire):
    """Whether browser machines are cloned of one whose browser is up, instead of booted."""

    state: Literal["off", "none", "making", "ready"]
    words: str
    """Why it is so, or how far."""
    waiting: int = 0
    """Clones that wait for whoever logs in next."""


class Health(_Wire):
    """The host agent's answer that it lives."""

    status: Literal["ok"] = "ok"
    version: str
    driver: str
    accelerator: str
    driver_version: str = ""
    """Of the VMM, as far as the driver knows it."""
    memory_mib: int = Field(0, ge=0)
    """What its machines may have together, as `vcpus` and `max_machines`."""
    vcpus: int = Field(0, ge=0)
    max_machines: int = Field(0, ge=0)
    disk_free_mib: int = Field(0, ge=0)
    """What is free where its machines' disks lie."""
    warm: WarmView | None = None


class ExecRequest(_Wire):
    """Run a program as root in a machine. `argv` is not interpreted by a shell."""

    argv: list[str] = Field(min_length=1, max_length=256)
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    pty: tuple[int, int] | None = None
    """Columns and rows of a pseudo-terminal; None: none."""


class ExecControl(_Wire):
    """Resize the terminal, or send a signal (`INT`, `TERM`, `KILL`, `HUP`)."""

    resize: tuple[int, int] | None = None
    signal: Literal["INT", "TERM", "KILL", "HUP"] | None = None


class ExecEnd(_Wire):
    """How a program ended: an exit code (128 + n for signal n), or why it could not be told."""

    exit_code: int | None = None
    error: Problem | None = None


class UsageSample(_Wire):
    """What a machine's VMM used up to `at`, since the sample before."""

    at: datetime
    cpu: float = Field(ge=0)
    """Processor cores, on average."""
    memory_bytes: int = Field(ge=0)
    """Of the host's memory, at that moment."""


class Usage(_Wire):
    """What is known of a machine's use of its host, the oldest sample first."""

    period_s: float
    samples: list[UsageSample]


class FileEntry(_Wire):
    """Something in a folder of a machine; a machine may answer any name."""

    name: str
    """Bytes, percent-encoded."""
    kind: Literal["folder", "file", "link", "other"]
    size: int = Field(ge=0)
    modified_at: datetime
    mode: int


class FolderView(_Wire):
    """What is in a folder, in no order. `more`: that is not all."""

    entries: list[FileEntry]
    more: bool


class Uploaded(_Wire):
    """A file that was taken."""

    size: int


class Inventory(_Wire):
    """What exists on a host, by looking, not by remembering. For doctor, reconciler and tests."""

    machines: list[str]
    folders: list[str]
    processes: dict[str, int]
    """vm_id -> pid of its VMM."""
    taps: list[str]
    addresses: dict[str, str]
    """vm_id -> address."""
    firewall: list[str]
    """Interfaces that the anti-spoofing sets name."""
    sockets: list[str]


class Swept(_Wire):
    """What a sweep removed, since it belonged to no machine."""

    processes: list[int] = Field(default_factory=list)
    """Pids of VMMs."""
    folders: list[str] = Field(default_factory=list)
    addresses: list[str] = Field(default_factory=list)
    """Ids that had an address, and no machine."""
    taps: list[str] = Field(default_factory=list)
    sockets: list[str] = Field(default_factory=list)


class Diagnosis(_Wire):
    """What is well on a host and what is not: what is, compared with what should be."""

    findings: list[Finding]
