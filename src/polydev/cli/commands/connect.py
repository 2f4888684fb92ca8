"""`polydev connect`: run a connect session from a terminal.

The controller runs the session. This command shows its steps, forwards a pasted code, and cancels
the session on Ctrl-C.
"""

from __future__ import annotations

import asyncio
import getpass
import sys
from typing import Annotated

import typer

from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.options import INTERRUPTED, JsonFlag, provider_choices, runs
from polydev.cli.output.printer import Step, Terminal
from polydev.shared.domain import StepName, step_label
from polydev.shared.errors import Invalid, PolydevError, by_code

ENDS = {"completed", "failed", "expired", "cancelled"}
WAITING = "waiting_for_person"
MAX_PASTE_CHARACTERS = 8192


@runs
async def connect(
    provider: Annotated[str, typer.Argument(metavar="PROVIDER", help=f"{provider_choices()}.")],
    api_key: Annotated[
        bool,
        typer.Option("--api-key", help="Use an API key instead of a login. Prompts for the key."),
    ] = False,
    api_key_stdin: Annotated[
        bool, typer.Option("--api-key-stdin", help="Read the API key from standard input.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Log a CLI in, through a temporary browser machine or with an API key.

    If you sign in with a browser of your own, paste the code that the provider shows, or the
    address that your browser cannot load. Ctrl-C cancels the session and reverts its steps. An API
    key is never an argument, because other users could see it there.

    Examples: `polydev connect codex`, `polydev connect claude_code --json`, `polydev connect
    gemini_cli --api-key`, `polydev connect codex --api-key-stdin < key`.
    """
    terminal = Terminal(as_json=as_json)
    by_key = api_key or api_key_stdin
    key = await _key(provider, from_stdin=api_key_stdin) if by_key else None
    async with open_client() as api:
        session = await connected(api, provider, terminal, api_key=key)
        if as_json:
            terminal.answer({"ok": session["status"] == "completed", **session})
        if session["status"] == "cancelled":
            terminal.say("Cancelled. Every step was reverted.")
            raise typer.Exit(INTERRUPTED)
        if error := session_error(session):
            raise error
        machine = session["cliVM"]
        terminal.say(f"{provider} is logged in on {machine['vmId']} ({machine['ipAddress']}).")
        terminal.say(f'Try: polydev chat {provider} "Say hello"')


async def _key(provider: str, *, from_stdin: bool) -> str:
    """Read the API key from a hidden prompt or standard input. Raises Invalid."""
    if from_stdin:
        key: str = await asyncio.to_thread(sys.stdin.readline, MAX_PASTE_CHARACTERS)
    elif sys.stdin.isatty():
        key = await asyncio.to_thread(getpass.getpass, f"API key for {provider}: ")
    else:
        raise Invalid("The prompt for the API key needs a terminal", hint="Use --api-key-stdin")
    if not key.strip():
        raise Invalid("The API key is empty")
    return key.strip()


async def connected(
    api: ApiClient, provider: str, terminal: Terminal, *, api_key: str | None = None
) -> Json:
    """Start a session, or join the running one, and show it until it ends."""
    if api_key is None:
        started = await api.post("/api/auth/start", {"provider": provider})
    else:
        started = await api.post("/api/auth/key", {"provider": provider, "apiKey": api_key})
    path = f"/api/auth/session/{started['sessionId']}"
    view = SessionView(terminal)
    typing = asyncio.create_task(_forward_input(api, path, view))
    try:
        return await _follow(api, path, view)
    except asyncio.CancelledError:
        if task := asyncio.current_task():
            task.uncancel()
        terminal.say("Cancelling and reverting every step. Press Ctrl-C again to stop waiting.")
        try:
            await api.post(f"{path}/cancel")
        except PolydevError as error:
            terminal.say(error.line(), "yellow")
        return await _follow(api, path, view)
    finally:
        typing.cancel()
        view.close()


def session_error(session: Json) -> PolydevError | None:
    """Error of a session that did not complete; None if it did."""
    if session["status"] == "completed":
        return None
    error = session["error"] or {"code": "failed", "message": f"The session is {session['status']}"}
    return by_code(error["code"])(error["message"], hint=error.get("hint") or "")


async def _follow(api: ApiClient, path: str, view: SessionView) -> Json:
    async for session in api.changes(path):
        view.show(session)
        if session["status"] in ENDS:
            return session
    raise AssertionError("the stream of a session ends with the session")


class SessionView:
    """Show the start and the end of each step of a session, once each."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._begun: dict[tuple[str, str], Step] = {}
        self._ended: set[tuple[str, str]] = set()
        self.waiting = asyncio.Event()

    def show(self, session: Json) -> None:
        for step in session["steps"]:
            self._show_step(step)
        waits = session["status"] == WAITING and StepName.WAIT_FOR_USER in {
            key[0] for key in self._begun
        }
        if waits and not self.waiting.is_set():
            self._invite(session)
        elif not waits and self.waiting.is_set():
            self.waiting.clear()
            self._terminal.resume()

    def say(self, message: str, style: str = "") -> None:
        self._terminal.say(message, style)

    def close(self) -> None:
        """Stop the live display."""
        self._terminal.resume()
        for key, step in self._begun.items():
            if key not in self._ended:
                self._terminal.end(step, good=False)

    def _show_step(self, step: Json) -> None:
        key = (step["step"], step["startedAt"])
        if key in self._ended:
            return
        if key not in self._begun:
            self._begun[key] = self._terminal.begin(step_label(step["step"]))
        if step["endedAt"]:
            self._ended.add(key)
            good = step["outcome"] == "done"
            self._terminal.end(self._begun[key], good=good, seconds=step["seconds"])

    def _invite(self, session: Json) -> None:
        self.waiting.set()
        url, own = session["oauthUrl"], session["ownBrowserUrl"] or session["oauthUrl"]
        self._terminal.say("    The browser machine shows the provider's page:")
        self._terminal.say(f"    {url}", "cyan")
        if not sys.stdin.isatty():
            return
        self._terminal.pause()
        self._terminal.say("    To use your own browser instead, open:")
        self._terminal.say("    the same address" if own == url else f"    {own}", "cyan")
        if session["accepts"] == "code":
            self._terminal.say("    and paste the code that it shows:")
        else:
            self._terminal.say(
                "    and paste the address that your browser cannot load at the end:"
            )


async def _forward_input(api: ApiClient, path: str, view: SessionView) -> None:
    """Send lines from the terminal to the session while it waits for input."""
    if not sys.stdin.isatty():
        return
    typed: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()
    loop.add_reader(stdin, lambda: typed.put_nowait(sys.stdin.readline(MAX_PASTE_CHARACTERS)))
    try:
        while line := await typed.get():
            text = line.strip()
            if not text or not view.waiting.is_set():
                continue
            key = "callbackUrl" if text.startswith(("http://", "https://")) else "code"
            try:
                await api.post(f"{path}/input", {key: text})
            except PolydevError as error:
                view.say(f"    {error.line()}", "yellow")
    finally:
        loop.remove_reader(stdin)
