"""Compute a home-page card for each CLI from the user's stored records.

Pure: no HTTP, no HTML, no database.
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
    step_label,
)
from polydev.shared.providers import Provider

Row = TypeVar("Row", ConnectSession, Credential)


class BadgeKind(StrEnum):
    """Kind of a card's badge; the value is a CSS class."""

    OFF = "off"
    BUSY = "busy"
    CONNECTED = "ok"
    ATTENTION = "attention"


class CardAction(StrEnum):
    """The main action that a card offers."""

    CONNECT = "connect"
    RECONNECT = "reconnect"
    CONTINUE = "continue"
    CHAT = "chat"
    START_MACHINE = "start-machine"
    OPEN_MACHINE = "open-machine"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class UserRecords:
    """Stored records of one user, from which the cards are computed."""

    sessions: Sequence[ConnectSession]
    """Newest first."""
    credentials: Sequence[Credential]
    """Newest first."""
    machines: Sequence[Machine]


@dataclass(frozen=True, slots=True)
class Card:
    """State of one CLI as the home page shows it."""

    provider: Provider
    badge: BadgeKind
    label: str
    """Text of the badge."""
    message: str
    action: CardAction
    session: ConnectSession | None = None
    credential: Credential | None = None
    machine: Machine | None = None


def make_cards(providers: Iterable[Provider], records: UserRecords, at: datetime) -> list[Card]:
    """Make one card for each CLI."""
    return [make_card(provider, records, at) for provider in providers]


def make_card(provider: Provider, records: UserRecords, at: datetime) -> Card:
    """Make the card of one CLI."""
    session = _newest(records.sessions, provider)
    if session is not None and not session.status.is_end:
        return _connecting(provider, session)
    credential = _newest(records.credentials, provider)
    if credential is None:
        return _not_connected(provider, session)
    if credential.revoked_at is not None:
        message = "Removing the login from your machine."
        return Card(provider, BadgeKind.BUSY, "Disconnecting", message, CardAction.NONE)
    machine = next((it for it in records.machines if it.vm_id == credential.vm_id), None)
    return _connected(provider, credential, machine, at)


def _connecting(provider: Provider, session: ConnectSession) -> Card:
    badge, action = BadgeKind.BUSY, CardAction.CONTINUE
    if session.cancel_requested_at is not None:
        label, message = "Cancelling", "Cancelling the login."
    elif session.status is SessionStatus.WAITING:
        badge = BadgeKind.ATTENTION
        label, message = "Waiting for you", "Log in to continue."
    elif session.status is SessionStatus.QUEUED:
        label, message = "In queue", "Starts when a machine is free."
    else:
        label, message = "Connecting", f"{step_label(session.step or 'starting')}."
    return Card(provider, badge, label, message, action, session)


def _not_connected(provider: Provider, session: ConnectSession | None) -> Card:
    badge, label, action = BadgeKind.OFF, "Not connected", CardAction.CONNECT
    if session is not None and session.status in (SessionStatus.FAILED, SessionStatus.EXPIRED):
        cause = (session.error or "The login did not complete").rstrip(".")
        message = f"The last attempt failed. {cause}."
        return Card(provider, badge, label, message, action, session)
    return Card(provider, badge, label, "Log in once to use it in your machine.", action)


def _connected(
    provider: Provider, credential: Credential, machine: Machine | None, at: datetime
) -> Card:
    problem = _login_problem(provider, credential, at)
    if problem is None and machine is None:
        problem = "Its machine no longer exists."
    if problem is not None or machine is None:
        shown = BadgeKind.ATTENTION, _ATTENTION, problem or "", CardAction.RECONNECT
    elif machine.status is MachineState.RUNNING:
        shown = BadgeKind.CONNECTED, "Connected", "Ready in your machine.", CardAction.CHAT
    elif machine.status.is_hibernated:
        shown = BadgeKind.CONNECTED, "Connected", _HIBERNATED, CardAction.CHAT
    elif machine.status is MachineState.STOPPED:
        message = "Its machine is stopped."
        shown = BadgeKind.ATTENTION, _ATTENTION, message, CardAction.START_MACHINE
    elif machine.status is MachineState.FAILED:
        cause = f" {machine.error.rstrip('.')}." if machine.error else ""
        message = f"Its machine failed.{cause}"
        shown = BadgeKind.ATTENTION, _ATTENTION, message, CardAction.OPEN_MACHINE
    else:
        message = _TRANSITIONS.get(machine.status, f"Its machine is {machine.status}.")
        shown = BadgeKind.BUSY, "Connected", message, CardAction.OPEN_MACHINE
    return Card(provider, *shown, None, credential, machine)


def _login_problem(provider: Provider, credential: Credential, at: datetime) -> str | None:
    if credential.validity is Validity.INVALID:
        return f"{provider.name} is logged out."
    if credential.expires_at is not None and credential.expires_at <= at:
        return "The login has expired."
    return None


def _newest(rows: Sequence[Row], provider: Provider) -> Row | None:
    return next((row for row in rows if row.provider == provider.id), None)


_ATTENTION = "Needs attention"
_HIBERNATED = "Its machine resumes from hibernation when you use it."

_TRANSITIONS = {
    MachineState.CREATING: "Its machine is being created.",
    MachineState.STOPPING: "Its machine is stopping.",
    MachineState.RESUMING: "Its machine is starting.",
    MachineState.DESTROYING: "Its machine is being deleted.",
}
