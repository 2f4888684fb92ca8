"""Login status of simulated CLIs, from the files that the real ones read.

A login or an API key suffices; if both exist, the settings decide, as with the real CLIs. File
contents are not checked any further.
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
    """Return True if the CLI with that credentials file counts as logged in."""
    if login == CLAUDE and _settings(root, _CLAUDE_SETTINGS).get("apiKeyHelper"):
        return _contains(root, _CLAUDE_KEY)
    if login == GEMINI:
        auth = _settings(root, _GEMINI_SETTINGS).get("security", {}).get("auth", {})
        if auth.get("selectedType") == "gemini-api-key":
            return _contains(root, _GEMINI_KEY, b"GEMINI_API_KEY=")
    return _contains(root, login)


def _contains(root: Path, path: str, what: bytes = b"") -> bool:
    """Return True if the file is not empty and contains `what`."""
    file = root / path
    return file.is_file() and file.stat().st_size > 0 and what in file.read_bytes()


def _settings(root: Path, path: str) -> dict[str, Any]:
    try:
        found = json.loads((root / path).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
