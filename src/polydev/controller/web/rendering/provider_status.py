"""How each CLI stands with a person, in words: what `home.py` shows.

One function from what the database knows to a card. It must not know HTTP or HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from polydev.shared.domain import (
    ConnectSession,
    Credential,
    Machine,
    MachineState,
    SessionStatus,
    Validity,
)
from polydev.shared.providers import Provider

Row = TypeVar("Row", ConnectSession, Credential)


class State(StrEnum):
    """What a card's badge says; the value is its class."""

    OFF = "off"
    BUSY = "busy"
    CONNECTED = "ok"
    ATTENTION = "attention"


class Help(StrEnum):
    """The one thing that helps now."""

    CONNECT = "connect"
    CONNECT_AGAIN = "connect-again"
    CONTINUE = "continue"
    CHAT = "chat"
    START_MACHINE = "start-machine"
    SEE_MACHINE = "see-machine"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Known:
    """What the database knows of a person's CLIs."""

    sessions: Sequence[ConnectSession]
    """The newest first."""
    credentials: Sequence[Credential]
    """The newest first."""
    machines: Sequence[Machine]


@dataclass(frozen=True, slots=True)
class Card:
    """How one CLI stands."""

    provider: Provider
    state: State
    words: str
    """What the badge says."""
    reason: str
    help: Help
    session: ConnectSession | None = None
    credential: Credential | None = None
    machine: Machine | None = None


def card(provider: Provider, known: Known, at: datetime) -> Card:
    """How that CLI stands."""
    session = _first(known.sessions, provider)
    if session is not None and not session.status.is_end:
        return _connecting(provider, session)
    credential = _first(known.credentials, provider)
    if credential is None:
        return _not_connected(provider, session)
    if credential.revoked_at is not None:
        reason = "The login is being removed from its machine."
        return Card(provider, State.BUSY, "Disconnecting", reason, Help.NOTHING)
    machine = next((it for it in known.machines if it.vm_id == credential.vm_id), None)
    return _connected(provider, credential, machine, at)


def _connecting(provider: Provider, session: ConnectSession) -> Card:
    if session.cancel_requested_at is not None:
        reason = "What was begun is being undone."
        return Card(provider, State.BUSY, "Cancelling", reason, Help.CONTINUE, session)
    if session.status is SessionStatus.WAITING:
        reason = "Everything is ready: log in to go on."
        return Card(provider, State.ATTENTION, "Waiting for you", reason, Help.CONTINUE, session)
    queued = session.status is SessionStatus.QUEUED
    reason = "It begins as soon as there is room." if queued else _STEPS.get(session.step or "", "")
    words = "Waiting for room" if queued else "Connecting"
    return Card(provider, State.BUSY, words, reason or "It has begun.", Help.CONTINUE, session)


def _not_connected(provider: Provider, session: ConnectSession | None) -> Card:
    ended = None if session is None else session.status
    if session is not None and ended in (SessionStatus.FAILED, SessionStatus.EXPIRED):
        why = session.error or "It ended without a login"
        reason = f"The last try did not work. {why.rstrip('.')}."
        return Card(provider, State.OFF, "Not connected", reason, Help.CONNECT, session)
    reason = "Log in once; then it works in your machine."
    return Card(provider, State.OFF, "Not connected", reason, Help.CONNECT)


def _connected(
    provider: Provider, credential: Credential, machine: Machine | None, at: datetime
) -> Card:
    over = _why_over(provider, credential, at)
    if over is None and machine is None:
        over = "The machine that it was logged in in is gone."
    if over is not None or machine is None:
        told = State.ATTENTION, _WRONG, over or "", Help.CONNECT_AGAIN
    elif machine.status is MachineState.RUNNING:
        told = State.CONNECTED, "Connected", "Ready in your machine.", Help.CHAT
    elif machine.status.is_hibernated:
        told = State.CONNECTED, "Connected", _SLEEPS, Help.CHAT
    elif machine.status is MachineState.STOPPED:
        told = State.ATTENTION, _WRONG, "Its machine is stopped.", Help.START_MACHINE
    elif machine.status is MachineState.FAILED:
        why = (machine.error or "It failed").rstrip(".")
        told = State.ATTENTION, _WRONG, f"Its machine does not work. {why}.", Help.SEE_MACHINE
    else:
        words = _MACHINE.get(machine.status, f"Its machine is {machine.status}.")
        told = State.BUSY, "Connected", words, Help.SEE_MACHINE
    return Card(provider, *told, None, credential, machine)


def _why_over(provider: Provider, credential: Credential, at: datetime) -> str | None:
    if credential.validity is Validity.INVALID:
        return f"{provider.name} says that it is no longer logged in."
    if credential.expires_at is not None and credential.expires_at <= at:
        return "The login has ended."
    return None


def cards(providers: Iterable[Provider], known: Known, at: datetime) -> list[Card]:
    """One for each CLI."""
    return [card(provider, known, at) for provider in providers]


def _first(rows: Sequence[Row], provider: Provider) -> Row | None:
    return next((row for row in rows if row.provider == provider.id), None)


_WRONG = "Needs attention"
_SLEEPS = "Its machine sleeps, and wakes when you speak to it."

_STEPS = {
    "wait-for-room": "It waits for room.",
    "create-machines": "The machines are being made.",
    "browser-ready": "The browser machine starts.",
    "start-login": "The login is being prepared.",
    "capture": "The login is being taken over.",
    "write": "The login is being put into your machine.",
    "destroy-browser": "The browser machine is being removed.",
}

_MACHINE = {
    MachineState.CREATING: "Its machine is being made.",
    MachineState.STOPPING: "Its machine stops.",
    MachineState.RESUMING: "Its machine wakes up.",
    MachineState.DESTROYING: "Its machine is being destroyed.",
}
