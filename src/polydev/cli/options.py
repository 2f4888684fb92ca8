"""What all commands share: `--json`, and how a coroutine becomes a command.

Used by every command module. Must not know any command.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Annotated, ParamSpec

import typer

INTERRUPTED = 130
"""The exit code of a program that ended by Ctrl-C."""

P = ParamSpec("P")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def app(help_text: str) -> typer.Typer:
    """A group of commands that prints its help when no command is named."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def runs(work: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Make a command of a coroutine: Ctrl-C cancels it, it cleans up, and the exit code says so."""

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            asyncio.run(work(*args, **kwargs))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run
