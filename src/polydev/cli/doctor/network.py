"""Whether what machines need outside answers: only with `--network`, because it sends packets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from polydev.domain import Finding
from polydev.errors import PolydevError
from polydev.hostd.network import NetworkPlan, reach_outside
from polydev.settings import HostSettings


async def reach(settings: HostSettings) -> Sequence[Finding]:
    """Resolvers with open egress, the proxy with `proxy`; nothing where machines reach nothing."""
    plan = NetworkPlan.from_settings(settings)
    try:
        return await asyncio.to_thread(reach_outside, plan)
    except (PolydevError, OSError) as error:
        return [Finding("outside", False, f"The outside was not reached: {error}", "See `uplink`")]
