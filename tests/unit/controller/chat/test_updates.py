"""What agents tell becomes events of our own: bounded, cleaned, and only what is known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polydev.controller.chat.acp.events import Telling, options_of
from polydev.controller.chat.sanitize import cleaned, first_line, one_line
from polydev.shared.domain import EventKind

Told = list[tuple[EventKind, dict[str, Any]]]


def telling() -> tuple[Telling, Told, list[str]]:
    told: Told = []
    titles: list[str] = []
    return Telling(lambda kind, data: told.append((kind, data)), titles.append), told, titles


def text(words: object, kind: str = "agent_message_chunk") -> dict[str, Any]:
    return {"sessionUpdate": kind, "content": {"type": "text", "text": words}}


def test_texts_lose_what_could_steer_a_terminal_or_hide() -> None:
    it, told, _ = telling()
    it.update(text("a\x1b[31mred\x1b[0m\x1b]0;title\x07 \x00b\u202ec\ud800\r\nd\te"))
    assert told == [(EventKind.TEXT, {"text": "ared bc\nd\te"})]


@pytest.mark.parametrize("wrong", [5, None, ["x"], {"a": 1}])
def test_what_has_the_wrong_shape_is_left_out(wrong: object) -> None:
    it, told, titles = telling()
    it.update(text(wrong))
    it.update({"sessionUpdate": "agent_message_chunk", "content": wrong})
    it.update({"sessionUpdate": wrong})
    it.update({"sessionUpdate": "tool_call", "toolCallId": wrong, "title": "x"})
    it.update({"sessionUpdate": "session_info_update", "title": wrong})
    it.update({"sessionUpdate": "usage_update", "used": 5})
    shapes = {"title": wrong, "kind": wrong, "status": wrong, "locations": wrong, "content": wrong}
    it.update({"sessionUpdate": "tool_call", "toolCallId": "c", **shapes})
    it.update({"sessionUpdate": "plan", "entries": wrong})
    assert titles == []
    assert {kind for kind, _ in told} <= {EventKind.TOOL, EventKind.PLAN, EventKind.TEXT}
    for kind, data in told:
        assert kind is not EventKind.TEXT or data["text"].endswith("cannot be shown)")
        json.dumps(data)


def test_everything_is_bounded() -> None:
    it, told, _ = telling()
    long = "x" * 1_000_000
    diffs = [{"type": "diff", "path": long, "oldText": long, "newText": long}] * 100
    places = [{"path": long, "line": 10**30}] * 100
    call = {"toolCallId": long, "title": long, "content": diffs, "locations": places}
    it.update({"sessionUpdate": "tool_call", **call})
    it.update({"sessionUpdate": "plan", "entries": [{"content": long}] * 1000})
    it.update(text(long))
    it.ask("1-1", {"toolCall": call, "options": [{"optionId": "a", "name": long}] * 100})
    assert all(len(json.dumps(data)) < 512 * 1024 for _, data in told)


def test_a_call_tells_what_changed_and_ends_with_the_turn() -> None:
    it, told, _ = telling()
    it.update({"sessionUpdate": "tool_call", "toolCallId": "c", "title": "Run", "kind": "execute"})
    it.update({"sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "in_progress"})
    it.close()
    it.close()
    assert [data for _, data in told] == [
        {"toolCallId": "c", "title": "Run", "toolKind": "execute"},
        {"toolCallId": "c", "status": "in_progress"},
        {"toolCallId": "c", "status": "failed"},
    ]


def test_what_a_command_prints_is_told_as_it_grows() -> None:
    it, told, _ = telling()
    terminal = [{"type": "terminal", "terminalId": "t"}]
    it.update({"sessionUpdate": "tool_call", "toolCallId": "c", "content": terminal})
    for _ in range(1000):
        delta = {"terminal_output_delta": {"data": "line\n"}}
        it.update({"sessionUpdate": "tool_call_update", "toolCallId": "c", "_meta": delta})
    it.update({"sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "completed"})
    shown = [data["content"][0]["text"] for _, data in told if "content" in data]
    assert shown[-1] == "line\n" * 1000
    assert len(shown) < 50, "not the whole for each line"


def test_a_question_about_an_unknown_call_tells_the_call_first() -> None:
    it, told, _ = telling()
    call = {"toolCallId": "c", "title": "Write", "kind": "edit"}
    options = [{"optionId": "o", "name": "Yes", "kind": "allow_once"}]
    it.ask("1-1", {"toolCall": call, "options": options})
    assert [kind for kind, _ in told] == [EventKind.TOOL, EventKind.PERMISSION]
    assert told[0][1]["status"] == "pending"
    assert told[1][1]["options"] == [{"optionId": "o", "name": "Yes", "optionKind": "allow_once"}]


def test_ids_of_calls_are_texts_that_every_answer_can_hold() -> None:
    it, told, _ = telling()
    call = {"toolCallId": "c\ud800\x00\x1b[2J\u202e" + "x" * 500, "title": "Look"}
    it.update({"sessionUpdate": "tool_call", **call})
    it.ask("1-1", {"toolCall": call, "options": [{"optionId": "yes", "name": "Yes"}]})
    it.close()
    names = {data["toolCallId"] for _, data in told}
    assert len(names) == 1
    for name in names:
        assert len(name) <= 128
        assert name.encode().decode().isprintable()


def test_choices_without_a_fit_id_are_none() -> None:
    wrong: list[Any] = [{"optionId": it, "kind": "x"} for it in ("", 5, "x" * 300, "a\x00b")]
    assert options_of({"options": [*wrong, "x", {"optionId": "fine", "kind": "made up"}]}) == [
        {"optionId": "fine", "name": "reject_once", "optionKind": "reject_once"}
    ]
    assert options_of({"options": "none"}) == []


def test_titles_are_one_short_line() -> None:
    assert first_line("\n\n  Fix   the\ttest \nplease", 100) == "Fix the test"
    assert len(one_line("word " * 1000, 20)) == 20
    assert cleaned("x" * 30, 10) == "x" * 9 + "…"
    assert first_line("", 10) == ""
