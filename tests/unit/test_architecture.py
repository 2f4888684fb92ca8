"""docs/architecture.md shows the actual tree."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/polydev"
FOLDER = re.compile(r"^(  )?([a-z_]+)/ {2,}\S")


def _printed() -> set[str]:
    page = (ROOT / "docs/architecture.md").read_text()
    tree = page.split("## The tree")[1].split("```")[1]
    found, parent = set(), ""
    for line in tree.splitlines():
        if row := FOLDER.match(line):
            name = row[2] if row[1] is None else f"{parent}/{row[2]}"
            parent = row[2] if row[1] is None else parent
            found.add(name)
    return found


def test_the_printed_tree_is_the_real_one() -> None:
    folders = {
        str(path.relative_to(SOURCE))
        for pattern in ("*/", "*/*/")
        for path in SOURCE.glob(pattern)
        if path.is_dir() and path.name != "__pycache__" and any(path.rglob("*.*"))
    }
    assert _printed() == folders


def test_links_in_documents_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
