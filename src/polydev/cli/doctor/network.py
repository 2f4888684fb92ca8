"""Whether what machines need outside answers: only with `--network`, because it sends packets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from polydev.hostagent.network import NetworkConfig, check_connectivity
from polydev.hostagent.settings import HostSettings
from polydev.shared.domain import Finding
from polydev.shared.errors import PolydevError


async def reach(settings: HostSettings) -> Sequence[Finding]:
    """Resolvers with open egress, the proxy with `proxy`; nothing where machines reach nothing."""
    plan = NetworkConfig.from_settings(settings)
    try:
        return await asyncio.to_thread(check_connectivity, plan)
    except (PolydevError, OSError) as error:
        return [Finding("outside", False, f"The outside was not reached: {error}", "See `uplink`")]
