"""Check the requirements of the host agent at its start: root, and a few programs.

An error names the Debian package of what is missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from polydev.hostagent.vmm.driver_selection import capabilities_of
from polydev.shared.errors import MissingTool, Refused

_ALWAYS = {"nft": "nftables"}
_FOR_GUESTS = {
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
}
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def require(driver: str) -> None:
    """Raise Refused without root, MissingTool for the first missing program."""
    if os.geteuid() != 0:
        raise Refused("The host agent must run as root", hint="Run it with sudo, or as a service")
    if "/usr/sbin" not in os.environ.get("PATH", "").split(":"):
        os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":")
    for tool, package in _needed(driver).items():
        if shutil.which(tool) is None:
            raise MissingTool(
                f"{tool} is not installed", hint=f"Install it: apt-get install {package}"
            )


def _needed(driver: str) -> Mapping[str, str]:
    """Name the programs and their packages. `auto` needs QEMU too: it may fall back to it."""
    capabilities = capabilities_of(driver)
    guests = _FOR_GUESTS if capabilities.needs_images else {}
    return {**_ALWAYS, **guests, **capabilities.programs}
