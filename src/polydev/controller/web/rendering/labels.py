"""Text for values that the API gives as codes: scopes, states, steps, audit actions, browsers."""

from __future__ import annotations

import re

from polydev.shared.domain import Machine, MachineState, Scope, SessionStatus

SCOPE_LABELS = {
    Scope.READ: "View your own resources",
    Scope.CONNECT: "Connect and disconnect CLIs, export logins",
    Scope.MACHINES: "Create, start, stop and delete machines; run programs in them",
    Scope.CHAT: "Chat with CLIs",
    Scope.ACCOUNT: "Change the password, create tokens, delete the account",
    Scope.ADMIN: "Administer this Polydev",
}

_MACHINE_BADGES = {
    MachineState.CREATING: ("busy", "Creating"),
    MachineState.RUNNING: ("ok", "Running"),
    MachineState.STOPPING: ("busy", "Stopping"),
    MachineState.STOPPED: ("off", "Stopped"),
    MachineState.HIBERNATING: ("busy", "Hibernating"),
    MachineState.HIBERNATED: ("off", "Hibernated"),
    MachineState.RESUMING: ("busy", "Starting"),
    MachineState.DESTROYING: ("busy", "Deleting"),
    MachineState.DESTROYED: ("off", "Deleted"),
    MachineState.FAILED: ("attention", "Failed"),
}

_SESSION_BADGES = {
    SessionStatus.QUEUED: ("busy", "In queue"),
    SessionStatus.RUNNING: ("busy", "Running"),
    SessionStatus.WAITING: ("busy", "Waiting for login"),
    SessionStatus.COMPLETED: ("ok", "Completed"),
    SessionStatus.FAILED: ("bad", "Failed"),
    SessionStatus.EXPIRED: ("attention", "Timed out"),
    SessionStatus.CANCELLED: ("off", "Cancelled"),
}

_ACTIONS = {
    "account.link": "Linked the account to single sign-on",
    "account.password-change": "Changed the password",
    "account.sign-in": "Signed in",
    "account.sign-in-refused": "Sign-in rejected",
    "account.sign-out": "Signed out",
    "account.sign-up": "Created the account",
    "chat.create": "Started a chat",
    "chat.delete": "Deleted a chat",
    "credential.export": "Exported a login",
    "credential.refresh": "Login refreshed",
    "credential.revoke": "Disconnected a CLI",
    "host.activate": "Activated a host",
    "host.drain": "Drained a host",
    "host.forget": "Removed a host",
    "host.sweep": "Cleaned up a host",
    "invitation.create": "Invited a user",
    "invitation.revoke": "Revoked an invitation",
    "key.retire": "Retired an encryption key",
    "key.rotate": "Re-encrypted all secrets",
    "machine.create": "Created a machine",
    "machine.destroy": "Deleted a machine",
    "machine.fail": "Machine failed",
    "machine.hibernate": "Hibernated a machine",
    "machine.move": "Moved a machine to another host",
    "machine.resume": "Resumed a machine",
    "machine.sleep-on": "Resuming a machine failed",
    "machine.start": "Started a machine",
    "machine.stay-awake": "Hibernating a machine failed",
    "machine.stop": "Stopped a machine",
    "person.delete": "Deleted a user",
    "person.disable": "Disabled a user",
    "person.enable": "Enabled a user",
    "person.password": "Reset a user's password",
    "person.role": "Changed a user's role",
    "session.cancel": "Cancelled a connect session",
    "session.fail": "Connect session failed",
    "session.input": "Submitted a login code",
    "session.start": "Started connecting a CLI",
    "sign-in.end": "Signed out another browser",
    "token.create": "Created an API token",
    "token.revoke": "Revoked an API token",
}

_BROWSERS = (
    ("Edge", r"\bEdg(?:e|A|iOS)?/"),
    ("Opera", r"\bOPR/"),
    ("Firefox", r"\b(?:Firefox|FxiOS)/"),
    ("Chromium", r"\b(?:Headless)?(?:Chrome|CriOS|Chromium)/"),
    ("Safari", r"\bVersion/[\d.]+.* Safari/"),
    ("curl", r"^curl/"),
)
_SYSTEMS = (
    ("Android", r"\bAndroid\b"),
    ("iPhone", r"\biPhone\b"),
    ("iPad", r"\biPad\b"),
    ("Windows", r"\bWindows\b"),
    ("macOS", r"\bMac OS X\b"),
    ("ChromeOS", r"\bCrOS\b"),
    ("Linux", r"\bLinux\b"),
)
_MAX_USER_AGENT = 40


def machine_badge(machine: Machine) -> tuple[str, str]:
    """Badge kind and text for a machine."""
    if machine.status is MachineState.RESUMING and machine.has_saved_memory:
        return "busy", "Resuming"
    return _MACHINE_BADGES[machine.status]


def state_badge(status: str) -> tuple[str, str]:
    """Badge kind and text for a machine of which only the state is known."""
    return _MACHINE_BADGES[MachineState(status)]


def session_badge(status: str) -> tuple[str, str]:
    """Badge kind and text for a connect session."""
    return _SESSION_BADGES[SessionStatus(status)]


def action_label(name: str) -> str:
    """Text for an audit action; an unknown action keeps its name."""
    return _ACTIONS.get(name, name.replace(".", ": ").replace("-", " "))


def browser_label(user_agent: str) -> str:
    """Browser and operating system of a User-Agent header: `Firefox on Linux`."""
    program = _first_match(_BROWSERS, user_agent)
    system = _first_match(_SYSTEMS, user_agent)
    if program and system:
        return f"{program} on {system}"
    return program or system or user_agent[:_MAX_USER_AGENT] or "Unknown program"


def _first_match(patterns: tuple[tuple[str, str], ...], text: str) -> str:
    return next((name for name, pattern in patterns if re.search(pattern, text)), "")
