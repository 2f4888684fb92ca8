"""Environments of the two programs that `up` starts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr

from polydev.cli.commands.instance.up import Plan, controller, host_agent
from polydev.cli.supervisor.system_user import Account
from polydev.controller.settings import ControllerSettings
from polydev.shared.settings.messages import variable_of

OWNER = Account("nobody", 65534, "nogroup", 65534)
A_SECRET = "not-for-the-host-agent-0123456789abcdef"
SECRETS = [
    variable_of(name, field)
    for name, field in ControllerSettings.model_fields.items()
    if SecretStr in (field.annotation, *get_args(field.annotation))
]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Settings with every possible secret."""
    for variable in (*SECRETS, "POLYDEV_TOKEN"):
        monkeypatch.setenv(variable, A_SECRET)
    monkeypatch.setenv("SUPABASE_URL", "https://project.example.test")
    monkeypatch.setenv("POLYDEV_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("POLYDEV_NETNS", "a-name")
    return Plan.read()


def test_the_host_agent_gets_no_secret_of_the_controllers(plan: Plan, tmp_path: Path) -> None:
    env = host_agent(plan, OWNER, tmp_path).env
    assert [name for name, value in env.items() if A_SECRET in value] == []


def test_the_host_agent_gets_its_own_settings(plan: Plan, tmp_path: Path) -> None:
    env = host_agent(plan, OWNER, tmp_path).env
    assert env["POLYDEV_NETNS"] == "a-name"
    assert env["POLYDEV_STATE_DIR"] == str(tmp_path)


def test_controller_gets_all_its_settings(plan: Plan, tmp_path: Path) -> None:
    env = controller(plan, OWNER, tmp_path).env
    assert {name for name, value in env.items() if value == A_SECRET} >= set(SECRETS)
