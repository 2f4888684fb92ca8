"""Output of a CLI, even a hostile one, becomes bounded events."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.shared.providers import AnswerReader, ChatEvent, clean_text
from polydev.shared.providers.output_parsers import MAX_LINE_BYTES, MAX_TEXT_CHARACTERS

CODEX, CLAUDE, GEMINI = "codex-exec-json", "claude-stream-json", "gemini-stream-json"


def _read(output: str, *lines: object) -> list[ChatEvent]:
    reader = AnswerReader(output)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return [*reader.feed(text.encode()), *reader.close()]


def test_codex_gives_messages_tools_and_errors() -> None:
    events = _read(
        CODEX,
        {"type": "thread.started", "thread_id": "t"},
        {"type": "item.started", "item": {"type": "command_execution", "command": "ls"}},
        {"type": "item.completed", "item": {"type": "reasoning", "text": "hm"}},
        {"type": "item.completed", "item": {"type": "agent_message", "text": "Hello"}},
        {"type": "turn.failed", "error": {"message": "no more"}},
    )
    assert events == [
        ChatEvent("tool", "command_execution"),
        ChatEvent("text", "Hello"),
        ChatEvent("error", "no more"),
    ]


def test_claude_gives_deltas_messages_tools_and_errors() -> None:
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hel"}}
    content = [{"type": "text", "text": "Hello"}, {"type": "tool_use", "name": "Bash"}]
    events = _read(
        CLAUDE,
        {"type": "system", "subtype": "init"},
        {"type": "stream_event", "event": delta},
        {"type": "assistant", "message": {"content": content}},
        {"type": "result", "is_error": False, "result": "Hello"},
        {"type": "result", "is_error": True, "result": "not logged in"},
    )
    assert events == [
        ChatEvent("delta", "Hel"),
        ChatEvent("text", "Hello"),
        ChatEvent("tool", "Bash"),
        ChatEvent("error", "not logged in"),
    ]


def test_gemini_gives_deltas_tools_and_errors() -> None:
    events = _read(
        GEMINI,
        {"type": "init", "session_id": "s", "model": "m"},
        {"type": "message", "role": "user", "content": "the question"},
        {"type": "message", "role": "assistant", "content": "Hel", "delta": True},
        {"type": "tool_use", "tool_name": "run_shell_command", "tool_id": "t", "parameters": {}},
        {"type": "error", "severity": "warning", "message": "slow"},
        {"type": "result", "status": "error", "error": {"type": "Error", "message": "no more"}},
    )
    assert events == [
        ChatEvent("delta", "Hel"),
        ChatEvent("tool", "run_shell_command"),
        ChatEvent("error", "slow"),
        ChatEvent("error", "no more"),
    ]


MESSAGE = {"type": "item.completed", "item": {"type": "agent_message", "text": "Grüße 👋"}}


@given(st.lists(st.integers(1, 20)))
def test_line_may_arrive_in_pieces(sizes: list[int]) -> None:
    line = json.dumps(MESSAGE, ensure_ascii=False).encode() + b"\n"
    reader, events = AnswerReader(CODEX), []
    for size in sizes:
        events += reader.feed(line[:size])
        line = line[size:]
    events += [*reader.feed(line), *reader.close()]
    assert events == [ChatEvent("text", "Grüße 👋")]


def test_last_line_without_line_end_counts() -> None:
    reader = AnswerReader(CODEX)
    assert not list(reader.feed(json.dumps(MESSAGE).encode()))
    assert list(reader.close()) == [ChatEvent("text", "Grüße 👋")]


def test_long_line_is_skipped() -> None:
    reader = AnswerReader(CODEX)
    for _ in range(40):
        assert not list(reader.feed(b"x" * (MAX_LINE_BYTES // 8)))
        assert len(reader._line) <= MAX_LINE_BYTES
    assert not list(reader.feed(b"\n"))
    assert list(reader.feed(json.dumps(MESSAGE).encode() + b"\n")) == [
        ChatEvent("text", "Grüße 👋")
    ]


@pytest.mark.parametrize("output", [CODEX, CLAUDE])
@given(data=st.binary())
def test_no_bytes_crash_the_reader(output: str, data: bytes) -> None:
    reader = AnswerReader(output)
    assert all(isinstance(event, ChatEvent) for event in [*reader.feed(data), *reader.close()])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["type", "item", "text", "message", "error", "event", "delta", "content", "name"]
            ),
            inner
            | st.sampled_from(
                ["item.completed", "agent_message", "stream_event", "assistant", "text", "result"]
            ),
        )
    ),
)


@pytest.mark.parametrize("output", [CODEX, CLAUDE])
@given(message=json_values)
def test_no_message_crashes_the_reader(output: str, message: object) -> None:
    assert all(event.text for event in _read(output, message))


def test_control_characters_are_removed() -> None:
    assert clean_text("a\x1b[31mb\x00c\u202ed\n\te\ud800") == "a[31mbcd\n\te"
    assert len(clean_text("x" * (MAX_TEXT_CHARACTERS + 5))) == MAX_TEXT_CHARACTERS
    assert clean_text(None) == clean_text({"a": 1}) == ""
