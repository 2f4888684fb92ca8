"""One conversation with a simulated agent, as the protocol's session updates.

The agent stores the updates, so that a later agent can replay them.
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
class TurnOptions:
    """Parameters of a turn: the model's thinking time in seconds."""

    answer_s: float


@dataclass
class Session:
    """A conversation; `updates` is everything sent in it."""

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
        """Send the whole conversation again."""
        for update in self.updates:
            self._send(update)

    async def turn(self, prompt: str, options: TurnOptions) -> str:
        """Run one turn and return its stop reason; cancelled, it keeps its updates."""
        self.updates.append(_chunk("user_message_chunk", prompt))
        script = prompt_script.parse(prompt)
        await asyncio.sleep(options.answer_s)
        if script.failure:
            raise RpcError(_FAILED, script.failure)
        if script.thought:
            self._update(_chunk("agent_thought_chunk", script.thought))
        results: list[str] = []
        for tool in script.tools:
            output = await self._run_tool(tool)
            if output is None:
                await self._stream(
                    prompt_script.split_text("You did not allow it, so I skipped it."), None
                )
                return "end_turn"
            results.append(output)
        await self._stream(script.answer("You said:", results), script.pause_s)
        return "end_turn"

    async def _stream(self, pieces: Iterable[str], pause_s: float | None) -> None:
        for piece in pieces:
            self._update(_chunk("agent_message_chunk", piece))
            await asyncio.sleep(pause_s or 0)

    async def _run_tool(self, tool: prompt_script.Tool) -> str | None:
        """Run a tool if permitted; return its output, or None."""
        if isinstance(tool, prompt_script.Plan):
            self._update(_plan(tool))
            return "the plan is reported"
        call = _call_of(tool)
        self._update({"sessionUpdate": "tool_call", **call, "status": "pending"})
        if not await self._is_allowed(call):
            self._progress(call, "failed")
            return None
        self._progress(call, "in_progress")
        try:
            output = await asyncio.to_thread(self._perform, tool)
        except OSError as error:
            self._progress(call, "failed")
            return f"It failed: {error.strerror}"
        text = {"type": "content", "content": {"type": "text", "text": output}}
        content = call["content"] if isinstance(tool, prompt_script.Write) else [text]
        self._progress(call, "completed", content=content)
        return output

    async def _is_allowed(self, call: dict[str, Any]) -> bool:
        if call["kind"] in self._always:
            return True
        options = [{"optionId": it, "name": name, "kind": it} for it, name in _OPTIONS]
        params = {"sessionId": self.session_id, "toolCall": call, "options": options}
        answer = await self.wire.request("session/request_permission", params)
        outcome = answer.get("outcome") if isinstance(answer, dict) else None
        chosen = outcome.get("optionId") if isinstance(outcome, dict) else None
        if chosen == "allow_always":
            self._always.add(call["kind"])
        return chosen in {"allow_once", "allow_always"}

    def _perform(self, tool: prompt_script.Write | prompt_script.Run) -> str:
        """Write files in the simulated machine; commands are only echoed."""
        if isinstance(tool, prompt_script.Run):
            return f"$ {tool.command}\n(a simulated machine runs no commands)"
        path = self.root / _absolute(tool.path).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tool.text + "\n")
        return f"Wrote {len(tool.text) + 1} characters to {tool.path}"

    def _progress(self, call: dict[str, Any], status: str, **more: Any) -> None:
        update = {"sessionUpdate": "tool_call_update", "toolCallId": call["toolCallId"]}
        self._update({**update, "status": status, **more})

    def _update(self, update: dict[str, Any]) -> None:
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
    """Resolve a path in the machine; it cannot leave the root."""
    return posixpath.normpath(posixpath.join("/", _HOME.lstrip("/"), path))
