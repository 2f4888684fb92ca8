"""Requirements of Polydev on this machine.

`up` stops at the first one that is not met; `doctor` reports all.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from polydev.shared.errors import DiskFull, MissingTool, NotRoot, PortTaken

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "ip": "iproute2",
    "nft": "nftables",
    "setpriv": "util-linux",
}
"""Debian package of each program."""

LEAST_FREE_MIB = 1024


def root() -> None:
    if os.geteuid() != 0:
        raise NotRoot(
            "This command must run as root: machines, their networks and their disks need it",
            hint="Run it with sudo. The controller drops root privileges",
        )


def tool(name: str) -> None:
    if shutil.which(name) is None:
        raise MissingTool(
            f"{name} is not installed",
            hint=f"Install the Debian package {TOOLS[name]}, or run `make setup`",
        )


def tun() -> None:
    if not Path("/dev/net/tun").exists():
        raise MissingTool(
            "/dev/net/tun is missing, so machines would have no network",
            hint="Load the module with `modprobe tun`",
        )


def free_port(listen: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
        except OSError as error:
            raise PortTaken(
                f"Port {port} on {listen} is not available: {error.strerror}",
                hint="Stop the program that uses it, or set PORT to another port",
            ) from None


def disk_space(folder: Path) -> str:
    """Describe the free disk space. Raises DiskFull if it is too little for a machine."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_mib = shutil.disk_usage(existing).free // 2**20
    message = f"{free_mib / 1024:.1f} GiB free for {folder}"
    if free_mib < LEAST_FREE_MIB:
        raise DiskFull(
            f"Only {message}", hint="Free some space, or move POLYDEV_STATE_DIR to another disk"
        )
    return message


def check_all(listen: str, port: int) -> None:
    """Check all requirements. Raises the first error."""
    root()
    for name in TOOLS:
        tool(name)
    tun()
    free_port(listen, port)
