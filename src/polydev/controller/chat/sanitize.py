"""Texts of people and machines, made fit to be kept and shown: bounded, and without what could
steer a terminal or a page."""

from __future__ import annotations

import re

# Controls but for tab and new line; what turns the direction of writing; halves of characters.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_ESCAPES = re.compile(
    "\x1b(?:\\[[0-?]{0,64}[ -/]{0,8}[@-~]|\\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\\\)|[@-Z\\\\^_])"
)
_CUT = "…"


def cleaned(text: str, limit: int) -> str:
    """The text with at most so many characters, without terminals' sequences and controls."""
    text = text[: 2 * limit + 1]
    if _UNFIT.search(text) is not None:
        text = _UNFIT.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))
    return text if len(text) <= limit else text[: limit - 1] + _CUT


def one_line(text: str, limit: int) -> str:
    """The text in one line."""
    return cleaned(" ".join(cleaned(text, 4 * limit).split()), limit)


def first_line(text: str, limit: int) -> str:
    """The first line that says something."""
    lines = (line.strip() for line in text.splitlines())
    return one_line(next((line for line in lines if line), ""), limit)
