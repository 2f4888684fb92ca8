"""Metrics and traces of host operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from polydev.controller.telemetry import metrics, traces


@contextmanager
def observe_host_operation(kind: str, ids: Mapping[str, str]) -> Iterator[None]:
    """Time an operation and trace it. `bootstrap.py` passes this to `HostClients`."""
    with traces.span(f"host {kind}", **ids), metrics.timed(metrics.host_operations, kind):
        yield
