"""Test the fake providers with the real CLIs: login, chat, token refresh.

These tests fail when a new version of a CLI behaves differently.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_logins import claude_login, codex_login, gemini_login
from cli_world import REPOSITORY, World, open_world

pytestmark = pytest.mark.clis

QUESTION = "How many legs has a spider in Zanzibar?"
GEMINI_STATUS = (str(REPOSITORY / "src/polydev/shared/providers/gemini_cli/status.js"),)
STATUS: dict[Callable[[World], Path], tuple[str, ...]] = {
    codex_login: ("codex", "login", "status"),
    claude_login: ("claude", "auth", "status", "--json"),
    gemini_login: GEMINI_STATUS,
}
ANSWER = f"The fake model received: {QUESTION}"


@dataclass(frozen=True)
class LoggedIn:
    """Login of a CLI, done once; each test gets a copy of the home folder."""

    status_before: int
    grants: list[str]
    home: Path
    file: Path

    def with_copied_home(self, shared: World) -> tuple[World, Path]:
        """Return an environment for one test and its credentials file."""
        world = shared.with_new_home(self.home)
        shared.providers.skip_earlier_calls()
        return world, world.home / self.file.relative_to(self.home)


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with open_world() as it:
        yield it


@pytest.fixture
def world(shared: World) -> World:
    return shared.with_new_home()


def log_in(shared: World, login: Callable[[World], Path]) -> LoggedIn:
    world = shared.with_new_home()
    before = world.run(*STATUS[login]).returncode
    shared.providers.skip_earlier_calls()
    file = login(world)
    return LoggedIn(before, shared.providers.grants(), world.home, file)


@pytest.fixture(scope="module")
def codex(shared: World) -> LoggedIn:
    return log_in(shared, codex_login)


@pytest.fixture(scope="module")
def claude(shared: World) -> LoggedIn:
    return log_in(shared, claude_login)


@pytest.fixture(scope="module")
def gemini(shared: World) -> LoggedIn:
    return log_in(shared, gemini_login)


@pytest.fixture
def short_lived() -> Iterator[World]:
    with open_world("--access-token-lifetime-s", "30") as it:
        yield it


def select_google_login(home: Path) -> None:
    """Select the login type in the CLI's settings."""
    chosen = {"security": {"auth": {"selectedType": "oauth-personal"}}}
    (home / ".gemini" / "settings.json").write_text(json.dumps(chosen))


def ask_gemini(world: World) -> str:
    command = ["gemini", "--skip-trust", "--output-format", "stream-json"]
    done = world.run(*command, input=QUESTION)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    messages = [event for event in events if event.get("role") == "assistant"]
    return "".join(event["content"] for event in messages)


def ask_codex(world: World) -> str:
    done = world.run("codex", "exec", "--json", "--skip-git-repo-check", "-", input=QUESTION)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    return "".join(item["text"] for item in items if item["type"] == "agent_message")


def ask_claude(world: World) -> str:
    command = ["claude", "-p", "--output-format", "stream-json", "--verbose"]
    done = world.run(*command, "--include-partial-messages", input=QUESTION)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    deltas = [event["event"] for event in events if event["type"] == "stream_event"]
    streamed = [delta["delta"]["text"] for delta in deltas if "text" in delta.get("delta", {})]
    result = next(event for event in events if event["type"] == "result")
    assert "".join(streamed) == result["result"]
    return str(result["result"])


def test_codex_logs_in_and_chats(shared: World, codex: LoggedIn) -> None:
    world, file = codex.with_copied_home(shared)
    assert (codex.status_before, codex.grants) == (1, ["authorization_code"])
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["tokens"]["refresh_token"].startswith("rt_standin_")
    status = world.run("codex", "login", "status")
    assert (status.returncode, "Logged in" in status.stderr) == (0, True)
    assert ask_codex(world) == ANSWER
    world.providers.wait_for_status("/backend-api/codex/responses", 200)


def test_claude_code_logs_in_and_chats(shared: World, claude: LoggedIn) -> None:
    world, file = claude.with_copied_home(shared)
    assert (claude.status_before, claude.grants) == (1, ["authorization_code"])
    assert file.stat().st_mode & 0o777 == 0o600
    status = world.run("claude", "auth", "status", "--json")
    assert json.loads(status.stdout)["email"] == "ada@example.test"
    assert ask_claude(world) == ANSWER
    world.providers.wait_for_status("/v1/messages", 200)


def test_gemini_logs_in_and_chats(shared: World, gemini: LoggedIn) -> None:
    world, file = gemini.with_copied_home(shared)
    assert (gemini.status_before, gemini.grants) == (1, ["authorization_code"])
    assert file.stat().st_mode & 0o777 == 0o600
    credentials = json.loads(file.read_text())
    assert credentials["refresh_token"].startswith("1//standin-")
    assert credentials["token_type"] == "Bearer"
    chosen = json.loads((world.home / ".gemini/settings.json").read_text())
    assert chosen["security"]["auth"]["selectedType"] == "oauth-personal"
    assert world.run(*GEMINI_STATUS).returncode == 0
    assert 200 not in world.providers.statuses("/v1internal:streamGenerateContent")
    assert ask_gemini(world) == ANSWER
    world.providers.wait_for_status("/v1internal:streamGenerateContent", 200)


def test_gemini_refreshes_expired_token_and_retains_refresh_token(
    shared: World, gemini: LoggedIn
) -> None:
    world, file = gemini.with_copied_home(shared)
    before = json.loads(file.read_text())
    file.write_text(json.dumps({**before, "expiry_date": before["expiry_date"] - 24 * 3600 * 1000}))
    assert ask_gemini(world) == ANSWER
    assert world.providers.grants() == ["refresh_token"]
    after = json.loads(file.read_text())
    assert after["access_token"] != before["access_token"]
    assert after["refresh_token"] == before["refresh_token"]


@pytest.mark.parametrize(
    "credentials", ["{}", '{"access_token": "ya29.a", "refresh_token": "1//b"}']
)
def test_gemini_reports_invalid_login(world: World, credentials: str) -> None:
    (world.home / ".gemini").mkdir()
    select_google_login(world.home)
    (world.home / ".gemini" / "oauth_creds.json").write_text(credentials)
    status = world.run(*GEMINI_STATUS)
    assert (status.returncode, "Not logged in" in status.stdout) == (1, True)


def test_codex_refreshes_expiring_token_and_stores_rotation(short_lived: World) -> None:
    file = codex_login(short_lived)
    before = json.loads(file.read_text())["tokens"]
    assert ask_codex(short_lived) == ANSWER
    assert short_lived.providers.grants() == ["authorization_code", "refresh_token"]
    after = json.loads(file.read_text())["tokens"]
    assert after["refresh_token"] != before["refresh_token"]
    assert after["access_token"] != before["access_token"]


def test_claude_code_refreshes_expired_token_and_stores_rotation(
    shared: World, claude: LoggedIn
) -> None:
    world, file = claude.with_copied_home(shared)
    content = json.loads(file.read_text())
    before = dict(content["claudeAiOauth"])
    content["claudeAiOauth"]["expiresAt"] = before["expiresAt"] - 24 * 3600 * 1000
    file.write_text(json.dumps(content))
    assert ask_claude(world) == ANSWER
    assert world.providers.grants() == ["refresh_token"]
    after = json.loads(file.read_text())["claudeAiOauth"]
    assert after["refreshToken"] != before["refreshToken"]
    assert after["accessToken"] != before["accessToken"]


@pytest.mark.parametrize(
    ("name", "login"),
    [("codex", codex_login), ("claude", claude_login), ("gemini", gemini_login)],
)
def test_credentials_file_is_enough_to_move_login(
    world: World, request: pytest.FixtureRequest, name: str, login: Callable[[World], Path]
) -> None:
    logged_in: LoggedIn = request.getfixturevalue(name)
    copy = world.home / logged_in.file.relative_to(logged_in.home)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(logged_in.file.read_bytes())
    if login is gemini_login:
        select_google_login(world.home)
    assert world.run(*STATUS[login]).returncode == 0
