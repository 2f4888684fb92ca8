"""The HTTP API of the host agent: `shared/host_protocol` over a Unix socket.

The routes validate requests, call operations and the machine service, and turn errors into
responses. They decide nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response, WebSocket
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import TypeAdapter, ValidationError

from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.operations.operations import Operations
from polydev.hostagent.resources.resource_usage import UsageLog
from polydev.hostagent.server import file_routes, websocket_streams
from polydev.hostagent.system import logs
from polydev.hostagent.system.error_mapping import as_polydev_error, problem_of, status_of
from polydev.hostagent.warm_pool import WarmPool
from polydev.shared.domain import Finding
from polydev.shared.errors import Invalid, PolydevError
from polydev.shared.host_protocol import (
    OPERATION_ID_PATTERN,
    VM_ID_PATTERN,
    Diagnosis,
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

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_FILE_BYTES = 4 * 1024 * 1024

OperationId = Annotated[str, InPath(pattern=OPERATION_ID_PATTERN)]
VmId = Annotated[str, InPath(pattern=VM_ID_PATTERN)]
Wait = Annotated[float, Query(ge=0, le=60)]
Tail = Annotated[int, Query(ge=0, le=logs.MAX_TAIL_BYTES)]

_operation: TypeAdapter[Operation] = TypeAdapter(Operation)


def build(
    machines: MachineService,
    operations: Operations,
    health: Callable[[], Awaitable[Health]],
    diagnose: Callable[[], Awaitable[list[Finding]]],
    usage: UsageLog,
    warm_pool: WarmPool,
) -> FastAPI:
    """Build the application."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestValidationError, _respond_to_bad_request)
    app.add_exception_handler(PolydevError, _respond_with_problem)
    app.add_exception_handler(Exception, _respond_with_problem)
    _add_operations(app, operations)
    _add_machines(app, machines)
    _add_streams(app, machines)
    app.include_router(file_routes.routes(machines))

    @app.get("/machines/{vm_id}/usage")
    async def _usage(vm_id: VmId) -> Usage:
        machines.view(vm_id)
        return usage.usage(vm_id)

    @app.get("/health")
    async def _health() -> Health:
        return await health()

    @app.get("/inventory")
    async def _inventory() -> Inventory:
        return await machines.inventory()

    @app.post("/sweep")
    async def _sweep() -> Swept:
        return await machines.sweep()

    @app.get("/warm")
    async def _warm() -> WarmView:
        return await warm_pool.view()

    @app.post("/warm")
    async def _warm_up(shape: WarmShape) -> WarmView:
        await warm_pool.request_template(shape.size)
        return await warm_pool.view()

    @app.get("/diagnosis")
    async def _diagnosis() -> Diagnosis:
        return Diagnosis(findings=await diagnose())

    return app


def _add_operations(app: FastAPI, operations: Operations) -> None:
    @app.put("/operations/{operation_id}")
    async def _ask(
        operation_id: OperationId, request: Request, response: Response, wait_s: Wait = 25
    ) -> OperationView:
        operation = _parsed(await _body(request))
        view = await operations.submit(operation_id, operation, wait_s)
        response.status_code = 202 if view.state == "running" else 200
        return view

    @app.get("/operations/{operation_id}")
    async def _look(
        operation_id: OperationId, response: Response, wait_s: Wait = 0
    ) -> OperationView:
        view = await operations.wait(operation_id, wait_s)
        response.status_code = 202 if view.state == "running" else 200
        return view


def _add_machines(app: FastAPI, machines: MachineService) -> None:
    @app.get("/machines")
    async def _list() -> list[HostMachineView]:
        return machines.views()

    @app.get("/machines/{vm_id}")
    async def _show(vm_id: VmId) -> HostMachineView:
        return machines.view(vm_id)

    @app.get("/machines/{vm_id}/console")
    async def _console(vm_id: VmId, tail_bytes: Tail = 65536) -> Response:
        return await _log(machines.console_log(vm_id), tail_bytes)

    @app.get("/machines/{vm_id}/errors")
    async def _errors(vm_id: VmId, tail_bytes: Tail = 65536) -> Response:
        return await _log(machines.error_log(vm_id), tail_bytes)

    @app.get("/machines/{vm_id}/files")
    async def _file(vm_id: VmId, path: Annotated[str, Query(max_length=1024)]) -> Response:
        content = await machines.read_file(vm_id, path, MAX_FILE_BYTES)
        return Response(content, media_type="application/octet-stream")


def _add_streams(app: FastAPI, machines: MachineService) -> None:
    @app.websocket("/machines/{vm_id}/exec")
    async def _exec(websocket: WebSocket, vm_id: VmId) -> None:
        await _serve_or_deny(
            websocket, lambda: websocket_streams.serve_exec(websocket, machines, vm_id)
        )

    @app.websocket("/machines/{vm_id}/tcp/{port}")
    async def _tcp(websocket: WebSocket, vm_id: VmId, port: Annotated[int, InPath(ge=1)]) -> None:
        await _serve_or_deny(
            websocket, lambda: websocket_streams.serve_tcp(websocket, machines, vm_id, port)
        )


async def _serve_or_deny(websocket: WebSocket, serve: Callable[[], Awaitable[None]]) -> None:
    """Serve a stream; if it cannot open, respond with the error instead of the upgrade."""
    try:
        await serve()
    except websocket_streams.NotOpened as refused:
        error = as_polydev_error(refused.reason)
        await websocket.send_denial_response(
            JSONResponse(problem_of(error).model_dump(), status_code=status_of(error))
        )


async def _log(path: Path, tail_bytes: int) -> Response:
    return PlainTextResponse(await asyncio.to_thread(logs.tail, path, tail_bytes))


async def _body(request: Request) -> bytes:
    parts: list[bytes] = []
    total = 0
    async for part in request.stream():
        total += len(part)
        if total > MAX_BODY_BYTES:
            raise Invalid(f"A request may have at most {MAX_BODY_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes) -> Operation:
    try:
        return _operation.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"][:4])
        raise Invalid(f"Invalid operation: {where}: {first['msg']}") from None


async def _respond_to_bad_request(_: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    where = ".".join(str(part) for part in first.get("loc", ())[:4])
    return await _respond_with_problem(_, Invalid(f"{where}: {first.get('msg', 'not usable')}"))


async def _respond_with_problem(_: Request, error: Exception) -> Response:
    known = as_polydev_error(error)
    return JSONResponse(problem_of(known).model_dump(), status_code=status_of(known))
