"""Calls to the host agent of this machine, for commands that run as root.

`doctor`, `down`, `host setup` and `demo` need the real state of the host. All other commands use
the controller.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from polydev.shared.errors import Failed, HostUnreachable
from polydev.shared.host_client.client import HostClient
from polydev.shared.host_protocol import DestroyMachine, StopMachine

ANSWER_LIMIT_S = 120.0
"""Limit of one answer for commands that stop everything: the host may be busy."""
_OPERATION_LIMIT_S = 600.0
_HEALTH_LIMIT_S = 5.0


@asynccontextmanager
async def opened(host: HostClient) -> AsyncIterator[HostClient]:
    """Open a client whose HostUnreachable names the agent's socket.

    The controller's clients do not name it: their errors reach users who cannot see the host.
    """
    try:
        async with host:
            yield host
    except HostUnreachable as error:
        raise HostUnreachable(f"{error.message} (socket {host.socket})", hint=error.hint) from None


async def destroy_machine(host: HostClient, vm_id: str) -> None:
    """Destroy a machine with everything that belongs to it. Raises the host's error."""
    await host.run(f"down-{uuid.uuid4()}", DestroyMachine(vm_id=vm_id), _OPERATION_LIMIT_S)


async def stop_machine(host: HostClient, vm_id: str) -> None:
    """Stop a machine and keep its disk. Raises the host's error."""
    await host.run(f"down-{uuid.uuid4()}", StopMachine(vm_id=vm_id), _OPERATION_LIMIT_S)


async def answers(socket: Path) -> bool:
    """Check that a host agent answers at a socket."""
    try:
        async with HostClient(socket, timeout_s=_HEALTH_LIMIT_S) as host:
            await host.health()
    except (HostUnreachable, Failed):  # nothing listens, or something else
        return False
    return True
