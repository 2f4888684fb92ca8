"""Exactly one credential is active, and the user's own settings stay."""

from __future__ import annotations

import json

import pytest

from polydev.shared.domain import CredentialKind
from polydev.shared.errors import BadApiKey, SettingsUnreadable
from polydev.shared.providers import (
    Provider,
    all_providers,
    check_api_key,
    credential_paths,
    plan_install,
    plan_removal,
    provider,
    read_api_key,
    user_file_paths,
)
from polydev.shared.providers.credential_files import MAX_USER_FILE_BYTES, Change

KEY = "made-up-key-0123456789-abcdefghij"
LOGIN = b'{"made": "up"}'
CLAUDE, CODEX, GEMINI = provider("claude_code"), provider("codex"), provider("gemini_cli")
HELPER = {"apiKeyHelper": "cat /root/.claude/polydev-api-key"}
CLAUDE_SETTINGS = "/root/.claude/settings.json"
GEMINI_SETTINGS, GEMINI_ENV = "/root/.gemini/settings.json", "/root/.gemini/.env"

Machine = dict[str, bytes]


def made(machine: Machine, change: Change) -> Machine:
    """Apply a change to the machine's files."""
    after = dict(machine)
    for file in change.files:
        assert file.mode == 0o600
        if not (file.if_absent and file.path in after):
            after[file.path] = file.content
    for path in change.removed:
        after.pop(path, None)
    return after


def with_key(about: Provider, machine: Machine, key: str = KEY) -> Machine:
    kind = CredentialKind.API_KEY
    return made(machine, plan_install(about, kind, check_api_key(about, key), machine))


def with_login(about: Provider, machine: Machine) -> Machine:
    return made(machine, plan_install(about, CredentialKind.LOGIN, LOGIN, machine))


def without(about: Provider, machine: Machine) -> Machine:
    found = {path: machine.get(path) for path in user_file_paths(about)}
    return made(machine, plan_removal(about, found))


@pytest.mark.parametrize("about", all_providers(), ids=lambda it: it.id)
class TestOfEveryProvider:
    def test_key_and_login_replace_each_other(self, about: Provider) -> None:
        login = with_login(about, {})
        key = with_key(about, login)
        assert LOGIN not in key.values()
        assert read_api_key(about, key[about.api_key.path]) == check_api_key(about, KEY)
        back = with_login(about, key)
        assert KEY.encode() not in b"".join(back.values())
        assert {path: json.loads(it) for path, it in back.items()} == {
            path: json.loads(it) for path, it in login.items()
        }

    def test_install_is_idempotent(self, about: Provider) -> None:
        assert with_key(about, with_key(about, {})) == with_key(about, {})
        assert with_login(about, with_login(about, {})) == with_login(about, {})

    def test_a_new_key_replaces_the_old_one(self, about: Provider) -> None:
        after = with_key(about, with_key(about, {}), f"{KEY}-2")
        assert b"".join(after.values()).count(KEY.encode()) == 1
        assert read_api_key(about, after[about.api_key.path]) == check_api_key(about, f"{KEY}-2")

    def test_removal_leaves_neither(self, about: Provider) -> None:
        for before in (with_key(about, {}), with_login(about, {}), {}):
            after = without(about, before)
            assert about.credentials.path not in after
            assert KEY.encode() not in b"".join(after.values())

    def test_only_credential_paths_change(self, about: Provider) -> None:
        initial = {file.path for file in about.files}
        for after in (with_key(about, {}), with_login(about, {})):
            assert set(after) - initial <= set(credential_paths(about))

    @pytest.mark.parametrize(
        "content", [b"", b"\xff\xfe", b"[]", b"{}", b"x" * MAX_USER_FILE_BYTES * 2]
    )
    def test_invalid_key_file_holds_no_key(self, about: Provider, content: bytes) -> None:
        assert read_api_key(about, content) is None


def test_other_settings_stay() -> None:
    theirs = {"model": "opus", "env": {"A": "ü"}}
    before = {CLAUDE_SETTINGS: json.dumps(theirs).encode()}
    after = with_key(CLAUDE, before)
    assert json.loads(after[CLAUDE_SETTINGS]) == theirs | HELPER
    assert "ü" in after[CLAUDE_SETTINGS].decode()
    assert json.loads(without(CLAUDE, after)[CLAUDE_SETTINGS]) == theirs
    assert CLAUDE_SETTINGS not in without(CLAUDE, with_key(CLAUDE, {}))


def test_users_own_helper_stays() -> None:
    before = {CLAUDE_SETTINGS: b'{"apiKeyHelper": "/root/bin/my-key"}'}
    assert with_login(CLAUDE, before)[CLAUDE_SETTINGS] == before[CLAUDE_SETTINGS]
    assert without(CLAUDE, before)[CLAUDE_SETTINGS] == before[CLAUDE_SETTINGS]


def test_other_lines_of_a_dotenv_stay() -> None:
    mine = b"# mine\nGEMINI_API_KEYS=2\nOTHER=1"
    after = with_key(GEMINI, {GEMINI_ENV: mine})
    assert after[GEMINI_ENV] == mine + f"\nGEMINI_API_KEY={KEY}\n".encode()
    assert without(GEMINI, after)[GEMINI_ENV] == mine + b"\n"
    exported = b" export GEMINI_API_KEY = old\n"
    assert GEMINI_ENV not in with_login(GEMINI, {GEMINI_ENV: exported})


def test_initial_gemini_settings_select_the_key() -> None:
    reported = json.loads(with_key(GEMINI, {})[GEMINI_SETTINGS])
    assert reported["general"]["enableAutoUpdate"] is False
    assert reported["security"]["auth"]["selectedType"] == "gemini-api-key"
    assert reported["advanced"] == {"ignoreLocalEnv": True}


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1,}',
        b"// comment\n{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"security": "none"}',
        b'{"a": NaN}',
        b" " * (MAX_USER_FILE_BYTES + 1),
    ],
)
def test_unreadable_settings_are_not_overwritten(content: bytes) -> None:
    for kind, plaintext in (
        (CredentialKind.LOGIN, LOGIN),
        (CredentialKind.API_KEY, check_api_key(GEMINI, KEY)),
    ):
        with pytest.raises(SettingsUnreadable, match=GEMINI_SETTINGS):
            plan_install(GEMINI, kind, plaintext, {GEMINI_SETTINGS: content})
    change = plan_removal(GEMINI, {GEMINI_SETTINGS: content})
    assert GEMINI_SETTINGS not in change.paths
    assert GEMINI.credentials.path in change.removed


@pytest.mark.parametrize(
    "text", ["", "short", "k" * 513, "a key of words 0123456789", "key\n0123456789-0123456789"]
)
def test_invalid_key_is_refused_and_not_repeated(text: str) -> None:
    for about in all_providers():
        with pytest.raises(BadApiKey) as refused:
            check_api_key(about, text)
        assert not text or text not in refused.value.line()


def test_key_is_stripped() -> None:
    assert check_api_key(CODEX, f"  {KEY}\n") == check_api_key(CODEX, KEY)


def test_key_of_another_provider_is_refused() -> None:
    for about, text in (
        (CLAUDE, "sk-proj-0123456789abcdefghij"),
        (CLAUDE, "sk-ant-oat01-0123456789abcdefghij"),
        (CODEX, "sk-ant-api03-0123456789abcdefghij"),
        (GEMINI, "sk-ant-api03-0123456789abcdefghij"),
    ):
        with pytest.raises(BadApiKey, match=about.name):
            check_api_key(about, text)
