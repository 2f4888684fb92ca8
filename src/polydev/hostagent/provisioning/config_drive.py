"""The config drive: a machine's configuration for one start (docs/machines.md).

It is written before each start; the initramfs unpacks it. The same configuration gives the same
bytes. It holds secrets (host key, token), so only the VMM's user may read it.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.system.disk_full import raising_disk_full
from polydev.shared.domain import MachineKind
from polydev.shared.errors import Invalid

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """The content of a config drive. Addresses have the form `192.168.100.5/24`."""

    vm_id: str
    kind: MachineKind
    hostname: str
    address: str
    mac: str
    gateway: str
    dns: tuple[str, ...]
    channel_mac: str | None
    """MAC address of the private channel's NIC; None for vsock."""
    ready_nonce: str
    clock_s: int
    """Unix time of the host at the start."""
    host_key: bytes = field(repr=False)
    """The machine's private host key, in OpenSSH's PEM (`MachineKeys.host_private`)."""
    authorized_key: str
    """The only public key that opens the channel (`MachineKeys.client_public`)."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_pem: bytes | None = None
    token: str | None = field(default=None, repr=False)
    """Bearer token of the browser service; None for a CLI machine."""
    channel_address: str = "10.0.2.15/24"


async def write_config_drive(path: Path, config: MachineConfig, *, uid: int) -> None:
    """Write the drive atomically, 0600 and owned by `uid`.

    Raises: Invalid for a value with a line end or another control character; DiskFull.
    """
    content = config_drive(config)
    with raising_disk_full(path.parent):
        await run_in_thread_shielded(_write, path, content, uid)


def config_drive(config: MachineConfig) -> bytes:
    """Build the drive: a ustar archive, padded to whole sectors. Raises Invalid."""
    drive = io.BytesIO()
    with tarfile.open(fileobj=drive, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, "machine.env", _machine_env(config))
        _add(archive, "environment", _lines(config.environment))
        if config.ca_pem is not None:
            _add(archive, "ca.pem", config.ca_pem)
        _add(archive, "ssh_host_ed25519_key", config.host_key, 0o600)
        authorized = f"{_one_line('authorized_keys', config.authorized_key)}\n"
        _add(archive, "authorized_keys", authorized.encode())
        if config.token is not None:
            _add(archive, "token", _one_line("token", config.token).encode(), 0o600)
    return drive.getvalue()


def _machine_env(config: MachineConfig) -> bytes:
    values = {
        "POLYDEV_VM_ID": config.vm_id,
        "POLYDEV_KIND": config.kind.value,
        "POLYDEV_HOSTNAME": config.hostname,
        "POLYDEV_ADDRESS": config.address,
        "POLYDEV_MAC": config.mac.lower(),
        "POLYDEV_GATEWAY": config.gateway,
        "POLYDEV_DNS": " ".join(config.dns),
        "POLYDEV_CHANNEL_ADDRESS": config.channel_address,
        "POLYDEV_CHANNEL_MAC": (config.channel_mac or "").lower(),
        "POLYDEV_READY_NONCE": config.ready_nonce,
        "POLYDEV_CLOCK_S": str(config.clock_s),
    }
    lines = (f"{name}={shlex.quote(_one_line(name, value))}\n" for name, value in values.items())
    return "".join(lines).encode()


def _lines(environment: Mapping[str, str]) -> bytes:
    """Format `KEY=VALUE` lines for sshd, which knows no quotes."""
    for name in environment:
        if not _VARIABLE.fullmatch(name):
            raise Invalid(f"{name!r} cannot be the name of an environment variable")
    pairs = ((name, _one_line(name, value)) for name, value in sorted(environment.items()))
    return "".join(f"{name}={value}\n" for name, value in pairs).encode()


def _one_line(name: str, value: str) -> str:
    if _CONTROL.search(value):
        raise Invalid(f"The value of {name} holds a line end or another control character")
    return value


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = mode
    archive.addfile(member, io.BytesIO(content))


def _write(path: Path, content: bytes, uid: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchown(file.fileno(), uid, uid)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
