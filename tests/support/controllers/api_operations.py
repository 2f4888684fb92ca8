"""Read the operations of the OpenAPI document, and build requests for them.

The tenancy test fills in parameters by name. A name without a value fails the test, so that a new
operation cannot be missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

METHODS = ("get", "post", "put", "patch", "delete")


class NoValue(AssertionError):
    """A parameter for which the test has no value."""


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    about: Mapping[str, Any]
    document: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    @property
    def id(self) -> str:
        return str(self.about["operationId"])

    @property
    def scope(self) -> str | None:
        """The required scope; None for public operations."""
        for way in self.about.get("security", []):
            for scope in way.get("bearer", []):
                return str(scope)
        return None

    @property
    def is_open(self) -> bool:
        return not self.about.get("security")

    @property
    def is_stream(self) -> bool:
        """It answers with an event stream."""
        success = self.about["responses"].get("200", {})
        return "text/event-stream" in success.get("content", {})

    @property
    def names(self) -> set[str]:
        """Names of all parameters and body fields."""
        return {it["name"] for it in self.about.get("parameters", [])} | set(self._fields())

    def request(self, values: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Return arguments for httpx: required ones from `values`, others from `more`."""
        path, query = self.path, {}
        for it in self.about.get("parameters", []):
            name = it["name"]
            if it["in"] == "path":
                path = path.replace("{" + name + "}", str(_of(name, values, self)))
            elif it["in"] == "query" and (it.get("required") or name in more):
                query[name] = more.get(name, values.get(name))
        asked: dict[str, Any] = {"method": self.method, "url": path, "params": query}
        fields = self._fields()
        if "requestBody" in self.about:
            required = {name for name, needed in fields.items() if needed}
            body = {name: _of(name, values, self) for name in required}
            body |= {name: more[name] for name in fields if name in more}
            asked["json"] = body
        return asked

    def _fields(self) -> dict[str, bool]:
        """Return the body's fields, each with its required flag."""
        content = self.about.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            schema = self.document["components"]["schemas"][name]
        required = schema.get("required", [])
        return {name: name in required for name in schema.get("properties", {})}


def operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    """Yield all operations."""
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                yield Operation(method, path, methods[method], document)


def _of(name: str, values: Mapping[str, Any], operation: Operation) -> Any:
    if name not in values:
        raise NoValue(f"{operation} takes {name!r}: add a value for it")
    return values[name]
