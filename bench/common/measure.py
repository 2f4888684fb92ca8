"""Compare two sides in alternating runs and format the results.

Machines are noisy and shared, so a single figure means little. Every benchmark runs its two sides
in turn within one process and reports their ratio; seconds are printed for orientation only.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

Side = Callable[[], Awaitable[float]]
"""Do the work once and return its seconds, without set-up."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of both sides; `ratio` divides the medians."""

    name: str
    ours_s: tuple[float, ...]
    reference_s: tuple[float, ...]
    goal: float | None = None

    @property
    def ratio(self) -> float:
        return median(self.ours_s) / median(self.reference_s)

    @property
    def pairs(self) -> tuple[float, ...]:
        """Ratio of each alternating pair, which shows the noise."""
        return tuple(a / b for a, b in zip(self.ours_s, self.reference_s, strict=True))

    def row(self) -> str:
        goal = f"<= {self.goal:.2f}" if self.goal is not None else "-"
        verdict = "" if self.goal is None else ("ok" if self.ratio <= self.goal else "MISSED")
        return (
            f"{self.name:<44} {median(self.ours_s):>9.3f} {median(self.reference_s):>9.3f} "
            f"{self.ratio:>7.3f} {min(self.pairs):>6.2f}..{max(self.pairs):<6.2f} "
            f"{goal:>8} {verdict}"
        )


HEADER = f"{'benchmark':<44} {'ours s':>9} {'ref. s':>9} {'ratio':>7} {'min..max':>14} {'goal':>8}"


async def compare(
    name: str, ours: Side, reference: Side, *, rounds: int, goal: float | None = None
) -> Comparison:
    """Run both sides `rounds` times in turn; swap the order each round."""
    first: list[float] = []
    second: list[float] = []
    for index in range(rounds):
        order = ((ours, first), (reference, second))
        for side, seconds in order if index % 2 == 0 else reversed(order):
            seconds.append(await side())
    return Comparison(name, tuple(first), tuple(second), goal)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Run `work`; return its seconds."""
    started = time.monotonic()
    await work()
    return time.monotonic() - started


def shares(steps: Sequence[tuple[str, float]]) -> list[str]:
    """Format rows of steps, seconds and shares of the total."""
    total = sum(seconds for _, seconds in steps) or 1.0
    return [f"{name:<44} {seconds:>9.2f} {seconds / total:>7.1%}" for name, seconds in steps]


def private_mib(pid: int | None) -> float:
    """Return the private memory of a process. Source: proc(5), `smaps_rollup`."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(value.split()[0]) for name, _, value in (it.partition(":") for it in lines)}
    return (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024
