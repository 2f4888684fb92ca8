"""Terminal output: steps with their durations, tables and JSON.

On a terminal, running steps are animated; elsewhere each step is a plain line, and a long step
prints a heartbeat. With `--json`, text goes to standard error and standard output holds only JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import unicodedata
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

HEARTBEAT_S = 15.0
"""Interval between heartbeats of a long step, without a terminal."""


@dataclass(slots=True)
class Step:
    """Running step. `detail` may change while it runs; the final one is printed."""

    title: str
    detail: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def message(self) -> str:
        return f"{self.title}: {self.detail}" if self.detail else self.title


class Terminal:
    """Output of a command. Text from machines is never interpreted as markup."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self._running: list[Step] = []
        self._still: dict[int, asyncio.Task[None]] = {}
        self._paused = False
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            transient=True,
            refresh_per_second=8,
        )
        self._good, self._bad = ("ok", "!!") if self._console.options.ascii_only else ("✓", "✗")

    @property
    def moves(self) -> bool:
        """True on a terminal, where lines may change."""
        return self._console.is_terminal

    def say(self, message: str = "", style: str = "") -> None:
        self._console.print(Text(printable(message), style=style))

    def piece(self, text: str) -> None:
        """Print part of an answer without a line end."""
        self._console.file.write(printable(text))
        self._console.file.flush()

    def heading(self, message: str) -> None:
        self.say()
        self.say(message, "bold")

    def done(self, message: str, seconds: float) -> None:
        """Print a completed step."""
        self._end(self._good, "green", message, seconds)

    def failed(self, message: str, seconds: float) -> None:
        """Print a failed step."""
        self._end(self._bad, "red", message, seconds)

    def check(self, good: bool | None, name: str, message: str, hint: str = "") -> None:
        """Print a finding of `doctor`; `good` is None if the check was skipped."""
        marks = {True: (self._good, "green"), False: (self._bad, "red"), None: ("?", "yellow")}
        mark, style = marks[good]
        line = Text.assemble((f"{mark:<2} ", style), f"{name:<13} {printable(message)}")
        if hint and not good:
            line.append(f"\n   {'':<13} {printable(hint)}", "yellow")
        self._console.print(line)

    @asynccontextmanager
    async def step(self, title: str) -> AsyncIterator[Step]:
        """Show a step while the block runs, then its duration."""
        step = self.begin(title)
        try:
            yield step
        except BaseException:
            self.end(step, good=False)
            raise
        self.end(step, good=True)

    def begin(self, title: str) -> Step:
        """Show a running step. Several may run at once."""
        step = Step(title)
        self._running.append(step)
        if not self.moves:
            self._still[id(step)] = asyncio.create_task(self._say_still(step))
        elif not self._paused:
            self._live.start()
        return step

    def end(self, step: Step, *, good: bool, seconds: float | None = None) -> None:
        """End a step. `seconds` replaces its measured duration."""
        if step not in self._running:
            return
        self._running.remove(step)
        if still := self._still.pop(id(step), None):
            still.cancel()
        if not self._running:
            self._live.stop()
        report = self.done if good else self.failed
        report(step.message(), step.seconds if seconds is None else seconds)

    def pause(self) -> None:
        """Stop the animation while the user types."""
        self._paused = True
        self._live.stop()

    def resume(self) -> None:
        self._paused = False
        if self._running and self.moves:
            self._live.start()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table. Long cells are never truncated."""
        cells = [columns, *rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        for number, row in enumerate(cells):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.say(line.rstrip(), "bold" if number == 0 else "")

    def answer(self, value: Any) -> None:
        """Print the result of `--json`: one line on standard output."""
        text = json.dumps(value, ensure_ascii=False, default=str)
        print("".join(map(_harmless_in_json, text)), file=sys.stdout, flush=True)

    def _end(self, mark: str, style: str, message: str, seconds: float) -> None:
        line = Text.assemble(
            (f"  {mark} ", style), (clock(seconds), "dim"), f"  {printable(message)}"
        )
        self._console.print(line)

    def _picture(self) -> Table:
        rows = Table.grid(padding=(0, 1))
        for step in self._running:
            rows.add_row("", self._spinner, Text(clock(step.seconds), "dim"), Text(step.message()))
        return rows

    async def _say_still(self, step: Step) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self.say(f"    {clock(step.seconds)}  {step.message()}: still running")


def clock(seconds: float) -> str:
    """Format seconds for a column."""
    return f"{seconds:6.1f} s"


def moment(text: str | None, without: str = "-") -> str:
    """Format a time of the API in UTC, to the second; `without` if there is none."""
    if not text:
        return without
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def printable(text: str) -> str:
    """Remove control characters from untrusted text."""
    return "".join(
        char for char in text if char in "\n\t" or not unicodedata.category(char).startswith("C")
    )


def _harmless_in_json(char: str) -> str:
    """Escape characters that `printable` would remove; the JSON value stays the same."""
    return char if printable(char) else json.dumps(char)[1:-1]
