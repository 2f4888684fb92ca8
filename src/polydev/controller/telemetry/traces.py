"""Traces (OpenTelemetry, OTLP over HTTP): off unless POLYDEV_OTLP_ENDPOINT names a collector.

Code wraps its work in `span(...)`. Without a collector this costs one function call, and
OpenTelemetry is not imported. A span that starts a trace may name its subject: a session's trace
has the session's UUID as its id, on every controller that continues it. Attributes are ids and
values from closed sets: no secrets, URL queries or error texts.

The collector cannot slow the controller down. Spans wait in a bounded queue, a thread sends them,
and they are dropped when the collector does not answer. The log reports that now and then.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import SecretStr

from polydev import __version__
from polydev.shared.errors import PolydevError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import Tracer

log = logging.getLogger("polydev.controller.telemetry")

AttributeValue = str | int | float | bool

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_QUEUE_SPANS = 2048
_BATCH_SPANS = 256
_SEND_INTERVAL_MS = 2_000
_SEND_LIMIT_S = 5
_FLUSH_LIMIT_S = 3.0
_WARN_EVERY_S = 300.0

_tracer: Tracer | None = None
_trace_id: ContextVar[int | None] = ContextVar("polydev_trace_id", default=None)


class Span(Protocol):
    """A running span."""

    def rename(self, name: str) -> None:
        """Change the name once it is known."""

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes."""


class _NoSpan:
    def rename(self, name: str) -> None:
        pass

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        pass


class _RealSpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._span.set_attributes(attributes)


_NO_SPAN = _NoSpan()


@contextmanager
def span(name: str, *, trace: str | None = None, **attributes: AttributeValue) -> Iterator[Span]:
    """Trace the block. Attributes are recorded as `polydev.<name>`.

    `trace`: start a trace of its own, with the UUID in this subject as its id.
    """
    if _tracer is None:
        yield _NO_SPAN
        return
    with _started(_tracer, name, trace) as real:
        real.set_attributes({f"polydev.{key}": value for key, value in attributes.items()})
        try:
            yield _RealSpan(real)
        except BaseException as error:
            _mark_failed(real, error)
            raise


@contextmanager
def _started(tracer: Tracer, name: str, trace: str | None) -> Iterator[Any]:
    from opentelemetry.context import Context

    wanted = _trace_id_of(trace) if trace else None
    token = _trace_id.set(wanted)
    try:
        with tracer.start_as_current_span(
            name,
            context=Context() if trace else None,
            record_exception=False,
            set_status_on_exception=False,
        ) as real:
            yield real
    finally:
        _trace_id.reset(token)


def _trace_id_of(subject: str) -> int | None:
    """Convert the UUID in an id to a trace id."""
    found = _UUID.search(subject)
    return uuid.UUID(found[0]).int if found else None


def _mark_failed(real: Any, error: BaseException) -> None:
    from opentelemetry.trace import StatusCode

    what = error.code if isinstance(error, PolydevError) else type(error).__name__
    real.set_status(StatusCode.ERROR, what)
    real.set_attribute("error.type", what)


@asynccontextmanager
async def export_traces(
    endpoint: str | None, headers: SecretStr | None, ratio: float
) -> AsyncIterator[None]:
    """Export traces to a collector in this context. Without an endpoint, do nothing.

    `headers`: `name=value` pairs, separated by commas. `ratio`: fraction of traces to send.
    """
    global _tracer  # noqa: PLW0603 - one per process, so no caller passes it around
    if endpoint is None:
        yield
        return
    provider = await asyncio.to_thread(_provider, endpoint, _pairs(headers), ratio)
    _tracer = provider.get_tracer("polydev", __version__)
    log.info("exporting traces to %s", endpoint)
    try:
        yield
    finally:
        _tracer = None
        await _flush(provider)


async def _flush(provider: TracerProvider) -> None:
    """Send the queued spans, but do not wait longer than the limit."""
    loop, sent = asyncio.get_running_loop(), asyncio.Event()

    def send() -> None:
        provider.shutdown()
        with suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(sent.set)

    threading.Thread(target=send, daemon=True, name="last spans").start()
    with suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_LIMIT_S):
            await sent.wait()


def _pairs(headers: SecretStr | None) -> Mapping[str, str]:
    text = headers.get_secret_value() if headers else ""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _provider(endpoint: str, headers: Mapping[str, str], ratio: float) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class SubjectIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return _trace_id.get() or super().generate_trace_id()

    for name in ("opentelemetry", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    about = {"service.name": "polydev-controller", "service.version": __version__}
    provider = TracerProvider(
        sampler=_sampler(ratio),
        id_generator=SubjectIds(),
        resource=Resource.create(about),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            _exporter(endpoint, headers),
            max_queue_size=_QUEUE_SPANS,
            max_export_batch_size=_BATCH_SPANS,
            schedule_delay_millis=_SEND_INTERVAL_MS,
        )
    )
    return provider


def _sampler(ratio: float) -> Sampler:
    from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

    class WholeTraceSampler(Sampler):
        """Samples whole traces by the first bits of the id, alike on every controller.

        OpenTelemetry's own sampler uses the last bits, but the trace id is a UUID whose version
        and variant bits are not random.
        """

        def should_sample(
            self, parent_context: Any, trace_id: int, *_: Any, **__: Any
        ) -> SamplingResult:
            is_taken = trace_id >> 80 < ratio * 2**48
            return SamplingResult(Decision.RECORD_AND_SAMPLE if is_taken else Decision.DROP)

        def get_description(self) -> str:
            return f"WholeTraceSampler({ratio:g})"

    return WholeTraceSampler()


def _exporter(endpoint: str, headers: Mapping[str, str]) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class QuietExporter(SpanExporter):
        """Exports without retries, and logs failures at most every few minutes."""

        def __init__(self) -> None:
            self._to = OTLPSpanExporter(endpoint, headers=dict(headers), timeout=_SEND_LIMIT_S)
            self._warned_at = float("-inf")

        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            try:
                result = self._to.export(spans)
            except Exception:
                result = SpanExportResult.FAILURE
            if result is not SpanExportResult.SUCCESS:
                self._warn_dropped(len(spans))
            return result

        def shutdown(self) -> None:
            self._to.shutdown()  # type: ignore[no-untyped-call]

        def _warn_dropped(self, count: int) -> None:
            at = time.monotonic()
            if at - self._warned_at >= _WARN_EVERY_S:
                self._warned_at = at
                log.warning("dropped %d spans: the trace collector does not accept them", count)

    return QuietExporter()
