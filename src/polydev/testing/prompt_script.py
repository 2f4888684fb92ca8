"""The small grammar by which fake models react to prompts, in tests and demonstrations.

The fake providers' models and the simulated machines' agents parse prompts with it
(docs/fake-providers.md). Pure; it knows no model API and no agent protocol.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

EXCERPT_CHARACTERS = 400
MAX_PIECES = 2000
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

PLAN = ("Read the files", "Fix the problem", "Check the change")
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
    """Report the plan; `done` of its entries are completed."""

    done: int


Tool = Write | Run | Plan


@dataclass(frozen=True, slots=True)
class Script:
    """A model's actions in one turn: tools in order, then an answer."""

    prompt: str
    tools: tuple[Tool, ...] = ()
    thought: str = ""
    failure: str = ""
    slow_pieces: int = 0
    is_markdown: bool = False

    def answer(self, preface: str, results: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the answer in the pieces of its stream; `results` are the tools' outputs."""
        if self.slow_pieces:
            pieces = range(1, self.slow_pieces + 1)
            return tuple(f"piece {it} of {self.slow_pieces}\n\n" for it in pieces)
        if self.is_markdown:
            return tuple(MARKDOWN.splitlines(keepends=True))
        if self.tools:
            output = excerpt(results[-1]) if results else ""
            return split_text(f"Done. The last tool said: {output}")
        return split_text(f"{preface} {excerpt(self.prompt)}")

    @property
    def pause_s(self) -> float | None:
        """Pause between pieces of the answer; None means the default."""
        return SLOW_PAUSE_S if self.slow_pieces else None


def parse(prompt: str) -> Script:
    """Parse a prompt's instructions; everything else is plain text."""
    tools: list[Tool] = []
    options: dict[str, str] = {}
    for found in _INSTRUCTION.finditer(prompt):
        if found["path"]:
            tools.append(Write(found["path"], found["text"]))
        elif found["command"]:
            tools.append(Run(found["command"].rstrip()))
        elif found["word"] == "plan":
            tools += [Plan(done) for done in (0, len(PLAN))]
        else:
            options |= {name: text for name, text in found.groupdict().items() if text}
    return Script(
        prompt=prompt,
        tools=tuple(tools),
        thought=options.get("thought", ""),
        failure=options.get("failure", ""),
        slow_pieces=min(int(options.get("pieces", "0")), MAX_PIECES),
        is_markdown=options.get("word") == "markdown",
    )


def split_text(text: str) -> tuple[str, ...]:
    """Split a text into words with their whitespace."""
    return tuple(re.findall(r"\s*\S+\s*", text))


def excerpt(text: str) -> str:
    """Return a text's beginning as one line."""
    return " ".join(text.split())[:EXCERPT_CHARACTERS]
