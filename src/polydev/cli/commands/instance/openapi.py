"""`polydev openapi`: print the OpenAPI document without a running controller.

Commands do not import the controller, so its own program prints the document.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from polydev.cli.options import runs
from polydev.shared.errors import Failed

_PROGRAM = "polydev.controller.api"


@runs
async def openapi(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write to this file instead of standard output."),
    ] = None,
) -> None:
    """Print the OpenAPI document of the HTTP API (JSON).

    Example: `polydev openapi --output openapi.json`.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", _PROGRAM),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    if process.returncode != 0:
        raise Failed("Cannot create the OpenAPI document", hint="See the error above")
    if output is None:
        sys.stdout.write(printed.decode())
    else:
        await asyncio.to_thread(output.write_bytes, printed)
