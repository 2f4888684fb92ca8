"""Reported terminal output has no secrets and no control characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.guest.browser_service.validation.redaction import reportable


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (b"\x1b[94mError:\x1b[0m no luck\r\n\r\n", "Error: no luck"),
        (
            b"see https://id.example.test/a?code=1&state=2 now",
            "see https://id.example.test/a?[hidden] now",
        ),
        (b"\x1b]8;;https://id.example.test/?code=abc\x07here\x1b]8;;\x07", "here"),
        (b"token sk-ant-oat01-abcdefghijkl", "token [hidden]"),
        (b"AbCdEfGhIjKlMnOpQrStUvWx", "[hidden]"),
        (b"platform.claude.com internationalisation", "platform.claude.com internationalisation"),
        (b"a\x00b\x07c\x9bd", "abc\N{REPLACEMENT CHARACTER}d"),
        ("\u202eevil\u200b".encode(), "evil"),
        (b"one\rtwo", "one\ntwo"),
    ],
)
def test_escapes_queries_and_tokens_are_removed(output: bytes, shown: str) -> None:
    assert reportable(output, 2048) == shown


def test_end_of_the_output_is_reported() -> None:
    text = reportable("é".encode() * 5000 + b" end", 2048)
    assert text.endswith(" end")
    assert len(text.encode()) <= 2048


@given(st.binary(max_size=300), st.integers(1, 100))
def test_any_output_is_safe_to_show(output: bytes, limit_bytes: int) -> None:
    text = reportable(output, limit_bytes)
    assert len(text.encode()) <= limit_bytes
    assert all(character == "\n" or character >= " " for character in text)
    assert "\x1b" not in text
    assert "\x7f" not in text
