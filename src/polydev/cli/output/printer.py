"""What a person sees: steps as they happen with the time they take, and tables.

Every command that takes long reports through here. On a terminal the running step moves; elsewhere
each step is a plain line, and a long one says now and then that it still goes on. With `--json`
all of this goes to standard error, and standard output carries JSON alone.
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
"""How often a long step says that it goes on, where nothing can move."""


@dataclass(slots=True)
class Step:
    """Something under way. `detail` may be changed while it runs and is told at its end."""

    title: str
    detail: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def words(self) -> str:
        return f"{self.title}: {self.detail}" if self.detail else self.title


class Terminal:
    """Where a command reports. Text from machines is printed as text, never as markup."""

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
        """A person watches, so that a line may change."""
        return self._console.is_terminal

    def say(self, words: str = "", style: str = "") -> None:
        self._console.print(Text(printable(words), style=style))

    def piece(self, text: str) -> None:
        """A piece of an answer, as it comes from a machine."""
        self._console.file.write(printable(text))
        self._console.file.flush()

    def heading(self, words: str) -> None:
        self.say()
        self.say(words, "bold")

    def done(self, words: str, seconds: float) -> None:
        """A step that ended well."""
        self._end(self._good, "green", words, seconds)

    def failed(self, words: str, seconds: float) -> None:
        """A step that did not."""
        self._end(self._bad, "red", words, seconds)

    def check(self, good: bool | None, name: str, words: str, hint: str = "") -> None:
        """A line of `doctor`: ok, or what to do; None: it could not be looked at."""
        marks = {True: (self._good, "green"), False: (self._bad, "red"), None: ("?", "yellow")}
        mark, style = marks[good]
        line = Text.assemble((f"{mark:<2} ", style), f"{name:<13} {printable(words)}")
        if hint and not good:
            line.append(f"\n   {'':<13} {printable(hint)}", "yellow")
        self._console.print(line)

    @asynccontextmanager
    async def step(self, title: str) -> AsyncIterator[Step]:
        """Show that something is under way until the block ends, then how long it took."""
        step = self.begin(title)
        try:
            yield step
        except BaseException:
            self.end(step, good=False)
            raise
        self.end(step, good=True)

    def begin(self, title: str) -> Step:
        """Show that something is under way. Several may be, side by side."""
        step = Step(title)
        self._running.append(step)
        if not self.moves:
            self._still[id(step)] = asyncio.create_task(self._say_still(step))
        elif not self._paused:
            self._live.start()
        return step

    def end(self, step: Step, *, good: bool, seconds: float | None = None) -> None:
        """It is over. `seconds`: as somebody else measured them."""
        if step not in self._running:
            return
        self._running.remove(step)
        if still := self._still.pop(id(step), None):
            still.cancel()
        if not self._running:
            self._live.stop()
        report = self.done if good else self.failed
        report(step.words(), step.seconds if seconds is None else seconds)

    def pause(self) -> None:
        """Let nothing move, because the person types."""
        self._paused = True
        self._live.stop()

    def resume(self) -> None:
        self._paused = False
        if self._running and self.moves:
            self._live.start()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Columns side by side; nothing is cut off, however narrow the terminal."""
        cells = [columns, *rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        for number, row in enumerate(cells):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.say(line.rstrip(), "bold" if number == 0 else "")

    def answer(self, value: Any) -> None:
        """The JSON that `--json` promises: one line on standard output."""
        text = json.dumps(value, ensure_ascii=False, default=str)
        print("".join(map(_harmless_in_json, text)), file=sys.stdout, flush=True)

    def _end(self, mark: str, style: str, words: str, seconds: float) -> None:
        line = Text.assemble(
            (f"  {mark} ", style), (clock(seconds), "dim"), f"  {printable(words)}"
        )
        self._console.print(line)

    def _picture(self) -> Table:
        rows = Table.grid(padding=(0, 1))
        for step in self._running:
            rows.add_row("", self._spinner, Text(clock(step.seconds), "dim"), Text(step.words()))
        return rows

    async def _say_still(self, step: Step) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self.say(f"    {clock(step.seconds)}  {step.words()}: goes on")


def clock(seconds: float) -> str:
    """Seconds, in a column."""
    return f"{seconds:6.1f} s"


def moment(text: str | None, without: str = "-") -> str:
    """A time of the API's, in a column: to the second, in UTC. `without`: when there is none."""
    if not text:
        return without
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def printable(text: str) -> str:
    """Text from a machine without what could move the cursor or rename the window."""
    return "".join(
        char for char in text if char in "\n\t" or not unicodedata.category(char).startswith("C")
    )


def _harmless_in_json(char: str) -> str:
    """What `printable` would leave out stands in a text here: escaped, it says the same."""
    return char if printable(char) else json.dumps(char)[1:-1]
