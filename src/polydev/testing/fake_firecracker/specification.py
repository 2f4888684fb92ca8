"""The API's specification, and whether a request is one of it. The tests of the driver ask, too.

Firecracker takes no field that it does not know, which the specification does not say: here every
object is closed. Source: Swagger 2.0; its schemas are those of JSON Schema draft 4.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonschema import Draft4Validator

_FILE = Path(__file__).with_name("firecracker-api-1.13.1.json")


class Invalid(ValueError):
    """A request that the specification does not have: why, in words."""


@lru_cache(maxsize=1)
def specification() -> dict[str, Any]:
    """The whole document, its objects closed. Blocking the first time."""
    document: dict[str, Any] = json.loads(_FILE.read_bytes())
    for definition in document["definitions"].values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    return document


def check(method: str, path: str, body: object | None) -> str:
    """Which operation a request is. Raises: Invalid."""
    template, named = _path(path)
    operation = specification()["paths"][template].get(method.lower())
    if operation is None:
        raise Invalid(f"There is no {method} {template}")
    given = next((it for it in operation.get("parameters", ()) if it["in"] == "body"), None)
    if given is None:
        if body is not None:
            raise Invalid(f"{method} {template} takes no body")
        return str(operation["operationId"])
    if body is None:
        raise Invalid(f"{method} {template} needs a body")
    for error in _validator(given["schema"]["$ref"]).iter_errors(body):
        where = "/".join(map(str, error.absolute_path)) or "the body"
        raise Invalid(f"{method} {template}: {where}: {error.message}")
    for name, value in named.items():
        if isinstance(body, dict) and body.get(name) != value:
            raise Invalid(f"{method} {template}: the path says {value}, the body another {name}")
    return str(operation["operationId"])


def check_answer(operation_id: str, status: int, body: object | None) -> None:
    """Whether that operation may be answered so. Raises: Invalid."""
    for methods in specification()["paths"].values():
        for operation in methods.values():
            if operation["operationId"] == operation_id:
                answers = operation["responses"]
                schema = answers.get(str(status), answers["default"]).get("schema")
                if schema is None and body is None:
                    return
                if schema is None or not _validator(schema["$ref"]).is_valid(body):
                    raise Invalid(f"{operation_id} is not answered with {status} {body}")
                return
    raise Invalid(f"There is no operation {operation_id}")


def _path(path: str) -> tuple[str, dict[str, str]]:
    for template in specification()["paths"]:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[A-Za-z0-9_]+)", template)
        if found := re.fullmatch(pattern, path):
            return template, found.groupdict()
    raise Invalid(f"There is no {path}")


@lru_cache(maxsize=64)
def _validator(reference: str) -> Draft4Validator:
    return Draft4Validator({"$ref": reference, "definitions": specification()["definitions"]})
