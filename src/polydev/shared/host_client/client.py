"""`HostClient`: client of one host agent.

Every call opens its own connection, so restarts of the agent between calls do not matter. Nothing
here retries; workflows do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection, unix_connect

from polydev.shared.domain import MachineSize
from polydev.shared.errors import ChannelLost, HostUnreachable, PolydevError
from polydev.shared.host_client.error_translation import (
    body_to_error,
    parse_answer,
    to_error,
    translate_handshake_errors,
    translate_transport_errors,
)
from polydev.shared.host_client.files import MachineFiles
from polydev.shared.host_client.guest_transport import MAX_BODY_BYTES, GuestTransport
from polydev.shared.host_client.streams import GuestProcess, GuestStream, collect
from polydev.shared.host_protocol import (
    Diagnosis,
    ExecRequest,
    Health,
    HostMachineView,
    Inventory,
    Operation,
    OperationView,
    Swept,
    Usage,
    WarmShape,
    WarmView,
)
from polydev.shared.logging import context

_ANSWER_LIMIT_S = 30.0
_WAIT_S = 25.0
_TAIL_BYTES = 64 * 1024
_OUTPUT_BYTES = 1024 * 1024
_FRAME_LIMIT = 256 * 1024
_BASE = "http://host"

_machine_views = TypeAdapter(list[HostMachineView])
_operations: TypeAdapter[Operation] = TypeAdapter(Operation)
T = TypeVar("T")

Observe = Callable[[str, Mapping[str, str]], AbstractContextManager[None]]
"""Wrap an operation in metrics and traces: its kind, and the ids of operation and machine."""


@dataclass(frozen=True, slots=True)
class ProgramOutput:
    """Output and exit code of a program in a machine."""

    exit_code: int
    stdout: bytes
    stderr: bytes

    def __repr__(self) -> str:
        return f"ProgramOutput(exit_code={self.exit_code}, {len(self.stdout)} bytes)"


class HostClient:
    """Client of a host agent that listens on a Unix socket.

    Every call raises HostUnreachable if the agent does not answer, and the agent's own errors.
    """

    def __init__(
        self,
        socket: Path,
        *,
        observe: Observe | None = None,
        timeout_s: float = _ANSWER_LIMIT_S,
    ) -> None:
        """`timeout_s` limits the wait for each answer; operations have limits of their own."""
        self._socket = socket
        self._observe = observe or _not_observed
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            base_url=_BASE,
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket), verify=False, limits=httpx.Limits(max_keepalive_connections=0)
            ),
            timeout=timeout_s,
            trust_env=False,
        )

    @property
    def socket(self) -> Path:
        """Path of the agent's socket."""
        return self._socket

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()

    async def health(self) -> Health:
        """Get the agent's version and driver."""
        return parse_answer(Health, await self._get("/health"))

    async def run(
        self, operation_id: str, operation: Operation, timeout_s: float
    ) -> HostMachineView | None:
        """Run an operation and wait for it. Idempotent for one `operation_id`.

        Raises: the operation's error; HostUnreachable if the agent dies or does not complete it
        within `timeout_s`. The operation continues; the same id joins it.
        """
        ids = {"operation": operation_id, "machine": operation.vm_id}
        with context.bound(**ids), self._observe(operation.kind, ids):
            return await self._run(operation_id, operation, timeout_s)

    async def _run(
        self, operation_id: str, operation: Operation, timeout_s: float
    ) -> HostMachineView | None:
        path = f"/operations/{quote(operation_id, safe='')}"
        body = _operations.dump_json(operation)
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            answer = await self._send(
                self._client.build_request(
                    "PUT",
                    path,
                    params={"wait_s": f"{min(left_s, _WAIT_S):.1f}"},
                    content=body,
                    headers={"content-type": "application/json"},
                    timeout=_WAIT_S + self._timeout_s,
                )
            )
            view = parse_answer(OperationView, answer)
            if view.error:
                raise to_error(view.error)
            if view.state == "done":
                return view.machine
        raise HostUnreachable(
            f"The host agent did not complete {operation.kind} of {operation.vm_id} "
            f"in {timeout_s:g} s"
        )

    async def machine(self, vm_id: str) -> HostMachineView:
        """Get one machine. Raises NoSuchMachine."""
        return parse_answer(HostMachineView, await self._get(f"/machines/{vm_id}"))

    async def machines(self) -> list[HostMachineView]:
        """List all machines of the host, oldest first."""
        return parse_answer(_machine_views, await self._get("/machines"))

    async def console(self, vm_id: str, tail_bytes: int = _TAIL_BYTES) -> str:
        """Read the end of the machine's console log, which is untrusted."""
        answer = await self._get(f"/machines/{vm_id}/console", {"tail_bytes": tail_bytes})
        return answer.decode("utf-8", "replace")

    async def errors(self, vm_id: str, tail_bytes: int = _TAIL_BYTES) -> str:
        """Read the end of the machine's hypervisor log."""
        answer = await self._get(f"/machines/{vm_id}/errors", {"tail_bytes": tail_bytes})
        return answer.decode("utf-8", "replace")

    async def read_file(self, vm_id: str, path: str) -> bytes:
        """Read a file of a machine, up to 4 MiB. Raises NoSuchFile, GuestMisbehaved."""
        return await self._get(f"/machines/{vm_id}/files", {"path": path})

    def files(self, vm_id: str) -> MachineFiles:
        """File browser of a running machine."""
        return MachineFiles(self._client, vm_id)

    async def usage(self, vm_id: str) -> Usage:
        """Get a machine's recent resource usage. Raises NoSuchMachine."""
        return parse_answer(Usage, await self._get(f"/machines/{vm_id}/usage"))

    async def inventory(self) -> Inventory:
        """List what actually exists on the host."""
        return parse_answer(Inventory, await self._get("/inventory"))

    async def sweep(self) -> Swept:
        """Remove what belongs to no machine. Safe at any time."""
        return parse_answer(Swept, await self._send(self._client.build_request("POST", "/sweep")))

    async def diagnosis(self) -> Diagnosis:
        """Get the findings of the host's health checks."""
        return parse_answer(Diagnosis, await self._get("/diagnosis"))

    async def warmth(self) -> WarmView:
        """Get the state of the template of warm browser machines."""
        return parse_answer(WarmView, await self._get("/warm"))

    async def warm_up(self, size: MachineSize) -> WarmView:
        """Start creating the template of warm browser machines of this size."""
        request = self._client.build_request("POST", "/warm", json=WarmShape.of(size).model_dump())
        return parse_answer(WarmView, await self._send(request))

    @asynccontextmanager
    async def exec(self, vm_id: str, request: ExecRequest) -> AsyncIterator[GuestProcess]:
        """Run a program as root in a machine. Leaving the block ends it."""
        async with self._websocket(f"/machines/{vm_id}/exec") as connection:
            process = GuestProcess(connection, f"{request.argv[0]} in {vm_id}")
            await connection.send(request.model_dump_json())
            yield process

    async def run_program(
        self,
        vm_id: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60,
        limit_bytes: int = _OUTPUT_BYTES,
    ) -> ProgramOutput:
        """Run a program in a machine to completion.

        Raises: ChannelLost after `timeout_s`; GuestMisbehaved beyond `limit_bytes` of output.
        """
        request = ExecRequest(argv=list(argv), env=dict(env or {}))
        try:
            async with asyncio.timeout(timeout_s), self.exec(vm_id, request) as process:
                stdout, stderr = await _unwrapped(collect(process, stdin, limit_bytes))
                return ProgramOutput(await process.wait(), stdout, stderr)
        except TimeoutError:
            raise ChannelLost(f"{argv[0]} in {vm_id} did not exit within {timeout_s:g} s") from None

    @asynccontextmanager
    async def tcp(self, vm_id: str, port: int) -> AsyncIterator[GuestStream]:
        """Open a TCP connection to a port on the machine's 127.0.0.1."""
        stream = await self._dial(vm_id, port)
        try:
            yield stream
        finally:
            await stream.aclose()

    def http(
        self,
        vm_id: str,
        port: int,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> httpx.AsyncClient:
        """Create an HTTP client for a port on the machine's 127.0.0.1. Use it in `async with`.

        `timeout_s` limits each read and write. Redirects are not followed. Raises, besides what
        httpx raises: ChannelLost, GuestMisbehaved beyond `max_body_bytes`, HostUnreachable.
        """
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            transport=GuestTransport(lambda to: self._dial(vm_id, to), max_body_bytes),
            headers={"accept-encoding": "identity", **(headers or {})},
            timeout=timeout_s,
            trust_env=False,
        )

    async def _dial(self, vm_id: str, port: int) -> GuestStream:
        connection = await self._connected(f"/machines/{vm_id}/tcp/{port}")
        return GuestStream(connection, f"port {port} of {vm_id}")

    @asynccontextmanager
    async def _websocket(self, path: str) -> AsyncIterator[ClientConnection]:
        connection = await self._connected(path)
        try:
            yield connection
        finally:
            await connection.close()

    async def _connected(self, path: str) -> ClientConnection:
        with translate_handshake_errors(path):
            return await unix_connect(
                str(self._socket),
                f"ws://host{path}",
                compression=None,
                max_size=_FRAME_LIMIT,
                ping_interval=None,
                open_timeout=self._timeout_s,
                close_timeout=5,
                proxy=None,
            )
        raise AssertionError("unreachable")

    async def _get(self, path: str, params: Mapping[str, str | int] | None = None) -> bytes:
        return await self._send(self._client.build_request("GET", path, params=params))

    async def _send(self, request: httpx.Request) -> bytes:
        with translate_transport_errors(f"{request.method} {request.url.path}"):
            answer = await self._client.send(request)
        if answer.is_error:
            raise body_to_error(answer.status_code, answer.content)
        return answer.content


def _not_observed(kind: str, ids: Mapping[str, str]) -> AbstractContextManager[None]:
    return nullcontext()


async def _unwrapped(work: Awaitable[T]) -> T:
    """Raise a PolydevError instead of the group that a task group made of it."""
    try:
        return await work
    except ExceptionGroup as group:
        ours, _ = group.split(PolydevError)
        if ours is None:
            raise
        error: BaseException = ours
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    raise error
