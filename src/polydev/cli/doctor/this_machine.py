"""What Polydev needs of this machine: rights, programs, the kernel's devices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from polydev.cli.supervisor import preflight
from polydev.shared.domain import Finding
from polydev.shared.errors import PolydevError


async def check() -> Sequence[Finding]:
    """Rights, programs and kernel."""
    return [_root(), *_tools(), _kernel()]


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", True, "Running as root, so that all can be looked at")
    words = "Not running as root: what only root may look at is left out below"
    return Finding("root", None, words, "Run it with sudo to see all")


def _tools() -> Iterator[Finding]:
    missing = []
    for name in preflight.TOOLS:
        try:
            preflight.tool(name)
        except PolydevError as error:
            missing.append(Finding("tools", False, error.message, error.hint))
    yield from missing or [Finding("tools", True, f"All {len(preflight.TOOLS)} are installed")]


def _kernel() -> Finding:
    try:
        preflight.tun()
    except PolydevError as error:
        return Finding("kernel", False, error.message, error.hint)
    kvm = "usable" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "not usable: machines are slow"
    return Finding("kernel", True, f"Linux {os.uname().release}, /dev/net/tun, /dev/kvm {kvm}")
