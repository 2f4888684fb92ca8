"""Jinja filters that format times, sizes and durations.

Times render as `<time datetime>` with the exact time as title; `app.js` keeps relative ones
current.
Only `relative` reads the clock.
"""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

from polydev.shared.domain import now

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))
_RELATIVE_LIMIT_S = 30 * 86400
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def relative(at: datetime | str | None) -> Markup:
    """`2 minutes ago`, `in 2 minutes`, or the date if that is far away."""
    return _time(at, "relative", relative_text(now(), parse_time(at)) if at else "")


def date(at: datetime | str | None) -> Markup:
    """`3 March 2026`."""
    return _time(at, "date", _date(parse_time(at)) if at else "")


def mib(count: int) -> str:
    """Format a number of MiB: `512 MiB`, `2 GiB`."""
    return size(count * 1024 * 1024)


def size(count: float) -> str:
    """Format a number of bytes with up to three digits: `1.5 GiB`."""
    unit = 0
    while abs(count) >= 1000 and unit < len(_SIZES) - 1:
        count /= 1024
        unit += 1
    digits = f"{count:.0f}" if count >= 100 or count == int(count) else f"{count:.1f}"
    return f"{digits.removesuffix('.0')} {_SIZES[unit]}"


def duration(seconds: float) -> str:
    """Format seconds: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def relative_text(at: datetime, then: datetime) -> str:
    """Express `then` relative to `at`. `app.js` has the same rules."""
    seconds = (at - then).total_seconds()
    if abs(seconds) >= _RELATIVE_LIMIT_S:
        return f"on {_date(then)}"
    for length, unit in _UNITS:
        count = int(abs(seconds) // length)
        if count:
            text = f"{count} {unit}{'' if count == 1 else 's'}"
            return f"{text} ago" if seconds > 0 else f"in {text}"
    return "just now" if seconds >= 0 else "in a moment"


def parse_time(at: datetime | str) -> datetime:
    """Parse an RFC 3339 time; without a zone it is UTC."""
    found = datetime.fromisoformat(at) if isinstance(at, str) else at
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _time(at: datetime | str | None, kind: str, text: str) -> Markup:
    if not at:
        return Markup("")
    then = parse_time(at).astimezone(UTC)
    stamp = then.isoformat(timespec="seconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}" data-time="{}">{}</time>').format(
        stamp, _exact(then), kind, text
    )


def _date(at: datetime) -> str:
    return f"{at.day} {at:%B %Y}"


def _exact(at: datetime) -> str:
    return f"{_date(at)}, {at.astimezone(UTC):%H:%M:%S} UTC"
