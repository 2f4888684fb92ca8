"""The SSH keys of a machine's private channel, of both sides.

The config drive carries the guest's part into the machine; the channel uses the host's. They are
stored in the machine's own folder and are removed with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.system.disk_full import raising_disk_full
from polydev.shared.atomic_files import write_whole

HOST_KEY = "ssh_host_ed25519_key"
"""The host key of the guest's sshd."""
CLIENT_KEY = "channel_ed25519_key"
"""The host agent's key, the only one that opens the channel."""


@dataclass(frozen=True, slots=True)
class MachineKeys:
    """Keys in OpenSSH format: private ones in PEM, public ones as one line."""

    host_private: bytes = field(repr=False)
    host_public: str
    client_private: bytes = field(repr=False)
    client_public: str


async def make_keys(folder: Path) -> MachineKeys:
    """Read the keys in `folder` (0700, files 0600), and create those that are missing.

    Raises: DiskFull; asyncssh.KeyImportError for a file that is no key.
    """
    with raising_disk_full(folder):
        return await run_in_thread_shielded(_make, folder)


def _make(folder: Path) -> MachineKeys:
    folder.mkdir(mode=0o700, exist_ok=True)
    host_private, host_public = _key(folder / HOST_KEY)
    client_private, client_public = _key(folder / CLIENT_KEY)
    return MachineKeys(host_private, host_public, client_private, client_public)


def _key(path: Path) -> tuple[bytes, str]:
    import asyncssh  # slow to import: only where keys are handled

    if not path.exists():
        key = asyncssh.generate_private_key("ssh-ed25519", comment="polydev")
        write_whole(path, key.export_private_key("openssh"))
    private = path.read_bytes()
    public = asyncssh.import_private_key(private).export_public_key("openssh")
    return private, public.decode("ascii").strip()
