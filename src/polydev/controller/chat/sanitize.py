"""Clean text from users and machines: bounded, without terminal escapes and control characters."""

from __future__ import annotations

import re

# Control characters except tab and newline, bidirectional overrides, lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_ESCAPES = re.compile(
    "\x1b(?:\\[[0-?]{0,64}[ -/]{0,8}[@-~]|\\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\\\)|[@-Z\\\\^_])"
)
_ELLIPSIS = "…"


def clean(text: str, limit: int) -> str:
    """Remove terminal escapes and control characters; truncate to `limit` characters."""
    text = text[: 2 * limit + 1]
    if _UNSAFE.search(text) is not None:
        text = _UNSAFE.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))
    return text if len(text) <= limit else text[: limit - 1] + _ELLIPSIS


def one_line(text: str, limit: int) -> str:
    """Clean the text and join it into one line."""
    return clean(" ".join(clean(text, 4 * limit).split()), limit)


def first_line(text: str, limit: int) -> str:
    """Clean the first line that is not blank."""
    lines = (line.strip() for line in text.splitlines())
    return one_line(next((line for line in lines if line), ""), limit)
