"""Findings of a host agent's health checks."""

from __future__ import annotations

from polydev.shared.domain import Finding
from polydev.shared.host_client import HostClient


async def failed_findings(host: HostClient) -> dict[str, Finding]:
    """Failed findings by name; assert that each has a hint."""
    found = [it for it in (await host.diagnosis()).findings if not it.ok]
    assert all(it.hint for it in found)
    return {it.name: it for it in found}
