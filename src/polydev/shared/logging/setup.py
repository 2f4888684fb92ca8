"""Logging setup: text, journald or JSON lines on standard error.

Records are redacted when they are created, before any handler sees them (`redaction`), and carry
the ids of the log context (`context`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from polydev.shared.logging import context, redaction

log = logging.getLogger("polydev")

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""syslog priorities. Source: sd-daemon(3)."""


def set_up(*, as_json: bool) -> None:
    """Log INFO and above, WARNING and above of libraries, and uncaught exceptions."""
    logging.setLogRecordFactory(SafeRecord)
    handler = logging.StreamHandler(sys.stderr)
    if as_json:
        handler.setFormatter(JsonLine())
    else:
        handler.setFormatter(JournalLine() if _is_journal() else HumanLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addFilter(_is_relevant)
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, None)
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, None)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drop uvicorn's error about a WebSocket that was refused with a complete answer."""
    return "returned without completing handshake" not in record.getMessage()


class SafeRecord(logging.LogRecord):
    """Record whose message is formatted and redacted at creation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.about = dict(context.current())
        self.msg = redaction.without_secrets(self._message())
        self.args = ()
        if self.exc_info and self.exc_info[1] is not None:
            self.exc_text = redaction.describe_error(self.exc_info[1])

    def _message(self) -> str:
        template = self.msg if isinstance(self.msg, str) else str(redaction.plain(self.msg))
        if self.name == "asyncio":  # further lines are reprs of tasks and errors
            template = template.partition("\n")[0]
        if not self.args:
            return template
        try:
            return str(template % redaction.plain(self.args))
        except (TypeError, ValueError, KeyError):
            return f"{template} (invalid arguments)"


class HumanLine(logging.Formatter):
    """Line with time, level, message, and the ids that the message does not contain."""

    stamp = "%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        message = redaction.one_line(record.getMessage())
        about: dict[str, str] = getattr(record, "about", {})
        ids = [f"{name}={value}" for name, value in about.items() if value not in message]
        suffix = f" [{redaction.one_line(' '.join(ids))}]" if ids else ""
        line = f"{self.prefix(record)}{message}{suffix}"
        if record.exc_text:
            line += "".join(f"\n    {redaction.one_line(it)}" for it in record.exc_text.split("\n"))
        return line

    def prefix(self, record: logging.LogRecord) -> str:
        """Text before the message."""
        return f"{self.formatTime(record, self.stamp)} {record.levelname} "


class JournalLine(HumanLine):
    """Line for journald, which adds the time and reads the priority. Source: sd-daemon(3)."""

    def prefix(self, record: logging.LogRecord) -> str:
        return f"<{next((it for level, it in _PRIORITIES if record.levelno >= level), 7)}>"


class JsonLine(logging.Formatter):
    """JSON object per line: time, level, logger, message, ids and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redaction.one_line(record.getMessage()),
        }
        for name, value in getattr(record, "about", {}).items():
            line.setdefault(name, redaction.one_line(value))
        if record.exc_text:
            line["traceback"] = [redaction.one_line(it) for it in record.exc_text.split("\n")]
        return json.dumps(line)


def _is_journal() -> bool:
    """Check that standard error is journald's socket. Source: systemd.exec(5)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def _uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if error is None or isinstance(error, KeyboardInterrupt):
        return
    log.critical("uncaught %s", kind, exc_info=(kind, error, trace or error.__traceback__))
