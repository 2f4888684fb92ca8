"""A host agent process for tests, in its own folder and namespace.

It is forked from a process that has imported everything, which is faster (`forks.py`). With
`FAULT_AT` in its environment it injects a fault (`faulty_agent.py`). `agent_world` leaves no
process, folder or namespace behind.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import forks
from memory_folder import memory_folder

import polydev
from polydev.hostagent.system import namespaces
from polydev.hostagent.vmm import process
from polydev.hostagent.vmm.firecracker.jail import cgroup, jail
from polydev.shared.host_client import HostClient

READY_LIMIT_S = 120
_ENDED_LIMIT_S = 30


class AgentProcess:
    """A host agent that can be killed and restarted over the same state."""

    def __init__(self, root: Path, netns_name: str, env: dict[str, str]) -> None:
        self.state_dir = root / "state"
        self.netns = netns_name
        self.log = root / "hostd.log"
        self._notices = root / "notify.sock"
        self._process: asyncio.subprocess.Process | forks.Forked | None = None
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(polydev.__file__).parents[1]),
            "POLYDEV_STATE_DIR": str(self.state_dir),
            "POLYDEV_MEMORY_KEY_DIR": str(root),
            "POLYDEV_NETNS": netns_name,
            "POLYDEV_UPLINK": "none",
            "POLYDEV_WARM_START": "false",
            "NOTIFY_SOCKET": str(self._notices),
            **env,
        }

    @property
    def socket(self) -> Path:
        return self.state_dir / "sockets" / "hostd.sock"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def host(self) -> HostClient:
        return HostClient(self.socket)

    async def start(self, *prefix: str) -> None:
        """Start it, with `prefix` before its command, and wait until it is ready."""
        self._notices.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(str(self._notices))
            notices.setblocking(False)
            await self._spawn(prefix)
            ready = asyncio.create_task(asyncio.get_running_loop().sock_recv(notices, 64))
            ended = asyncio.create_task(self.ended())
            await asyncio.wait(
                {ready, ended}, timeout=READY_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
            ended.cancel()
            assert ready.done(), f"the agent is not ready: {self.log.read_text()}"
            assert ready.result() == b"READY=1"

    async def start_refused(self, *prefix: str) -> tuple[int, str]:
        """Start it where startup fails; return its exit code and last line."""
        await self._spawn(prefix)
        code = await asyncio.wait_for(self.ended(), READY_LIMIT_S)
        return code, self.log.read_text().splitlines()[-1]

    async def _spawn(self, prefix: Sequence[str]) -> None:
        if not prefix:
            program = "faulty-agent" if "FAULT_AT" in self.env else "agent"
            self._process = await asyncio.to_thread(forks.fork, program, (), self.env, self.log)
            return
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *prefix,
                *(sys.executable, "-m", "polydev.hostagent"),
                env=self.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def ended(self) -> int:
        assert self._process is not None
        return await self._process.wait()

    async def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    async def end(self) -> int:
        """Stop it with SIGTERM, as a service manager does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self._process.wait(), _ENDED_LIMIT_S)

    def vmm_pids(self) -> list[int]:
        """VMM processes of this state folder, found in /proc."""
        machines_dir = (self.state_dir / "machines").resolve()
        found = process.find_in_folder(machines_dir, "qemu-system-x86_64")
        return sorted(pid for pid, _, _ in (*found, *jail.find_in_folder(machines_dir)))


@asynccontextmanager
async def agent_world(**env: str) -> AsyncIterator[AgentProcess]:
    """An agent that is not started; removes everything of it afterwards."""
    is_simulated = env.get("POLYDEV_DRIVER") == "simulated"
    root = Path(tempfile.mkdtemp(prefix="pdt-", dir=memory_folder() if is_simulated else None))
    agent = AgentProcess(root, root.name.lower().replace("_", "-"), env)
    try:
        yield agent
    finally:
        await agent.kill()
        for pid in agent.vmm_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await _remove_cgroups(agent.netns)
        await asyncio.to_thread(_remove_netns, agent.netns)
        Path(f"/run/polydev-{agent.netns}.lock").unlink(missing_ok=True)
        shutil.rmtree(root)


async def _remove_cgroups(name: str) -> None:
    """Remove the parent cgroup of Firecracker machines, which the driver leaves."""
    mounted = cgroup.root()
    async with asyncio.timeout(_ENDED_LIMIT_S):
        while mounted and (mounted / name).exists():
            cgroup.JailerCgroups(name).sweep(())
            with suppress(OSError):
                (mounted / name).rmdir()
            await asyncio.sleep(0.02)


def _remove_netns(name: str) -> None:
    if namespaces.exists(name):
        subprocess.run(["ip", "netns", "del", name], check=True)
    else:
        namespaces.path_of(name).unlink(missing_ok=True)
