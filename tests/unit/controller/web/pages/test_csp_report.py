"""Reduce untrusted CSP reports to known values."""

from __future__ import annotations

import json

import pytest

from polydev.controller.web.pages.csp_report import _LogLimit, _parse


def report(**fields: object) -> bytes:
    return json.dumps({"csp-report": fields}).encode()


def test_report_is_reduced_to_directive_and_origin() -> None:
    body = report(**{"effective-directive": "img-src", "blocked-uri": "https://a.example/x?secret"})
    assert _parse(body) == ("img-src", "https://a.example")


def test_unknown_directive_counts_as_other() -> None:
    body = report(**{"effective-directive": "x" * 1000, "blocked-uri": "inline"})
    assert _parse(body) == ("other", "inline")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"csp-report": 1}', b"\xff", b"[" * 100_000],
)
def test_invalid_report_is_unreadable(body: bytes) -> None:
    assert _parse(body) == ("unreadable", "")


def test_logged_source_is_one_short_line() -> None:
    body = report(**{"effective-directive": "img-src", "blocked-uri": "a\n\u2028" + "b" * 5000})
    _, source = _parse(body)
    assert len(source) < 200
    assert source.isprintable()


def test_few_reports_per_minute_are_logged() -> None:
    limit = _LogLimit()
    assert sum(limit.allow() for _ in range(1000)) == 10
