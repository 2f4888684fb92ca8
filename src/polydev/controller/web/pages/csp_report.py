"""`POST /csp-report`: browsers tell here what a page's Content-Security-Policy kept them from.

Anybody can send one, so a report is counted, and a few a minute are logged, by their directive and
where the blocked thing came from: no more of it is believed or kept.
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
_LOGGED_A_MINUTE = 10
_MINUTE_S = 60.0


class _Pace:
    """Lets so many through each minute."""

    def __init__(self) -> None:
        self._began = -_MINUTE_S
        self._count = 0

    def lets_through(self) -> bool:
        at = time.monotonic()
        if at - self._began >= _MINUTE_S:
            self._began, self._count = at, 0
        self._count += 1
        return self._count <= _LOGGED_A_MINUTE


_pace = _Pace()


@router.post("/csp-report", status_code=204)
async def take_report(request: Request) -> Response:
    """Count it, and say in the log what was blocked."""
    directive, source = _read(await request.body())
    metrics.csp_reports.labels(directive).inc()
    if _pace.lets_through():
        log.warning("a browser blocked what a page wanted: %s from %s", directive, source)
    return Response(status_code=204)


def _read(body: bytes) -> tuple[str, str]:
    try:
        report = json.loads(body)["csp-report"]
        told = str(report.get("effective-directive") or report.get("violated-directive"))
        blocked = str(report.get("blocked-uri", ""))
        parts = urlsplit(blocked)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "unreadable", ""
    known = told if told in _DIRECTIVES else "other"
    source = f"{parts.scheme}://{parts.netloc}" if parts.netloc else blocked
    return known, source[:_MAX_SOURCE].encode("unicode_escape").decode()


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
"""The directives that are told apart: a report can name anything."""
