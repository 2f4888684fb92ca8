"""Prompts' small grammar for made-up models, in tests and demonstrations.

The fake providers' models and the agents of simulated machines read prompts by it.
docs/fake-providers.md explains it. This module knows no model API and no agent protocol.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

QUOTED_CHARACTERS = 400
MOST_PIECES = 2000
SLOW_PAUSE_S = 0.25

_INSTRUCTION = re.compile(
    r"^[ \t]*(?:"
    r"write[ \t]+(?P<path>[^\s:]+):[ \t]?(?P<text>.*)"
    r"|run:[ \t]*(?P<command>\S.*)"
    r"|think:[ \t]*(?P<thought>\S.*)"
    r"|slowly:[ \t]*(?P<pieces>[0-9]{1,4})[ \t]*"
    r"|fail:[ \t]*(?P<failure>\S.*)"
    r"|(?P<word>plan|markdown)[ \t]*"
    r")$",
    re.MULTILINE,
)

PLAN = ("Read what is there", "Change what is wrong", "Check the change")
MARKDOWN = """# A heading

Some **bold** words, `code`, a [link](https://example.test/page) and a list:

- one
- two

```python
def answer() -> int:
    return 42
```

| name | value |
|---|---|
| a | 1 |

<script>document.body.dataset.hostile = "script"</script>
<img src="x" onerror="document.body.dataset.hostile = 'image'">

[Do not press](javascript:document.body.dataset.hostile='link')
"""


@dataclass(frozen=True, slots=True)
class Write:
    """Write a file."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """Run a shell command."""

    command: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Tell the plan; `done` of its entries are completed."""

    done: int


Tool = Write | Run | Plan


@dataclass(frozen=True, slots=True)
class Script:
    """What a model does in one turn: its tools one after another, and then it answers."""

    prompt: str
    tools: tuple[Tool, ...] = ()
    thought: str = ""
    failure: str = ""
    slow_pieces: int = 0
    is_markdown: bool = False

    def answer(self, preface: str, results: Sequence[str] = ()) -> tuple[str, ...]:
        """The answer, in the pieces in which it is streamed. `results` is what the tools said."""
        if self.slow_pieces:
            pieces = range(1, self.slow_pieces + 1)
            return tuple(f"piece {it} of {self.slow_pieces}\n\n" for it in pieces)
        if self.is_markdown:
            return tuple(MARKDOWN.splitlines(keepends=True))
        if self.tools:
            told = quoted(results[-1]) if results else ""
            return words(f"Done. The last tool said: {told}")
        return words(f"{preface} {quoted(self.prompt)}")

    @property
    def pause_s(self) -> float | None:
        """Between two pieces of the answer; None where it does not matter."""
        return SLOW_PAUSE_S if self.slow_pieces else None


def script_of(prompt: str) -> Script:
    """Read a prompt's instructions; all that is no instruction is just words."""
    tools: list[Tool] = []
    told: dict[str, str] = {}
    for found in _INSTRUCTION.finditer(prompt):
        if found["path"]:
            tools.append(Write(found["path"], found["text"]))
        elif found["command"]:
            tools.append(Run(found["command"].rstrip()))
        elif found["word"] == "plan":
            tools += [Plan(done) for done in (0, len(PLAN))]
        else:
            told |= {name: text for name, text in found.groupdict().items() if text}
    return Script(
        prompt=prompt,
        tools=tuple(tools),
        thought=told.get("thought", ""),
        failure=told.get("failure", ""),
        slow_pieces=min(int(told.get("pieces", "0")), MOST_PIECES),
        is_markdown=told.get("word") == "markdown",
    )


def words(text: str) -> tuple[str, ...]:
    """A text in pieces of one word each; together they are the text."""
    return tuple(re.findall(r"\s*\S+\s*", text))


def quoted(text: str) -> str:
    """A text's start in one line."""
    return " ".join(text.split())[:QUOTED_CHARACTERS]
