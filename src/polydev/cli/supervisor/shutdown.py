"""`polydev down`: ends what `up` started; with `--purge`, everything that was made as well.

Purging asks the host agent to destroy each machine, and then removes what is left by looking:
processes in the VM namespace, the namespace itself, the state folder. The images stay.
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
from polydev.shared.host_client import Host, local_agent

END_LIMIT_S = 60.0
KILL_LIMIT_S = 10.0
_KILL_ROUNDS = 100


async def end(settings: HostSettings, terminal: Terminal) -> bool:
    """End host agent and controller. False: they did not run."""
    instance = Instance(settings.state_dir)
    if instance.pid() is None:
        return False
    async with terminal.step("Ending controller and host agent"):
        return await instance.end(END_LIMIT_S)


async def stop_and_purge(settings: HostSettings, terminal: Terminal) -> bool:
    """End everything of an instance and remove everything it made. False: there was nothing."""
    if not settings.state_dir.exists():
        return False
    if not Instance(settings.state_dir).has_run_here:
        raise Invalid(
            f"{settings.state_dir} was never the state folder of a Polydev: nothing is removed",
            hint="POLYDEV_STATE_DIR names the folder",
        )
    await _destroy_machines(settings, terminal)
    await end(settings, terminal)
    async with terminal.step("Removing network and state"):
        await kill_in_namespace(settings.netns)
        await Network.from_settings(settings).remove()
        await asyncio.to_thread(Cgroups.inspect(settings.cgroup).remove)
        await asyncio.to_thread(_remove_state, settings)
    return True


def _remove_state(settings: HostSettings) -> None:
    """Remove the state folder, but not images that lie in it."""
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
    """Through the agent, if there is one; what it cannot do is done by looking afterwards."""
    with suppress(PolydevError):
        async with Host(settings.host_socket) as host:
            for vm_id in (await host.inventory()).machines:
                async with terminal.step(f"Destroying {vm_id}"):
                    await local_agent.destroy_machine(host, vm_id)


async def kill_in_namespace(netns: str) -> None:
    """End every process in a network namespace, those born meanwhile too: nothing else is in ours.

    Raises: Failed when one does not end, or others are born without end.
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
        f"In the network namespace {netns}, processes {left or pids} do not end, even when killed",
        hint=f"`ip netns pids {netns}` lists them; ask again when they are gone",
    )


def _pids_in(netns: str) -> list[int]:
    listed = subprocess.run(
        ["ip", "netns", "pids", netns], capture_output=True, text=True, check=False
    )
    return [int(word) for word in listed.stdout.split()]


async def _kill(pid: int) -> bool:
    """Kill a process and wait for its end, whosever child it is. Whether it has ended in time."""
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
