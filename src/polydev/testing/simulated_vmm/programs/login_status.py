"""Whether a simulated CLI counts itself logged in: by the files that the real one looks at.

`programs.py` asks. A login or an API key will do, and where both stand the settings decide, as
with the real CLIs. No file's content is checked any further.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CODEX = "root/.codex/auth.json"
CLAUDE = "root/.claude/.credentials.json"
GEMINI = "root/.gemini/oauth_creds.json"

_CLAUDE_KEY = "root/.claude/polydev-api-key"
_CLAUDE_SETTINGS = "root/.claude/settings.json"
_GEMINI_KEY = "root/.gemini/.env"
_GEMINI_SETTINGS = "root/.gemini/settings.json"


def is_logged_in(root: Path, login: str) -> bool:
    """Whether the CLI whose login is that file counts itself logged in."""
    if login == CLAUDE and _settings(root, _CLAUDE_SETTINGS).get("apiKeyHelper"):
        return _holds(root, _CLAUDE_KEY)
    if login == GEMINI:
        auth = _settings(root, _GEMINI_SETTINGS).get("security", {}).get("auth", {})
        if auth.get("selectedType") == "gemini-api-key":
            return _holds(root, _GEMINI_KEY, b"GEMINI_API_KEY=")
    return _holds(root, login)


def _holds(root: Path, path: str, what: bytes = b"") -> bool:
    """A CLI that finds nothing in its file is not logged in."""
    file = root / path
    return file.is_file() and file.stat().st_size > 0 and what in file.read_bytes()


def _settings(root: Path, path: str) -> dict[str, Any]:
    try:
        found = json.loads((root / path).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
