"""Checks of the processes on this machine: supervisor, controller's port and host agent.

The host agent reports the findings of the host. If it does not answer, root checks without it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from polydev.cli.client.api_client import ClientSettings
from polydev.cli.client.socket_owner import describe_program, listeners, wrong_owner_error
from polydev.cli.host_setup.resources import units
from polydev.cli.supervisor.pidfile import Instance
from polydev.cli.supervisor.supervisor import last_log_line
from polydev.hostagent.network import Network
from polydev.hostagent.settings import HostSettings
from polydev.shared.domain import Finding
from polydev.shared.errors import Failed, HostUnreachable
from polydev.shared.host_client import HostClient, local_agent

_AGENT_LIMIT_S = 15.0


async def check_instance(settings: HostSettings) -> Sequence[Finding]:
    """Check that `polydev up` or systemd runs Polydev. Raises PermissionError."""
    pid = Instance(settings.state_dir).pid()
    if pid is not None:
        return [Finding("polydev", True, f"Running in {settings.state_dir} as process {pid}")]
    if units.is_installed(settings.state_dir):
        return [Finding("polydev", *await asyncio.to_thread(_units))]
    hint = "Start it with `polydev up`, or set POLYDEV_STATE_DIR to the folder of another Polydev"
    return [Finding("polydev", False, f"Not running in {settings.state_dir}", hint)]


def _units() -> tuple[bool, str, str]:
    """Check that systemd runs both units: ok, message, hint."""
    inactive = [unit for unit in units.STARTED if not units.is_active(unit)]
    if not inactive:
        return True, f"systemd runs {' and '.join(units.STARTED)}", ""
    message = f"systemd does not run {' and '.join(inactive)}"
    return False, message, "Start them with `polydev host setup`; see `journalctl -u` for details"


async def check_port(client: ClientSettings) -> Sequence[Finding]:
    """Check that the controller listens on its port."""
    owners = client.owners
    if owners is None:
        return []
    found = await asyncio.to_thread(listeners, client.port)
    for owner in found:
        if owner.uid not in owners.uids:
            program = await asyncio.to_thread(describe_program, owner)
            error = wrong_owner_error(client.port, owner, program)
            return [Finding("port", False, error.message, error.hint)]
    if not found:
        hint = "Start Polydev (`polydev up`, or its units); PORT sets the port"
        return [Finding("port", False, f"No process listens on port {client.port}", hint)]
    return [Finding("port", True, f"{found[0].name} listens on {client.port}")]


async def check_host_agent(settings: HostSettings) -> Sequence[Finding]:
    """Get the host agent's findings; without the agent, check what is possible."""
    try:
        client = HostClient(settings.host_socket, timeout_s=_AGENT_LIMIT_S)
        async with local_agent.opened(client) as agent:
            health = await agent.health()
            message = f"Answers at {settings.host_socket}: {health.driver} ({health.accelerator})"
            return [Finding("host agent", True, message), *(await agent.diagnosis()).findings]
    except (HostUnreachable, Failed) as error:
        silence = _silence(settings, error)
    return [silence, *await _without_agent(settings)]


def _silence(settings: HostSettings, error: HostUnreachable | Failed) -> Finding:
    socket = settings.host_socket
    if os.geteuid() != 0 and not os.access(socket, os.W_OK):
        message = f"Not checked: only root can open {socket}, or it is missing"
        return Finding("host agent", None, message, "Run the command with sudo")
    message = error.message
    if _is_socket(socket):
        message = f"The host agent has died: no process answers at {socket} (stale socket)"
    if last := last_log_line(settings.logs_dir / "hostd.log"):
        message += f"; the last line of its log: {last}"
    log = settings.logs_dir / "hostd.log"
    hint = f"Start it with `polydev up`; running machines keep running. Its log is {log}"
    return Finding("host agent", False, message, hint)


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except OSError:
        return False


async def _without_agent(settings: HostSettings) -> Sequence[Finding]:
    from polydev.hostagent.health import checks

    if os.geteuid() != 0:
        without_root = [
            *await asyncio.to_thread(lambda: list(checks.images(settings))),
            await asyncio.to_thread(checks.disk_space, settings.state_dir),
        ]
        left_out = "namespace, bridge, TAPs, firewall, sockets, orphans"
        message = f"Not checked: {left_out}"
        return [*without_root, Finding("host", None, message, "Run the command with sudo")]
    network = Network.from_settings(settings)
    try:
        return await checks.HealthChecker(settings, network).diagnose_without_agent()
    finally:
        await network.close()
