"""Diffs that the chat page computes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from module_page import ModulePage

pytestmark = pytest.mark.asyncio(loop_scope="module")

_DIFF = (
    "const { diff } = await load('chat/render/diff.js'); return given.map(([a, b]) => diff(a, b));"
)


async def _diffs(modules: ModulePage, *pairs: tuple[str | None, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await modules.run(_DIFF, [list(pair) for pair in pairs])
    return found


def _formatted(diff: dict[str, Any]) -> list[str]:
    """Format a diff like `diff -u`, without file names."""
    lines = []
    for hunk in diff["hunks"]:
        lines.append(hunk["header"])
        lines += [
            f"{it['sign']}{it['text']}{'⏎' if it['hasNoNewline'] else ''}" for it in hunk["lines"]
        ]
    return lines


def _patched(old: str, diff: dict[str, Any]) -> str:
    """Apply hunks to the old text by their line numbers."""
    before = old.splitlines(keepends=True)
    after: list[str] = []
    at = 0
    for hunk in diff["hunks"]:
        first = next((it["old"] for it in hunk["lines"] if it["old"]), None)
        if first is not None:
            after += before[at : first - 1]
            at = first - 1
        for line in hunk["lines"]:
            if line["sign"] == " ":
                assert before[at].removesuffix("\n") == line["text"]
            if line["sign"] != "+":
                at += 1
            if line["sign"] != "-":
                after.append(line["text"] + ("" if line["hasNoNewline"] else "\n"))
                assert line["new"] == len(after)
    return "".join([*after, *before[at:]])


async def test_hunk_has_three_lines_of_context(modules: ModulePage) -> None:
    old = "".join(f"{it}\n" for it in range(1, 21))
    [diff] = await _diffs(modules, (old, old.replace("10\n", "ten\n")))
    expected = ["@@ -7,7 +7,7 @@", " 7", " 8", " 9", "-10", "+ten", " 11", " 12", " 13"]
    assert _formatted(diff) == expected
    assert (diff["added"], diff["removed"]) == (1, 1)


async def test_changes_near_each_other_share_a_hunk_and_far_ones_do_not(
    modules: ModulePage,
) -> None:
    old = "".join(f"{it}\n" for it in range(1, 41))
    near = old.replace("10\n", "ten\n").replace("16\n", "sixteen\n")
    far = old.replace("10\n", "ten\n").replace("30\n", "thirty\n")
    of_near, of_far = await _diffs(modules, (old, near), (old, far))
    assert [it["header"] for it in of_near["hunks"]] == ["@@ -7,13 +7,13 @@"]
    assert [it["header"] for it in of_far["hunks"]] == ["@@ -7,7 +7,7 @@", "@@ -27,7 +27,7 @@"]


async def test_a_new_file_is_all_added_and_an_emptied_one_all_removed(modules: ModulePage) -> None:
    new, emptied, same = await _diffs(modules, (None, "a\nb\n"), ("a\nb\n", ""), ("a\n", "a\n"))
    assert _formatted(new) == ["@@ -0,0 +1,2 @@", "+a", "+b"]
    assert _formatted(emptied) == ["@@ -1,2 +0,0 @@", "-a", "-b"]
    assert same == {"hunks": [], "added": 0, "removed": 0}


async def test_a_missing_newline_at_the_end_is_a_change(modules: ModulePage) -> None:
    [diff] = await _diffs(modules, ("a\nb\n", "a\nb"))
    assert _formatted(diff) == ["@@ -1,2 +1,2 @@", " a", "-b", "+b⏎"]


async def test_line_ends_of_other_systems_change_nothing_else(modules: ModulePage) -> None:
    [diff] = await _diffs(modules, ("a\r\nb\r\n", "a\r\nc\r\n"))
    assert _formatted(diff) == ["@@ -1,2 +1,2 @@", " a", "-b", "+c"]


@pytest.mark.parametrize("seed", range(4))
async def test_hunks_turn_the_old_text_into_the_new(modules: ModulePage, seed: int) -> None:
    chance = random.Random(seed)
    pairs = []
    for _ in range(60):
        old = [chance.choice("abcd") for _ in range(chance.randrange(40))]
        new = [it for it in old if chance.random() > 0.2]
        for _ in range(chance.randrange(6)):
            new.insert(chance.randrange(len(new) + 1), chance.choice("abcdef"))
        ends = [chance.choice(["\n", ""]) if lines else "" for lines in (old, new)]
        pairs.append(("\n".join(old) + ends[0], "\n".join(new) + ends[1]))
    diffs = await _diffs(modules, *pairs)
    for (old_text, new_text), diff in zip(pairs, diffs, strict=True):
        assert _patched(old_text, diff) == new_text, (old_text, new_text)


async def test_few_edits_give_a_short_diff(modules: ModulePage) -> None:
    old = [str(it) for it in range(3000)]
    new = [it for it in old if it not in ("5", "1500", "2999")]
    [diff] = await _diffs(modules, ("\n".join(old) + "\n", "\n".join(new) + "\n"))
    assert (diff["added"], diff["removed"]) == (0, 3)


async def test_unrelated_texts_are_compared_quickly(modules: ModulePage) -> None:
    old = "".join(f"old {it}\n" for it in range(20_000))
    new = "".join(f"new {it}\n" for it in range(20_000))
    took, added, removed = await modules.run(
        """const { diff } = await load('chat/render/diff.js');
        const started = performance.now();
        const { added, removed } = diff(given[0], given[1]);
        return [performance.now() - started, added, removed];""",
        [old, new],
    )
    assert (added, removed) == (20_000, 20_000)
    assert took < 5_000
