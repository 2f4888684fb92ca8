"""Prompts follow the grammar in docs/fake-providers.md."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.testing.prompt_script import Plan, Run, Write, parse


def test_plain_text_is_quoted_back() -> None:
    script = parse("How many legs\nhas a spider?")
    assert script.tools == ()
    assert "".join(script.answer("You said:")) == "You said: How many legs has a spider?"


def test_instructions_run_in_order_within_text() -> None:
    script = parse("Please:\n write a/b.txt: one: two\nand then\nrun: ls -l  \nthanks")
    assert script.tools == (Write("a/b.txt", "one: two"), Run("ls -l"))
    assert "".join(script.answer("-", ["x", "the  listing\n"])).endswith("said: the listing")


def test_plan_is_reported_at_start_and_end() -> None:
    assert parse("plan\nrun: true").tools == (Plan(0), Plan(3), Run("true"))


@pytest.mark.parametrize("prompt", ["my plan", "rerun: ls", "write a file", "slowly: many", "run:"])
def test_similar_text_is_no_instruction(prompt: str) -> None:
    script = parse(prompt)
    assert (script.tools, script.slow_pieces, script.is_markdown) == ((), 0, False)


def test_slow_answers_have_pieces_and_pauses() -> None:
    script = parse("slowly: 7")
    assert len(script.answer("-")) == 7
    assert script.pause_s is not None
    assert script.pause_s > 0.1
    assert parse("x").pause_s is None


def test_markdown_contains_active_content() -> None:
    text = "".join(parse("markdown").answer("-"))
    for part in ("```python", "<script>", "onerror=", "](javascript:", "| a | 1 |"):
        assert part in text


def test_thought_and_failure_follow_the_colon() -> None:
    script = parse("think: hm, hm\nfail: no more today")
    assert (script.thought, script.failure) == ("hm, hm", "no more today")


@given(st.text())
def test_any_text_is_a_prompt(text: str) -> None:
    parse(text).answer("You said:")
