"""What is counted and timed, after Prometheus' conventions, in a registry of our own.

Whoever does something counts it here; `api/metrics.py` shows the page. Labels are taken from
closed lists (providers, states, steps, routes, hosts), never from what somebody sent: their number
stays bounded whatever happens. What rows tell is counted at each scrape (`Rows`), so that it is
right after a restart and the same from every controller.
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

build = Info("polydev_build", "Which Polydev this is", registry=registry)
build.info({"version": __version__})

http_requests = Counter(
    "polydev_http_requests",
    "Requests to the API by route",
    ("method", "route", "status"),
    registry=registry,
)
http_duration = Histogram(
    "polydev_http_request_duration_seconds",
    "Time until an answer begins; requests that wait for a change are left out",
    ("method", "route"),
    buckets=_QUICK_S,
    registry=registry,
)
sessions_ended = Counter(
    "polydev_connect_sessions",
    "Connect sessions that ended, by how",
    ("provider", "status"),
    registry=registry,
)
step_duration = Histogram(
    "polydev_workflow_step_duration_seconds",
    "Time that steps of workflows took, tries again included",
    ("workflow", "step", "outcome"),
    buckets=_LONG_S,
    registry=registry,
)
host_operations = Histogram(
    "polydev_host_operation_duration_seconds",
    "Time that hosts took for what they were asked to do",
    ("operation", "outcome"),
    buckets=_LONG_S,
    registry=registry,
)
vault_operations = Histogram(
    "polydev_vault_operation_duration_seconds",
    "Time that sealing and opening took",
    ("operation", "outcome"),
    buckets=_QUICK_S,
    registry=registry,
)
chat_turns = Histogram(
    "polydev_chat_turn_duration_seconds",
    "Time that turns of chats took",
    ("provider", "outcome"),
    buckets=_LONG_S,
    registry=registry,
)
audited = Counter(
    "polydev_audit_entries", "Entries of the audit log, by action", ("action",), registry=registry
)
csp_reports = Counter(
    "polydev_csp_reports",
    "What browsers blocked of the pages, by the directive that says so",
    ("directive",),
    registry=registry,
)
reconciled = Counter(
    "polydev_reconciler_actions",
    "What the reconciler put right, by action",
    ("action",),
    registry=registry,
)
event_streams = Gauge(
    "polydev_event_streams", "Streams of events that are open at this controller", registry=registry
)


@contextmanager
def timed(histogram: Histogram, *labels: str) -> Iterator[None]:
    """Time what happens within. The last label becomes how it ended: `ok`, or the kind of error."""
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
    """An error as a label: its stable code if it is one of ours."""
    if isinstance(error, PolydevError):
        return error.code
    if isinstance(error, TimeoutError):
        return "timed-out"
    return "cancelled" if not isinstance(error, Exception) else "defect"


Series = Mapping[tuple[str, ...], float]
"""Values by labels."""


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """What a host offers, and what of it is free. Fields are named as the metrics are."""

    memory_bytes: int
    memory_free_bytes: int
    vcpus: int
    vcpus_free: int
    machines: int
    disk_free_bytes: int
    takes_machines: bool
    silent_seconds: float | None
    """Since it last answered; None: it never did."""


_HOST_METRICS = {
    "memory_bytes": "Memory that a host's machines may have",
    "memory_free_bytes": "Memory of it that no machine has",
    "vcpus": "Virtual processors that a host's machines may have",
    "vcpus_free": "Virtual processors of them that no machine has",
    "machines": "Machines of a host",
    "disk_free_bytes": "Disk space that a host has left",
    "takes_machines": "Whether a host takes new machines (1) or not",
    "silent_seconds": "Time since a host last answered",
}


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What rows tell."""

    machines: Series = field(default_factory=dict)
    """By kind, state and host."""
    sessions: Series = field(default_factory=dict)
    """Those that have not ended, by provider and status."""
    credentials: Series = field(default_factory=dict)
    """By provider."""
    users: int = 0
    queue_length: int = 0
    hosts: Mapping[str, HostCapacity] = field(default_factory=dict)
    leases_s: Sequence[float] = ()
    """How long each living controller's lease still holds."""


class RowCollector(Collector):
    """Shows what was counted last."""

    def __init__(self) -> None:
        self.counts = RowCounts()

    def collect(self) -> Iterable[Metric]:
        """Source: prometheus_client's custom collectors."""
        it = self.counts
        yield _gauge(
            "polydev_machines", "Machines there are", ("kind", "state", "host"), it.machines
        )
        yield _gauge(
            "polydev_connect_sessions_live",
            "Connect sessions that have not ended",
            ("provider", "status"),
            it.sessions,
        )
        yield _gauge("polydev_credentials", "Credentials kept", ("provider",), it.credentials)
        yield _gauge("polydev_people", "People who may sign in", (), {(): it.users})
        yield _gauge(
            "polydev_queue_length", "Sessions that wait for room", (), {(): it.queue_length}
        )
        yield _gauge("polydev_controllers", "Controllers alive", (), {(): len(it.leases_s)})
        if it.leases_s:
            yield _gauge(
                "polydev_controller_lease_seconds",
                "How long the lease still holds that runs out first",
                (),
                {(): min(it.leases_s)},
            )
        yield from _hosts(it.hosts)


def render() -> bytes:
    """Everything, in Prometheus' text format."""
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
registry.register(rows)  # it collects at once, so everything above must be there
