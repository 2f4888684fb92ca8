"""Test memory of a real machine: freed guest memory and cgroup limits.

The cgroup limits are tested inside the guest, where control groups of version 2 always exist.
"""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from saved_machine import SavedMachine, resumed_machine

import polydev
from polydev.shared.domain import GuestFile
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import ExecRequest, WireFile, WriteFiles

pytestmark = pytest.mark.vm

MEMORY_MIB = 512
USED_MIB = 150
RETURN_LIMIT_S = 180
SOURCES = (
    "__init__.py",
    "hostagent/__init__.py",
    "hostagent/vmm/__init__.py",
    "hostagent/vmm/cgroups.py",
)
_CGROUPS = """
import subprocess, sys
from pathlib import Path
from polydev.hostagent.vmm.cgroups import CgroupLimits, Cgroups

def run(vm_id, work, memory_mib=200, pids=16):
    program = subprocess.Popen(
        [sys.executable, "-c", "input()\\n" + work],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )
    cgroups.add(vm_id, program.pid, CgroupLimits(memory_mib << 20, pids, 100))
    output, _ = program.communicate(b"\\n")
    return program.returncode, output.decode().strip()

cgroups = Cgroups.create("test")
assert cgroups.root == Path("/sys/fs/cgroup/test"), cgroups.reason
assert Cgroups.inspect("test").root == cgroups.root
eat = "data = [b'1' * (1 << 20) for _ in range(100)]; print('ate')"
assert run("vm-hungry", eat, memory_mib=32)[0] == -9
events = (cgroups.root / "vm-hungry/memory.events").read_text()
assert "\\noom_kill 0\\n" not in events, events
for swap in cgroups.root.glob("vm-hungry/memory.swap.max"):  # only if the kernel supports swap
    assert swap.read_text() == "0\\n"
assert run("vm-modest", eat) == (0, "ate")
fork = "import os; [os.fork() or os._exit(0) for _ in range(50)]"
assert run("vm-forks", fork, pids=8)[0] == 1
assert run("vm-forks", fork, pids=80)[0] == 0
cgroups.release("vm-modest")
cgroups.release("vm-never-was")
assert sorted(it.name for it in cgroups.root.glob("vm-*")) == ["vm-forks", "vm-hungry"]

left = subprocess.Popen(["sleep", "100"])
cgroups.add("vm-runs", left.pid, CgroupLimits(32 << 20, 16, 200))
assert (cgroups.root / "vm-runs/cpu.weight").read_text() == "200\\n"
again = Cgroups.create("test")  # the agent after one that was killed
assert [it.name for it in cgroups.root.glob("vm-*")] == ["vm-runs"]
left.kill(); left.wait()
again.remove()
assert not Path("/sys/fs/cgroup/test").exists()
print("well")
"""


async def output_of(host: HostClient, vm_id: str, *argv: str) -> str:
    output = await host.run_program(vm_id, argv, timeout_s=120)
    assert output.exit_code == 0, output.stderr
    return output.stdout.decode().strip()


def guest_memory_mib(pid: int) -> int:
    """Return the resident MiB of guest memory: the mapping of its size."""
    size_kib, found = 0, []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            size_kib = int(value.split()[0])
        elif name == "Rss" and size_kib == MEMORY_MIB * 1024:
            found.append(int(value.split()[0]) // 1024)
    [it] = found
    return it


async def test_guest_returns_freed_memory_and_excess_is_killed(
    saved_machine: SavedMachine,
) -> None:
    async with resumed_machine(saved_machine) as it:
        assert it.view.memory_mib == MEMORY_MIB
        assert it.view.pid is not None
        await _check_freed_memory(it.host, it.vm_id, it.view.pid)
        await _check_limits(it.host, it.vm_id)


async def _check_freed_memory(host: HostClient, vm_id: str, pid: int) -> None:
    before_mib = guest_memory_mib(pid)
    use = f"x = b'1' * ({USED_MIB} << 20); print('used', flush=True); input()"
    async with asyncio.timeout(RETURN_LIMIT_S):
        async with host.exec(vm_id, ExecRequest(argv=["python3", "-c", use])) as program:
            assert await anext(program.stdout()) == b"used\n"
            assert guest_memory_mib(pid) > before_mib + USED_MIB * 2 // 3, (
                "the guest did not use the memory"
            )
            await program.write(b"\n")
            assert await program.wait() == 0
        while guest_memory_mib(pid) > before_mib + USED_MIB // 3:
            await asyncio.sleep(0.2)


async def _check_limits(host: HostClient, vm_id: str) -> None:
    package = Path(polydev.__file__).parent
    files = [
        WireFile.of(GuestFile(f"/root/sources/polydev/{name}", (package / name).read_bytes()))
        for name in SOURCES
    ]
    await host.run(f"test-{uuid.uuid4()}", WriteFiles(vm_id=vm_id, files=files), 60)
    argv = ("env", "PYTHONPATH=/root/sources", "python3", "-c", _CGROUPS)
    assert (await output_of(host, vm_id, *argv)).endswith("well")
