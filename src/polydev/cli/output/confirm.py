"""Asking before something is lost for good. Used by the commands that remove things."""

from __future__ import annotations

import asyncio
import sys

import typer

from polydev.shared.errors import Invalid


async def require_confirmation(question: str, *, yes: bool) -> None:
    """Go on if the person agrees; `yes` says so beforehand. Without a terminal it must.

    Raises: Invalid; typer.Abort.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Invalid(f"This would ask first ({question})", hint="Say --yes")
    await asyncio.to_thread(typer.confirm, question, abort=True)
