"""What runs on this machine: the supervisor, who has the controller's port, the host agent.

The host agent tells what is wrong with the host; where it does not answer, root looks without it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from polydev.cli.client.api_client import ClientSettings
from polydev.cli.client.socket_owner import describe_program, listeners, wrong_owner_error
from polydev.cli.host_setup import units
from polydev.cli.supervisor.pidfile import Instance
from polydev.cli.supervisor.supervisor import last_log_line
from polydev.hostagent.network import Network
from polydev.hostagent.settings import HostSettings
from polydev.shared.domain import Finding
from polydev.shared.errors import HostUnreachable
from polydev.shared.host_client import Host

_AGENT_LIMIT_S = 15.0


async def instance(settings: HostSettings) -> Sequence[Finding]:
    """The supervisor that `polydev up` is, or systemd where the host is set up for it. Raises
    PermissionError."""
    pid = Instance(settings.state_dir).pid()
    if pid is not None:
        return [Finding("polydev", True, f"Runs in {settings.state_dir} as process {pid}")]
    if units.is_installed(settings.state_dir):
        return [Finding("polydev", *await asyncio.to_thread(_units))]
    hint = "Start it: polydev up. POLYDEV_STATE_DIR names the folder of the Polydev that you mean"
    return [Finding("polydev", False, f"Nothing runs in {settings.state_dir}", hint)]


def _units() -> tuple[bool, str, str]:
    """Whether systemd runs both programs: ok, words, hint."""
    inactive = [unit for unit in units.STARTED if not units.is_active(unit)]
    if not inactive:
        return True, f"systemd runs {' and '.join(units.STARTED)}", ""
    words = f"systemd does not run {' and '.join(inactive)}"
    return False, words, "`polydev host setup` starts what is set up; `journalctl -u` tells more"


async def port(client: ClientSettings) -> Sequence[Finding]:
    """Who listens where the controller should."""
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
        hint = (
            "The controller should: start Polydev (`polydev up`, or its units); PORT names the port"
        )
        return [Finding("port", False, f"Nobody listens on port {client.port}", hint)]
    return [Finding("port", True, f"{client.port} is served by {found[0].name}")]


async def host(settings: HostSettings) -> Sequence[Finding]:
    """What the host agent says of this host; that it is silent, and what can be seen without it."""
    try:
        async with Host(settings.host_socket, timeout_s=_AGENT_LIMIT_S) as agent:
            health = await agent.health()
            words = f"Answers at {settings.host_socket}: {health.driver} ({health.accelerator})"
            return [Finding("host agent", True, words), *(await agent.diagnosis()).findings]
    except HostUnreachable as error:
        silence = _silence(settings, error)
    return [silence, *await _without_agent(settings)]


def _silence(settings: HostSettings, error: HostUnreachable) -> Finding:
    socket = settings.host_socket
    if os.geteuid() != 0 and not os.access(socket, os.W_OK):
        words = f"Not asked: {socket} is open to root only, or not there"
        return Finding("host agent", None, words, "Run it with sudo to see all")
    words = error.message
    if _is_socket(socket):
        words = f"The host agent has died: nobody answers at {socket}, its socket is stale"
    if last := last_log_line(settings.logs_dir / "hostd.log"):
        words += f"; its log ends with: {last}"
    hint = "Start it: `polydev up`; machines that ran go on. Its log is logs/hostd.log in "
    return Finding("host agent", False, words, hint + str(settings.state_dir))


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
        words = f"Not looked at: {left_out}"
        return [*without_root, Finding("host", None, words, "Run it with sudo to see all")]
    network = Network.from_settings(settings)
    try:
        return await checks.HealthChecker(settings, network).diagnose_without_agent()
    finally:
        await network.close()
