"""Firecracker's API client: requests match the specification, responses are bounded."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from polydev.hostagent.vmm.firecracker import api as api_module
from polydev.hostagent.vmm.firecracker.api import Api, ApiError, SnapshotPaths
from polydev.hostagent.vmm.firecracker.limits import RateLimits, disk_buckets, network_buckets
from polydev.shared.errors import VmmFailed
from polydev.testing.fake_firecracker import specification

Call = Callable[[Api], Awaitable[Any]]
PATHS = SnapshotPaths("/state", "/memory")
LIMITED, UNLIMITED = RateLimits(), RateLimits(0, 0, 0)

CALLS: dict[str, tuple[str, list[Call]]] = {
    "state": ("describeInstance", [lambda api: api.state()]),
    "version": ("getFirecrackerVersion", [lambda api: api.version()]),
    "balloon_statistics": ("describeBalloonStats", [lambda api: api.balloon_statistics()]),
    "put_logger": ("putLogger", [lambda api: api.put_logger("/errors")]),
    "put_metrics": ("putMetrics", [lambda api: api.put_metrics("/metrics")]),
    "put_machine_config": (
        "putMachineConfiguration",
        [
            lambda api: api.put_machine_config(vcpus=1, memory_mib=256),
            lambda api: api.put_machine_config(vcpus=32, memory_mib=65536),
        ],
    ),
    "put_boot_source": (
        "putGuestBootSource",
        [lambda api: api.put_boot_source("/kernel", "/initramfs", "console=ttyS0")],
    ),
    "put_drive": (
        "putGuestDriveByID",
        [
            lambda api: api.put_drive("a", "/a", writable=True, buckets=disk_buckets(LIMITED)),
            lambda api: api.put_drive("b", "/b", writable=False, buckets=disk_buckets(UNLIMITED)),
        ],
    ),
    "put_network_interface": (
        "putGuestNetworkInterfaceByID",
        [
            lambda api: api.put_network_interface(
                "lan", tap="tap5", mac="02:01:c0:a8:64:05", buckets=network_buckets(LIMITED)
            ),
            lambda api: api.put_network_interface(
                "lan", tap="tap5", mac="02:01:c0:a8:64:05", buckets=network_buckets(UNLIMITED)
            ),
        ],
    ),
    "put_vsock": ("putGuestVsock", [lambda api: api.put_vsock("/vsock.sock", 3)]),
    "put_entropy": ("putEntropyDevice", [lambda api: api.put_entropy()]),
    "put_balloon": (
        "putBalloon",
        [lambda api: api.put_balloon(amount_mib=0, statistics_every_s=5)],
    ),
    "patch_balloon": ("patchBalloon", [lambda api: api.patch_balloon(amount_mib=64)]),
    "start": ("createSyncAction", [lambda api: api.start()]),
    "send_ctrl_alt_del": ("createSyncAction", [lambda api: api.send_ctrl_alt_del()]),
    "pause": ("patchVm", [lambda api: api.pause()]),
    "resume": ("patchVm", [lambda api: api.resume()]),
    "create_snapshot": ("createSnapshot", [lambda api: api.create_snapshot(PATHS)]),
    "load_snapshot": (
        "loadSnapshot",
        [lambda api: api.load_snapshot(PATHS, interface="lan", tap="tap7")],
    ),
}


def response(status: int, content: bytes = b"") -> httpx.Response:
    return httpx.Response(status, stream=httpx.ByteStream(content))


def answering(
    answer: Callable[[httpx.Request], httpx.Response],
) -> Api:
    return Api(httpx.MockTransport(answer))


def test_every_request_is_covered() -> None:
    functions = inspect.getmembers(Api, inspect.iscoroutinefunction)
    assert set(CALLS) == {name for name, _ in functions if name[0] != "_"} - {"close"}


@pytest.mark.parametrize("name", sorted(CALLS))
async def test_requests_match_the_specification(name: str) -> None:
    operation, calls = CALLS[name]
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        seen.append(specification.check(request.method, request.url.path, body))
        return response(200, b"{}")

    for call in calls:
        await call(answering(answer))
    assert seen == [operation] * len(calls)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/vsock", {"uds_path": "/v"}),
        ("PUT", "/vsock", {"uds_path": "/v", "guest_cid": 2}),
        ("PUT", "/vsock", {"uds_path": "/v", "guest_cid": 3, "more": 1}),
        ("PUT", "/drives/a", {"drive_id": "b", "is_root_device": False}),
        ("PUT", "/drives/a", {"drive_id": "a", "is_root_device": "no"}),
        ("PUT", "/actions", {"action_type": "Stop"}),
        ("PUT", "/actions", None),
        ("DELETE", "/vsock", None),
        ("GET", "/", {}),
        ("GET", "/nowhere", None),
        ("PATCH", "/vm", {"state": "Stopped"}),
        (
            "PUT",
            "/drives/a",
            {"drive_id": "a", "is_root_device": False, "rate_limiter": {"ops": {"size": 1}}},
        ),
    ],
)
def test_unknown_requests_are_detected(method: str, path: str, body: object) -> None:
    with pytest.raises(specification.SpecError):
        specification.check(method, path, body)


async def test_error_message_is_bounded_and_printable() -> None:
    fault = "\x1b[2Jno\n such\x07 thing " + "x" * 10_000
    api = answering(lambda _: response(400, json.dumps({"fault_message": fault}).encode()))
    with pytest.raises(ApiError) as refused:
        await api.start()
    message = refused.value.message
    assert message.startswith("Firecracker rejected PUT /actions: no such thing xxx")
    assert len(message) < 500
    assert message.isprintable()


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"x" * 100_000),
        (200, b"not json"),
        (200, b"[" * 50_000),
        (200, b"[]"),
        (500, b""),
        (302, b"{}"),
    ],
)
async def test_invalid_response_is_a_vmm_failure(answer: tuple[int, bytes]) -> None:
    with pytest.raises(VmmFailed):
        await answering(lambda _: response(*answer)).state()


async def test_missing_response_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "_LIMIT_S", 0.05)

    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    api = Api(httpx.MockTransport(never))
    with pytest.raises(VmmFailed, match="did not answer GET / within"):
        await asyncio.wait_for(api.state(), 5)
    assert not api.is_busy


async def test_requests_are_serialised() -> None:
    under_way, most = 0, 0

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return response(204)

    api = Api(httpx.MockTransport(answer))
    await asyncio.gather(*(api.put_entropy() for _ in range(5)))
    assert most == 1


async def test_refused_connection_has_its_own_error(tmp_path: Any) -> None:
    with pytest.raises(api_module.NotListening):
        await Api.over(str(tmp_path / "nobody")).state()
