"""A client of Firecracker's API: one small method per request.

Requests are serialised over the VMM's own Unix socket. Responses are bounded and time-limited,
because the VMM may be compromised by its guest. A test validates every request against the
specification. Source: src/firecracker/swagger/firecracker.yaml of Firecracker 1.13.1.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx

from polydev.hostagent.system.logs import harmless
from polydev.hostagent.vmm.firecracker.limits import TokenBuckets
from polydev.shared.errors import VmmFailed

_ANSWER_BYTES = 64 * 1024
_FAULT_CHARACTERS = 400
_LIMIT_S = 15.0
_SNAPSHOT_LIMIT_S = 180.0
"""For saving or loading a guest's memory."""

_LONGEST_S = 2 * _SNAPSHOT_LIMIT_S
"""For the client; each request has its own, shorter limit."""

_OK = (200, 204)

Body: TypeAlias = Mapping[str, object]
"""Entries that are None are left out."""


class ApiError(VmmFailed):
    """Firecracker answered with an error."""

    code = VmmFailed.code


class NotListening(VmmFailed):
    """Nothing listens on the socket: not yet, or no longer."""

    code = VmmFailed.code


@dataclass(frozen=True, slots=True)
class SnapshotPaths:
    """The two files of a snapshot, as the VMM sees them."""

    state: str
    memory: str


class Api:
    """The API of one VMM. Every method raises VmmFailed; `ApiError` on an error response."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        self._client = httpx.AsyncClient(
            transport=transport,
            base_url="http://localhost",
            headers=headers,
            timeout=_LONGEST_S,
            trust_env=False,
        )
        self._lock = asyncio.Lock()

    @classmethod
    def over(cls, path: str) -> Api:
        """Connect over a Unix socket, with a new connection for each request."""
        limits = httpx.Limits(max_keepalive_connections=0)
        return cls(httpx.AsyncHTTPTransport(uds=path, verify=False, limits=limits))

    async def close(self) -> None:
        await self._client.aclose()

    @property
    def is_busy(self) -> bool:
        """True while a request is in progress."""
        return self._lock.locked()

    # Queries ----------------------------------------------------------------------------------

    async def state(self) -> str:
        """Return `Not started`, `Running` or `Paused`."""
        return str((await self._get("/")).get("state"))

    async def version(self) -> str:
        return str((await self._get("/version")).get("firecracker_version"))[:32]

    async def balloon_statistics(self) -> dict[str, Any]:
        return await self._get("/balloon/statistics")

    # Before the guest starts -----------------------------------------------------------------

    async def put_logger(self, path: str) -> None:
        await self._put("/logger", {"log_path": path, "level": "Warning", "show_level": True})

    async def put_metrics(self, path: str) -> None:
        await self._put("/metrics", {"metrics_path": path})

    async def put_machine_config(self, *, vcpus: int, memory_mib: int) -> None:
        sizes = {"vcpu_count": vcpus, "mem_size_mib": memory_mib}
        await self._put("/machine-config", {**sizes, "smt": False})

    async def put_boot_source(self, kernel: str, initrd: str, kernel_line: str) -> None:
        paths = {"kernel_image_path": kernel, "initrd_path": initrd}
        await self._put("/boot-source", {**paths, "boot_args": kernel_line})

    async def put_drive(
        self, name: str, path: str, *, writable: bool, buckets: TokenBuckets
    ) -> None:
        """Add a drive; `Writeback` makes a guest's flush reach the host's disk."""
        drive = {
            "drive_id": name,
            "path_on_host": path,
            "is_root_device": False,
            "is_read_only": not writable,
            "cache_type": "Writeback" if writable else "Unsafe",
            "rate_limiter": buckets.body(),
        }
        await self._put(f"/drives/{name}", drive)

    async def put_network_interface(
        self, name: str, *, tap: str, mac: str, buckets: TokenBuckets
    ) -> None:
        interface = {
            "iface_id": name,
            "host_dev_name": tap,
            "guest_mac": mac,
            "rx_rate_limiter": buckets.body(),
            "tx_rate_limiter": buckets.body(),
        }
        await self._put(f"/network-interfaces/{name}", interface)

    async def put_vsock(self, path: str, cid: int) -> None:
        await self._put("/vsock", {"guest_cid": cid, "uds_path": path})

    async def put_entropy(self) -> None:
        await self._put("/entropy", {})

    async def put_balloon(self, *, amount_mib: int, statistics_every_s: int) -> None:
        """Add a balloon; the guest takes memory back before it runs out."""
        balloon = {"amount_mib": amount_mib, "deflate_on_oom": True}
        await self._put("/balloon", {**balloon, "stats_polling_interval_s": statistics_every_s})

    async def start(self) -> None:
        await self._put("/actions", {"action_type": "InstanceStart"})

    async def load_snapshot(self, paths: SnapshotPaths, *, interface: str, tap: str) -> None:
        """Load into a new process; the guest stays paused. After an error it is useless."""
        load = {
            "snapshot_path": paths.state,
            "mem_backend": {"backend_type": "File", "backend_path": paths.memory},
            "network_overrides": [{"iface_id": interface, "host_dev_name": tap}],
            "resume_vm": False,
        }
        await self._put("/snapshot/load", load, limit_s=_SNAPSHOT_LIMIT_S)

    # While it runs ---------------------------------------------------------------------------

    async def pause(self) -> None:
        await self._patch("/vm", {"state": "Paused"})

    async def resume(self) -> None:
        await self._patch("/vm", {"state": "Resumed"})

    async def send_ctrl_alt_del(self) -> None:
        await self._put("/actions", {"action_type": "SendCtrlAltDel"})

    async def patch_balloon(self, *, amount_mib: int) -> None:
        await self._patch("/balloon", {"amount_mib": amount_mib})

    async def create_snapshot(self, paths: SnapshotPaths) -> None:
        """Save a paused guest."""
        files = {"snapshot_path": paths.state, "mem_file_path": paths.memory}
        whole = {"snapshot_type": "Full", **files}
        await self._put("/snapshot/create", whole, limit_s=_SNAPSHOT_LIMIT_S)

    # Transport -------------------------------------------------------------------------------

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._request("GET", path, None, _LIMIT_S)

    async def _put(self, path: str, body: Body, limit_s: float = _LIMIT_S) -> None:
        await self._request("PUT", path, body, limit_s)

    async def _patch(self, path: str, body: Body) -> None:
        await self._request("PATCH", path, body, _LIMIT_S)

    async def _request(
        self, method: str, path: str, body: Body | None, limit_s: float
    ) -> dict[str, Any]:
        given = None if body is None else {k: v for k, v in body.items() if v is not None}
        try:
            async with self._lock, asyncio.timeout(limit_s):
                status, content = await self._exchange(method, path, given)
            answer = json.loads(content) if content else {}
        except TimeoutError as error:
            raise VmmFailed(
                f"Firecracker did not answer {method} {path} within {limit_s:g} s"
            ) from error
        except httpx.ConnectError as error:
            raise NotListening(
                f"Firecracker is not listening for {method} {path}: {error}"
            ) from error
        except (httpx.HTTPError, OSError, ValueError, RecursionError) as error:
            raise VmmFailed(f"{method} {path} to Firecracker failed: {error!r}") from error
        if not isinstance(answer, dict):
            raise VmmFailed(f"Firecracker answered {method} {path} with no JSON object")
        if status not in _OK:
            fault = harmless(str(answer.get("fault_message", f"status {status}")))
            reason = " ".join(fault.split())[:_FAULT_CHARACTERS]
            raise ApiError(f"Firecracker rejected {method} {path}: {reason}")
        return answer

    async def _exchange(self, method: str, path: str, body: Body | None) -> tuple[int, bytes]:
        if self._client.is_closed:  # while this waited for another request
            raise NotListening("Firecracker has ended")
        content = b""
        async with self._client.stream(method, path, json=body) as response:
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > _ANSWER_BYTES:
                    raise ValueError("the response is too long")
            return response.status_code, content
