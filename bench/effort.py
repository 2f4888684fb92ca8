"""How much each benchmark does: enough for figures, or just enough to see that it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """Sizes of the benchmarks."""

    rounds: int = 5
    """Alternating runs of each side."""
    sessions: int = 200
    """Connect sessions at once, of `load`."""
    machines: int = 10
    """Machines at once, of `many`."""
    chat_pieces: int = 1500
    terminal_bytes: int = 24_000_000
    steady_s: float = 3.0
    """How long memory must not have changed, of `memory`."""
    is_trial: bool = False
    """On simulated machines, which run no guest's programs and have no page to paint."""

    @property
    def disk_rounds(self) -> int:
        """Disks are quick to make."""
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
