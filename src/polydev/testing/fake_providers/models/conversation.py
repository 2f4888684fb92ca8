"""A conversation with a fake model, independent of the provider's API.

`anthropic.py`, `openai.py` and `google.py` convert requests to a `Conversation` and format its
answer. The prompt (`polydev.testing.prompt_script`) and the number of tool results determine the
next tool, so that the models store nothing between requests.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from polydev.testing import prompt_script

PREFACE = "The fake model received:"
_SYSTEM_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """The user's last message, the tool results since, and the available tools.

    `tools` maps actions of the grammar to the CLI's tools; actions without a tool are skipped.
    """

    prompt: str
    results: tuple[str, ...]
    tools: Mapping[type[prompt_script.Tool], str]
    has_tools: bool = True
    """Requests without tools are the CLI's own, for a title or summary."""

    @cached_property
    def script(self) -> prompt_script.Script:
        """The prompt's actions for which there are tools."""
        if not self.has_tools:
            return prompt_script.Script(self.prompt)
        script = prompt_script.parse(self.prompt)
        usable = (tool for tool in script.tools if type(tool) in self.tools)
        return replace(script, tools=tuple(usable))

    @property
    def next_tool(self) -> prompt_script.Tool | None:
        """The next tool; None when it is time to answer."""
        done = len(self.results)
        return self.script.tools[done] if done < len(self.script.tools) else None

    @property
    def pieces(self) -> tuple[str, ...]:
        """The answer, in the pieces of its stream."""
        return self.script.answer(PREFACE, self.results)

    @property
    def answer(self) -> str:
        """The complete answer."""
        return "".join(self.pieces)


def available_tools(
    names: Iterable[str], offered: Mapping[type[prompt_script.Tool], str]
) -> dict[type[prompt_script.Tool], str]:
    """Select the tools that the CLI offers."""
    there = set(names)
    return {kind: name for kind, name in offered.items() if name in there}


def last_user_text(texts: Iterable[object]) -> str:
    """Return the last text of a user's message, without the CLI's additions."""
    own = [_SYSTEM_REMINDER.sub("", text).strip() for text in texts if isinstance(text, str)]
    return next((text for text in reversed(own) if text), "")


def plan_entries(plan: prompt_script.Plan) -> list[tuple[str, str]]:
    """Return the plan's entries with their status."""
    status = ["completed"] * plan.done + ["in_progress"] + ["pending"] * len(prompt_script.PLAN)
    return list(zip(prompt_script.PLAN, status, strict=False))


def parts(value: object) -> list[dict[str, object]]:
    """Return the objects of a list in a request; empty for anything else."""
    return [it for it in value if isinstance(it, dict)] if isinstance(value, list) else []
