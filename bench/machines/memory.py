"""Measure memory of machines, and creating many of them concurrently.

Compares idle machines after some work, with and without free page reporting (the guest unbinds its
balloon first), in turn. Also measures the golden image's pages, which machines of a kind share, and
N concurrent creations against the same in sequence.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from bench.common.agent import BenchAgent
from bench.common.effort import Effort
from polydev.hostagent.images import ImageStore
from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_protocol import CreateMachine, DestroyMachine, HostMachineView

MEMORY_MIB = 512
_LIMIT_S = 600.0
_SETTLE_S = 20.0
_UNBIND_BALLOON = (
    "sh",
    "-c",
    "cd /sys/bus/virtio/drivers/virtio_balloon && for it in virtio*; do echo $it > unbind; done",
)
_WORK = (
    *("sh", "-c"),
    "codex --version; claude --version; python3 -c \"data = b'1' * (150 << 20)\"",
)


async def idle(agent: BenchAgent, effort: Effort) -> list[str]:
    """Return rows with the host memory of an idle CLI machine."""
    work, unbind_balloon = (("true",), ("true",)) if effort.is_trial else (_WORK, _UNBIND_BALLOON)
    reporting: list[int] = []
    retaining: list[int] = []
    fresh: list[int] = []
    for index in range(effort.rounds):
        for side in (reporting, retaining) if index % 2 == 0 else (retaining, reporting):
            async with machines(agent, 1) as (view,):
                fresh.append(await _steady_mib(view, effort.steady_s))
                if side is retaining:
                    await _run(agent, view, unbind_balloon)
                await _run(agent, view, work)
                side.append(await _steady_mib(view, effort.steady_s))
    pairs = [ours / reference for ours, reference in zip(reporting, retaining, strict=True)]
    return [
        f"memory of a new CLI machine ({MEMORY_MIB} MiB): {median(fresh):.0f} MiB",
        f"memory after some work, idle: {median(reporting):.0f} MiB; without free page reporting: "
        f"{median(retaining):.0f} MiB; ratio {median(reporting) / median(retaining):.3f} "
        f"({min(pairs):.2f}..{max(pairs):.2f})",
    ]


async def many(agent: BenchAgent, effort: Effort) -> list[str]:
    """Return rows for N machines in sequence and concurrently, and their shared memory."""
    image = ImageStore(agent.images_dir).require("cli").root_image
    count, started = effort.machines, time.monotonic()
    for _ in range(count):
        async with machines(agent, 1):
            pass
    sequential_s = time.monotonic() - started
    started = time.monotonic()
    async with machines(agent, count) as views:
        concurrent_s = time.monotonic() - started
        reads = [_read_mib(view) for view in views]
        cached_mib = await _cached_mib(image)
        taken_mib = sum([await _steady_mib(view, effort.steady_s) for view in views])
    read_mib, fetched_mib = (sum(column) for column in zip(*reads, strict=True))
    return [
        f"{count} concurrent machines: all ready after {concurrent_s:.1f} s, in sequence "
        f"{sequential_s:.1f} s; ratio {concurrent_s / sequential_s:.3f}",
        f"{count} machines take {taken_mib} MiB; they read {read_mib} MiB of files, "
        f"{fetched_mib} MiB of it from disk; the page cache holds "
        f"{cached_mib} of {image.stat().st_size >> 20} MiB of the {image.parent.name} image",
    ]


@asynccontextmanager
async def machines(agent: BenchAgent, count: int) -> AsyncIterator[list[HostMachineView]]:
    """Create CLI machines concurrently; destroy them afterwards."""
    vm_ids = [new_vm_id() for _ in range(count)]
    try:
        async with asyncio.TaskGroup() as group:
            creations = [group.create_task(_create(agent, vm_id)) for vm_id in vm_ids]
        yield [task.result() for task in creations]
    finally:
        for vm_id in vm_ids:
            await agent.host.run(f"destroy-{vm_id}", DestroyMachine(vm_id=vm_id), _LIMIT_S)


async def _create(agent: BenchAgent, vm_id: str) -> HostMachineView:
    wanted = CreateMachine(
        vm_id=vm_id,
        machine_kind=MachineKind.CLI,
        memory_mib=MEMORY_MIB,
        vcpus=1,
        disk_mib=1024,
        ready_timeout_s=_LIMIT_S,
    )
    view = await agent.host.run(f"create-{vm_id}", wanted, _LIMIT_S)
    assert view is not None
    return view


async def _run(agent: BenchAgent, view: HostMachineView, argv: Sequence[str]) -> None:
    done = await agent.host.run_program(view.vm_id, argv, timeout_s=_LIMIT_S)
    if done.exit_code != 0:
        raise SystemExit(f"{argv} failed in the machine: {done.stderr!r}")


async def _steady_mib(view: HostMachineView, steady_s: float) -> int:
    """Wait until a VMM's resident memory is steady; return it."""
    last_mib, since_s = _resident_mib(view), time.monotonic()
    end_s = since_s + _SETTLE_S
    while time.monotonic() < min(since_s + steady_s, end_s):
        await asyncio.sleep(min(0.5, steady_s))
        if (now_mib := _resident_mib(view)) != last_mib:
            last_mib, since_s = now_mib, time.monotonic()
    return last_mib


def _resident_mib(view: HostMachineView) -> int:
    """Source: proc_pid_status(5), `VmRSS` in kB."""
    status = Path(f"/proc/{view.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10


def _read_mib(view: HostMachineView) -> tuple[int, int]:
    """Return MiB that a VMM read, and the part from disk. Source: proc_pid_io(5)."""
    lines = Path(f"/proc/{view.pid}/io").read_text().splitlines()
    counts = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return counts["rchar"] >> 20, counts["read_bytes"] >> 20


async def _cached_mib(path: Path) -> int:
    """Return the MiB of a file in the page cache. Source: fincore(1)."""
    fincore = shutil.which("fincore")
    if fincore is None:
        return 0
    process = await asyncio.create_subprocess_exec(
        *(fincore, "--bytes", "--noheadings", "--output", "RES", str(path)),
        stdout=asyncio.subprocess.PIPE,
    )
    stdout, _ = await process.communicate()
    return int(stdout) >> 20
