"""The host agent of this machine, asked directly: only root can, and only on its own host.

`doctor`, `down` and `demo` look here at what really exists; everything else goes through the
controller. Speaks the wire of `hostapi.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError

from polydev.domain import Finding
from polydev.errors import HostUnreachable, by_code
from polydev.hostapi import (
    DestroyMachine,
    Diagnosis,
    Health,
    Inventory,
    OperationView,
    Problem,
    StopMachine,
    WarmShape,
    WarmView,
)

DESTROY_LIMIT_S = 120.0


class Agent:
    """Questions to the host agent behind a socket. Every method raises HostUnreachable."""

    def __init__(self, client: httpx.AsyncClient, socket: Path) -> None:
        self._client = client
        self._socket = socket

    async def health(self) -> Health:
        return Health.model_validate(await self._ask("GET", "/health"))

    async def inventory(self) -> Inventory:
        return Inventory.model_validate(await self._ask("GET", "/inventory"))

    async def diagnosis(self) -> list[Finding]:
        return Diagnosis.model_validate(await self._ask("GET", "/diagnosis")).findings

    async def warmth(self) -> WarmView:
        """Whether its browser machines are cloned of one that is up."""
        return WarmView.model_validate(await self._ask("GET", "/warm"))

    async def warm_up(self, shape: WarmShape) -> None:
        """Have it make what browser machines of that shape are cloned of. It takes a while."""
        await self._ask("POST", "/warm", json=shape.model_dump())

    async def destroy(self, vm_id: str) -> None:
        """End a machine and remove what is its. Raises what the host says when it cannot."""
        await self._do(DestroyMachine(vm_id=vm_id))

    async def stop(self, vm_id: str) -> None:
        """End a machine's guest; its disk stays. Raises what the host says when it cannot."""
        await self._do(StopMachine(vm_id=vm_id))

    async def _do(self, what: DestroyMachine | StopMachine) -> None:
        operation_id = f"down-{uuid.uuid4()}"
        view = OperationView.model_validate(
            await self._ask("PUT", f"/operations/{operation_id}", json=what.model_dump(mode="json"))
        )
        while view.state == "running":
            view = OperationView.model_validate(
                await self._ask("GET", f"/operations/{operation_id}?wait_s=25")
            )
        if view.error:
            raise by_code(view.error.code)(view.error.message, hint=view.error.hint)

    async def _ask(self, method: str, path: str, json: Any = None) -> Any:
        try:
            answer = await self._client.request(method, path, json=json)
        except httpx.HTTPError as error:
            raise HostUnreachable(
                f"The host agent does not answer at {self._socket} ({type(error).__name__})",
                hint="`polydev up` starts it; its log is in the state folder's logs/hostd.log",
            ) from None
        if answer.is_success:
            return answer.json()
        try:
            problem = Problem.model_validate_json(answer.content)
        except ValidationError:
            raise HostUnreachable(
                f"The host agent answered {answer.status_code} to {method} {path}"
            ) from None
        raise by_code(problem.code)(problem.message, hint=problem.hint)


@asynccontextmanager
async def agent(socket: Path, timeout_s: float = DESTROY_LIMIT_S) -> AsyncIterator[Agent]:
    """The host agent that listens at `socket`."""
    transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://host", timeout=timeout_s
    ) as client:
        yield Agent(client, socket)


async def answers(socket: Path) -> bool:
    """Whether a host agent is there."""
    try:
        async with agent(socket, timeout_s=5) as there:
            await there.health()
    except HostUnreachable:
        return False
    return True
