"""Reports of browsers are counted by what is known, and believed in nothing else."""

from __future__ import annotations

import json

import pytest

from polydev.controller.web.pages.csp_report import _LogLimit, _parse


def report(**fields: object) -> bytes:
    return json.dumps({"csp-report": fields}).encode()


def test_a_report_is_told_by_its_directive_and_where_the_blocked_thing_came_from() -> None:
    told = report(**{"effective-directive": "img-src", "blocked-uri": "https://a.example/x?secret"})
    assert _parse(told) == ("img-src", "https://a.example")


def test_a_directive_that_nobody_knows_is_not_told_apart() -> None:
    told = report(**{"effective-directive": "x" * 1000, "blocked-uri": "inline"})
    assert _parse(told) == ("other", "inline")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"csp-report": 1}', b"\xff", b"[" * 100_000],
)
def test_what_is_no_report_is_one_that_cannot_be_parse(body: bytes) -> None:
    assert _parse(body) == ("unreadable", "")


def test_what_is_logged_of_it_is_short_and_in_one_line() -> None:
    told = report(**{"effective-directive": "img-src", "blocked-uri": "a\n\u2028" + "b" * 5000})
    _, source = _parse(told)
    assert len(source) < 200
    assert source.isprintable()


def test_few_are_logged_each_minute() -> None:
    limit = _LogLimit()
    assert sum(limit.allow() for _ in range(1000)) == 10
