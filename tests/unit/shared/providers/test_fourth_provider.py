"""A new provider is one folder: everything else finds it there."""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from polydev.cli.options import provider_choices
from polydev.controller.api.routes.system.health import list_providers
from polydev.controller.settings import ControllerSettings
from polydev.controller.web.rendering.assets import Assets, default_folder
from polydev.controller.web.rendering.provider_status import UserRecords, make_cards
from polydev.controller.web.rendering.render import make_site
from polydev.hostagent.images import ImageKind, npm
from polydev.hostagent.images.recipe import Recipe
from polydev.shared.providers import all_providers, provider, provider_ids, registry

NEWCOMER = "made_up"
ASSETS = default_folder(ControllerSettings.model_fields["cache_dir"].default)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The registry's folder with a fourth provider in it."""
    folder = tmp_path / "providers"
    shutil.copytree(registry.FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    newcomer = folder / NEWCOMER
    shutil.copytree(folder / "gemini_cli", newcomer)
    data = newcomer / "provider.toml"
    text = data.read_text()
    for old, new in (
        ('id = "gemini_cli"', f'id = "{NEWCOMER}"'),
        ('name = "Gemini CLI"', 'name = "Made Up"'),
        ('name = "gemini"', 'name = "made-up"'),
        ("gemini-status", "made-up-status"),
    ):
        assert old in text
        text = text.replace(old, new)
    data.write_text(text)
    monkeypatch.setattr(registry, "FOLDER", folder)
    return folder


def test_registry_finds_it() -> None:
    assert len(all_providers()) == 4
    assert NEWCOMER in provider_ids()
    assert provider(NEWCOMER).name == "Made Up"


def test_commands_offer_it() -> None:
    assert f"`{NEWCOMER}`" in provider_choices()


def test_api_lists_it() -> None:
    caller: Any = None
    assert NEWCOMER in [view.id for view in asyncio.run(list_providers(caller))]


def test_images_hold_its_files_and_its_command(folder: Path) -> None:
    recipe = Recipe(providers=folder)
    files = recipe.provider_files()
    assert files[f"usr/share/polydev/providers/{NEWCOMER}.toml"].parent.name == NEWCOMER
    assert files["usr/lib/polydev/made-up-status"] == folder / NEWCOMER / "status.js"
    for kind in (ImageKind.CLI, ImageKind.BROWSER):
        assert "made-up" in [command.name for command in npm.commands(recipe, kind)]
        assert recipe.hash(kind) != Recipe().hash(kind)


def test_home_page_shows_its_card_and_icon() -> None:
    assets = Assets(ASSETS)
    site = make_site(assets)
    shown = make_cards(all_providers(), UserRecords([], [], []), datetime.now(UTC))
    html = site.templates.get_template("home/cards.html").render(cards=shown)
    assert f'id="provider-{NEWCOMER}"' in html
    assert "Made Up" in html
    assert f"{assets.url(f'providers/{NEWCOMER}.svg')}#icon" in html
