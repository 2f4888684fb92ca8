"""The fake models use their CLI's tools in order, then answer."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from polydev.testing.fake_providers.models import anthropic, google, openai
from polydev.testing.fake_providers.models.conversation import Conversation

PROMPT = "Please\nwrite notes/a.txt: hello\nrun: ls -l\nplan"
Reply = list[str]


def anthropic_body(prompt: str, results: Reply) -> dict[str, Any]:
    reminder = {"type": "text", "text": "<system-reminder>run: rm -rf /</system-reminder>"}
    messages = [
        {"role": "user", "content": "run: what was asked before"},
        {"role": "user", "content": [reminder, {"type": "text", "text": prompt}]},
        *(
            {"role": "user", "content": [{"type": "tool_result", "content": reply}, reminder]}
            for reply in results
        ),
    ]
    return {"messages": messages, "tools": [{"name": "Write"}, {"name": "Bash"}]}


def openai_body(prompt: str, results: Reply) -> dict[str, Any]:
    code = "### `apply_patch`\nx\n### `exec_command`\ny"
    functions = {"type": "namespace", "tools": [{"name": "exec", "description": code}]}
    added = {"text": "<environment_context>run: no</environment_context>"}
    return {
        "input": [
            {"type": "additional_tools", "tools": [functions]},
            {"type": "message", "role": "user", "content": [{"text": "run: before"}]},
            {"type": "custom_tool_call_output", "output": "of before"},
            {"type": "message", "role": "user", "content": [{"text": prompt}]},
            {"type": "message", "role": "user", "content": [added]},
            *({"type": "custom_tool_call_output", "output": [{"text": it}]} for it in results),
        ]
    }


def google_body(prompt: str, results: Reply) -> dict[str, Any]:
    names = [{"name": "write_file"}, {"name": "run_shell_command"}]
    answers = [{"functionResponse": {"response": {"output": reply}}} for reply in results]
    return {
        "tools": [{"functionDeclarations": names}],
        "contents": [
            {"role": "user", "parts": [{"text": "run: before"}]},
            {"role": "user", "parts": [{"text": prompt}]},
            *({"role": "user", "parts": [answer]} for answer in answers),
        ],
    }


def anthropic_call(asked: Conversation, _: dict[str, Any]) -> str:
    return json.dumps(anthropic._content(asked, "/home/x"))


def openai_call(asked: Conversation, body: dict[str, Any]) -> str:
    return json.dumps([event.data for event in openai._events(asked, body)])


def google_call(asked: Conversation, _: dict[str, Any]) -> str:
    answer = google._Answer(is_wrapped=True)
    return json.dumps([event.data for event in google._events(asked, answer)])


APIS = [
    (anthropic.conversation, anthropic_body, anthropic_call, ("/home/x/notes/a.txt", '"Bash"')),
    (openai.conversation, openai_body, openai_call, ("Add File: notes/a.txt", "exec_command")),
    (google.conversation, google_body, google_call, ("write_file", "run_shell_command")),
]


@pytest.mark.parametrize(("read", "body_of", "call", "marks"), APIS)
def test_tools_run_in_order_and_the_last_output_is_answered(
    read: Callable[[dict[str, Any]], Conversation],
    body_of: Callable[[str, Reply], dict[str, Any]],
    call: Callable[[Conversation, dict[str, Any]], str],
    marks: tuple[str, str],
) -> None:
    first, second, last = (body_of(PROMPT, it) for it in ([], ["ok"], ["ok", "total 0"]))
    assert marks[0] in call(read(first), first)
    assert marks[1] in call(read(second), second)
    assert "ls -l" in call(read(second), second)
    assert read(last).next_tool is None  # there is no tool for plans
    assert read(last).answer.endswith("The last tool said: total 0")


@pytest.mark.parametrize(("read", "body_of", "call", "marks"), APIS)
def test_new_prompt_starts_over(
    read: Callable[[dict[str, Any]], Conversation],
    body_of: Callable[[str, Reply], dict[str, Any]],
    call: object,
    marks: object,
) -> None:
    asked = read(body_of("just words", []))
    assert (asked.prompt, asked.results, asked.next_tool) == ("just words", (), None)
    assert asked.answer.endswith("received: just words")


@pytest.mark.parametrize("read", [anthropic.conversation, openai.conversation, google.conversation])
@pytest.mark.parametrize(
    "body",
    [{}, {"messages": 1, "input": "x", "contents": [1, {"role": "user"}], "tools": {}}],
)
def test_malformed_request_has_no_prompt(
    read: Callable[[dict[str, Any]], Conversation], body: dict[str, Any]
) -> None:
    assert read(body).prompt == ""


def test_request_without_tools_gets_a_short_answer() -> None:
    body = anthropic_body("slowly: 500\nrun: ls", []) | {"tools": []}
    asked = anthropic.conversation(body)
    assert asked.next_tool is None
    assert len(asked.pieces) < 20


def test_codex_stays_sandboxed_without_approvals() -> None:
    body = openai_body("run: ls", [])
    assert "require_escalated" in openai_call(openai.conversation(body), body)
    never = {"role": "developer", "content": [{"text": "Approval policy is currently never."}]}
    body["input"].append(never)
    assert "require_escalated" not in openai_call(openai.conversation(body), body)


def test_slow_pieces_have_pauses_and_thoughts_come_first() -> None:
    body = anthropic_body("think: hm\nslowly: 3", [])
    asked = anthropic.conversation(body)
    content = anthropic._content(asked, "/")
    events = list(
        anthropic._events(
            {"content": content, "stop_reason": "x", "usage": {"output_tokens": 1}}, asked
        )
    )
    kinds = [it.data["content_block"]["type"] for it in events if it.name == "content_block_start"]
    assert kinds == ["thinking", "text"]
    assert len([it for it in events if (it.pause_s or 0) > 0.1]) == 3
