"""Confirmation of destructive commands."""

from __future__ import annotations

import asyncio
import sys

import typer

from polydev.shared.errors import Invalid


async def require_confirmation(question: str, *, yes: bool) -> None:
    """Ask for confirmation unless `yes` is set.

    Raises: Invalid without a terminal; typer.Abort if the user declines.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Invalid(f"Confirmation needed: {question}", hint="Pass --yes to confirm")
    await asyncio.to_thread(typer.confirm, question, abort=True)
