"""Metrics and traces of the operations that this controller asks hosts for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from polydev.controller.telemetry import metrics, traces


@contextmanager
def observe_host_operation(kind: str, ids: Mapping[str, str]) -> Iterator[None]:
    """Time an operation and record a span for it; `bootstrap.py` hands this to `Hosts`."""
    with traces.span(f"host {kind}", **ids), metrics.timed(metrics.host_operations, kind):
        yield
