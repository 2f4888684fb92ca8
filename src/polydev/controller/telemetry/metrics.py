"""Prometheus metrics, in a registry of their own.

Code that does something counts it here; `api/routes/system/metrics.py` serves the page. Label
values come from closed sets (providers, states, steps, routes, hosts), never from a request, so
their number is bounded. Counts of rows are read at each scrape (`RowCollector`), so they are right
after a restart and equal on every controller.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from polydev import __version__
from polydev.shared.errors import PolydevError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OK = "ok"

_QUICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 900)

disable_created_metrics()  # type: ignore[no-untyped-call]
registry = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=registry)

build = Info("polydev_build", "Version of this Polydev", registry=registry)
build.info({"version": __version__})

http_requests = Counter(
    "polydev_http_requests",
    "API requests by route",
    ("method", "route", "status"),
    registry=registry,
)
http_duration = Histogram(
    "polydev_http_request_duration_seconds",
    "Time until the response starts, without long polls",
    ("method", "route"),
    buckets=_QUICK_S,
    registry=registry,
)
sessions_ended = Counter(
    "polydev_connect_sessions",
    "Ended connect sessions by status",
    ("provider", "status"),
    registry=registry,
)
step_duration = Histogram(
    "polydev_workflow_step_duration_seconds",
    "Duration of workflow steps, including retries",
    ("workflow", "step", "outcome"),
    buckets=_LONG_S,
    registry=registry,
)
host_operations = Histogram(
    "polydev_host_operation_duration_seconds",
    "Duration of host operations",
    ("operation", "outcome"),
    buckets=_LONG_S,
    registry=registry,
)
vault_operations = Histogram(
    "polydev_vault_operation_duration_seconds",
    "Duration of sealing and opening",
    ("operation", "outcome"),
    buckets=_QUICK_S,
    registry=registry,
)
chat_turns = Histogram(
    "polydev_chat_turn_duration_seconds",
    "Duration of chat turns",
    ("provider", "outcome"),
    buckets=_LONG_S,
    registry=registry,
)
audited = Counter(
    "polydev_audit_entries", "Entries of the audit log by action", ("action",), registry=registry
)
csp_reports = Counter(
    "polydev_csp_reports",
    "Violations of the content security policy by directive",
    ("directive",),
    registry=registry,
)
reconciled = Counter(
    "polydev_reconciler_actions",
    "Corrections by the reconciler, by action",
    ("action",),
    registry=registry,
)
event_streams = Gauge(
    "polydev_event_streams", "Open event streams of this controller", registry=registry
)


@contextmanager
def timed(histogram: Histogram, *labels: str) -> Iterator[None]:
    """Time the block. The outcome is the last label: `ok` or the kind of error."""
    started = time.monotonic()
    outcome = OK
    try:
        yield
    except BaseException as error:
        outcome = outcome_of(error)
        raise
    finally:
        histogram.labels(*labels, outcome).observe(time.monotonic() - started)


def outcome_of(error: BaseException) -> str:
    """Map an error to a label: the stable code of a PolydevError, or a kind."""
    if isinstance(error, PolydevError):
        return error.code
    if isinstance(error, TimeoutError):
        return "timed-out"
    return "cancelled" if not isinstance(error, Exception) else "defect"


Series = Mapping[tuple[str, ...], float]
"""Values by label values."""


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """Capacity of a host. Field names are parts of metric names."""

    memory_bytes: int
    memory_free_bytes: int
    vcpus: int
    vcpus_free: int
    machines: int
    disk_free_bytes: int
    takes_machines: bool
    silent_seconds: float | None
    """Time since its last answer. None: it never answered."""


_HOST_METRICS = {
    "memory_bytes": "Memory for machines of a host",
    "memory_free_bytes": "Free memory for machines of a host",
    "vcpus": "vCPUs for machines of a host",
    "vcpus_free": "Free vCPUs for machines of a host",
    "machines": "Machines of a host",
    "disk_free_bytes": "Free disk space of a host",
    "takes_machines": "1 if a host accepts new machines, else 0",
    "silent_seconds": "Time since the last answer of a host",
}


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Counts of rows."""

    machines: Series = field(default_factory=dict)
    """By kind, state and host."""
    sessions: Series = field(default_factory=dict)
    """Live sessions by provider and status."""
    credentials: Series = field(default_factory=dict)
    """By provider."""
    users: int = 0
    queue_length: int = 0
    hosts: Mapping[str, HostCapacity] = field(default_factory=dict)
    leases_s: Sequence[float] = ()
    """Remaining time of each live controller's lease."""


class RowCollector(Collector):
    """Collector that exports the last counts."""

    def __init__(self) -> None:
        self.counts = RowCounts()

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics. Implements `Collector` of prometheus_client."""
        it = self.counts
        yield _gauge(
            "polydev_machines",
            "Machines by kind, state and host",
            ("kind", "state", "host"),
            it.machines,
        )
        yield _gauge(
            "polydev_connect_sessions_live",
            "Live connect sessions",
            ("provider", "status"),
            it.sessions,
        )
        yield _gauge("polydev_credentials", "Stored credentials", ("provider",), it.credentials)
        yield _gauge("polydev_people", "User accounts", (), {(): it.users})
        yield _gauge(
            "polydev_queue_length", "Connect sessions in the queue", (), {(): it.queue_length}
        )
        yield _gauge("polydev_controllers", "Live controllers", (), {(): len(it.leases_s)})
        if it.leases_s:
            yield _gauge(
                "polydev_controller_lease_seconds",
                "Remaining time of the lease that expires first",
                (),
                {(): min(it.leases_s)},
            )
        yield from _hosts(it.hosts)


def render() -> bytes:
    """Render all metrics in Prometheus' text format."""
    return generate_latest(registry)


def _hosts(hosts: Mapping[str, HostCapacity]) -> Iterable[Metric]:
    for name, description in _HOST_METRICS.items():
        values = {host: getattr(load, name) for host, load in hosts.items()}
        known: Series = {(host,): float(it) for host, it in values.items() if it is not None}
        yield _gauge(f"polydev_host_{name}", description, ("host",), known)


def _gauge(name: str, description: str, labels: Sequence[str], values: Series) -> Metric:
    family = GaugeMetricFamily(name, description, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


rows = RowCollector()
registry.register(rows)  # collects at once, so it needs everything above
