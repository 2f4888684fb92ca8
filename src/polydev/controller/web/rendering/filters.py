"""Times and sizes as people read them: Jinja filters of `rendering.py`.

Every time is a `<time datetime>` whose title is exact; `static/app.js` keeps "2 minutes ago" true
while the page stands. Nothing here asks a clock but `ago` and `left`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

from polydev.shared.domain import now

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))
_LONG_AGO_S = 30 * 86400
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def ago(at: datetime | str | None) -> Markup:
    """`2 minutes ago`; the day, if it is long ago."""
    return _time(at, "ago", words_ago(now(), parsed(at)) if at else "")


def left(at: datetime | str | None) -> Markup:
    """`in 2 minutes`."""
    return _time(at, "ago", words_ago(now(), parsed(at)) if at else "")


def day(at: datetime | str | None) -> Markup:
    """`3 March 2026`."""
    return _time(at, "day", _day(parsed(at)) if at else "")


def exact(at: datetime | str | None) -> Markup:
    """`3 March 2026, 14:05:09 UTC`."""
    return _time(at, "exact", _exact(parsed(at)) if at else "")


def mib(count: int) -> str:
    """A number of MiB: `512 MiB`, `2 GiB`."""
    return size(count * 1024 * 1024)


def size(count: float) -> str:
    """A number of bytes, to three digits: `1.5 GiB`."""
    unit = 0
    while abs(count) >= 1000 and unit < len(_SIZES) - 1:
        count /= 1024
        unit += 1
    digits = f"{count:.0f}" if count >= 100 or count == int(count) else f"{count:.1f}"
    return f"{digits.removesuffix('.0')} {_SIZES[unit]}"


def lasted(seconds: float) -> str:
    """How long something took: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def words_ago(at: datetime, then: datetime) -> str:
    """How long before or after `at` it is, in words. `static/app.js` says it in the same."""
    seconds = (at - then).total_seconds()
    if abs(seconds) >= _LONG_AGO_S:
        return f"{'on' if seconds > 0 else 'until'} {_day(then)}"
    for length, unit in _UNITS:
        count = int(abs(seconds) // length)
        if count:
            words = f"{count} {unit}{'' if count == 1 else 's'}"
            return f"{words} ago" if seconds > 0 else f"in {words}"
    return "just now" if seconds >= 0 else "in a moment"


def parsed(at: datetime | str) -> datetime:
    """A time with its zone, also as RFC 3339 writes it."""
    found = datetime.fromisoformat(at) if isinstance(at, str) else at
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _time(at: datetime | str | None, kind: str, words: str) -> Markup:
    if not at:
        return Markup("")
    then = parsed(at).astimezone(UTC)
    stamp = then.isoformat(timespec="seconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}" data-time="{}">{}</time>').format(
        stamp, _exact(then), kind, words
    )


def _day(at: datetime) -> str:
    return f"{at.day} {at:%B %Y}"


def _exact(at: datetime) -> str:
    return f"{_day(at)}, {at.astimezone(UTC):%H:%M:%S} UTC"
