"""What machines cost their host in memory, and what many of them at once cost it in time.

An idle machine that did some work, with and without giving back what its guest freed (there the
guest lets go of its balloon before the work): alternating. The golden image's pages, which all
machines of a kind share. And N machines asked for at once, against one after another.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from bench.agent import BenchAgent
from bench.effort import Effort
from polydev.hostagent.images import ImageStore
from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_protocol import CreateMachine, DestroyMachine, MachineView

MEMORY_MIB = 512
_LIMIT_S = 600.0
_SETTLE_S = 20.0
_LET_GO = (
    "sh",
    "-c",
    "cd /sys/bus/virtio/drivers/virtio_balloon && for it in virtio*; do echo $it > unbind; done",
)
_WORK = (
    *("sh", "-c"),
    "codex --version; claude --version; python3 -c \"kept = b'1' * (150 << 20)\"",
)


async def idle(agent: BenchAgent, effort: Effort) -> list[str]:
    """Rows: MiB of the host's memory that an idle CLI machine takes, on both sides."""
    work, let_go = (("true",), ("true",)) if effort.is_trial else (_WORK, _LET_GO)
    giving: list[int] = []
    keeping: list[int] = []
    fresh: list[int] = []
    for index in range(effort.rounds):
        for side in (giving, keeping) if index % 2 == 0 else (keeping, giving):
            async with machines(agent, 1) as (view,):
                fresh.append(await _settled_mib(view, effort.steady_s))
                if side is keeping:
                    await _run(agent, view, let_go)
                await _run(agent, view, work)
                side.append(await _settled_mib(view, effort.steady_s))
    pairs = [ours / reference for ours, reference in zip(giving, keeping, strict=True)]
    return [
        f"memory of a CLI machine ({MEMORY_MIB} MiB) that has just started: "
        f"{median(fresh):.0f} MiB",
        f"memory after some work, idle: {median(giving):.0f} MiB; if it kept what it frees: "
        f"{median(keeping):.0f} MiB; ratio {median(giving) / median(keeping):.3f} "
        f"({min(pairs):.2f}..{max(pairs):.2f})",
    ]


async def many(agent: BenchAgent, effort: Effort) -> list[str]:
    """Rows: N machines one after another and at once, and what they share."""
    image = ImageStore(agent.images_dir).require("cli").root_image
    count, started = effort.machines, time.monotonic()
    for _ in range(count):
        async with machines(agent, 1):
            pass
    in_turn_s = time.monotonic() - started
    started = time.monotonic()
    async with machines(agent, count) as views:
        at_once_s = time.monotonic() - started
        read = [_read_mib(view) for view in views]
        cached_mib = await _cached_mib(image)
        taken_mib = sum([await _settled_mib(view, effort.steady_s) for view in views])
    asked_mib, fetched_mib = (sum(column) for column in zip(*read, strict=True))
    return [
        f"{count} machines at once: all ready after {at_once_s:.1f} s, one after another "
        f"{in_turn_s:.1f} s; ratio {at_once_s / in_turn_s:.3f}",
        f"{count} machines take {taken_mib} MiB; they asked for {asked_mib} MiB of files, "
        f"{fetched_mib} MiB of it from the disk; the one copy of {image.parent.name} in the host's "
        f"memory has {cached_mib} of {image.stat().st_size >> 20} MiB",
    ]


@asynccontextmanager
async def machines(agent: BenchAgent, count: int) -> AsyncIterator[list[MachineView]]:
    """CLI machines, asked for at once, all ready; destroyed afterwards."""
    vm_ids = [new_vm_id() for _ in range(count)]
    try:
        async with asyncio.TaskGroup() as group:
            making = [group.create_task(_made(agent, vm_id)) for vm_id in vm_ids]
        yield [task.result() for task in making]
    finally:
        for vm_id in vm_ids:
            await agent.host.run(f"destroy-{vm_id}", DestroyMachine(vm_id=vm_id), _LIMIT_S)


async def _made(agent: BenchAgent, vm_id: str) -> MachineView:
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


async def _run(agent: BenchAgent, view: MachineView, argv: Sequence[str]) -> None:
    done = await agent.host.run_program(view.vm_id, argv, timeout_s=_LIMIT_S)
    if done.exit_code != 0:
        raise SystemExit(f"{argv} failed in the machine: {done.stderr!r}")


async def _settled_mib(view: MachineView, steady_s: float) -> int:
    """Resident memory of a machine's VMM once it has not changed for a while."""
    last_mib, since_s = _resident_mib(view), time.monotonic()
    end_s = since_s + _SETTLE_S
    while time.monotonic() < min(since_s + steady_s, end_s):
        await asyncio.sleep(min(0.5, steady_s))
        if (now_mib := _resident_mib(view)) != last_mib:
            last_mib, since_s = now_mib, time.monotonic()
    return last_mib


def _resident_mib(view: MachineView) -> int:
    """Source: proc_pid_status(5), `VmRSS` in kB."""
    status = Path(f"/proc/{view.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10


def _read_mib(view: MachineView) -> tuple[int, int]:
    """What a VMM read, and what of it came from a disk. Source: proc_pid_io(5)."""
    lines = Path(f"/proc/{view.pid}/io").read_text().splitlines()
    counts = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return counts["rchar"] >> 20, counts["read_bytes"] >> 20


async def _cached_mib(path: Path) -> int:
    """How much of a file is in the host's page cache. Source: fincore(1)."""
    fincore = shutil.which("fincore")
    if fincore is None:
        return 0
    process = await asyncio.create_subprocess_exec(
        *(fincore, "--bytes", "--noheadings", "--output", "RES", str(path)),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    return int(said) >> 20
