"""Account and expiry are read from credentials."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from polydev.shared.providers import login_expiry, provider, same_account, same_login

CODEX, CLAUDE = provider("codex"), provider("claude_code")


def _codex(account: str) -> bytes:
    return json.dumps({"tokens": {"account_id": account}}).encode()


def _claude(**values: Any) -> bytes:
    return json.dumps({"claudeAiOauth": values}).encode()


def test_login_expiry_is_read() -> None:
    ends = _claude(refreshTokenExpiresAt=1_800_000_000_000)
    assert login_expiry(CLAUDE, ends) == datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
    assert login_expiry(CODEX, _codex("one")) is None


@pytest.mark.parametrize("reported", [None, "soon", 2**70, -(2**70)])
def test_invalid_expiry_is_ignored(reported: object) -> None:
    assert login_expiry(CLAUDE, _claude(refreshTokenExpiresAt=reported)) is None


def test_accounts_are_compared() -> None:
    assert same_account(CODEX, _codex("one"), _codex("one"))
    assert not same_account(CODEX, _codex("one"), _codex("two"))
    assert not same_account(CODEX, _codex("one"), b"{}")
    mine = _claude(accountUuid="a", organizationUuid="o")
    assert not same_account(CLAUDE, mine, _claude(accountUuid="a"))


def test_unknown_account_matches_any() -> None:
    assert same_account(CLAUDE, _claude(), _claude(accountUuid="a"))


def test_member_order_does_not_matter() -> None:
    assert same_login(b'{"a": 1, "b": 2}', b'{"b": 2,  "a": 1}')
    assert not same_login(b'{"a": 1}', b'{"a": 2}')
