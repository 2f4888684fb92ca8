"""Measure the parts of a machine's start, from request to ready channel.

The parts are observed from outside: the VMM's identity file appears, its console prints each phase
of the boot (docs/machines.md, "Boot sequence"), the operation ends. The time between two of these
is one part. `python -m bench parts --picture FILE` draws them (docs/start.svg).
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

from bench.common.agent import BenchAgent
from polydev.hostagent.vmm.process import IDENTITY_FILE
from polydev.shared.domain import MachineKind, MachineSize, new_vm_id
from polydev.shared.host_protocol import CreateMachine, DestroyMachine

_LIMIT_S = 300.0
_POLL_S = 0.002
_PHASE = re.compile(rb"POLYDEV-(?:BOOT (\w+)|(READY))")
SHAPES = {
    MachineKind.CLI: MachineSize(1024, 1, 4096),
    MachineKind.BROWSER: MachineSize(2048, 2, 4096),
}
PARTS = {
    "host": "host: record, keys, disk, network",
    "kernel": "VMM and kernel, to the first program",
    "initramfs": "initramfs: modules, drives, overlay",
    "boot": "boot script: identity, network, certificates",
    "services": "services and sshd",
    "channel": "channel: SSH handshake, records",
}
"""Labels of the parts in the picture."""
_FIRST_PHASES = {
    "vmm": "kernel",
    "modules": "initramfs",
    "filesystems": "boot",
    "services": "services",
    "READY": "channel",
}


@dataclass(frozen=True, slots=True)
class Start:
    """Median seconds of each part, for one kind of machine."""

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
    """Boot both kinds of machine in turn, without templates.

    A part that a driver does not report takes no time: a simulated machine boots no kernel.
    """
    seen: dict[MachineKind, list[dict[str, float]]] = {kind: [] for kind in SHAPES}
    for _ in range(rounds):
        for kind, starts in seen.items():
            starts.append(await _start(agent, kind))
    return [
        Start(kind, {part: median(start.get(part, 0.0) for start in starts) for part in PARTS})
        for kind, starts in seen.items()
    ]


async def _start(agent: BenchAgent, kind: MachineKind) -> dict[str, float]:
    vm_id = new_vm_id()
    wanted = CreateMachine(
        vm_id=vm_id,
        machine_kind=kind,
        token=SecretStr(secrets.token_urlsafe(32)),
        ready_timeout_s=_LIMIT_S,
        **SHAPES[kind].fields(),
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
    """Record the begin of each part as soon as it is visible."""
    console = folder / "console.log"
    while not creating.done():
        if "kernel" not in begins and (folder / IDENTITY_FILE).exists():
            begins["kernel"] = time.monotonic()
        for phase in _phases(console) if "kernel" in begins else ():
            if (part := _FIRST_PHASES.get(phase)) is not None:
                begins.setdefault(part, time.monotonic())
        await asyncio.sleep(_POLL_S)


def _phases(console: Path) -> Iterator[str]:
    content = console.read_bytes() if console.exists() else b""
    for phase, ready in _PHASE.findall(content):
        yield (phase or ready).decode()


# -- the picture ---------------------------------------------------------------------------------

_COLOURS = ("#1d4ed8", "#0891b2", "#047857", "#65a30d", "#b45309", "#7c3aed")
_WIDTH, _LEFT, _BAR, _ROW = 960, 40, 34, 78


def picture(starts: Sequence[Start], caption: str) -> str:
    """Draw the starts as SVG bars on one scale."""
    longest = max(start.total_s for start in starts)
    scale = (_WIDTH - 2 * _LEFT) / longest
    height = 70 + _ROW * len(starts) + 26 * len(PARTS) + 24
    summary = "; ".join(f"{it.kind} machine {it.total_s:.1f} s" for it in starts)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-labelledby="title desc" '
        'font-family="system-ui, \'DejaVu Sans\', sans-serif" font-size="14">',
        '  <title id="title">Duration of each part of a start</title>',
        f'  <desc id="desc">{escape(summary)}. {escape(caption)}</desc>',
        f'  <rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(_LEFT, 34, "Duration of each part of a start", 'font-size="18" font-weight="600"'),
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
    for colour, (part, label) in zip(_COLOURS, PARTS.items(), strict=True):
        shares = ", ".join(f"{it.seconds[part] / it.total_s:.0%}" for it in starts)
        lines.append(f'  <rect x="{_LEFT}" y="{y}" width="14" height="14" fill="{colour}"/>')
        lines.append(_text(_LEFT + 24, y + 12, f"{label}: {shares}"))
        y += 26
    lines += [_text(_LEFT, y + 10, caption, 'fill="#475569" font-size="12"'), "</svg>", ""]
    return "\n".join(lines)


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'  <text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
