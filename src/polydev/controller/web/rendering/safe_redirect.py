"""Where a browser may be sent: only to a page of our own.

`?next=` comes from whoever wrote the link. What a browser would read as another host (`//host`,
`/\\host`), as another scheme or as no path at all leads home instead.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

HOME = "/"
_MAX = 1024
_PATH = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")


def safe_next(wanted: str | None) -> str:
    """The path that was asked for, or home."""
    if not wanted or len(wanted) > _MAX or not _PATH.fullmatch(wanted):
        return HOME
    try:
        parts = urlsplit(wanted)
    except ValueError:
        return HOME
    is_page = not parts.path.startswith(("/api/", "/fragments/", "/static/", "/sign-"))
    return wanted if is_page and not parts.scheme and not parts.netloc else HOME
