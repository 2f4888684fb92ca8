"""What Polydev needs of this machine before it can start, each with what to do when it is missing.

`up` stops at the first that fails; `doctor` tells them all.
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
"""Program -> the Debian package that holds it."""

LEAST_FREE_MIB = 1024


def root() -> None:
    if os.geteuid() != 0:
        raise NotRoot(
            "This must run as root: machines, their network and their disks need it",
            hint="Run it with sudo; the controller itself gives root up",
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
            "/dev/net/tun is missing: machines have no network",
            hint="Load it with `modprobe tun`",
        )


def free_port(listen: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in listen else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
        except OSError as error:
            raise PortTaken(
                f"Port {port} on {listen} cannot be used: {error.strerror}",
                hint="End the program that listens there, or set PORT to another port",
            ) from None


def disk_space(folder: Path) -> str:
    """The room that is left, in words. Raises DiskFull when it is too little for a machine."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_mib = shutil.disk_usage(existing).free // 2**20
    words = f"{free_mib / 1024:.1f} GiB free for {folder}"
    if free_mib < LEAST_FREE_MIB:
        raise DiskFull(f"Only {words}", hint="Remove what is not needed, or move POLYDEV_STATE_DIR")
    return words


def check_all(listen: str, port: int) -> None:
    """Raises the first of the errors that would keep Polydev from starting."""
    root()
    for name in TOOLS:
        tool(name)
    tun()
    free_port(listen, port)
