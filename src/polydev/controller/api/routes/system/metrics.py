"""Route `/metrics`: metrics for Prometheus.

It needs POLYDEV_METRICS_TOKEN, which opens nothing else, or an administrator. See
docs/decisions/0025 for why the client's address is no proof.
"""

from __future__ import annotations

import asyncio
import time

from fastapi import Response

from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import media_response, problem_responses
from polydev.controller.api.http.services import MetricsAccess, Services, ServicesDep
from polydev.controller.store.queries.system import metric_queries
from polydev.controller.telemetry import metrics

router = routers.router(tags=["general"])

_COUNT_INTERVAL_S = 1.0
_EXAMPLE = 'polydev_machines{host="local",kind="cli",state="running"} 3.0\n'
_PAGE = media_response("text/plain", {"type": "string", "examples": [_EXAMPLE]})


class _RowCounts:
    """Counts rows at most once a second, for all scrapers together."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._counted_at = float("-inf")

    async def refresh(self, services: Services) -> None:
        async with self._turn:
            if time.monotonic() - self._counted_at < _COUNT_INTERVAL_S:
                return
            async with services.database.read() as connection:
                metrics.rows.counts = await metric_queries.count_all(connection)
            self._counted_at = time.monotonic()


_row_counts = _RowCounts()


@router.get("/metrics", responses=problem_responses() | _PAGE, response_class=Response)
async def show_metrics(scraping: MetricsAccess, services: ServicesDep) -> Response:
    """Return metrics in Prometheus' text format.

    For administrators, or with POLYDEV_METRICS_TOKEN.
    """
    await _row_counts.refresh(services)
    return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)
