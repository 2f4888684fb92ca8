"""Traces: free when off, and harmless when the collector fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid

import pytest
from collector import Collector, running_collector
from pydantic import SecretStr

from polydev.controller.telemetry import traces
from polydev.shared.errors import ChannelLost

SECRET = "hunter2-hunter2"


def test_opentelemetry_is_not_imported_without_a_collector() -> None:
    program = (
        "import sys, asyncio\n"
        "from polydev.controller.telemetry import traces\n"
        "async def main():\n"
        "    async with traces.export_traces(None, None, 1):\n"
        "        with traces.span('x', trace='y', a='b') as span:\n"
        "            span.rename('z'); span.set_attributes({'a': 1})\n"
        "asyncio.run(main())\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))\n"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode == 0


def test_span_without_a_collector_is_cheap() -> None:
    started = time.perf_counter()
    for _ in range(10_000):
        with traces.span("x", a="b"):
            pass
    assert time.perf_counter() - started < 1


async def test_spans_arrive_with_parents_ids_and_attributes() -> None:
    session = str(uuid.uuid4())
    with running_collector() as collector:
        async with traces.export_traces(collector.url, SecretStr("x-key=abc, other = d"), 1):
            with traces.span("connect", trace=session, session=session):
                await _step()
            with traces.span("request") as span:
                span.rename("GET /x")
                span.set_attributes({"http.route": "/x", "n": 3})
        (workflow,) = collector.named("connect")
        (step,) = collector.named("step")
        (request,) = collector.named("GET /x")
    assert workflow.trace_id == step.trace_id == uuid.UUID(session).hex
    assert workflow.attributes == {"polydev.session": session}
    assert (workflow.parent_id, step.parent_id) == ("", workflow.span_id)
    assert request.trace_id != workflow.trace_id
    assert request.attributes == {"http.route": "/x", "n": 3}
    assert collector.service["service.name"] == "polydev-controller"
    assert collector.headers[0]["x-key"] == "abc"
    assert collector.headers[0]["other"] == "d"


async def _step() -> None:
    async def inner() -> None:
        with traces.span("step"):
            pass

    await asyncio.create_task(inner())


async def test_error_is_exported_as_code_or_type_without_its_message() -> None:
    with running_collector() as collector:
        async with traces.export_traces(collector.url, None, 1):
            for error in (KeyError(SECRET), ChannelLost(SECRET)):
                with pytest.raises(type(error)), traces.span("it"):
                    raise error
        spans = collector.named("it")
    assert [it.failed for it in spans] == [True, True]
    assert [it.attributes["error.type"] for it in spans] == ["KeyError", "channel-lost"]
    assert not [body for body in collector.bodies if SECRET.encode() in body]


@pytest.mark.parametrize("ratio", [0.0, 0.5])
async def test_sampled_traces_are_complete(ratio: float) -> None:
    with running_collector() as collector:
        async with traces.export_traces(collector.url, None, ratio):
            for _ in range(200):
                with traces.span("outer", trace=str(uuid.uuid4())), traces.span("inner"):
                    pass
        outer, inner = collector.named("outer"), collector.named("inner")
    assert {it.trace_id for it in outer} == {it.trace_id for it in inner}
    assert len(outer) == 0 if ratio == 0 else 50 < len(outer) < 150


@pytest.mark.parametrize("trouble", ["refuses", "is away", "hangs"])
async def test_broken_collector_does_not_slow_the_controller(
    trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running_collector() as collector:
        collector.status = 400
        url = collector.url if trouble == "refuses" else "http://127.0.0.1:9/v1/traces"
        async with _SilentServer() as silent:
            if trouble == "hangs":
                url = silent
            async with traces.export_traces(url, SecretStr(f"authorization=Bearer {SECRET}"), 1):
                for _ in range(5000):  # more than the queue holds
                    with traces.span("x"):
                        pass
                ended = time.monotonic()
            assert time.monotonic() - ended < 10
    assert SECRET not in caplog.text
    if trouble == "refuses":
        assert caplog.text.count("the trace collector does not accept") == 1
    assert not _left(collector)


class _SilentServer:
    """A server that accepts connections and never answers."""

    async def __aenter__(self) -> str:
        self._over = asyncio.Event()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._over.wait()
            writer.close()

        self._server = await asyncio.start_server(take, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1/traces"

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        self._server.close()


def _left(collector: Collector) -> list[object]:
    return list(collector.spans)
