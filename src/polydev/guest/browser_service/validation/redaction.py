"""Redaction of a CLI's terminal output for error reports."""

import re

_ESCAPE = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system commands: titles, hyperlinks
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # control sequences: colours, cursor
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|[\u200b-\u200f\u2028-\u202e\u2060-\u2069]")
_QUERY = re.compile(r"(https?://[^\s?#]*)[?#]\S*")
_LONG_WORD = re.compile(r"[A-Za-z0-9_\-+=%~.#]{20,}")
_TOKEN_LIKE = re.compile(r"[0-9_#%=]|[a-z][A-Z]")


def reportable(output: bytes, limit_bytes: int) -> str:
    """End of a terminal's output, up to `limit_bytes` of UTF-8, safe to show."""
    text = output.decode("utf-8", "replace")
    text = _ESCAPE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", text)
    text = _QUERY.sub(r"\1?[hidden]", text)
    text = _LONG_WORD.sub(_hide, text)
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    encoded = "\n".join(lines).encode("utf-8", "replace")
    return encoded[-limit_bytes:].decode("utf-8", "ignore")


def _hide(word: re.Match[str]) -> str:
    """Hide long words that look like tokens or codes; keep host names and plain words."""
    return "[hidden]" if _TOKEN_LIKE.search(word.group()) else word.group()
