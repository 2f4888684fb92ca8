"""Findings of the controller: database, hosts, machines and logins."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from polydev.cli.client.api_client import (
    ClientSettings,
    TokenUnreadable,
    open_client,
    owner_check,
    uses_tls,
)
from polydev.cli.supervisor.supervisor import last_log_line
from polydev.shared.domain import LOCAL_HOST, Finding
from polydev.shared.errors import ControllerUnreachable, NotSignedIn, PolydevError

_LIMIT_S = 10.0


async def check(client: ClientSettings) -> Sequence[Finding]:
    """Get the controller's findings, or the public ones if it refuses."""
    try:
        async with open_client() as api:
            answer = await api.get("/api/doctor")
            return [
                Finding(
                    name=str(row["name"]),
                    ok=row["ok"],
                    message=str(row["message"]),
                    hint=str(row["hint"] or ""),
                    vm_id=row["vm_id"],
                    host_id=row["host_id"],
                )
                for row in answer["checks"]
            ]
    except ControllerUnreachable as error:
        return [_unreachable(client, error)]
    except NotSignedIn as error:
        state = None if isinstance(error, TokenUnreadable) else False
        refused = Finding("controller", state, error.message, error.hint)
        return [refused, *await _public_findings(client)]
    except PolydevError as error:
        refused = Finding("controller", False, error.message, error.hint or _log(client))
        return [refused, *await _public_findings(client)]


def without_duplicates(here: Sequence[Finding], found: Sequence[Finding]) -> list[Finding]:
    """Drop findings that this machine's host agent has reported already."""
    was_looked_at = any(it.name == "host agent" and it.ok is not None for it in here)
    return [it for it in found if not (was_looked_at and it.host_id == LOCAL_HOST)]


def _unreachable(client: ClientSettings, error: ControllerUnreachable) -> Finding:
    message = error.message
    try:
        last = "" if client.url else last_log_line(client.logs_dir / "controller.log")
    except PermissionError:
        last = ""
    if last:
        message += f"; the last line of its log: {last}"
    return Finding("controller", False, message, error.hint)


def _log(client: ClientSettings) -> str:
    return f"See its log: {client.logs_dir / 'controller.log'}"


async def _public_findings(client: ClientSettings) -> Sequence[Finding]:
    """Read `/health`, which needs no token."""
    hooks = {"request": [owner_check(client.owners)] if client.owners else []}
    try:
        async with httpx.AsyncClient(
            timeout=_LIMIT_S,
            trust_env=False,
            verify=uses_tls(client.base_url),
            event_hooks=hooks,
        ) as unsigned:
            checks = (await unsigned.get(f"{client.base_url}/health")).json()["checks"]
    except (httpx.HTTPError, PolydevError, ValueError, KeyError, TypeError):
        return []
    found = []
    if checks.get("store") is False:
        message = "The controller cannot reach its database (DATABASE_URL)"
        found.append(Finding("database", False, message, _log(client)))
    if checks.get("host") is False:
        message = "The controller cannot reach a host agent"
        found.append(Finding("host agent", False, message, _log(client)))
    return found
