"""Options and decorators that all commands share."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Annotated, ParamSpec

import typer

from polydev.shared.providers import provider_ids

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

P = ParamSpec("P")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def provider_choices() -> str:
    """Names of the providers for help texts, such as "`codex` or `gemini_cli`"."""
    *others, last = (f"`{it}`" for it in provider_ids())
    return f"{', '.join(others)} or {last}"


def app(help_text: str) -> typer.Typer:
    """Create a command group that prints its help if no command is given."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def runs(work: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Turn a coroutine into a command. Ctrl-C cancels it and lets it clean up."""

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            asyncio.run(work(*args, **kwargs))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run
