"""Measuring side by side: ratios of medians from runs that alternate, and how a table is printed.

Machines are noisy and shared, so a figure alone says little. Every benchmark runs its two sides in
turn within one process and reports their ratio; seconds are told beside it for orientation only.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

Side = Callable[[], Awaitable[float]]
"""Does the work once and returns its seconds (its own clock, so that set-up does not count)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides of one question: `ratio` is ours over the reference, by medians."""

    name: str
    ours_s: tuple[float, ...]
    reference_s: tuple[float, ...]
    goal: float | None = None

    @property
    def ratio(self) -> float:
        return median(self.ours_s) / median(self.reference_s)

    @property
    def pairs(self) -> tuple[float, ...]:
        """The ratio of each alternating pair: how far the noise spreads."""
        return tuple(a / b for a, b in zip(self.ours_s, self.reference_s, strict=True))

    def row(self) -> str:
        goal = f"<= {self.goal:.2f}" if self.goal is not None else "-"
        verdict = "" if self.goal is None else ("ok" if self.ratio <= self.goal else "MISSED")
        return (
            f"{self.name:<44} {median(self.ours_s):>9.3f} {median(self.reference_s):>9.3f} "
            f"{self.ratio:>7.3f} {min(self.pairs):>6.2f}..{max(self.pairs):<6.2f} "
            f"{goal:>8} {verdict}"
        )


HEADER = f"{'what':<44} {'ours s':>9} {'ref s':>9} {'ratio':>7} {'of pairs':>14} {'goal':>8}"


async def compare(
    name: str, ours: Side, reference: Side, *, rounds: int, goal: float | None = None
) -> Comparison:
    """Run both sides in turn, `rounds` times each, swapping who goes first each round."""
    first: list[float] = []
    second: list[float] = []
    for index in range(rounds):
        order = ((ours, first), (reference, second))
        for side, seconds in order if index % 2 == 0 else reversed(order):
            seconds.append(await side())
    return Comparison(name, tuple(first), tuple(second), goal)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds that `work` takes."""
    started = time.monotonic()
    await work()
    return time.monotonic() - started


def shares(steps: Sequence[tuple[str, float]]) -> list[str]:
    """Rows `step seconds share` of a journey whose steps follow one another."""
    total = sum(seconds for _, seconds in steps) or 1.0
    return [f"{name:<44} {seconds:>9.2f} {seconds / total:>7.1%}" for name, seconds in steps]


def own_mib(pid: int | None) -> float:
    """What is gone from the host when the process ends. Source: proc(5), `smaps_rollup`."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(words.split()[0]) for name, _, words in (it.partition(":") for it in lines)}
    return (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024
