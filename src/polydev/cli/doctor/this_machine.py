"""Checks of this machine: privileges, programs and kernel devices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from polydev.cli.supervisor import preflight
from polydev.shared.domain import Finding
from polydev.shared.errors import PolydevError


async def check() -> Sequence[Finding]:
    """Check privileges, programs and kernel."""
    return [_root(), *_tools(), _kernel()]


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", True, "Running as root")
    message = "Not running as root: checks that need root are skipped"
    return Finding("root", None, message, "Run the command with sudo")


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
    kvm = (
        "usable" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "not usable, so machines are slow"
    )
    return Finding("kernel", True, f"Linux {os.uname().release}, /dev/net/tun, /dev/kvm {kvm}")
