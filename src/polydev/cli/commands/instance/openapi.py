"""`polydev openapi`: the API's description, without a running controller.

The commands import nothing of the controller, so its own program prints it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from polydev.cli.options import runs
from polydev.shared.errors import Failed

_PRINTS_IT = "polydev.controller.api"


@runs
async def openapi(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file to write instead of printing.")
    ] = None,
) -> None:
    """Print the HTTP API's description, an OpenAPI document (JSON).

    Example: `polydev openapi --output openapi.json`.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", _PRINTS_IT),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    if process.returncode != 0:
        raise Failed("The API could not be described", hint="What was printed above says why")
    if output is None:
        sys.stdout.write(printed.decode())
    else:
        await asyncio.to_thread(output.write_bytes, printed)
