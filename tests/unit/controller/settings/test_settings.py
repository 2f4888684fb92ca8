"""Each setting is read somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import polydev
from polydev.controller.settings import ControllerSettings
from polydev.hostagent.settings import HostSettings

SOURCE = Path(polydev.__file__).parent
ELSEWHERE = "\n".join(
    path.read_text() for path in SOURCE.rglob("*.py") if path.name != "settings.py"
)
FIELDS = {*ControllerSettings.model_fields, *HostSettings.model_fields}
READ_BY_SETTINGS = {
    "encryption_key": "required_encryption_key",
    "encryption_key_file": "required_encryption_key",
    "other_encryption_keys": "opening_keys",
    "other_encryption_keys_file": "opening_keys",
    "public_url": "own_url",
    "hosts": "vm_hosts",
    "machines_cgroup": "cgroup",
}
NOT_NEEDED = {"supabase_service_key"}
"""Accepted for compatibility: a project's access tokens are checked without it."""


@pytest.mark.parametrize("name", sorted(FIELDS - NOT_NEEDED))
def test_setting_is_used(name: str) -> None:
    assert re.search(rf"\.{READ_BY_SETTINGS.get(name, name)}\b", ELSEWHERE)
