"""What the host agent needs of its host before it starts: root, and a few programs.

`__main__.py` asks; each thing missing is one clear line that names the Debian package.
"""

from __future__ import annotations

import os
import shutil

from polydev.shared.errors import MissingTool, Refused

_ALWAYS = {"nft": "nftables"}
_FOR_GUESTS = {
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
}
_FOR_QEMU = {"qemu-system-x86_64": "qemu-system-x86"}
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def require(driver: str) -> None:
    """Raises Refused when not root, MissingTool for the first program that is missing."""
    if os.geteuid() != 0:
        raise Refused("The host agent must run as root", hint="Run it with sudo, or as a service")
    if "/usr/sbin" not in os.environ.get("PATH", "").split(":"):
        os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":")
    for tool, package in _needed(driver).items():
        if shutil.which(tool) is None:
            raise MissingTool(
                f"{tool} is not installed", hint=f"Install it: apt-get install {package}"
            )


def _needed(driver: str) -> dict[str, str]:
    """`auto` needs QEMU, too: it is what is left where Firecracker runs no guest."""
    if driver == "simulated":
        return _ALWAYS
    return _ALWAYS | _FOR_GUESTS | ({} if driver == "firecracker" else _FOR_QEMU)
