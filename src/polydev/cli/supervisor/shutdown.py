"""Stop an instance; with purge, delete all its data.

Purge lets the host agent destroy each machine and then removes what is left: processes in the VM
namespace, the namespace, cgroups and the state folder. Images stay.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from contextlib import suppress

from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor.pidfile import Instance, wait_for_exit
from polydev.hostagent.network import Network
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.vmm.cgroups import Cgroups
from polydev.shared.errors import Failed, Invalid, PolydevError
from polydev.shared.host_client import HostClient, local_agent

END_LIMIT_S = 60.0
KILL_LIMIT_S = 10.0
_KILL_ROUNDS = 100


async def end(settings: HostSettings, terminal: Terminal) -> bool:
    """Stop host agent and controller. False if they were not running."""
    instance = Instance(settings.state_dir)
    if instance.pid() is None:
        return False
    async with terminal.step("Stopping the controller and the host agent"):
        return await instance.end(END_LIMIT_S)


async def stop_and_purge(settings: HostSettings, terminal: Terminal) -> bool:
    """Stop an instance and delete everything that it created. False if there was none."""
    if not settings.state_dir.exists():
        return False
    if not Instance(settings.state_dir).has_run_here:
        raise Invalid(
            f"{settings.state_dir} is not a state folder of Polydev, so nothing was deleted",
            hint="Set POLYDEV_STATE_DIR to the state folder",
        )
    await _destroy_machines(settings, terminal)
    await end(settings, terminal)
    async with terminal.step("Removing the network and the state folder"):
        await kill_in_namespace(settings.netns)
        await Network.from_settings(settings).remove()
        await asyncio.to_thread(Cgroups.inspect(settings.cgroup).remove)
        await asyncio.to_thread(_remove_state, settings)
    return True


def _remove_state(settings: HostSettings) -> None:
    """Delete the state folder, except images in it."""
    for path in settings.state_dir.iterdir():
        if settings.images_dir.is_relative_to(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    with suppress(OSError):
        settings.state_dir.rmdir()


async def _destroy_machines(settings: HostSettings, terminal: Terminal) -> None:
    # The rest of the purge removes machines that the agent cannot destroy.
    with suppress(PolydevError):
        async with HostClient(settings.host_socket, timeout_s=local_agent.ANSWER_LIMIT_S) as host:
            for vm_id in (await host.inventory()).machines:
                with suppress(PolydevError):
                    async with terminal.step(f"Destroying {vm_id}"):
                        await local_agent.destroy_machine(host, vm_id)


async def kill_in_namespace(netns: str) -> None:
    """Kill every process in a network namespace, including new ones.

    Raises: Failed if one does not exit, or new ones never stop.
    """
    for _ in range(_KILL_ROUNDS):
        pids = await asyncio.to_thread(_pids_in, netns)
        if not pids:
            return
        have_ended = await asyncio.gather(*map(_kill, pids))
        left = [pid for pid, has_ended in zip(pids, have_ended, strict=True) if not has_ended]
        if left:
            break
    raise Failed(
        f"Processes {left or pids} in the network namespace {netns} do not exit after SIGKILL",
        hint=f"`ip netns pids {netns}` lists them. Try again when they are gone",
    )


def _pids_in(netns: str) -> list[int]:
    listed = subprocess.run(
        ["ip", "netns", "pids", netns], capture_output=True, text=True, check=False
    )
    return [int(word) for word in listed.stdout.split()]


async def _kill(pid: int) -> bool:
    """Kill any process and wait for its exit. False if it did not exit in time."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        await wait_for_exit(process, KILL_LIMIT_S)
    except TimeoutError:
        return False
    finally:
        os.close(process)
    return True
