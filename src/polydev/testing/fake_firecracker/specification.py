"""The API's specification, and validation of requests against it.

Firecracker rejects unknown fields, which the specification does not say: here every object is
closed. The driver's tests use it too. Source: Swagger 2.0; its schemas are those of JSON Schema
draft 4.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonschema import Draft4Validator

_FILE = Path(__file__).with_name("firecracker-api-1.13.1.json")


class SpecError(ValueError):
    """A request or response that violates the specification."""


@lru_cache(maxsize=1)
def specification() -> dict[str, Any]:
    """Load the document, with closed objects. Blocking the first time."""
    document: dict[str, Any] = json.loads(_FILE.read_bytes())
    for definition in document["definitions"].values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    return document


def check(method: str, path: str, body: object | None) -> str:
    """Return a request's operation id. Raises: SpecError."""
    template, named = _path(path)
    operation = specification()["paths"][template].get(method.lower())
    if operation is None:
        raise SpecError(f"There is no {method} {template}")
    given = next((it for it in operation.get("parameters", ()) if it["in"] == "body"), None)
    if given is None:
        if body is not None:
            raise SpecError(f"{method} {template} takes no body")
        return str(operation["operationId"])
    if body is None:
        raise SpecError(f"{method} {template} needs a body")
    for error in _validator(given["schema"]["$ref"]).iter_errors(body):
        where = "/".join(map(str, error.absolute_path)) or "the body"
        raise SpecError(f"{method} {template}: {where}: {error.message}")
    for name, value in named.items():
        if isinstance(body, dict) and body.get(name) != value:
            raise SpecError(f"{method} {template}: the path says {value}, the body another {name}")
    return str(operation["operationId"])


def check_answer(operation_id: str, status: int, body: object | None) -> None:
    """Validate a response. Raises: SpecError."""
    for methods in specification()["paths"].values():
        for operation in methods.values():
            if operation["operationId"] == operation_id:
                answers = operation["responses"]
                schema = answers.get(str(status), answers["default"]).get("schema")
                if schema is None and body is None:
                    return
                if schema is None or not _validator(schema["$ref"]).is_valid(body):
                    raise SpecError(f"{operation_id} cannot be answered with {status} {body}")
                return
    raise SpecError(f"There is no operation {operation_id}")


def _path(path: str) -> tuple[str, dict[str, str]]:
    for template in specification()["paths"]:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[A-Za-z0-9_]+)", template)
        if found := re.fullmatch(pattern, path):
            return template, found.groupdict()
    raise SpecError(f"There is no {path}")


@lru_cache(maxsize=64)
def _validator(reference: str) -> Draft4Validator:
    return Draft4Validator({"$ref": reference, "definitions": specification()["definitions"]})
