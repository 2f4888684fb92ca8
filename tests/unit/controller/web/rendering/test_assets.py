"""Serve listed assets under a path that changes with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from polydev.controller.settings import ControllerSettings
from polydev.controller.web.rendering import assets
from polydev.controller.web.rendering.assets import Assets, default_folder
from polydev.shared.errors import BadSettings

INSTALLED = default_folder(ControllerSettings.model_fields["cache_dir"].default)


@pytest.fixture(scope="module")
def served() -> Assets:
    return Assets(INSTALLED)


def test_own_files_and_listed_package_files_are_served(served: Assets) -> None:
    for name in (
        "app.css",
        "app.js",
        "icons.svg",
        "vendor/idiomorph/idiomorph.js",
        "vendor/novnc/core/rfb.js",
    ):
        assert served.find(name) is not None, name


@pytest.mark.parametrize(
    "name",
    [
        "../server.py",
        "../templates/base.html",
        "/etc/passwd",
        "..%2fserver.py",
        "vendor/../app.css",
        "vendor/idiomorph/../idiomorph/idiomorph.js",
        "vendor/axe-core/axe.min.js",
        "vendor/novnc/package.json",
        "vendor/novnc/core/../../package.json",
        "",
        "vendor",
    ],
)
def test_nothing_else_is_served(served: Assets, name: str) -> None:
    assert served.find(name) is None


def test_unknown_asset_in_a_template_is_an_error(served: Assets) -> None:
    with pytest.raises(KeyError):
        served.url("no-such.css")


def test_changed_content_changes_the_path(
    tmp_path: Path, served: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in assets.STATIC.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(assets.STATIC)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(assets, "STATIC", tmp_path)
    assert Assets(INSTALLED).hash == served.hash
    (tmp_path / "app.css").write_text("body { color: red }")
    assert Assets(INSTALLED).hash != served.hash


def test_compressible_file_is_compressed(served: Assets) -> None:
    script = served.find("app.js")
    assert script is not None
    plain, packed = script.read()
    assert packed is not None
    assert len(packed) < len(plain) / 2
    assert gzip.decompress(packed) == plain


def test_modules_are_served_as_javascript(served: Assets) -> None:
    for name in ("app.js", "vendor/xterm/xterm.mjs", "vendor/marked/marked.js"):
        found = served.find(name)
        assert found is not None
        assert found.media_type == "text/javascript; charset=utf-8"


def test_missing_packages_stop_the_start_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(BadSettings) as refused:
        Assets(tmp_path)
    assert "make setup" in refused.value.hint


def test_lock_file_names_no_registry() -> None:
    lock = json.loads(assets.LOCK.read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
    assert all("integrity" in it for name, it in lock["packages"].items() if name)
