"""Parsers of what a CLI prints in a chat turn.

One `AnswerReader` per turn takes the bytes of the CLI's standard output as they arrive. The output
is untrusted: lines are bounded, unknown lines are skipped, and control characters are removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

MAX_LINE_BYTES = 1024 * 1024
MAX_TEXT_CHARACTERS = 256 * 1024
MAX_NAME_CHARACTERS = 80

_CONTROL = re.compile(
    r"[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


@dataclass(frozen=True, slots=True)
class ChatEvent:
    """Event of a turn: part of the answer, a finished message, a tool's name, or an error."""

    kind: Literal["delta", "text", "tool", "error"]
    text: str


class AnswerReader:
    """Convert the output of one turn into events."""

    def __init__(self, output: str) -> None:
        self._read_line = _READERS[output]
        self._line = bytearray()
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[ChatEvent]:
        """Events of the lines that `data` completes."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._append(end)
            yield from self._take()
        self._append(rest)

    def close(self) -> Iterator[ChatEvent]:
        """Events of a last line without a line end."""
        yield from self._take()

    def _append(self, data: bytes) -> None:
        if len(self._line) + len(data) > MAX_LINE_BYTES:
            self._too_long = True
            self._line.clear()
        elif not self._too_long:
            self._line += data

    def _take(self) -> Iterator[ChatEvent]:
        line, skip = bytes(self._line), self._too_long
        self._line.clear()
        self._too_long = False
        if skip or not line.strip():
            return
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(message, dict):
            yield from self._read_line(message)


def clean_text(text: object, limit: int = MAX_TEXT_CHARACTERS) -> str:
    """Remove control characters from a machine's text, and limit its length."""
    return _CONTROL.sub("", text)[:limit] if isinstance(text, str) else ""


def _event(kind: Literal["delta", "text", "tool", "error"], text: object) -> Iterator[ChatEvent]:
    limit = MAX_NAME_CHARACTERS if kind == "tool" else MAX_TEXT_CHARACTERS
    if clean := clean_text(text, limit):
        yield ChatEvent(kind, clean)


def _codex(message: dict[str, Any]) -> Iterator[ChatEvent]:
    """`codex exec --json`: whole items, no deltas."""
    kind, item = message.get("type"), message.get("item")
    if kind == "item.completed" and isinstance(item, dict):
        if item.get("type") == "agent_message":
            yield from _event("text", item.get("text"))
        elif item.get("type") == "error":
            yield from _event("error", item.get("message"))
    elif kind == "item.started" and isinstance(item, dict):
        if item.get("type") in ("command_execution", "mcp_tool_call", "file_change", "web_search"):
            yield from _event("tool", item.get("type"))
    elif kind == "turn.failed" and isinstance(message.get("error"), dict):
        yield from _event("error", message["error"].get("message"))
    elif kind == "error":
        yield from _event("error", message.get("message"))


def _claude(message: dict[str, Any]) -> Iterator[ChatEvent]:
    """`claude -p --output-format stream-json --include-partial-messages`."""
    kind = message.get("type")
    if kind == "stream_event" and isinstance(message.get("event"), dict):
        delta = message["event"].get("delta")
        if isinstance(delta, dict) and delta.get("type") == "text_delta":
            yield from _event("delta", delta.get("text"))
    elif kind == "assistant" and isinstance(message.get("message"), dict):
        content = message["message"].get("content")
        for block in content if isinstance(content, list) else []:
            if isinstance(block, dict) and block.get("type") == "text":
                yield from _event("text", block.get("text"))
            elif isinstance(block, dict) and block.get("type") == "tool_use":
                yield from _event("tool", block.get("name"))
    elif kind == "result" and message.get("is_error"):
        yield from _event("error", message.get("result") or message.get("subtype"))


def _gemini(message: dict[str, Any]) -> Iterator[ChatEvent]:
    """`gemini --output-format stream-json`: deltas only, never the whole answer."""
    kind = message.get("type")
    if kind == "message" and message.get("role") == "assistant":
        yield from _event("delta" if message.get("delta") else "text", message.get("content"))
    elif kind == "tool_use":
        yield from _event("tool", message.get("tool_name"))
    elif kind == "error":
        yield from _event("error", message.get("message"))
    elif kind == "result" and isinstance(message.get("error"), dict):
        yield from _event("error", message["error"].get("message"))


_READERS: dict[str, Callable[[dict[str, Any]], Iterator[ChatEvent]]] = {
    "codex-exec-json": _codex,
    "claude-stream-json": _claude,
    "gemini-stream-json": _gemini,
}
