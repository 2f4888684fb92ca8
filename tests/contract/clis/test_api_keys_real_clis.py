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
from cli_world import PATIENCE_S, REPOSITORY, World, open_world

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
    with open_world() as it:
        yield it


@pytest.fixture
def world(shared: World) -> World:
    return shared.with_new_home()


@pytest.fixture(params=VENDORS)
def cli(request: pytest.FixtureRequest) -> Provider:
    return provider(request.param)


def make_api_key(cli: Provider) -> str:
    return ACCOUNTS[0].api_key(VENDORS[cli.id])


def deliver(world: World, cli: Provider, kind: CredentialKind, plaintext: bytes) -> None:
    """Deliver a credential as in a machine, to the home of the test."""
    found = {path: read(world, path) for path in credential_paths(cli)}
    change = plan_install(cli, kind, plaintext, found)
    for file in change.files:
        path = home_path(world, file.path)
        if file.if_absent and path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content.replace(b"/root/", f"{world.home}/".encode()))
        path.chmod(file.mode)
    for removed in change.removed:
        home_path(world, removed).unlink(missing_ok=True)


def home_path(world: World, path: str) -> Path:
    return world.home / path.removeprefix("/root/")


def read(world: World, path: str) -> bytes | None:
    file = home_path(world, path)
    if not file.exists():
        return None
    return file.read_bytes().replace(f"{world.home}/".encode(), b"/root/")


def run(
    world: World, cli: Provider, argv: tuple[str, ...], cwd: Path | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    environment = world.environment(**cli.environment)
    return world.namespace.run(argv, environment, cwd=cwd or world.home, **options)


def status(world: World, cli: Provider) -> "subprocess.CompletedProcess[str]":
    argv = cli.status_argv
    if cli.id == "gemini_cli":
        argv = ("node", str(GEMINI_STATUS))
    return run(world, cli, argv)


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


def test_cli_needs_only_an_api_key(world: World, cli: Provider) -> None:
    for path in ("/root/.codex", "/root/.gemini"):
        home_path(world, path).mkdir()
    assert status(world, cli).returncode != 0
    key = make_api_key(cli)
    deliver(world, cli, CredentialKind.API_KEY, check_api_key(cli, key))
    assert home_path(world, cli.api_key.path).stat().st_mode & 0o777 == 0o600
    done = status(world, cli)
    assert done.returncode == 0, done.stdout + done.stderr
    assert key not in done.stdout + done.stderr
    project = world.home / "project"
    project.mkdir()
    (project / ".env").write_text("SOMETHING=of the project's own\n")
    turn = run(world, cli, cli.chat.argv, cwd=project, input=QUESTION)
    assert turn.returncode == 0, turn.stdout + turn.stderr
    events = list(AnswerReader(cli.chat.output).feed(turn.stdout.encode()))
    deltas = "".join(event.text for event in events if event.kind == "delta")
    assert ANSWER in (deltas, *(event.text for event in events if event.kind == "text"))
    held = read_api_key(cli, home_path(world, cli.api_key.path).read_bytes())
    assert held == check_api_key(cli, key)


def test_agent_uses_api_key(world: World, cli: Provider) -> None:
    deliver(world, cli, CredentialKind.API_KEY, check_api_key(cli, make_api_key(cli)))
    project = world.home / "project"
    project.mkdir()
    (project / ".env").write_text("SOMETHING=of the project's own\n")
    cli_paths = {
        name: str(world.clis / Path(value).name)
        for name, value in cli.acp.environment.items()
        if value.startswith("/usr/local/bin/")
    }
    environment = {**cli.environment, **cli.acp.environment, **cli_paths}
    agent = world.namespace.start(
        cli.acp.argv,
        world.environment(**environment),
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


def test_login_replaces_api_key(world: World, cli: Provider) -> None:
    key = check_api_key(cli, make_api_key(cli))
    login = json.dumps(LOGINS[cli.id]).encode()
    deliver(world, cli, CredentialKind.API_KEY, key)
    deliver(world, cli, CredentialKind.LOGIN, login)
    assert make_api_key(cli) not in "".join(file_contents(world))
    before = login_method(world, cli)
    deliver(world, cli, CredentialKind.API_KEY, key)
    assert TOKEN not in "".join(file_contents(world))
    assert login_method(world, cli) != before


def test_codex_retains_delivered_api_key(world: World) -> None:
    cli = provider("codex")
    home_path(world, "/root/.codex").mkdir()
    key = make_api_key(cli)
    assert world.run("codex", "login", "--with-api-key", input=f"{key}\n").returncode == 0
    theirs = read(world, cli.api_key.path)
    assert theirs is not None
    change = plan_install(cli, CredentialKind.API_KEY, check_api_key(cli, key))
    assert json.loads(change.files[-1].content) == json.loads(theirs)


def login_method(world: World, cli: Provider) -> str:
    """Return the login method that the CLI reports, without a request."""
    if cli.id == "claude_code":
        return str(json.loads(status(world, cli).stdout)["authMethod"])
    if cli.id == "codex":
        return status(world, cli).stderr.split(" - ")[0]
    settings = json.loads(read(world, "/root/.gemini/settings.json") or b"{}")
    return str(settings["security"]["auth"]["selectedType"])


def file_contents(world: World) -> Iterator[str]:
    for path in world.home.rglob("*"):
        if path.is_file() and path.stat().st_size < 1024 * 1024:
            yield path.read_text(errors="replace")
