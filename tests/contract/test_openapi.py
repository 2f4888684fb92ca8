"""Test that the API conforms to its OpenAPI document.

schemathesis sends each operation of a real controller (with simulated machines) valid and invalid
requests, with existing and made-up ids, always the same ones.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import pytest
import schemathesis
from api_operations import operations
from api_users import TestUser, create_user
from controller_process import TOKEN
from controller_world import World, open_world
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode, checks
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks as oas

from polydev.controller.api.server import build_routes

EXAMPLES = int(os.environ.get("POLYDEV_OPENAPI_EXAMPLES", "4"))
"""Requests of each kind that each operation gets: `make soak` has 25."""

ENDLESS = {"listenToEvents", "listenToChat"}
"""Endless streams, which have tests of their own."""
ENDS_ACCESS = {"deleteMyAccount", "deleteAccount", "signOut"}
"""Operations that would end the caller's access."""

_CHECKS = [
    checks.not_a_server_error,
    oas.status_code_conformance,
    oas.content_type_conformance,
    oas.response_headers_conformance,
    oas.response_schema_conformance,
    oas.negative_data_rejection,
    oas.missing_required_header,
]
_SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


async def _ids(world: World, user: TestUser) -> dict[str, str]:
    """Return ids of existing resources."""
    controller = world.controller
    async with user.by_cookie() as client:
        machine = (await client.post("/api/vm/create", json={"vmType": "cli"})).json()
        started = (await client.post("/api/auth/start", json={"provider": "codex"})).json()
        session = (await client.get(f"/api/auth/session/{started['sessionId']}")).json()
        while session["endedAt"] is None:
            path = f"/api/auth/session/{session['sessionId']}?after={session['version']}&wait=20"
            session = (await client.get(path)).json()
        credentials = (await client.get("/api/credentials")).json()
        chat = (await client.post("/api/chats", json={"provider": "codex"})).json()
    token_id, _ = await user.token("read")
    keys = await controller.call("GET", "/api/admin/keys")
    return {
        "vmId": machine["vm_id"],
        "sessionId": session["sessionId"],
        "credential_id": credentials[0]["credentialId"],
        "token_id": token_id,
        "sign_in_id": "0123456789abcdef",
        "invitation_id": "0123456789abcdef",
        "hostId": "local",
        "chatId": chat["chatId"],
        "key_id": keys[0]["keyId"],
    }


def _failures(document: dict[str, Any], ids: Mapping[str, str], **how: Any) -> Iterator[str]:
    """Yield the failures of all operations. Blocks."""
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        about = operation.definition.raw
        if about["operationId"] in ENDLESS | ENDS_ACCESS:
            continue
        names = {it["name"] for it in about.get("parameters", []) if it["in"] == "path"}
        there = {name: value for name, value in ids.items() if name in names}
        for mode, fixed in product(GenerationMode, [None, there] if there else [None]):
            cases = operation.as_strategy(generation_mode=mode, path_parameters=fixed)
            try:
                _test_of(cases, about, how)()
            except Unsatisfiable:
                continue  # an operation without input has no invalid requests
            except (Exception, FailureGroup) as error:
                yield f"{operation.label} ({mode.value}): {_text(error)}"


def _text(error: BaseException) -> str:
    """Return the text of a failure with its sub-failures."""
    return "\n".join([str(error), *(_text(it) for it in getattr(error, "exceptions", ()))])


def _test_of(
    cases: SearchStrategy[Case], about: Mapping[str, Any], how: dict[str, Any]
) -> Callable[[], None]:
    @_SETTINGS
    @given(case=cases)
    def conforms(case: Case) -> None:
        answer = case.call(**how)
        if answer.status_code == 413:  # also a refusal, unknown to schemathesis
            case.validate_response(answer, _CHECKS, excluded_checks=[oas.negative_data_rejection])
        else:
            case.validate_response(answer, _CHECKS)
        _check_problem(about, answer.status_code, answer.headers, answer.text)

    return conforms


def _check_problem(about: Mapping[str, Any], status: int, headers: Any, text: str) -> None:
    """Check that an error is a problem with a documented code."""
    if status < 400:
        return
    problem = json.loads(text)
    documented = about["responses"][str(status)]["content"]["application/problem+json"]["schema"]
    codes = documented["properties"]["code"]["enum"]
    assert problem["code"] in codes, f"{status} {problem['code']} is not among {codes}"
    assert problem["status"] == status
    assert (status != 401) or "www-authenticate" in headers
    assert (status not in (429, 503)) or int(dict(headers)["retry-after"][0]) >= 1


@pytest.mark.parametrize("who", ["a user", "an administrator"])
async def test_every_response_is_documented(who: str) -> None:
    async with open_world() as world:
        await world.controller.start()
        document = await world.controller.call("GET", "/openapi.json")
        user = await create_user(world.controller, "fuzzed")
        ids = await _ids(world, user)
        _, token = await user.token("read", "connect", "machines", "chat", "account")
        how = {
            "base_url": f"http://127.0.0.1:{world.controller.port}",
            "headers": {"Authorization": f"Bearer {token if who == 'a user' else TOKEN}"},
            "timeout": 90,  # longer than any wait that a request asks for
        }
        failures = await asyncio.to_thread(lambda: list(_failures(document, ids, **how)))
        assert not failures, "\n\n".join(failures)
        log = world.controller.log.read_text()
        assert "Traceback" not in log, log


def test_document_describes_all_operations() -> None:
    document = build_routes(None).openapi()
    every = list(operations(document))
    ids = [it.id for it in every]
    assert len(set(ids)) == len(ids), "operation ids name one operation each"
    described = {it["name"] for it in document["tags"]}
    for it in every:
        assert it.about["description"], str(it)
        assert set(it.about["tags"]) <= described, f"{it}: its tag is not described"
        statuses = set(it.about["responses"])
        assert {"403", "413", "422", "503"} <= statuses, str(it)
        assert ("401" in statuses) or it.is_open, str(it)
        for status, answer in it.about["responses"].items():
            if int(status) >= 400:
                assert set(answer["content"]) == {"application/problem+json"}, (str(it), status)
                assert answer["content"]["application/problem+json"]["examples"]
        for parameter in it.about.get("parameters", []):
            assert _is_bounded(parameter["schema"]), (str(it), parameter["name"])


def _is_bounded(schema: Mapping[str, Any]) -> bool:
    """Check that a parameter has a limit."""
    if "anyOf" in schema:
        return all(_is_bounded(it) for it in schema["anyOf"])
    if {"enum", "$ref", "const"} & set(schema):
        return True
    if schema.get("type") == "string":
        return bool({"maxLength", "pattern", "format"} & set(schema))
    if schema.get("type") in ("integer", "number"):
        return "minimum" in schema and "maximum" in schema
    return schema.get("type") in ("boolean", "null")


async def test_document_is_printed_without_a_controller(tmp_path: Any) -> None:
    from typer.testing import CliRunner

    from polydev.cli.main import app

    file = tmp_path / "openapi.json"
    result = await asyncio.to_thread(CliRunner().invoke, app, ["openapi", "-o", str(file)])
    assert result.exit_code == 0, result.output
    assert json.loads(file.read_text()) == json.loads(json.dumps(build_routes(None).openapi()))
