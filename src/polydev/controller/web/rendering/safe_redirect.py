"""Validate redirect targets: only Polydev's own pages.

Anyone can write `?next=` into a link. A value that a browser would take as another host (`//host`,
`/\\host`), another scheme or no path leads to the home page instead.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

HOME = "/"
_MAX_LENGTH = 1024
_PATH = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")


def safe_next(path: str | None) -> str:
    """Return the path if it is a page, or else the home page."""
    if not path or len(path) > _MAX_LENGTH or not _PATH.fullmatch(path):
        return HOME
    try:
        parts = urlsplit(path)
    except ValueError:
        return HOME
    is_page = not parts.path.startswith(("/api/", "/fragments/", "/static/", "/sign-"))
    return path if is_page and not parts.scheme and not parts.netloc else HOME
