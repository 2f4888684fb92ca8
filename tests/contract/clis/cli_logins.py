"""Log in to each real CLI at the fake providers, through its browser."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from cli_world import PATIENCE_S, World


def codex_login(world: World) -> Path:
    """Log in; return Codex' credentials file."""
    (world.home / ".codex").mkdir(exist_ok=True)
    _log_in(world, "https://auth.openai.com/oauth/authorize?", "codex", "login")
    return world.home / ".codex" / "auth.json"


def claude_login(world: World) -> Path:
    """Log in; return Claude Code's credentials file."""
    _log_in(world, "https://claude.com/cai/oauth/authorize?", "claude", "auth", "login")
    return world.home / ".claude" / ".credentials.json"


def gemini_login(world: World) -> Path:
    """Authenticate through the agent; return Gemini CLI's credentials file."""
    browser = _Browser(world)
    pipe = subprocess.PIPE
    environment = browser.environment(DISPLAY=":0", GEMINI_CLI_NO_RELAUNCH="true")
    with (world.folder / "login.out").open("w") as log:
        agent = world.namespace.start(
            ["gemini", "--acp"], environment, cwd=world.home, stdin=pipe, stdout=pipe, stderr=log
        )
    assert agent.stdin is not None
    assert agent.stdout is not None
    try:
        asked = {"method": "authenticate", "params": {"methodId": "oauth-personal"}}
        agent.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 1, **asked}) + "\n")
        agent.stdin.flush()
        world.log_in(browser.opened("https://accounts.google.com/o/oauth2/v2/auth?"))
        assert "result" in json.loads(agent.stdout.readline())
    finally:
        agent.stdin.close()
        assert agent.wait(PATIENCE_S) == 0
        agent.stdout.close()
    return world.home / ".gemini" / "oauth_creds.json"


LOGINS: dict[str, Callable[[World], Path]] = {
    "claude_code": claude_login,
    "codex": codex_login,
    "gemini_cli": gemini_login,
}


class _Browser:
    """Browser replacement for the CLIs that stores the URL."""

    def __init__(self, world: World) -> None:
        self._inbox = world.folder / "browser-url"
        os.mkfifo(self._inbox)
        self._program = world.folder / "xdg-open"  # Gemini CLI knows no BROWSER
        self._program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" > {self._inbox}\n')
        self._program.chmod(0o755)
        self._here = world

    def environment(self, **more: str) -> dict[str, str]:
        environment = self._here.environment(BROWSER=str(self._program), **more)
        return environment | {"PATH": f"{self._program.parent}:{environment['PATH']}"}

    def opened(self, begins: str) -> str:
        url = self._inbox.read_text().strip()
        assert url.startswith(begins)
        return url


def _log_in(world: World, begins: str, *argv: str) -> None:
    browser = _Browser(world)
    heard = world.folder / "login.out"
    with heard.open("w") as out:
        login = world.namespace.start(
            argv, browser.environment(), cwd=world.home, stdout=out, stderr=out
        )
    try:
        world.log_in(browser.opened(begins))
        assert login.wait(PATIENCE_S) == 0, heard.read_text()
    finally:
        login.kill()
        login.wait()
