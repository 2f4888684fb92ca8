"""Fake CLI for tests of the browser service: a shell script."""

from dataclasses import replace
from pathlib import Path

from polydev.guest.browser_service.login import Login
from polydev.guest.browser_service.recipes import LoginKind, LoginRecipe
from polydev.guest.browser_service.settings import ServiceSettings

URL = "https://id.example.test/authorize?redirect_uri=http%3A%2F%2Flocalhost%3A4444%2Fback&state=S1"

RECIPE = LoginRecipe(
    provider="made_up",
    kind=LoginKind.TERMINAL,
    method="",
    argv=("true",),
    environment={"MADE_UP": "yes"},
    folders=("/root/.made-up",),
    url_hosts=frozenset({"id.example.test"}),
    callback_path="/back",
    callback_ports=frozenset(),
    paste_accepts="code",
    paste_code_pattern="[a-z0-9]+#[A-Z0-9]+",
    paste_url_redirect="https://id.example.test/shown",
    paste_ready_text="Code: ",
    paste_ready_within_s=10,
    credentials_path="/root/.made-up/login.json",
    credentials_bytes=4096,
    credentials_required=("/tokens/refresh",),
)


def login_of(script: str, home: Path, **changed: object) -> Login:
    """Create a login whose CLI is a script in `home`."""
    recipe = replace(RECIPE, argv=("sh", "-c", script))
    defaults: dict[str, object] = {
        "home": home,
        "url_fifo": home / "fifo",
        "environment_file": home / "environment",
        "debugging_port": 1,  # nothing listens there
        "browser_limit_s": 0.1,
    }
    settings = ServiceSettings(**(defaults | changed))  # type: ignore[arg-type]
    return Login("session", recipe, settings)
