"""Translate failed calls to a host agent into Polydev's errors.

A call fails with a `Problem` in the answer, an answer without one, or a lost or refused connection.
The inverse is the host agent's `error_mapping`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError
from websockets.exceptions import InvalidHandshake, InvalidStatus

from polydev.shared.errors import ChannelLost, Failed, HostUnreachable, PolydevError, by_code
from polydev.shared.hints import Hint
from polydev.shared.host_protocol import Problem

T = TypeVar("T")

_START_HINT = Hint.CHECK_HOST_AGENT.text()


def to_error(problem: Problem) -> PolydevError:
    """Convert a problem from the wire to its error."""
    return by_code(problem.code)(problem.message, hint=problem.hint)


def body_to_error(status: int, body: bytes) -> PolydevError:
    """Convert an answer with an error status to its error."""
    try:
        return to_error(Problem.model_validate_json(body))
    except ValidationError:
        return Failed(f"The host agent answered {status} without a reason")


def parse_answer(kind: type[T] | TypeAdapter[T], body: bytes) -> T:
    """Parse an answer of the host agent as a type. Raises Failed."""
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    try:
        return adapter.validate_json(body)
    except ValidationError:
        raise Failed(
            "The host agent sent an answer with an unexpected schema",
            hint="Use the same version of controller and host agent",
        ) from None


@contextmanager
def translate_transport_errors(what: str) -> Iterator[None]:
    """Translate transport errors into HostUnreachable."""
    try:
        yield
    except httpx.TimeoutException:
        raise HostUnreachable(f"The host agent took too long: {what}", hint=_START_HINT) from None
    except httpx.TransportError as error:
        raise HostUnreachable(
            f"The host agent does not answer ({type(error).__name__}): {what}", hint=_START_HINT
        ) from None


@contextmanager
def translate_handshake_errors(what: str) -> Iterator[None]:
    """Translate handshake errors into the agent's error or HostUnreachable."""
    try:
        yield
    except InvalidStatus as error:
        raise body_to_error(error.response.status_code, bytes(error.response.body or b"")) from None
    except (OSError, InvalidHandshake, TimeoutError, EOFError) as error:
        raise HostUnreachable(
            f"The host agent does not answer ({type(error).__name__}): {what}", hint=_START_HINT
        ) from None


def connection_lost(what: str) -> ChannelLost:
    """Create the error of a stream that ended early."""
    return ChannelLost(f"The connection to {what} was lost", hint="Try again")
