"""Hints that name commands or settings are defined in one module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

import polydev
from polydev.shared.hints import Hint

SOURCE = Path(polydev.__file__).parent
FILES = [
    path
    for folder in ("hostagent", "controller", "shared")
    for path in sorted((SOURCE / folder).rglob("*.py"))
    if path.name != "hints.py"
]
NAMES_AN_INTERFACE = re.compile(
    r"`?polydev [a-z]|POLYDEV_|`make |DATABASE_URL|ENCRYPTION_KEY|/api/"
)


def hints(tree: ast.AST) -> Iterator[ast.expr]:
    """Expressions that a module passes as `hint` or assigns to a hint."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            yield node.value
        elif isinstance(node, ast.Assign):
            names = [it.id for it in node.targets if isinstance(it, ast.Name)]
            if any("hint" in name.lower() for name in names):
                yield node.value


def texts(hint: ast.expr) -> Iterator[str]:
    """Text in an expression."""
    for node in ast.walk(hint):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_hints_elsewhere_name_no_command_and_no_setting() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{hint.lineno}: {text}"
        for path in FILES
        for hint in hints(ast.parse(path.read_text()))
        for text in texts(hint)
        if NAMES_AN_INTERFACE.search(text)
    ]
    assert found == []


def test_every_hint_is_used() -> None:
    sources = "".join(path.read_text() for path in FILES)
    assert [it.name for it in Hint if f"Hint.{it.name}" not in sources] == []


def test_placeholders_are_filled_in() -> None:
    assert Hint.BUILD_IMAGE.text(kind="cli") == "Build it with `polydev image build cli`"
    assert type(Hint.LIST_IMAGES.text()) is str
    with pytest.raises(KeyError):
        Hint.BUILD_IMAGE.text()


@pytest.mark.parametrize("hint", Hint)
def test_placeholders_are_plain_names(hint: Hint) -> None:
    names = [name for _, name, _, _ in Formatter().parse(hint.value) if name is not None]
    assert all(name.isidentifier() for name in names)
