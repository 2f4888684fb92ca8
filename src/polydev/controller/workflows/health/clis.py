"""Check of logins: ask the CLIs in their machines whether they are logged in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials
from polydev.controller.store.queries.machines import machines
from polydev.shared.domain import (
    Credential,
    CredentialKind,
    Finding,
    Machine,
    MachineKind,
    MachineState,
    UserId,
    now,
)
from polydev.shared.errors import NoSuchFile, PolydevError
from polydev.shared.hints import Hint
from polydev.shared.host_client import HostClients
from polydev.shared.providers import Provider, provider

MOST = 24
"""Largest number of CLIs to ask. Each check starts a program in a user's machine."""
_AT_ONCE = 6
_LIMIT_S = 45.0
"""Gemini CLI takes half a minute to start in an emulated machine."""
ALL_S = _LIMIT_S + 5
"""Time limit for all CLIs together. It exceeds that of one, so a silent CLI is named."""


async def check(database: Database, hosts: HostClients, user: UserId | None) -> Sequence[Finding]:
    """Ask each CLI with a credential whether it is logged in."""
    logins = await _logins(database, user)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def in_turn(machine: Machine, credential: Credential) -> Finding | None:
        async with turns:
            return await _one(hosts, machine, credential)

    answers = await asyncio.gather(*(in_turn(*login) for login in logins[:MOST]))
    wrong = [finding for finding in answers if finding is not None]
    message = f"{len(logins)}, each confirmed by its CLI"
    if len(logins) > MOST:
        message = f"Checked {MOST} of {len(logins)}, each confirmed by its CLI"
    return wrong or [Finding("logins", True, message)]


async def _logins(database: Database, user: UserId | None) -> list[tuple[Machine, Credential]]:
    """List valid credentials with the running CLI machine of each."""
    async with database.read(user) as connection:
        if user is None:
            alive = await machines.list_alive(connection)
        else:
            alive = await machines.list_for_user(connection, user)
        running = {
            row.vm_id: row
            for row in alive
            if row.vm_type is MachineKind.CLI and row.status is MachineState.RUNNING
        }
        found: list[tuple[Machine, Credential]] = []
        for owner in sorted({row.user_id for row in running.values()}):
            newest: dict[str, Credential] = {}
            for credential in await credentials.list_for_user(connection, owner):
                if credential.revoked_at is None:
                    newest.setdefault(credential.provider, credential)
            found += [(running[it.vm_id], it) for it in newest.values() if it.vm_id in running]
    return found


async def _one(hosts: HostClients, machine: Machine, credential: Credential) -> Finding | None:
    cli, vm_id = provider(credential.provider), machine.vm_id
    try:
        async with asyncio.timeout(_LIMIT_S):
            return await _asked(hosts, cli, machine, credential)
    except TimeoutError:
        why = f"no answer within {_LIMIT_S:g} s"
    except PolydevError as error:
        why = error.message
    message = f"Cannot check the login of {cli.name} in machine {vm_id}: {why}"
    hint = Hint.SEE_CONSOLE.text(vm_id=vm_id)
    return Finding("logins", False, message, hint, vm_id)


async def _asked(
    hosts: HostClients, cli: Provider, machine: Machine, credential: Credential
) -> Finding | None:
    host, vm_id = hosts.client(machine.host_id), machine.vm_id
    by_key = " --api-key" if credential.kind is CredentialKind.API_KEY else ""
    again = f"Connect again: polydev connect {cli.id}{by_key}"
    path = cli.credential_path(credential.kind)
    try:
        await host.read_file(vm_id, path)
    except NoSuchFile:
        message = (
            f"The credentials of {cli.name} are missing in machine {vm_id}: {path} does not exist"
        )
        return Finding("logins", False, message, again, vm_id)
    output = await host.run_program(vm_id, cli.status_argv, env=cli.environment, timeout_s=_LIMIT_S)
    if output.exit_code == 0:
        return None
    message = f"{cli.name} in machine {vm_id} reports that it is not logged in"
    if credential.expires_at is not None and credential.expires_at < now():
        message += f": its login expired at {credential.expires_at:%Y-%m-%d %H:%M} UTC"
    why = f"; `polydev machine exec {vm_id} {' '.join(cli.status_argv)}` shows its status"
    return Finding("logins", False, message, again + why, vm_id)
