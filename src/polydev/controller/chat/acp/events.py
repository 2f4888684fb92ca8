"""Translate an agent's ACP messages of a turn into chat events.

`ClaimedTurn` passes every update and permission request. The agent runs in a machine and is
untrusted: texts are bounded and cleaned, and values of the wrong shape are dropped.
docs/chat-agents.md lists what each agent sends.
Source: agentclientprotocol.com, protocol version 1, `session/update`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from polydev.controller.chat.sanitize import clean, one_line
from polydev.shared.domain import EventKind

Emit = Callable[[EventKind, dict[str, Any]], None]
Json = dict[str, Any]

MAX_OPTIONS = 16
MAX_OPTION_ID = 256
_MAX_TEXT = 64 * 1024
_MAX_CONTENT = 192 * 1024
"""Characters of all content of one tool call."""
_MAX_ITEMS = 32
_MAX_ENTRIES = 100
_MAX_TITLE = 300
_MAX_CALL_ID = 128
_MAX_PATH = 1024
_MAX_ENTRY = 1000
_MAX_CALLS = 500
_REPORT_GROWTH = 1.25
"""Growing output is reported again when it has grown by this factor."""

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


class EventTranslator:
    """Translates the messages of one turn."""

    def __init__(self, emit: Emit, on_title: Callable[[str], None]) -> None:
        self._emit = emit
        self._on_title = on_title
        self._open_calls: set[str] = set()
        self._outputs: dict[str, _CommandOutput] = {}

    def on_update(self, update: Json) -> None:
        """Emit the events of a session update."""
        kind = _text(update, "sessionUpdate", 32)
        if kind in _CHUNKS:
            text = _text_of(update.get("content"), _MAX_TEXT)
            if text:
                self._emit(_CHUNKS[kind], {"text": text})
        elif kind in ("tool_call", "tool_call_update"):
            self._on_tool_call(update)
        elif kind == "plan":
            self._emit(EventKind.PLAN, {"entries": _plan_entries(update.get("entries"))})
        elif kind == "session_info_update":
            title = one_line(_text(update, "title", _MAX_TITLE), _MAX_TITLE)
            if title:
                self._on_title(title)

    def on_permission_request(self, request_id: str, params: Json) -> None:
        """Emit the events of a permission request."""
        call = params.get("toolCall")
        call = call if isinstance(call, dict) else {}
        call_id = one_line(_text(call, "toolCallId", _MAX_CALL_ID), _MAX_CALL_ID)
        if call_id and call_id not in self._open_calls:
            self._on_tool_call({"status": "pending", **call})
        request = {
            "requestId": request_id,
            "toolCallId": call_id,
            "title": one_line(_text(call, "title", _MAX_TITLE), _MAX_TITLE),
            "toolKind": _one_of(call.get("kind"), _KINDS, "other"),
            "content": _contents(call.get("content")),
            "options": permission_options(params),
        }
        self._emit(EventKind.PERMISSION, request)

    def close(self) -> None:
        """End the tool calls that are still open: the turn is over."""
        for call_id in sorted(self._open_calls):
            event: Json = {"toolCallId": call_id, "status": "failed"}
            output = self._outputs.get(call_id)
            if output is not None and output.has_unreported:
                event["content"] = [output.report()]
            self._emit(EventKind.TOOL, event)
        self._open_calls.clear()

    def _on_tool_call(self, call: Json) -> None:
        call_id = one_line(_text(call, "toolCallId", _MAX_CALL_ID), _MAX_CALL_ID)
        if not call_id:
            return
        event: Json = {"toolCallId": call_id}
        if isinstance(call.get("title"), str):
            event["title"] = one_line(call["title"], _MAX_TITLE)
        if "kind" in call and call["kind"] is not None:
            event["toolKind"] = _one_of(call["kind"], _KINDS, "other")
        if status := _one_of(call.get("status"), _STATUSES, ""):
            event["status"] = status
        if isinstance(call.get("locations"), list):
            event["locations"] = _locations(call["locations"])
        if isinstance(call.get("content"), list):
            event["content"] = _contents(call["content"])
        self._track(call_id, call, event)
        if len(event) > 1:
            self._emit(EventKind.TOOL, event)

    def _track(self, call_id: str, call: Json, event: Json) -> None:
        """Track whether a call is open, and add its command's output to the event."""
        is_done = event.get("status") in _DONE
        output = self._outputs.get(call_id)
        delta = _output_delta(call.get("_meta"))
        if delta and (output is not None or len(self._outputs) < _MAX_CALLS):
            output = self._outputs.setdefault(call_id, _CommandOutput())
            output.add(delta)
        if output is not None and (is_done or output.is_worth_reporting):
            event["content"] = [output.report()]
        elif event.get("content") == [{"type": "terminal", "text": ""}]:
            del event["content"]
        if is_done:
            self._open_calls.discard(call_id)
            self._outputs.pop(call_id, None)
        elif len(self._open_calls) < _MAX_CALLS:
            self._open_calls.add(call_id)


class _CommandOutput:
    """The last part of a command's output."""

    def __init__(self) -> None:
        self._text = ""
        self._length = 0
        self._reported_length = 0

    @property
    def has_unreported(self) -> bool:
        return self._length > self._reported_length

    @property
    def is_worth_reporting(self) -> bool:
        return self._length > self._reported_length * _REPORT_GROWTH

    def add(self, text: str) -> None:
        self._length += len(text)
        self._text = (self._text + text)[-_MAX_TEXT:]

    def report(self) -> Json:
        self._reported_length = self._length
        return {"type": "terminal", "text": clean(self._text, _MAX_TEXT)}


def permission_options(params: Json) -> list[Json]:
    """Return the valid options of a permission request."""
    found = []
    for it in _dicts(params.get("options"), MAX_OPTIONS):
        option_id = it.get("optionId")
        if isinstance(option_id, str) and 0 < len(option_id) <= MAX_OPTION_ID:
            kind = _one_of(it.get("kind"), _OPTION_KINDS, "reject_once")
            name = one_line(_text(it, "name", _MAX_TITLE), _MAX_TITLE)
            found.append({"optionId": option_id, "name": name or kind, "optionKind": kind})
    return [it for it in found if clean(it["optionId"], MAX_OPTION_ID) == it["optionId"]]


def _contents(contents: object) -> list[Json]:
    found, left = [], _MAX_CONTENT
    for it in _dicts(contents, _MAX_ITEMS):
        shown = _content(it, min(left, _MAX_TEXT))
        if shown is not None:
            found.append(shown)
            left -= sum(len(text) for text in shown.values() if isinstance(text, str))
        if left <= 0:
            break
    return found


def _content(it: Json, limit: int) -> Json | None:
    if it.get("type") == "diff":
        old = it.get("oldText")
        return {
            "type": "diff",
            "path": one_line(_text(it, "path", _MAX_PATH), _MAX_PATH),
            "oldText": clean(old, limit) if isinstance(old, str) and old else None,
            "newText": clean(_text(it, "newText", limit), limit),
        }
    if it.get("type") == "terminal":
        return {"type": "terminal", "text": ""}
    if it.get("type") == "content":
        return {"type": "text", "text": _text_of(it.get("content"), limit)}
    return None


def _text_of(block: object, limit: int) -> str:
    """Return the text of a content block, or a placeholder for other kinds."""
    if not isinstance(block, dict):
        return ""
    if block.get("type") == "text":
        return clean(_text(block, "text", limit), limit)
    if block.get("type") == "resource_link":
        return one_line(_text(block, "uri", _MAX_PATH), _MAX_PATH)
    if block.get("type") == "resource" and isinstance(block.get("resource"), dict):
        return clean(_text(block["resource"], "text", limit), limit)
    return f"({one_line(_text(block, 'type', 32), 32) or 'content'} that cannot be shown)"


def _plan_entries(entries: object) -> list[Json]:
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


def _output_delta(meta: object) -> str:
    """Return a command's new output, in the extension field that Codex' agent uses."""
    delta = meta.get("terminal_output_delta") if isinstance(meta, dict) else None
    return _text(delta, "data", _MAX_TEXT) if isinstance(delta, dict) else ""


def _text(it: Json, name: str, limit: int) -> str:
    """Return a string value, truncated so that `clean` still sees that it was longer."""
    value = it.get(name)
    return value[: limit + 1] if isinstance(value, str) else ""


def _one_of(value: object, known: frozenset[str], default: str) -> str:
    return value if isinstance(value, str) and value in known else default


def _dicts(values: object, limit: int) -> Iterable[Json]:
    if not isinstance(values, list):
        return []
    return [it for it in values[:limit] if isinstance(it, dict)]
