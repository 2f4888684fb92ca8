"""How the processes log: lines on standard error, for people or as JSON.

`app.py` and `hostd/__main__.py` call it once. Nothing secret is given to a logger anywhere.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


def set_up(*, as_json: bool) -> None:
    """Log from INFO upward, libraries from WARNING upward."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLine() if as_json else _HumanLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("polydev").setLevel(logging.INFO)


class _HumanLine(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """One line, whatever words of a machine are in it: they must not forge a second one."""
        return super().formatMessage(record).replace("\r", " ").replace("\n", " ")


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
