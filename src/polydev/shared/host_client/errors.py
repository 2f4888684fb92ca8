"""What went wrong between controller and host agent, as errors of `errors.py`.

The one place of this package where foreign exceptions and problem bodies are translated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError
from websockets.exceptions import InvalidHandshake, InvalidStatus

from polydev.shared.errors import ChannelLost, Failed, HostUnreachable, PolydevError, by_code
from polydev.shared.host_protocol import Problem

T = TypeVar("T")

_START_IT = "See that the host agent runs: `polydev doctor`"


def raised_from(problem: Problem) -> PolydevError:
    """The typed error that a problem on the wire stands for."""
    return by_code(problem.code)(problem.message, hint=problem.hint)


def from_body(status: int, body: bytes) -> PolydevError:
    """The typed error of an answer with an error status."""
    try:
        return raised_from(Problem.model_validate_json(body))
    except ValidationError:
        return Failed(f"The host agent answered {status} without saying why")


def parsed(text: str | bytes) -> Any:
    """JSON from the host agent. Raises Failed when it is none."""
    try:
        return json.loads(text)
    except ValueError:
        raise Failed("The host agent answered something that is not JSON") from None


def shaped(kind: type[T] | TypeAdapter[T], body: bytes) -> T:
    """What the host agent answered, as its type. Raises Failed."""
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    try:
        return adapter.validate_json(body)
    except ValidationError:
        raise Failed(
            "The host agent answered something of the wrong shape",
            hint="Controller and host agent must be of the same version",
        ) from None


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise HostUnreachable for whatever keeps the host agent from answering."""
    try:
        yield
    except httpx.TimeoutException:
        raise HostUnreachable(f"The host agent took too long: {what}", hint=_START_IT) from None
    except httpx.TransportError as error:
        raise HostUnreachable(
            f"The host agent does not answer ({type(error).__name__}): {what}", hint=_START_IT
        ) from None


@contextmanager
def translated_handshake(what: str) -> Iterator[None]:
    """Raise the agent's own error when it refused a stream, HostUnreachable when it is away."""
    try:
        yield
    except InvalidStatus as error:
        raise from_body(error.response.status_code, bytes(error.response.body or b"")) from None
    except (OSError, InvalidHandshake, TimeoutError, EOFError) as error:
        raise HostUnreachable(
            f"The host agent does not answer ({type(error).__name__}): {what}", hint=_START_IT
        ) from None


def cut(what: str) -> ChannelLost:
    """The error of a stream that ended before its end."""
    return ChannelLost(f"The connection to {what} was cut", hint="Try again")
