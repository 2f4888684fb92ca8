"""What an agent tells of a turn, as events of a chat: bounded, cleaned, in our own words.

`turns.py` hands it each update and each question. The agent is a machine's: what has not the right
shape is left out. Which agent says what is in docs/chat-agents.md.
Source: agentclientprotocol.com, protocol version 1, `session/update`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from polydev.controller.chat.sanitize import cleaned, one_line
from polydev.shared.domain import EventKind

Tell = Callable[[EventKind, dict[str, Any]], None]
Json = dict[str, Any]

MAX_OPTIONS = 16
MAX_OPTION_ID = 256
_MAX_TEXT = 64 * 1024
_MAX_CONTENT = 192 * 1024
"""Characters of all that a tool call shows."""
_MAX_ITEMS = 32
_MAX_ENTRIES = 100
_MAX_TITLE = 300
_MAX_CALL_ID = 128
_MAX_PATH = 1024
_MAX_ENTRY = 1000
_MAX_CALLS = 500
_GROWTH = 1.25
"""Output that grows is told again when it has grown by so much."""

_KINDS = frozenset(
    [
        "read",
        "edit",
        "delete",
        "move",
        "search",
        "execute",
        "think",
        "fetch",
        "switch_mode",
        "other",
    ]
)
_STATUSES = frozenset({"pending", "in_progress", "completed", "failed"})
_DONE = frozenset({"completed", "failed"})
_PRIORITIES = frozenset({"high", "medium", "low"})
_ENTRY_STATUSES = frozenset({"pending", "in_progress", "completed"})
_OPTION_KINDS = frozenset({"allow_once", "allow_always", "reject_once", "reject_always"})
_CHUNKS = {
    "agent_message_chunk": EventKind.TEXT,
    "agent_thought_chunk": EventKind.THOUGHT,
}


class Telling:
    """Tells what an agent says in one turn."""

    def __init__(self, tell: Tell, on_title: Callable[[str], None]) -> None:
        self._tell = tell
        self._on_title = on_title
        self._open: set[str] = set()
        """Tool calls that have not ended."""
        self._outputs: dict[str, _Output] = {}

    def update(self, update: Json) -> None:
        """Tell what a session's update says."""
        kind = _text(update, "sessionUpdate", 32)
        if kind in _CHUNKS:
            text = _text_of(update.get("content"), _MAX_TEXT)
            if text:
                self._tell(_CHUNKS[kind], {"text": text})
        elif kind in ("tool_call", "tool_call_update"):
            self._call(update)
        elif kind == "plan":
            self._tell(EventKind.PLAN, {"entries": _entries(update.get("entries"))})
        elif kind == "session_info_update":
            title = one_line(_text(update, "title", _MAX_TITLE), _MAX_TITLE)
            if title:
                self._on_title(title)

    def ask(self, request_id: str, params: Json) -> None:
        """Tell what the agent asks permission for."""
        call = params.get("toolCall")
        call = call if isinstance(call, dict) else {}
        call_id = one_line(_text(call, "toolCallId", _MAX_CALL_ID), _MAX_CALL_ID)
        if call_id and call_id not in self._open:
            self._call({"status": "pending", **call})
        asked = {
            "requestId": request_id,
            "toolCallId": call_id,
            "title": one_line(_text(call, "title", _MAX_TITLE), _MAX_TITLE),
            "toolKind": _one_of(call.get("kind"), _KINDS, "other"),
            "content": _contents(call.get("content")),
            "options": options_of(params),
        }
        self._tell(EventKind.PERMISSION, asked)

    def close(self) -> None:
        """The turn is over: what did not end by itself ends now."""
        for call_id in sorted(self._open):
            ended: Json = {"toolCallId": call_id, "status": "failed"}
            output = self._outputs.get(call_id)
            if output is not None and output.is_ahead:
                ended["content"] = [output.told()]
            self._tell(EventKind.TOOL, ended)
        self._open.clear()

    def _call(self, call: Json) -> None:
        call_id = one_line(_text(call, "toolCallId", _MAX_CALL_ID), _MAX_CALL_ID)
        if not call_id:
            return
        told: Json = {"toolCallId": call_id}
        if isinstance(call.get("title"), str):
            told["title"] = one_line(call["title"], _MAX_TITLE)
        if "kind" in call and call["kind"] is not None:
            told["toolKind"] = _one_of(call["kind"], _KINDS, "other")
        if status := _one_of(call.get("status"), _STATUSES, ""):
            told["status"] = status
        if isinstance(call.get("locations"), list):
            told["locations"] = _locations(call["locations"])
        if isinstance(call.get("content"), list):
            told["content"] = _contents(call["content"])
        self._follow(call_id, call, told)
        if len(told) > 1:
            self._tell(EventKind.TOOL, told)

    def _follow(self, call_id: str, call: Json, told: Json) -> None:
        """Whether it goes on, and what the command has printed that it runs."""
        is_done = told.get("status") in _DONE
        output = self._outputs.get(call_id)
        delta = _delta(call.get("_meta"))
        if delta and (output is not None or len(self._outputs) < _MAX_CALLS):
            output = self._outputs.setdefault(call_id, _Output())
            output.add(delta)
        if output is not None and (is_done or output.is_worth_telling):
            told["content"] = [output.told()]
        elif told.get("content") == [{"type": "terminal", "text": ""}]:
            del told["content"]
        if is_done:
            self._open.discard(call_id)
            self._outputs.pop(call_id, None)
        elif len(self._open) < _MAX_CALLS:
            self._open.add(call_id)


class _Output:
    """What a command has printed: its end, as far as it is kept."""

    def __init__(self) -> None:
        self._text = ""
        self._length = 0
        self._told_at = 0

    @property
    def is_ahead(self) -> bool:
        return self._length > self._told_at

    @property
    def is_worth_telling(self) -> bool:
        return self._length > self._told_at * _GROWTH

    def add(self, text: str) -> None:
        self._length += len(text)
        self._text = (self._text + text)[-_MAX_TEXT:]

    def told(self) -> Json:
        self._told_at = self._length
        return {"type": "terminal", "text": cleaned(self._text, _MAX_TEXT)}


def options_of(params: Json) -> list[Json]:
    """What the person can choose."""
    found = []
    for it in _dicts(params.get("options"), MAX_OPTIONS):
        option_id = it.get("optionId")
        if isinstance(option_id, str) and 0 < len(option_id) <= MAX_OPTION_ID:
            kind = _one_of(it.get("kind"), _OPTION_KINDS, "reject_once")
            name = one_line(_text(it, "name", _MAX_TITLE), _MAX_TITLE)
            found.append({"optionId": option_id, "name": name or kind, "optionKind": kind})
    return [it for it in found if cleaned(it["optionId"], MAX_OPTION_ID) == it["optionId"]]


def _contents(contents: object) -> list[Json]:
    told, left = [], _MAX_CONTENT
    for it in _dicts(contents, _MAX_ITEMS):
        shown = _content(it, min(left, _MAX_TEXT))
        if shown is not None:
            told.append(shown)
            left -= sum(len(text) for text in shown.values() if isinstance(text, str))
        if left <= 0:
            break
    return told


def _content(it: Json, limit: int) -> Json | None:
    if it.get("type") == "diff":
        old = it.get("oldText")
        return {
            "type": "diff",
            "path": one_line(_text(it, "path", _MAX_PATH), _MAX_PATH),
            "oldText": cleaned(old, limit) if isinstance(old, str) and old else None,
            "newText": cleaned(_text(it, "newText", limit), limit),
        }
    if it.get("type") == "terminal":
        return {"type": "terminal", "text": ""}
    if it.get("type") == "content":
        return {"type": "text", "text": _text_of(it.get("content"), limit)}
    return None


def _text_of(block: object, limit: int) -> str:
    """The text of a content block; of other blocks, what they are."""
    if not isinstance(block, dict):
        return ""
    if block.get("type") == "text":
        return cleaned(_text(block, "text", limit), limit)
    if block.get("type") == "resource_link":
        return one_line(_text(block, "uri", _MAX_PATH), _MAX_PATH)
    if block.get("type") == "resource" and isinstance(block.get("resource"), dict):
        return cleaned(_text(block["resource"], "text", limit), limit)
    return f"({one_line(_text(block, 'type', 32), 32) or 'something'} that cannot be shown)"


def _entries(entries: object) -> list[Json]:
    return [
        {
            "content": one_line(_text(it, "content", _MAX_ENTRY), _MAX_ENTRY),
            "priority": _one_of(it.get("priority"), _PRIORITIES, "medium"),
            "status": _one_of(it.get("status"), _ENTRY_STATUSES, "pending"),
        }
        for it in _dicts(entries, _MAX_ENTRIES)
    ]


def _locations(locations: object) -> list[Json]:
    found = []
    for it in _dicts(locations, _MAX_ITEMS):
        line = it.get("line")
        is_line = isinstance(line, int) and not isinstance(line, bool) and 0 <= line < 2**31
        path = one_line(_text(it, "path", _MAX_PATH), _MAX_PATH)
        found.append({"path": path, "line": line if is_line else None})
    return found


def _delta(meta: object) -> str:
    """What a command printed since, as Codex' agent tells it."""
    delta = meta.get("terminal_output_delta") if isinstance(meta, dict) else None
    return _text(delta, "data", _MAX_TEXT) if isinstance(delta, dict) else ""


def _text(it: Json, name: str, limit: int) -> str:
    """A text with at most a little more than so many characters."""
    value = it.get(name)
    return value[: limit + 1] if isinstance(value, str) else ""


def _one_of(value: object, known: frozenset[str], otherwise: str) -> str:
    return value if isinstance(value, str) and value in known else otherwise


def _dicts(values: object, limit: int) -> Iterable[Json]:
    if not isinstance(values, list):
        return []
    return [it for it in values[:limit] if isinstance(it, dict)]
