"""Build the same transcript from events in any grouping."""

from __future__ import annotations

import random
from typing import Any

import pytest
from module_page import ModulePage

pytestmark = pytest.mark.asyncio(loop_scope="module")

_APPLY = """
const { Transcript } = await load('chat/transcript.js');
const transcript = new Transcript();
for (const event of given) transcript.apply(event);
const turns = [...transcript.turns.values()].sort((a, b) => a.number - b.number);
const tell = ({ number, prompt, entries, ended }) =>
  ({ number, prompt: prompt?.text ?? null, reason: ended?.reason ?? null,
     entries: entries.map(({ key, at, version, ...applied }) => applied) });
return { turns: turns.map(tell), title: transcript.title, running: transcript.running,
         asked: transcript.asked?.requestId ?? null, lastId: transcript.lastId };
"""

Event = dict[str, Any]


async def _apply(modules: ModulePage, events: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = await modules.run(_APPLY, events)
    return found


def _turn(number: int, *events: tuple[str, dict[str, Any]]) -> list[Event]:
    first = number * 1_000_000
    return [
        {"id": first + at, "turn": number, "kind": kind, "at": "2026-01-02T03:04:05Z", **data}
        for at, (kind, data) in enumerate(events, 1)
    ]


def _asking(request_id: str = "r1", tool: str = "t1") -> tuple[str, dict[str, Any]]:
    options = [{"optionId": "yes", "name": "Yes", "optionKind": "allow_once"}]
    asked = {"requestId": request_id, "toolCallId": tool, "title": "Write", "toolKind": "edit"}
    return "permission", {**asked, "content": [], "options": options}


_FIRST = _turn(
    1,
    ("user", {"text": "Hello"}),
    ("title", {"title": "Greeting"}),
    ("thought", {"text": "Well, "}),
    ("thought", {"text": "hm."}),
    ("text", {"text": "I "}),
    ("text", {"text": "look."}),
    ("tool", {"toolCallId": "t1", "title": "Write a", "toolKind": "edit", "status": "pending"}),
    _asking(),
    ("permission_answered", {"requestId": "r1", "optionId": "yes"}),
    ("tool", {"toolCallId": "t1", "status": "completed", "content": [{"type": "text"}]}),
    ("plan", {"entries": [{"content": "one", "status": "pending"}]}),
    ("text", {"text": "Done."}),
    ("plan", {"entries": [{"content": "one", "status": "completed"}]}),
    ("turn_ended", {"reason": "end_turn", "error": None}),
)
_SECOND = _turn(2, ("user", {"text": "More"}), ("text", {"text": "Yes"}))


async def test_events_become_a_turn(modules: ModulePage) -> None:
    applied = await _apply(modules, _FIRST)
    [turn] = applied["turns"]
    assert turn["prompt"] == "Hello"
    assert turn["reason"] == "end_turn"
    kinds = [(it["kind"], it.get("text")) for it in turn["entries"]]
    assert kinds == [
        ("thought", "Well, hm."),
        ("answer", "I look."),
        ("tool", None),
        ("permission", None),
        ("plan", None),
        ("answer", "Done."),
    ]
    tool, asked, plan = turn["entries"][2:5]
    assert (tool["title"], tool["status"], tool["content"]) == (
        "Write a",
        "completed",
        [{"type": "text"}],
    )
    assert (asked["open"], asked["chosen"]) == (False, "yes")
    assert [it["status"] for it in plan["steps"]] == ["completed"]
    assert all(it["done"] for it in turn["entries"])
    assert (applied["title"], applied["running"], applied["asked"]) == ("Greeting", False, None)


async def test_running_turn_is_running(modules: ModulePage) -> None:
    applied = await _apply(modules, [*_FIRST, *_SECOND])
    assert applied["running"]
    assert applied["turns"][1]["entries"] == [{"kind": "answer", "done": False, "text": "Yes"}]
    asking = await _apply(modules, _FIRST[:8])
    assert asking["asked"] == "r1"
    other = await _apply(modules, [*_FIRST[:8], *_turn(1, *[("title", {"title": "x"})] * 9)[8:]])
    assert other["asked"] == "r1"


async def test_end_of_turn_closes_permissions(modules: ModulePage) -> None:
    ended = {"id": 1_999_999, "kind": "turn_ended", "reason": "interrupted", "error": None}
    applied = await _apply(modules, [*_FIRST[:8], ended])
    assert (applied["asked"], applied["running"]) == (None, False)
    asked = applied["turns"][0]["entries"][-1]
    assert (asked["open"], asked["chosen"]) == (False, None)


async def test_repeated_events_change_nothing(modules: ModulePage) -> None:
    once = await _apply(modules, [*_FIRST, *_SECOND])
    assert await _apply(modules, [*_FIRST, *_FIRST, *_SECOND, *_SECOND]) == once
    each_twice = [it for event in [*_FIRST, *_SECOND] for it in (event, event)]
    assert await _apply(modules, each_twice) == once


async def test_earlier_turns_can_arrive_later(modules: ModulePage) -> None:
    once = await _apply(modules, [*_FIRST, *_SECOND])
    assert await _apply(modules, [*_SECOND, *_FIRST]) == once


@pytest.mark.parametrize("seed", range(5))
async def test_interrupted_reader_sees_the_same(modules: ModulePage, seed: int) -> None:
    chance = random.Random(seed)
    events = [*_FIRST, *_SECOND]
    seen: list[Event] = []
    at = 0
    while at < len(events):
        upto = min(len(events), at + chance.randrange(1, 5))
        seen += events[max(0, at - chance.randrange(4)) : upto]  # repeats the last events
        at = upto
    assert await _apply(modules, seen) == await _apply(modules, events)


async def test_joined_text_after_its_pieces_is_known(modules: ModulePage) -> None:
    pieces = _turn(1, ("user", {"text": "a"}), ("text", {"text": "b"}), ("text", {"text": "c"}))
    joined = {**pieces[2], "text": "bc"}
    assert await _apply(modules, [*pieces, joined]) == await _apply(modules, pieces)
    live = await _apply(modules, pieces)
    assert (await _apply(modules, [pieces[0], joined]))["turns"] == live["turns"]


async def test_gap_of_ids_is_accepted(modules: ModulePage) -> None:
    sparse = [{**event, "id": 1_000_000 + at * 97} for at, event in enumerate(_FIRST, 1)]
    assert (await _apply(modules, sparse))["turns"] == (await _apply(modules, _FIRST))["turns"]


async def test_unknown_events_are_ignored(modules: ModulePage) -> None:
    once = await _apply(modules, _SECOND)
    odd: list[Any] = [
        None,
        {},
        {"id": "2000009", "kind": "text", "text": "x"},
        {"id": -1, "kind": "text", "text": "x"},
        {"id": 1.5, "kind": "text", "text": "x"},
    ]
    assert await _apply(modules, [*odd, *_SECOND]) == once
    later = [{"id": 2_000_010, "kind": kind} for kind in ("constructor", "__proto__", "new")]
    assert (await _apply(modules, [*_SECOND, *later]))["turns"] == once["turns"]


async def test_many_events_apply_quickly(modules: ModulePage) -> None:
    took, length = await modules.run(
        """const { Transcript } = await load('chat/transcript.js');
        const started = performance.now();
        const transcript = new Transcript();
        for (let i = 1; i <= 100000; i++) {
          transcript.apply({ id: 1000000 + i, kind: "text", text: "word " });
        }
        return [performance.now() - started, transcript.last.entries[0].text.length];"""
    )
    assert length == 500_000
    assert took < 3_000
