"""Anthropic's API: messages, and account endpoints.

`server.py` mounts it at api.anthropic.com. Answers are deterministic (`conversation.py`).
"""

import json
import posixpath
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from polydev.testing import prompt_script
from polydev.testing.fake_providers.identity.accounts import Account
from polydev.testing.fake_providers.models.base import Event, ModelApi, json_object, refusal
from polydev.testing.fake_providers.models.conversation import (
    Conversation,
    available_tools,
    last_user_text,
    parts,
    plan_entries,
)

_TOOLS: dict[type[prompt_script.Tool], str] = {
    prompt_script.Write: "Write",
    prompt_script.Run: "Bash",
    prompt_script.Plan: "TodoWrite",
}
_WORKING_FOLDER = re.compile(r"orking directory: (/\S*)")


@dataclass
class Anthropic:
    """Handlers."""

    model: ModelApi

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """Handle POST /v1/messages."""
        self._account(request)
        body = await json_object(request)
        asked = conversation(body)
        if asked.script.failure:
            error = {"type": "invalid_request_error", "message": asked.script.failure}
            raise refusal(web.HTTPBadRequest, {"type": "error", "error": error})
        content = _content(asked, _folder(body))
        message = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "standin"),
            "content": content,
            "stop_reason": "tool_use" if content[-1]["type"] == "tool_use" else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": len(asked.pieces)},
        }
        if not body.get("stream"):
            return web.json_response(message)
        return await self.model.stream(request, _events(message, asked))

    async def count_tokens(self, request: web.Request) -> web.StreamResponse:
        self._account(request)
        return web.json_response({"input_tokens": 10})

    async def profile(self, request: web.Request) -> web.StreamResponse:
        account = self._account(request)
        return web.json_response(
            {
                "account": {
                    "uuid": account.identifier("user"),
                    "email": account.email,
                    "display_name": account.name,
                    "full_name": account.name,
                    "has_claude_max": True,
                    "has_claude_pro": False,
                    "created_at": "2025-01-01T00:00:00Z",
                },
                "organization": {
                    "uuid": account.identifier("organization"),
                    "name": account.name,
                    "organization_type": "claude_max",
                    "rate_limit_tier": "default_claude_max_5x",
                    "billing_type": "stripe_subscription",
                    "has_extra_usage_enabled": False,
                },
            }
        )

    async def roles(self, request: web.Request) -> web.StreamResponse:
        account = self._account(request)
        role = {"organization_role": "admin", "workspace_role": None}
        return web.json_response({**role, "organization_name": account.name})

    async def models(self, request: web.Request) -> web.StreamResponse:
        self._account(request)
        return web.json_response({"data": [], "has_more": False})

    def _account(self, request: web.Request) -> Account:
        account = self.model.account(request, "anthropic")
        if account is None:
            reason = "the access token or API key is invalid"
            error = {"type": "authentication_error", "message": reason}
            raise refusal(web.HTTPUnauthorized, {"type": "error", "error": error})
        return account


def conversation(body: dict[str, Any]) -> Conversation:
    """Convert a messages request to a conversation."""
    prompt, results = "", list[str]()
    for message in parts(body.get("messages")):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        blocks = parts(content) if isinstance(content, list) else [{"text": content}]
        if text := last_user_text(it.get("text") for it in blocks):
            prompt, results = text, []
        results += [_result(it.get("content")) for it in blocks if it.get("type") == "tool_result"]
    names = [str(it.get("name")) for it in parts(body.get("tools"))]
    return Conversation(prompt, tuple(results), available_tools(names, _TOOLS), bool(names))


def _result(content: object) -> str:
    if isinstance(content, str):
        return content
    return " ".join(str(it.get("text", "")) for it in parts(content))


def _folder(body: dict[str, Any]) -> str:
    """Find the CLI's working folder: its Write tool needs absolute paths."""
    found = _WORKING_FOLDER.search(json.dumps([body.get("system"), body.get("messages")]))
    return found[1].partition("\\n")[0] if found else "/root"


def _content(asked: Conversation, folder: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if asked.script.thought and not asked.results:
        content.append(
            {"type": "thinking", "thinking": asked.script.thought, "signature": "c3RhbmRpbg=="}
        )
    tool = asked.next_tool
    if tool is None:
        return [*content, {"type": "text", "text": asked.answer}]
    use = {"name": asked.tools[type(tool)], "input": _input(tool, folder)}
    return [*content, {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", **use}]


def _input(tool: prompt_script.Tool, folder: str) -> dict[str, Any]:
    match tool:
        case prompt_script.Write(path, text):
            return {"file_path": posixpath.join(folder, path), "content": text + "\n"}
        case prompt_script.Run(command):
            return {"command": command, "description": "Run what was asked for"}
        case prompt_script.Plan():
            entries = plan_entries(tool)
            todos = [{"content": text, "status": it, "activeForm": text} for text, it in entries]
            return {"todos": todos}


def _events(message: dict[str, Any], asked: Conversation) -> Iterable[Event]:
    opened = {**message, "content": [], "stop_reason": None}
    yield _named("message_start", message=opened)
    for index, block in enumerate(message["content"]):
        yield from _block(index, block, asked)
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    usage = {"output_tokens": message["usage"]["output_tokens"]}
    yield _named("message_delta", delta=stop, usage=usage)
    yield _named("message_stop")


def _block(index: int, block: dict[str, Any], asked: Conversation) -> Iterable[Event]:
    empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}
    start = {**block, **empty.get(block["type"], {"input": {}})}
    yield _named("content_block_start", index=index, content_block=start)
    for delta, pause_s in _deltas(block, asked):
        event = _named("content_block_delta", index=index, delta=delta)
        yield event._replace(pause_s=pause_s)
    yield _named("content_block_stop", index=index)


def _deltas(
    block: dict[str, Any], asked: Conversation
) -> Iterable[tuple[dict[str, Any], float | None]]:
    match block["type"]:
        case "thinking":
            for word in prompt_script.split_text(block["thinking"]):
                yield {"type": "thinking_delta", "thinking": word}, None
            yield {"type": "signature_delta", "signature": block["signature"]}, None
        case "tool_use":
            text = json.dumps(block["input"])
            yield {"type": "input_json_delta", "partial_json": text}, None
        case _:
            for piece in asked.pieces:
                yield {"type": "text_delta", "text": piece}, asked.script.pause_s


def _named(name: str, **data: Any) -> Event:
    return Event(name, {"type": name, **data})
