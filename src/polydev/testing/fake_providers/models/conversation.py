"""What a model was asked, whichever API it was asked by, and what it does next.

`anthropic.py`, `openai.py` and `google.py` read their requests into a `Conversation` and word the
answer. The prompt (`polydev.testing.prompt_script`) and the number of tools that have answered
decide the next tool, so the models store nothing between two requests.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from polydev.testing import prompt_script

PREFACE = "The stand-in model heard you say:"
_SYSTEM_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """A person's last words, what the tools said since, and which tools there are.

    `tools` maps what a prompt may ask for to the CLI's tool for it; what has none is passed over.
    """

    prompt: str
    results: tuple[str, ...]
    tools: Mapping[type[prompt_script.Tool], str]
    has_tools: bool = True
    """Calls without any are the CLI's own, for a title or a summary: they are answered shortly."""

    @cached_property
    def script(self) -> prompt_script.Script:
        """What the prompt asks for, as far as there are tools for it."""
        if not self.has_tools:
            return prompt_script.Script(self.prompt)
        script = prompt_script.script_of(self.prompt)
        usable = (tool for tool in script.tools if type(tool) in self.tools)
        return replace(script, tools=tuple(usable))

    @property
    def next_tool(self) -> prompt_script.Tool | None:
        """The tool to use now; None when it is time to answer."""
        done = len(self.results)
        return self.script.tools[done] if done < len(self.script.tools) else None

    @property
    def pieces(self) -> tuple[str, ...]:
        """The answer, as it is streamed."""
        return self.script.answer(PREFACE, self.results)

    @property
    def answer(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)


def tools_among(
    names: Iterable[str], offered: Mapping[type[prompt_script.Tool], str]
) -> dict[type[prompt_script.Tool], str]:
    """Those of our tools that the CLI offers."""
    there = set(names)
    return {kind: name for kind, name in offered.items() if name in there}


def own_words(texts: Iterable[object]) -> str:
    """The last text of a person's message, without what the CLI added around it."""
    own = [_SYSTEM_REMINDER.sub("", text).strip() for text in texts if isinstance(text, str)]
    return next((text for text in reversed(own) if text), "")


def plan_entries(plan: prompt_script.Plan) -> list[tuple[str, str]]:
    """The plan's entries and how far each is."""
    status = ["completed"] * plan.done + ["in_progress"] + ["pending"] * len(prompt_script.PLAN)
    return list(zip(prompt_script.PLAN, status, strict=False))


def parts(value: object) -> list[dict[str, object]]:
    """The objects of a list that a request holds; none if it is something else."""
    return [it for it in value if isinstance(it, dict)] if isinstance(value, list) else []
