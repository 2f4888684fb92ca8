"""`POST /csp-report`: violations of the Content-Security-Policy that browsers report.

Anyone can send a report. So it is only counted, and a few per minute are logged with their
directive and the blocked origin.
"""

from __future__ import annotations

import json
import logging
import time
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from polydev.controller.telemetry import metrics

router = APIRouter(include_in_schema=False)
log = logging.getLogger("polydev.controller.web")

_MAX_SOURCE = 100
_LOGGED_PER_MINUTE = 10
_MINUTE_S = 60.0


class _LogLimit:
    """Allows a number of log lines per minute."""

    def __init__(self) -> None:
        self._started_at = -_MINUTE_S
        self._count = 0

    def allow(self) -> bool:
        at = time.monotonic()
        if at - self._started_at >= _MINUTE_S:
            self._started_at, self._count = at, 0
        self._count += 1
        return self._count <= _LOGGED_PER_MINUTE


_log_limit = _LogLimit()


@router.post("/csp-report", status_code=204)
async def take_report(request: Request) -> Response:
    """Count a report and log what was blocked."""
    directive, source = _parse(await request.body())
    metrics.csp_reports.labels(directive).inc()
    if _log_limit.allow():
        log.warning("a browser blocked content of a page: %s from %s", directive, source)
    return Response(status_code=204)


def _parse(body: bytes) -> tuple[str, str]:
    try:
        report = json.loads(body)["csp-report"]
        reported = str(report.get("effective-directive") or report.get("violated-directive"))
        blocked = str(report.get("blocked-uri", ""))
        parts = urlsplit(blocked)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "unreadable", ""
    directive = reported if reported in _DIRECTIVES else "other"
    source = f"{parts.scheme}://{parts.netloc}" if parts.netloc else blocked
    return directive, source[:_MAX_SOURCE].encode("unicode_escape").decode()


_DIRECTIVES = frozenset(
    {
        "default-src",
        "script-src",
        "script-src-elem",
        "script-src-attr",
        "style-src",
        "style-src-elem",
        "style-src-attr",
        "img-src",
        "font-src",
        "connect-src",
        "manifest-src",
        "worker-src",
        "frame-src",
        "form-action",
        "base-uri",
        "frame-ancestors",
    }
)
"""Directives that metrics count separately: a report can name anything."""
