"""Test API keys with the real CLIs.

Each CLI reads its key from `providers.credential_paths`, and a key and a login replace each other.
These tests fail when a new version of a CLI reads its key elsewhere.
"""

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_world import PATIENCE_S, REPOSITORY, World, world

from polydev.shared.domain import CredentialKind
from polydev.shared.providers import (
    AnswerReader,
    Provider,
    check_api_key,
    credential_paths,
    plan_install,
    provider,
    read_api_key,
)
from polydev.testing.fake_providers.identity.accounts import ACCOUNTS

pytestmark = pytest.mark.clis

QUESTION = "How many legs has a spider in Zanzibar?"
ANSWER = f"The fake model received: {QUESTION}"
VENDORS = {"claude_code": "anthropic", "codex": "openai", "gemini_cli": "google"}
GEMINI_STATUS = REPOSITORY / "src/polydev/shared/providers/gemini_cli/status.js"
TOKEN = "made-up-token-0123456789"
LOGINS = {
    "claude_code": {
        "claudeAiOauth": {
            "accessToken": TOKEN,
            "refreshToken": TOKEN,
            "expiresAt": 4102444800000,
            "scopes": ["user:inference", "user:profile"],
        }
    },
    "codex": {
        "auth_mode": "chatgpt",
        "tokens": {
            "id_token": "e30.e30.e30",
            "access_token": "e30.e30.e30",
            "refresh_token": TOKEN,
            "account_id": "a",
        },
    },
    "gemini_cli": {"access_token": TOKEN, "refresh_token": TOKEN, "expiry_date": 4102444800000},
}


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as it:
        yield it


@pytest.fixture
def here(shared: World) -> World:
    return shared.with_new_home()


@pytest.fixture(params=VENDORS)
def about(request: pytest.FixtureRequest) -> Provider:
    return provider(request.param)


def make_api_key(about: Provider) -> str:
    return ACCOUNTS[0].api_key(VENDORS[about.id])


def deliver(here: World, about: Provider, kind: CredentialKind, plaintext: bytes) -> None:
    """Deliver a credential as in a machine, to the home of the test."""
    found = {path: read(here, path) for path in credential_paths(about)}
    change = plan_install(about, kind, plaintext, found)
    for file in change.files:
        path = home_path(here, file.path)
        if file.if_absent and path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content.replace(b"/root/", f"{here.home}/".encode()))
        path.chmod(file.mode)
    for removed in change.removed:
        home_path(here, removed).unlink(missing_ok=True)


def home_path(here: World, path: str) -> Path:
    return here.home / path.removeprefix("/root/")


def read(here: World, path: str) -> bytes | None:
    file = home_path(here, path)
    if not file.exists():
        return None
    return file.read_bytes().replace(f"{here.home}/".encode(), b"/root/")


def run(
    here: World, about: Provider, argv: tuple[str, ...], cwd: Path | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    environment = here.environment(**about.environment)
    return here.namespace.run(argv, environment, cwd=cwd or here.home, **options)


def status(here: World, about: Provider) -> "subprocess.CompletedProcess[str]":
    argv = about.status_argv
    if about.id == "gemini_cli":
        argv = ("node", str(GEMINI_STATUS))
    return run(here, about, argv)


def answer_of(agent: "subprocess.Popen[str]", folder: Path) -> str:
    """Send the question over the Agent Client Protocol; return the answer."""
    assert agent.stdin is not None
    assert agent.stdout is not None
    ask(agent, 0, "initialize", {"protocolVersion": 1, "clientCapabilities": {}})
    text = ""
    for line in agent.stdout:
        message = json.loads(line)
        assert "error" not in message, message
        if message.get("id") == 0:
            ask(agent, 1, "session/new", {"cwd": str(folder), "mcpServers": []})
        elif message.get("id") == 1:
            prompt = [{"type": "text", "text": QUESTION}]
            session = message["result"]["sessionId"]
            ask(agent, 2, "session/prompt", {"sessionId": session, "prompt": prompt})
        elif message.get("id") == 2:
            return text
        update = message.get("params", {}).get("update", {})
        if update.get("sessionUpdate") == "agent_message_chunk":
            text += update["content"]["text"]
    raise AssertionError("the agent ended")


def ask(agent: "subprocess.Popen[str]", number: int, method: str, what: Mapping[str, Any]) -> None:
    assert agent.stdin is not None
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": what}
    agent.stdin.write(json.dumps(message) + "\n")
    agent.stdin.flush()


def test_cli_needs_only_an_api_key(here: World, about: Provider) -> None:
    for path in ("/root/.codex", "/root/.gemini"):
        home_path(here, path).mkdir()
    assert status(here, about).returncode != 0
    key = make_api_key(about)
    deliver(here, about, CredentialKind.API_KEY, check_api_key(about, key))
    assert home_path(here, about.api_key.path).stat().st_mode & 0o777 == 0o600
    done = status(here, about)
    assert done.returncode == 0, done.stdout + done.stderr
    assert key not in done.stdout + done.stderr
    project = here.home / "project"
    project.mkdir()
    (project / ".env").write_text("SOMETHING=of the project's own\n")
    turn = run(here, about, about.chat.argv, cwd=project, input=QUESTION)
    assert turn.returncode == 0, turn.stdout + turn.stderr
    events = list(AnswerReader(about.chat.output).feed(turn.stdout.encode()))
    deltas = "".join(event.text for event in events if event.kind == "delta")
    assert ANSWER in (deltas, *(event.text for event in events if event.kind == "text"))
    held = read_api_key(about, home_path(here, about.api_key.path).read_bytes())
    assert held == check_api_key(about, key)


def test_agent_uses_api_key(here: World, about: Provider) -> None:
    deliver(here, about, CredentialKind.API_KEY, check_api_key(about, make_api_key(about)))
    project = here.home / "project"
    project.mkdir()
    (project / ".env").write_text("SOMETHING=of the project's own\n")
    places_of_clis = {
        name: str(here.clis / Path(value).name)
        for name, value in about.acp.environment.items()
        if value.startswith("/usr/local/bin/")
    }
    environment = {**about.environment, **about.acp.environment, **places_of_clis}
    agent = here.namespace.start(
        about.acp.argv,
        here.environment(**environment),
        cwd=project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    limit = threading.Timer(PATIENCE_S, agent.kill)
    limit.start()
    try:
        assert ANSWER in answer_of(agent, project)
        agent.communicate()  # closes its input, which ends it with its children
    finally:
        agent.kill()
        agent.wait()
        limit.cancel()


def test_login_replaces_api_key(here: World, about: Provider) -> None:
    key = check_api_key(about, make_api_key(about))
    login = json.dumps(LOGINS[about.id]).encode()
    deliver(here, about, CredentialKind.API_KEY, key)
    deliver(here, about, CredentialKind.LOGIN, login)
    assert make_api_key(about) not in "".join(file_contents(here))
    before = login_method(here, about)
    deliver(here, about, CredentialKind.API_KEY, key)
    assert TOKEN not in "".join(file_contents(here))
    assert login_method(here, about) != before


def test_codex_retains_delivered_api_key(here: World) -> None:
    about = provider("codex")
    home_path(here, "/root/.codex").mkdir()
    key = make_api_key(about)
    assert here.run("codex", "login", "--with-api-key", input=f"{key}\n").returncode == 0
    theirs = read(here, about.api_key.path)
    assert theirs is not None
    change = plan_install(about, CredentialKind.API_KEY, check_api_key(about, key))
    assert json.loads(change.files[-1].content) == json.loads(theirs)


def login_method(here: World, about: Provider) -> str:
    """Return the login method that the CLI reports, without a request."""
    if about.id == "claude_code":
        return str(json.loads(status(here, about).stdout)["authMethod"])
    if about.id == "codex":
        return status(here, about).stderr.split(" - ")[0]
    settings = json.loads(read(here, "/root/.gemini/settings.json") or b"{}")
    return str(settings["security"]["auth"]["selectedType"])


def file_contents(here: World) -> Iterator[str]:
    for path in here.home.rglob("*"):
        if path.is_file() and path.stat().st_size < 1024 * 1024:
            yield path.read_text(errors="replace")
