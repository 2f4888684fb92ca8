"""`scripts/setup` removes only unused environments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SETUP = Path(__file__).parents[2] / "scripts" / "setup"
PRUNE = f"""
eval "$(sed -n '/^prune_environments()/,/^}}/p' {SETUP})"
say() {{ :; }}
cache=$1
prune_environments "$2"
"""


def environment(cache: Path, name: str, used_at: int) -> Path:
    made = cache / f"env-{name}"
    (made / "bin").mkdir(parents=True)
    (made / "complete").touch()
    for path in (made / "complete", made):
        os.utime(path, (used_at, used_at))
    return made


def prune(cache: Path, current: Path, library: Path = Path("/nowhere")) -> set[str]:
    subprocess.run(
        ["bash", "-euc", PRUNE, "-", str(cache), str(current)],
        check=True,
        env={**os.environ, "POLYDEV_LIBRARY_DIR": str(library)},
    )
    return {path.name for path in cache.iterdir()}


def test_last_two_environments_stay(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        environment(tmp_path, name, 1_000_000 - age)
    current = environment(tmp_path, "new", 1_000)  # whatever the clock says
    assert prune(tmp_path, current) == {"env-new", "env-a"}


def test_environment_in_use_stays(tmp_path: Path) -> None:
    environment(tmp_path, "a", 3000)
    used = environment(tmp_path, "b", 2000)
    environment(tmp_path, "c", 1000)
    command = [sys.executable, "-c", "import time; time.sleep(60)", str(used / "bin" / "python")]
    with subprocess.Popen(command) as running:
        try:
            current = environment(tmp_path, "new", 4000)
            assert prune(tmp_path, current) == {"env-new", "env-a", "env-b"}
        finally:
            running.kill()


def test_environment_of_the_units_stays(tmp_path: Path) -> None:
    library, cache = tmp_path / "library", tmp_path / "cache"
    for age, name in enumerate("abcd"):
        environment(cache, name, 1_000_000 - age)
    library.mkdir()
    (library / "env").symlink_to(cache / "env-d")
    current = environment(cache, "new", 1_000)
    assert prune(cache, current, library) == {"env-new", "env-a", "env-d"}
