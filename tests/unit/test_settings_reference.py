"""docs/settings.md lists every setting, as the code reads it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from polydev.controller.settings import ControllerSettings
from polydev.hostagent.settings import HostSettings
from polydev.shared.settings.messages import variable_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/settings.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \|", re.MULTILINE)


def test_page_matches_the_code() -> None:
    printed = subprocess.run(
        [sys.executable, str(ROOT / "scripts/settings-reference")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == PAGE, "run `make settings`"


def test_every_setting_is_explained() -> None:
    assert [name for name, meaning in ROW.findall(PAGE) if not meaning.strip()] == []


@pytest.mark.parametrize("kind", [ControllerSettings, HostSettings])
def test_every_setting_is_listed_once(kind: type[ControllerSettings] | type[HostSettings]) -> None:
    listed = [name for name, _ in ROW.findall(PAGE)]
    expected = {variable_of(name, field) for name, field in kind.model_fields.items()}
    assert expected <= set(listed)
    assert len(listed) == len(set(listed))
