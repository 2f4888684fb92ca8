"""One conversation with a simulated agent: its turns, told as the protocol's session updates.

`acp_agent.py` makes it, and keeps what was told so that a later agent can tell it again.
"""

from __future__ import annotations

import asyncio
import posixpath
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polydev.testing import prompt_script
from polydev.testing.simulated_vmm.acp.wire import RpcError, Wire

_HOME = "/root"
_FAILED = -32603
_MODES = ("default", "workspace-write", "auto")
_OPTIONS = (
    ("allow_once", "Allow"),
    ("allow_always", "Always allow"),
    ("reject_once", "Reject"),
)


@dataclass(frozen=True, slots=True)
class Asking:
    """How a turn goes: how long the model thinks before it answers, in seconds."""

    answer_s: float


@dataclass
class Session:
    """A conversation; `updates` is all that was told in it."""

    session_id: str
    root: Path
    wire: Wire
    updates: list[dict[str, Any]] = field(default_factory=list)
    mode: str = _MODES[0]
    _always: set[str] = field(default_factory=set)

    def modes(self) -> dict[str, Any]:
        available = [{"id": it, "name": it.capitalize()} for it in _MODES]
        return {"currentModeId": self.mode, "availableModes": available}

    def replay(self) -> None:
        """Tell the whole conversation once more."""
        for update in self.updates:
            self._send(update)

    async def turn(self, prompt: str, asking: Asking) -> str:
        """Do one turn; the reason why it stopped. Cancelled, it leaves what it told."""
        self.updates.append(_chunk("user_message_chunk", prompt))
        script = prompt_script.script_of(prompt)
        await asyncio.sleep(asking.answer_s)
        if script.failure:
            raise RpcError(_FAILED, script.failure)
        if script.thought:
            self._tell(_chunk("agent_thought_chunk", script.thought))
        results: list[str] = []
        for tool in script.tools:
            said = await self._use(tool)
            if said is None:
                await self._say(prompt_script.words("You did not allow it, so it was left."), None)
                return "end_turn"
            results.append(said)
        await self._say(script.answer("You said:", results), script.pause_s)
        return "end_turn"

    async def _say(self, pieces: Iterable[str], pause_s: float | None) -> None:
        for piece in pieces:
            self._tell(_chunk("agent_message_chunk", piece))
            await asyncio.sleep(pause_s or 0)

    async def _use(self, tool: prompt_script.Tool) -> str | None:
        """Use a tool, once it is allowed; what it said, None if it was not."""
        if isinstance(tool, prompt_script.Plan):
            self._tell(_plan(tool))
            return "the plan is told"
        call = _call_of(tool)
        self._tell({"sessionUpdate": "tool_call", **call, "status": "pending"})
        if not await self._may(call):
            self._progress(call, "failed")
            return None
        self._progress(call, "in_progress")
        try:
            said = await asyncio.to_thread(self._do, tool)
        except OSError as error:
            self._progress(call, "failed")
            return f"It failed: {error.strerror}"
        text = {"type": "content", "content": {"type": "text", "text": said}}
        content = call["content"] if isinstance(tool, prompt_script.Write) else [text]
        self._progress(call, "completed", content=content)
        return said

    async def _may(self, call: dict[str, Any]) -> bool:
        if call["kind"] in self._always:
            return True
        options = [{"optionId": it, "name": name, "kind": it} for it, name in _OPTIONS]
        asked = {"sessionId": self.session_id, "toolCall": call, "options": options}
        answer = await self.wire.ask("session/request_permission", asked)
        outcome = answer.get("outcome") if isinstance(answer, dict) else None
        chosen = outcome.get("optionId") if isinstance(outcome, dict) else None
        if chosen == "allow_always":
            self._always.add(call["kind"])
        return chosen in {"allow_once", "allow_always"}

    def _do(self, tool: prompt_script.Write | prompt_script.Run) -> str:
        """Files are written in the simulated machine; commands are only told of."""
        if isinstance(tool, prompt_script.Run):
            return f"$ {tool.command}\n(a simulated machine runs no commands)"
        place = self.root / _absolute(tool.path).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(tool.text + "\n")
        return f"Wrote {len(tool.text) + 1} characters to {tool.path}"

    def _progress(self, call: dict[str, Any], status: str, **more: Any) -> None:
        update = {"sessionUpdate": "tool_call_update", "toolCallId": call["toolCallId"]}
        self._tell({**update, "status": status, **more})

    def _tell(self, update: dict[str, Any]) -> None:
        self.updates.append(update)
        self._send(update)

    def _send(self, update: dict[str, Any]) -> None:
        self.wire.notify("session/update", {"sessionId": self.session_id, "update": update})


def _chunk(kind: str, text: str) -> dict[str, Any]:
    return {"sessionUpdate": kind, "content": {"type": "text", "text": text}}


def _plan(plan: prompt_script.Plan) -> dict[str, Any]:
    def status(number: int) -> str:
        if number < plan.done:
            return "completed"
        return "in_progress" if number == plan.done else "pending"

    entries = [
        {"content": text, "priority": "medium", "status": status(number)}
        for number, text in enumerate(prompt_script.PLAN)
    ]
    return {"sessionUpdate": "plan", "entries": entries}


def _call_of(tool: prompt_script.Write | prompt_script.Run) -> dict[str, Any]:
    call_id = f"call-{uuid.uuid4().hex[:12]}"
    if isinstance(tool, prompt_script.Run):
        return {
            "toolCallId": call_id,
            "title": f"`{tool.command}`",
            "kind": "execute",
            "content": [],
            "rawInput": {"command": tool.command},
        }
    path = _absolute(tool.path)
    diff = {"type": "diff", "path": path, "oldText": None, "newText": tool.text + "\n"}
    return {
        "toolCallId": call_id,
        "title": f"Write {tool.path}",
        "kind": "edit",
        "content": [diff],
        "locations": [{"path": path}],
        "rawInput": {"file_path": path},
    }


def _absolute(path: str) -> str:
    """A path in the machine, without a way out of it."""
    return posixpath.normpath(posixpath.join("/", _HOME.lstrip("/"), path))
