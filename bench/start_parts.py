"""What each part of a machine's start costs, from the request to the first answer of its channel.

The parts are seen from outside: the VMM's identity file appears, its console tells each phase of
the boot (docs/machines.md, "Boot, in order"), the operation ends. Whatever happens between two of
these is one part. `picture` draws them (docs/start.svg); `python -m bench parts --picture FILE`.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import median

from pydantic import SecretStr

from bench.agent import BenchAgent
from polydev.hostagent.vmm.process import IDENTITY_FILE
from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_protocol import CreateMachine, DestroyMachine

_LIMIT_S = 300.0
_LOOK_EVERY_S = 0.002
_TOLD = re.compile(rb"POLYDEV-(?:BOOT (\w+)|(READY))")
SHAPES = {
    MachineKind.CLI: {"memory_mib": 1024, "vcpus": 1, "disk_mib": 4096},
    MachineKind.BROWSER: {"memory_mib": 2048, "vcpus": 2, "disk_mib": 4096},
}
PARTS = {
    "host": "host: record, keys, disk, network",
    "kernel": "VMM and kernel, to the first program",
    "initramfs": "initramfs: modules, drives, overlay",
    "boot": "boot script: identity, network, certificates",
    "services": "services and sshd",
    "channel": "channel: SSH handshake, records",
}
"""What the picture shows, and in which of them a phase of the guest's begins."""
_BEGINS = {
    "vmm": "kernel",
    "modules": "initramfs",
    "filesystems": "boot",
    "services": "services",
    "READY": "channel",
}


@dataclass(frozen=True, slots=True)
class Start:
    """The starts of one kind of machine: seconds of each part, by medians."""

    kind: MachineKind
    seconds: Mapping[str, float]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    def rows(self) -> list[str]:
        return [f"{self.kind} machine: {self.total_s:.2f} s"] + [
            f"  {PARTS[part]:<46} {seconds:>8.3f} {seconds / self.total_s:>7.1%}"
            for part, seconds in self.seconds.items()
        ]


async def start_parts(agent: BenchAgent, rounds: int) -> list[Start]:
    """Both kinds of machine, in turn; none starts from a template.

    A part that a driver does not tell (a simulated machine boots no kernel) takes no time.
    """
    seen: dict[MachineKind, list[dict[str, float]]] = {kind: [] for kind in SHAPES}
    for _ in range(rounds):
        for kind, starts in seen.items():
            starts.append(await _one(agent, kind))
    return [
        Start(kind, {part: median(start.get(part, 0.0) for start in starts) for part in PARTS})
        for kind, starts in seen.items()
    ]


async def _one(agent: BenchAgent, kind: MachineKind) -> dict[str, float]:
    vm_id = new_vm_id()
    wanted = CreateMachine(
        vm_id=vm_id,
        machine_kind=kind,
        token=SecretStr(secrets.token_urlsafe(32)),
        ready_timeout_s=_LIMIT_S,
        **SHAPES[kind],
    )
    begins = {"host": time.monotonic()}
    creating = asyncio.create_task(agent.host.run(f"create-{vm_id}", wanted, _LIMIT_S))
    try:
        await _watch(agent.state_dir / "machines" / vm_id, creating, begins)
        await creating
        ended = time.monotonic()
    finally:
        await asyncio.wait({creating})
        await agent.host.run(f"destroy-{vm_id}", DestroyMachine(vm_id=vm_id), _LIMIT_S)
    at = [*begins.values(), ended]
    return dict(zip(begins, (b - a for a, b in pairwise(at)), strict=True))


async def _watch(folder: Path, creating: asyncio.Task[object], begins: dict[str, float]) -> None:
    """Note when each part begins, as soon as it can be seen."""
    console = folder / "console.log"
    while not creating.done():
        if "kernel" not in begins and (folder / IDENTITY_FILE).exists():
            begins["kernel"] = time.monotonic()
        for phase in _phases(console) if "kernel" in begins else ():
            if (part := _BEGINS.get(phase)) is not None:
                begins.setdefault(part, time.monotonic())
        await asyncio.sleep(_LOOK_EVERY_S)


def _phases(console: Path) -> Iterator[str]:
    content = console.read_bytes() if console.exists() else b""
    for phase, ready in _TOLD.findall(content):
        yield (phase or ready).decode()


# -- the picture ---------------------------------------------------------------------------------

_COLOURS = ("#1d4ed8", "#0891b2", "#047857", "#65a30d", "#b45309", "#7c3aed")
_WIDTH, _LEFT, _BAR, _ROW = 960, 40, 34, 78


def picture(starts: Sequence[Start], about: str) -> str:
    """The starts as bars of their parts, drawn to one scale (SVG)."""
    longest = max(start.total_s for start in starts)
    scale = (_WIDTH - 2 * _LEFT) / longest
    height = 70 + _ROW * len(starts) + 26 * len(PARTS) + 24
    told = "; ".join(f"{it.kind} machine {it.total_s:.1f} s" for it in starts)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-labelledby="title desc" '
        'font-family="system-ui, \'DejaVu Sans\', sans-serif" font-size="14">',
        '  <title id="title">What each part of a start costs</title>',
        f'  <desc id="desc">{escape(told)}. {escape(about)}</desc>',
        f'  <rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(_LEFT, 34, "What each part of a start costs", 'font-size="18" font-weight="600"'),
    ]
    for number, start in enumerate(starts):
        y, x = 60 + _ROW * number, float(_LEFT)
        lines.append(_text(_LEFT, y + 14, f"{start.kind} machine, {start.total_s:.1f} s"))
        for colour, seconds in zip(_COLOURS, start.seconds.values(), strict=True):
            width = seconds * scale
            lines.append(
                f'  <rect x="{x:.1f}" y="{y + 24}" width="{max(width, 1):.1f}" height="{_BAR}" '
                f'fill="{colour}"/>'
            )
            if width > 44:
                style = 'fill="#fff" text-anchor="middle" font-size="12"'
                lines.append(_text(x + width / 2, y + 46, f"{seconds:.1f} s", style))
            x += width
    y = 70 + _ROW * len(starts)
    for colour, (part, words) in zip(_COLOURS, PARTS.items(), strict=True):
        shares = ", ".join(f"{it.seconds[part] / it.total_s:.0%}" for it in starts)
        lines.append(f'  <rect x="{_LEFT}" y="{y}" width="14" height="14" fill="{colour}"/>')
        lines.append(_text(_LEFT + 24, y + 12, f"{words}: {shares}"))
        y += 26
    lines += [_text(_LEFT, y + 10, about, 'fill="#475569" font-size="12"'), "</svg>", ""]
    return "\n".join(lines)


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'  <text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
