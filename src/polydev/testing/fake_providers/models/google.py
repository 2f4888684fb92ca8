"""Google's APIs for Gemini CLI: Code Assist for a login, Gemini API for a key.

`server.py` mounts it at googleapis.com hosts. It includes the endpoints that identify a token's
owner. Answers are deterministic (`conversation.py`).
"""

import json
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
    prompt_script.Write: "write_file",
    prompt_script.Run: "run_shell_command",
    prompt_script.Plan: "write_todos",
}
_PROJECT = "standin-project"
_TIER = {"id": "standard-tier", "name": "Fake tier"}
# Answer to the CLI's internal requests for JSON; it picks the fields that it needs.
_IN_JSON = {
    "reasoning": "the fake model always answers this",
    "model_choice": "flash",
    "next_speaker": "user",
    "complexity_score": 10,
    "complexity_reasoning": "the fake model always answers this",
}
_CODE_ASSIST: dict[str, dict[str, Any]] = {
    "loadCodeAssist": {
        "currentTier": _TIER,
        "allowedTiers": [{**_TIER, "isDefault": True}],
        "cloudaicompanionProject": _PROJECT,
    },
    "onboardUser": {"done": True, "response": {"cloudaicompanionProject": {"id": _PROJECT}}},
    "retrieveUserQuota": {"buckets": []},
    "countTokens": {"totalTokens": 10},
    "listExperiments": {},
    "fetchAdminControls": {},
    "recordCodeAssistMetrics": {},
    "getCodeAssistGlobalUserSetting": {},
    "setCodeAssistGlobalUserSetting": {},
}


@dataclass
class Google:
    """Handlers."""

    model: ModelApi

    async def code_assist(self, request: web.Request) -> web.StreamResponse:
        """Handle POST /v1internal:{method}."""
        self._account(request)
        method = request.match_info["method"]
        if method in _CODE_ASSIST:
            return web.json_response(_CODE_ASSIST[method])
        if method not in {"generateContent", "streamGenerateContent"}:
            raise refusal(web.HTTPNotFound, _error(404, "NOT_FOUND", "no such method"))
        body = await json_object(request)
        inner = body.get("request")
        asked = inner if isinstance(inner, dict) else {}
        return await self._generate(request, asked, is_wrapped=True)

    async def gemini(self, request: web.Request) -> web.StreamResponse:
        """Handle POST /v1beta/models/{model}:{method}."""
        self._account(request)
        if request.match_info["method"] == "countTokens":
            return web.json_response({"totalTokens": 10})
        return await self._generate(request, await json_object(request), is_wrapped=False)

    async def models(self, request: web.Request) -> web.StreamResponse:
        self._account(request)
        return web.json_response({"models": []})

    async def token_info(self, request: web.Request) -> web.StreamResponse:
        """Describe a valid access token; 400 for others, as at Google."""
        account = self.model.account(request, "google")
        if account is None:
            raise refusal(web.HTTPBadRequest, {"error": "invalid_token"})
        return web.json_response(
            {"email": account.email, "expires_in": "3500", "scope": "openid", "sub": _sub(account)}
        )

    async def user_info(self, request: web.Request) -> web.StreamResponse:
        account = self._account(request)
        about = {"email": account.email, "verified_email": True, "name": account.name}
        return web.json_response({"id": _sub(account), **about})

    async def log(self, request: web.Request) -> web.StreamResponse:
        """Handle POST play.googleapis.com/log, usage statistics; they are discarded."""
        return web.json_response({})

    async def _generate(
        self, request: web.Request, body: dict[str, Any], *, is_wrapped: bool
    ) -> web.StreamResponse:
        asked = conversation(body)
        if asked.script.failure:
            reason = asked.script.failure
            raise refusal(web.HTTPBadRequest, _error(400, "INVALID_ARGUMENT", reason))
        answer = _Answer(is_wrapped)
        if _wants_json(body):
            events = [answer.chunk([{"text": json.dumps(_IN_JSON)}], is_last=True)]
        else:
            events = list(_events(asked, answer))
        if request.match_info["method"] == "streamGenerateContent":
            return await self.model.stream(request, events)
        whole = [part for event in events for part in answer.parts_of(event)]
        return web.json_response(answer.chunk(_joined(whole), is_last=True).data)

    def _account(self, request: web.Request) -> Account:
        account = self.model.account(request, "google")
        if account is None:
            reason = "the access token or API key is invalid"
            raise refusal(web.HTTPUnauthorized, _error(401, "UNAUTHENTICATED", reason))
        return account


@dataclass(frozen=True)
class _Answer:
    """The answer's format: Code Assist wraps the Gemini API's."""

    is_wrapped: bool

    def chunk(self, content_parts: list[dict[str, Any]], *, is_last: bool = False) -> Event:
        candidate: dict[str, Any] = {
            "content": {"role": "model", "parts": content_parts},
            "index": 0,
        }
        if is_last:
            candidate["finishReason"] = "STOP"
        usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
        answer = {
            "candidates": [candidate],
            "usageMetadata": usage,
            "modelVersion": "gemini-standin",
            "responseId": secrets.token_hex(8),
        }
        return Event("", {"response": answer, "traceId": "standin"} if self.is_wrapped else answer)

    def parts_of(self, event: Event) -> list[dict[str, Any]]:
        answer = event.data["response"] if self.is_wrapped else event.data
        return list(answer["candidates"][0]["content"]["parts"])


def conversation(body: dict[str, Any]) -> Conversation:
    """Convert a content request to a conversation."""
    prompt, results = "", list[str]()
    for content in parts(body.get("contents")):
        if content.get("role") != "user":
            continue
        content_parts = parts(content.get("parts"))
        answered = [it["functionResponse"] for it in content_parts if "functionResponse" in it]
        results += [_result(it) for it in answered]
        text = last_user_text(it.get("text") for it in content_parts)
        if text and not answered:
            prompt, results = text, []
    names = [
        str(declared.get("name"))
        for tool in parts(body.get("tools"))
        for declared in parts(tool.get("functionDeclarations"))
    ]
    return Conversation(prompt, tuple(results), available_tools(names, _TOOLS), bool(names))


def _result(answered: object) -> str:
    response = answered.get("response") if isinstance(answered, dict) else None
    fields = response if isinstance(response, dict) else {}
    return str(fields.get("output", fields.get("error", "")))


def _events(asked: Conversation, answer: _Answer) -> Iterable[Event]:
    if asked.script.thought and not asked.results:
        yield answer.chunk([{"text": f"**Thinking**\n{asked.script.thought}", "thought": True}])
    tool = asked.next_tool
    if tool is not None:
        call = {"name": asked.tools[type(tool)], "args": _arguments(tool)}
        yield answer.chunk([{"functionCall": call}], is_last=True)
        return
    *most, last = asked.pieces
    for piece in most:
        yield answer.chunk([{"text": piece}])._replace(pause_s=asked.script.pause_s)
    yield answer.chunk([{"text": last}], is_last=True)


def _arguments(tool: prompt_script.Tool) -> dict[str, Any]:
    match tool:
        case prompt_script.Write(path, text):
            return {"file_path": path, "content": text + "\n"}
        case prompt_script.Run(command):
            return {"command": command, "description": "Run what was asked for"}
        case prompt_script.Plan():
            entries = plan_entries(tool)
            return {"todos": [{"description": text, "status": status} for text, status in entries]}


def _joined(content_parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the texts of a complete answer into one part."""
    text = "".join(
        str(it["text"]) for it in content_parts if "text" in it and not it.get("thought")
    )
    return [*([{"text": text}] if text else []), *(it for it in content_parts if "text" not in it)]


def _wants_json(body: dict[str, Any]) -> bool:
    config = body.get("generationConfig")
    return isinstance(config, dict) and config.get("responseMimeType") == "application/json"


def _sub(account: Account) -> str:
    return str(int(account.identifier("user").replace("-", ""), 16))[:21]


def _error(code: int, status: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message}}
