"""OpenAI's API for Codex: responses, and ChatGPT's account endpoints.

`server.py` mounts it at chatgpt.com (login tokens) and api.openai.com (API keys). Answers are
deterministic (`conversation.py`).
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator
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
    prompt_script.Write: "apply_patch",
    prompt_script.Run: "exec_command",
    prompt_script.Plan: "update_plan",
}
_CODE = "exec"
"""Codex's only tool with newer models: JavaScript that calls the others."""
_CALLABLE = re.compile(r"^### `(\w+)`$", re.MULTILINE)
_NEVER_ASKS = "Approval policy is currently never"
_RESULTS = {"function_call_output", "custom_tool_call_output"}
_ADDED = re.compile(r"\s*<(environment_context|user_instructions|turn_aborted)\b")


@dataclass
class OpenAI:
    """Handlers."""

    model: ModelApi

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """Handle /backend-api/codex/responses of ChatGPT, and /v1/responses of the API."""
        self._account(request)
        body = await json_object(request)
        asked = conversation(body)
        if asked.script.failure:
            error = {"type": "invalid_request_error", "message": asked.script.failure}
            raise refusal(web.HTTPBadRequest, {"error": error})
        return await self.model.stream(request, _events(asked, body))

    async def no_websocket(self, request: web.Request) -> web.StreamResponse:
        """Answer 426, so that Codex falls back to plain streaming at once."""
        error = {"message": "websockets are not supported"}
        return web.json_response({"error": error}, status=426)

    async def models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [], "models": []})

    async def accounts_check(self, request: web.Request) -> web.StreamResponse:
        account_id = self._account(request).identifier("account")
        account = {
            "id": account_id,
            "account_id": account_id,
            "name": "Personal",
            "plan_type": "plus",
            "structure": "personal",
            "workspace_backend_origin": "NO_CONSTRAINT",
            "account_routing_override": "NO_CONSTRAINT",
            "is_deactivated": False,
            "can_access_with_session": True,
            "profile_picture_url": None,
            "sso_connection_name": None,
            "is_fedramp_compliant_workspace": False,
        }
        order = {"account_ordering": [account_id], "default_account_id": account_id}
        return web.json_response({"accounts": [account], **order})

    def _account(self, request: web.Request) -> Account:
        account = self.model.account(request, "openai")
        if account is None:
            reason = "the access token or API key is invalid"
            error = {"type": "invalid_request_error", "code": "token_expired", "message": reason}
            raise refusal(web.HTTPUnauthorized, {"error": error})
        return account


def conversation(body: dict[str, Any]) -> Conversation:
    """Convert a responses request to a conversation."""
    prompt, results = "", list[str]()
    for item in parts(body.get("input")):
        if item.get("type") in _RESULTS:
            results.append(_result(item.get("output")))
        elif item.get("role") == "user":
            texts = [it.get("text") for it in parts(item.get("content"))]
            text = last_user_text(it for it in texts if not _ADDED.match(str(it)))
            if text:
                prompt, results = text, []
    names = set(_names(body))
    return Conversation(prompt, tuple(results), available_tools(names, _TOOLS), bool(names))


def _names(body: dict[str, Any]) -> Iterator[str]:
    """Yield the names of all tools, also of those callable only from code."""
    waiting = parts(body.get("tools"))
    for item in parts(body.get("input")):
        if item.get("type") == "additional_tools":
            waiting += parts(item.get("tools"))
    while waiting:
        tool = waiting.pop()
        waiting += parts(tool.get("tools"))
        name = str(tool.get("name"))
        yield name
        if name == _CODE:
            yield from _CALLABLE.findall(str(tool.get("description")))


def _result(output: object) -> str:
    if isinstance(output, str):
        return output
    return " ".join(str(it.get("text", "")) for it in parts(output))


def _events(asked: Conversation, body: dict[str, Any]) -> Iterable[Event]:
    response = {"id": f"resp_{secrets.token_hex(12)}", "object": "response", "output": []}
    yield _named("response.created", response={**response, "status": "in_progress"})
    output: list[dict[str, Any]] = []
    if asked.script.thought and not asked.results:
        output.append(_reasoning(asked.script.thought))
        yield from _thought(output[-1])
    tool = asked.next_tool
    if tool is None:
        output.append(_message(asked.answer))
        yield from _message_events(len(output) - 1, output[-1], asked)
    else:
        output.append(_call(tool, asked, body))
        yield _named("response.output_item.done", output_index=len(output) - 1, item=output[-1])
    count = len(asked.pieces)
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10 + count,
    }
    done = {**response, "status": "completed", "output": output, "usage": usage}
    yield _named("response.completed", response=done)


def _message(answer: str) -> dict[str, Any]:
    text = {"type": "output_text", "text": answer, "annotations": []}
    item_id = f"msg_{secrets.token_hex(12)}"
    return {"type": "message", "id": item_id, "role": "assistant", "content": [text]}


def _message_events(index: int, item: dict[str, Any], asked: Conversation) -> Iterable[Event]:
    yield _named("response.output_item.added", output_index=index, item={**item, "content": []})
    where = {"item_id": item["id"], "output_index": index, "content_index": 0}
    for piece in asked.pieces:
        event = _named("response.output_text.delta", **where, delta=piece)
        yield event._replace(pause_s=asked.script.pause_s)
    yield _named("response.output_item.done", output_index=index, item=item)


def _reasoning(thought: str) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": thought}]
    item_id = f"rs_{secrets.token_hex(12)}"
    return {"type": "reasoning", "id": item_id, "summary": summary, "encrypted_content": "c3Rh"}


def _thought(item: dict[str, Any]) -> Iterable[Event]:
    yield _named("response.output_item.added", output_index=0, item={**item, "summary": []})
    where = {"item_id": item["id"], "output_index": 0, "summary_index": 0}
    empty = {"type": "summary_text", "text": ""}
    yield _named("response.reasoning_summary_part.added", **where, part=empty)
    for word in prompt_script.split_text(item["summary"][0]["text"]):
        yield _named("response.reasoning_summary_text.delta", **where, delta=word)
    yield _named("response.output_item.done", output_index=0, item=item)


def _call(tool: prompt_script.Tool, asked: Conversation, body: dict[str, Any]) -> dict[str, Any]:
    """Build a tool call, from code if Codex uses code."""
    name, argument = asked.tools[type(tool)], _argument(tool, body)
    call = {"call_id": f"call_{secrets.token_hex(12)}"}
    if _CODE in set(_names(body)):
        code = f"const said = await tools.{name}({json.dumps(argument)});\n{_SHOW}"
        return {"type": "custom_tool_call", "name": _CODE, "input": code, **call}
    if isinstance(argument, str):
        return {"type": "custom_tool_call", "name": name, "input": argument, **call}
    return {"type": "function_call", "name": name, "arguments": json.dumps(argument), **call}


_SHOW = 'text(typeof said === "object" && said !== null && "output" in said ? said.output : said);'


def _argument(tool: prompt_script.Tool, body: dict[str, Any]) -> dict[str, Any] | str:
    match tool:
        case prompt_script.Write(path, text):
            return f"*** Begin Patch\n*** Add File: {path}\n+{text}\n*** End Patch\n"
        case prompt_script.Run(command):
            if _NEVER_ASKS in json.dumps(body.get("input")):
                return {"cmd": command}
            reason = {"justification": "It was asked for. May it run?"}
            return {"cmd": command, "sandbox_permissions": "require_escalated", **reason}
        case prompt_script.Plan():
            steps = [{"step": text, "status": status} for text, status in plan_entries(tool)]
            return {"plan": steps}


def _named(name: str, **data: Any) -> Event:
    return Event(name, {"type": name, **data})
