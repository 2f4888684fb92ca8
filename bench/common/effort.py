"""Workload sizes for full and trial runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """Sizes of the benchmarks."""

    rounds: int = 5
    """Alternating runs of each side."""
    sessions: int = 200
    """Concurrent connect sessions of `load`."""
    machines: int = 10
    """Concurrent machines of `many`."""
    chat_pieces: int = 1500
    terminal_bytes: int = 24_000_000
    steady_s: float = 3.0
    """Period without change before `memory` reads a value."""
    is_trial: bool = False
    """Use simulated machines, which run no guest programs and paint no page."""

    @property
    def disk_rounds(self) -> int:
        """More rounds, as disks are quick to create."""
        return self.rounds if self.is_trial else self.rounds * 4


TRIAL = Effort(
    rounds=1,
    sessions=10,
    machines=2,
    chat_pieces=50,
    terminal_bytes=240_000,
    steady_s=0.1,
    is_trial=True,
)
