"""Checks of the outside network. Only with `--network`, because they send packets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from polydev.hostagent.network import NetworkConfig, check_connectivity
from polydev.hostagent.settings import HostSettings
from polydev.shared.domain import Finding
from polydev.shared.errors import PolydevError


async def check(settings: HostSettings) -> Sequence[Finding]:
    """Check the resolvers with open egress, or the proxy; nothing without egress."""
    plan = NetworkConfig.from_settings(settings)
    try:
        return await asyncio.to_thread(check_connectivity, plan)
    except (PolydevError, OSError) as error:
        return [
            Finding("outside", False, f"Cannot reach the outside network: {error}", "See `uplink`")
        ]
