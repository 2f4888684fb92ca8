"""Translate agent updates into bounded and cleaned events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polydev.controller.chat.acp.events import EventTranslator, permission_options
from polydev.controller.chat.sanitize import clean, first_line, one_line
from polydev.shared.domain import EventKind

Events = list[tuple[EventKind, dict[str, Any]]]


def create_translator() -> tuple[EventTranslator, Events, list[str]]:
    events: Events = []
    titles: list[str] = []
    return (
        EventTranslator(lambda kind, data: events.append((kind, data)), titles.append),
        events,
        titles,
    )


def text(content: object, kind: str = "agent_message_chunk") -> dict[str, Any]:
    return {"sessionUpdate": kind, "content": {"type": "text", "text": content}}


def test_escapes_and_invisible_characters_are_removed() -> None:
    translator, events, _ = create_translator()
    translator.on_update(text("a\x1b[31mred\x1b[0m\x1b]0;title\x07 \x00b\u202ec\ud800\r\nd\te"))
    assert events == [(EventKind.TEXT, {"text": "ared bc\nd\te"})]


@pytest.mark.parametrize("wrong", [5, None, ["x"], {"a": 1}])
def test_values_of_the_wrong_shape_are_dropped(wrong: object) -> None:
    translator, events, titles = create_translator()
    translator.on_update(text(wrong))
    translator.on_update({"sessionUpdate": "agent_message_chunk", "content": wrong})
    translator.on_update({"sessionUpdate": wrong})
    translator.on_update({"sessionUpdate": "tool_call", "toolCallId": wrong, "title": "x"})
    translator.on_update({"sessionUpdate": "session_info_update", "title": wrong})
    translator.on_update({"sessionUpdate": "usage_update", "used": 5})
    shapes = {"title": wrong, "kind": wrong, "status": wrong, "locations": wrong, "content": wrong}
    translator.on_update({"sessionUpdate": "tool_call", "toolCallId": "c", **shapes})
    translator.on_update({"sessionUpdate": "plan", "entries": wrong})
    assert titles == []
    assert {kind for kind, _ in events} <= {EventKind.TOOL, EventKind.PLAN, EventKind.TEXT}
    for kind, data in events:
        assert kind is not EventKind.TEXT or data["text"].endswith("cannot be shown)")
        json.dumps(data)


def test_all_events_are_bounded() -> None:
    translator, events, _ = create_translator()
    long = "x" * 1_000_000
    diffs = [{"type": "diff", "path": long, "oldText": long, "newText": long}] * 100
    locations = [{"path": long, "line": 10**30}] * 100
    call = {"toolCallId": long, "title": long, "content": diffs, "locations": locations}
    translator.on_update({"sessionUpdate": "tool_call", **call})
    translator.on_update({"sessionUpdate": "plan", "entries": [{"content": long}] * 1000})
    translator.on_update(text(long))
    translator.on_permission_request(
        "1-1", {"toolCall": call, "options": [{"optionId": "a", "name": long}] * 100}
    )
    assert all(len(json.dumps(data)) < 512 * 1024 for _, data in events)


def test_tool_call_reports_changes_and_ends_with_the_turn() -> None:
    translator, events, _ = create_translator()
    translator.on_update(
        {"sessionUpdate": "tool_call", "toolCallId": "c", "title": "Run", "kind": "execute"}
    )
    translator.on_update(
        {"sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "in_progress"}
    )
    translator.close()
    translator.close()
    assert [data for _, data in events] == [
        {"toolCallId": "c", "title": "Run", "toolKind": "execute"},
        {"toolCallId": "c", "status": "in_progress"},
        {"toolCallId": "c", "status": "failed"},
    ]


def test_growing_output_is_reported_in_steps() -> None:
    translator, events, _ = create_translator()
    terminal = [{"type": "terminal", "terminalId": "t"}]
    translator.on_update({"sessionUpdate": "tool_call", "toolCallId": "c", "content": terminal})
    for _ in range(1000):
        delta = {"terminal_output_delta": {"data": "line\n"}}
        translator.on_update(
            {"sessionUpdate": "tool_call_update", "toolCallId": "c", "_meta": delta}
        )
    translator.on_update(
        {"sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "completed"}
    )
    shown = [data["content"][0]["text"] for _, data in events if "content" in data]
    assert shown[-1] == "line\n" * 1000
    assert len(shown) < 50, "not the complete output for each line"


def test_permission_for_an_unknown_call_reports_the_call_first() -> None:
    translator, events, _ = create_translator()
    call = {"toolCallId": "c", "title": "Write", "kind": "edit"}
    options = [{"optionId": "o", "name": "Yes", "kind": "allow_once"}]
    translator.on_permission_request("1-1", {"toolCall": call, "options": options})
    assert [kind for kind, _ in events] == [EventKind.TOOL, EventKind.PERMISSION]
    assert events[0][1]["status"] == "pending"
    assert events[1][1]["options"] == [{"optionId": "o", "name": "Yes", "optionKind": "allow_once"}]


def test_call_ids_are_clean_and_bounded() -> None:
    translator, events, _ = create_translator()
    call = {"toolCallId": "c\ud800\x00\x1b[2J\u202e" + "x" * 500, "title": "Look"}
    translator.on_update({"sessionUpdate": "tool_call", **call})
    translator.on_permission_request(
        "1-1", {"toolCall": call, "options": [{"optionId": "yes", "name": "Yes"}]}
    )
    translator.close()
    names = {data["toolCallId"] for _, data in events}
    assert len(names) == 1
    for name in names:
        assert len(name) <= 128
        assert name.encode().decode().isprintable()


def test_options_without_a_valid_id_are_dropped() -> None:
    wrong: list[Any] = [{"optionId": it, "kind": "x"} for it in ("", 5, "x" * 300, "a\x00b")]
    assert permission_options(
        {"options": [*wrong, "x", {"optionId": "fine", "kind": "made up"}]}
    ) == [{"optionId": "fine", "name": "reject_once", "optionKind": "reject_once"}]
    assert permission_options({"options": "none"}) == []


def test_titles_are_one_bounded_line() -> None:
    assert first_line("\n\n  Fix   the\ttest \nplease", 100) == "Fix the test"
    assert len(one_line("word " * 1000, 20)) == 20
    assert clean("x" * 30, 10) == "x" * 9 + "…"
    assert first_line("", 10) == ""
