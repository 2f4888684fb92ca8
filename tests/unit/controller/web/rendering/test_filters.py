"""Format times, sizes and durations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from polydev.controller.web.rendering import filters

AT = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (3599, "59 minutes ago"),
        (3600, "1 hour ago"),
        (7200, "2 hours ago"),
        (86400, "1 day ago"),
        (29 * 86400, "29 days ago"),
        (30 * 86400, "on 12 February 2026"),
        (-1, "in a moment"),
        (-60, "in 1 minute"),
        (-90000, "in 1 day"),
        (-40 * 86400, "on 23 April 2026"),
    ],
)
def test_time_is_relative_until_it_is_far_away(seconds: int, text: str) -> None:
    assert filters.relative_text(AT, AT - timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024 * 1024, "1 MiB"),
        (512 * 1024 * 1024, "512 MiB"),
        (1023 * 1024 * 1024, "1 GiB"),
        (2.5 * 1024**4, "2.5 TiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_size_has_three_digits_and_a_unit(count: float, text: str) -> None:
    assert filters.size(count) == text


def test_memory_uses_the_largest_fitting_unit() -> None:
    assert [filters.mib(it) for it in (256, 512, 2048, 12288)] == [
        "256 MiB",
        "512 MiB",
        "2 GiB",
        "12 GiB",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12.3, "12 s"), (60, "1 min"), (185, "3 min 5 s"), (7440, "2 h 4 min")],
)
def test_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert filters.duration(seconds) == text


def test_time_is_an_element_with_the_exact_time() -> None:
    html = str(filters.date(AT))
    assert html.startswith('<time datetime="2026-03-14T15:09:26Z"')
    assert 'title="14 March 2026, 15:09:26 UTC"' in html
    assert filters.relative(None) == ""


def test_time_of_another_zone_is_converted() -> None:
    assert 'datetime="2026-03-14T15:09:26Z"' in filters.date("2026-03-14T17:09:26+02:00")
