"""Words for what the API calls by a name: scopes, machines' states, actions of the audit log,
browsers."""

from __future__ import annotations

import re

from polydev.shared.domain import Machine, MachineState, Scope

SCOPES = {
    Scope.READ: "See what is yours",
    Scope.CONNECT: "Log CLIs in and out, export logins",
    Scope.MACHINES: "Make, start, stop and destroy machines; run programs in them",
    Scope.CHAT: "Talk to CLIs",
    Scope.ACCOUNT: "Change the password, make tokens, delete the account",
    Scope.ADMIN: "Administer this Polydev",
}

_MACHINES = {
    MachineState.CREATING: ("busy", "Being made"),
    MachineState.RUNNING: ("ok", "Running"),
    MachineState.STOPPING: ("busy", "Stopping"),
    MachineState.STOPPED: ("off", "Stopped"),
    MachineState.HIBERNATING: ("busy", "Falling asleep"),
    MachineState.HIBERNATED: ("off", "Asleep"),
    MachineState.RESUMING: ("busy", "Starting"),
    MachineState.DESTROYING: ("busy", "Being destroyed"),
    MachineState.DESTROYED: ("off", "Destroyed"),
    MachineState.FAILED: ("attention", "Failed"),
}

_ACTIONS = {
    "account.link": "Joined the account to a single sign-on",
    "account.password-change": "Changed the password",
    "account.sign-in": "Signed in",
    "account.sign-in-refused": "A sign-in was refused",
    "account.sign-out": "Signed out",
    "account.sign-up": "Made the account",
    "chat.create": "Began a chat",
    "chat.delete": "Deleted a chat",
    "credential.export": "Exported a login",
    "credential.refresh": "A login was renewed",
    "credential.revoke": "Disconnected a CLI",
    "host.activate": "Had a host take machines again",
    "host.drain": "Drained a host",
    "host.forget": "Forgot a host",
    "host.sweep": "Removed what nobody needs from a host",
    "invitation.create": "Invited somebody",
    "invitation.revoke": "Took an invitation back",
    "key.retire": "Retired an encryption key",
    "key.rotate": "Sealed everything anew",
    "machine.create": "Made a machine",
    "machine.destroy": "Destroyed a machine",
    "machine.fail": "A machine failed",
    "machine.hibernate": "Sent a machine to sleep",
    "machine.move": "Moved a machine to another host",
    "machine.resume": "Woke a machine",
    "machine.sleep-on": "A machine could not be woken",
    "machine.start": "Started a machine",
    "machine.stay-awake": "A machine could not be put to sleep",
    "machine.stop": "Stopped a machine",
    "person.delete": "Removed an account",
    "person.disable": "Shut somebody out",
    "person.enable": "Let somebody in again",
    "person.password": "Gave somebody another password",
    "person.role": "Changed a role",
    "session.cancel": "Cancelled a connect session",
    "session.fail": "A connect session failed",
    "session.input": "Handed in the code of a login",
    "session.start": "Began to connect a CLI",
    "sign-in.end": "Ended a sign-in",
    "token.create": "Made an API token",
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
_MAX_AGENT = 40


def machine_badge(machine: Machine) -> tuple[str, str]:
    """What a machine's badge is like, and what it says."""
    if machine.status is MachineState.RESUMING and machine.wakes:
        return "busy", "Waking up"
    return _MACHINES[machine.status]


def state_badge(status: str) -> tuple[str, str]:
    """The same, where a state is all that is known."""
    return _MACHINES[MachineState(status)]


def action(name: str) -> str:
    """An action of the audit log; one that has no words here stays as it is."""
    return _ACTIONS.get(name, name.replace(".", ": ").replace("-", " "))


def browser(user_agent: str) -> str:
    """`Firefox on Linux`, from what a browser calls itself."""
    program = _named(_BROWSERS, user_agent)
    system = _named(_SYSTEMS, user_agent)
    if program and system:
        return f"{program} on {system}"
    return program or system or user_agent[:_MAX_AGENT] or "An unknown program"


def _named(patterns: tuple[tuple[str, str], ...], text: str) -> str:
    return next((name for name, pattern in patterns if re.search(pattern, text)), "")
