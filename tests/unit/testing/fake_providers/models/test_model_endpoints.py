"""The model endpoints stream the prompt back, for valid tokens only."""

import json

import pytest
from fake_provider_client import Attempt, Provider

from polydev.testing.fake_providers.identity.grants import TOKEN_PREFIXES
from polydev.testing.fake_providers.models import anthropic as anthropic_api
from polydev.testing.fake_providers.models.conversation import PREFACE


async def bearer(provider: Provider, attempt: Attempt, host: str, path: str) -> dict[str, str]:
    back = await provider.sign_in(attempt)
    answer = await provider.post(host, path, json=attempt.exchange(back["code"]))
    tokens = await answer.json()
    for name in ("access_token", "refresh_token", "id_token"):
        assert tokens.get(name, TOKEN_PREFIXES[0]).startswith(TOKEN_PREFIXES)
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def anthropic(provider: Provider) -> dict[str, str]:
    attempt = Attempt(
        "9d1c250a-e61b-44d9-88ed-5944d1962f5e", "http://localhost:1/callback", "claude.com"
    )
    return await bearer(provider, attempt, "platform.claude.com", "/v1/oauth/token")


async def openai(provider: Provider) -> dict[str, str]:
    return await bearer(provider, Attempt(), "auth.openai.com", "/oauth/token")


def events(text: str) -> list[dict]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


async def test_anthropic_streams_the_question_back(provider: Provider) -> None:
    body = {"stream": True, "messages": [{"role": "user", "content": "Why is 7 odd?"}]}
    answer = await provider.post(
        "api.anthropic.com", "/v1/messages", json=body, headers=await anthropic(provider)
    )
    got = events(await answer.text())
    deltas = [event["delta"]["text"] for event in got if event["type"] == "content_block_delta"]
    assert len(deltas) > 3
    assert "".join(deltas) == f"{PREFACE} Why is 7 odd?"
    assert got[-1] == {"type": "message_stop"}


async def test_anthropic_answers_whole_when_not_asked_to_stream(provider: Provider) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}
    answer = await provider.post(
        "api.anthropic.com", "/v1/messages", json=body, headers=await anthropic(provider)
    )
    assert (await answer.json())["content"][0]["text"] == f"{PREFACE} Hi"


async def test_openai_streams_the_question_back(provider: Provider) -> None:
    question = {"type": "input_text", "text": "Why is 9 odd?"}
    body = {"input": [{"type": "message", "role": "user", "content": [question]}]}
    path = "/backend-api/codex/responses"
    answer = await provider.post("chatgpt.com", path, json=body, headers=await openai(provider))
    got = events(await answer.text())
    deltas = [event["delta"] for event in got if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == f"{PREFACE} Why is 9 odd?"
    assert got[-1]["response"]["status"] == "completed"


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer sk-ant-oat01-standin-x"}, {"x-api-key": "k"}]
)
async def test_invalid_token_is_refused(provider: Provider, header: dict[str, str]) -> None:
    for host, path in (
        ("api.anthropic.com", "/v1/messages"),
        ("chatgpt.com", "/backend-api/codex/responses"),
    ):
        answer = await provider.post(host, path, json={}, headers=header)
        assert answer.status == 401


async def test_token_is_valid_for_its_provider_only(provider: Provider) -> None:
    headers = await openai(provider)
    answer = await provider.post("api.anthropic.com", "/v1/messages", json={}, headers=headers)
    assert answer.status == 401


async def test_body_must_be_an_object(provider: Provider) -> None:
    headers = await anthropic(provider)
    for body in (b"[1]", b"{", b"\xff"):
        answer = await provider.post(
            "api.anthropic.com", "/v1/messages", data=body, headers=headers
        )
        assert answer.status == 400


def test_cli_additions_are_not_the_prompt() -> None:
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": [{"type": "text", "text": "answer"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nbe kind\n</system-reminder>"},
                {"type": "text", "text": "second"},
                {"type": "text", "text": "<system-reminder>x</system-reminder>"},
            ],
        },
    ]
    assert anthropic_api.conversation({"messages": turns}).prompt == "second"


@pytest.mark.parametrize("turns", [None, [], "x", [1], [{"role": "user"}], [{"role": "tool"}]])
def test_conversation_without_a_prompt_is_empty(turns: object) -> None:
    assert anthropic_api.conversation({"messages": turns}).prompt == ""
