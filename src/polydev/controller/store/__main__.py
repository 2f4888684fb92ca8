"""Migrate the database: `python -m polydev.controller.store`.

`polydev db migrate` runs it as the controller's user. It prints one JSON object: the revision
before and after, or the error.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import migrate
from polydev.shared.errors import PolydevError
from polydev.shared.settings.base import read


def main() -> int:
    """Migrate; return 0 if the schema is up to date afterwards."""
    os.umask(0o077)
    try:
        settings = read(ControllerSettings)
        was, is_now = asyncio.run(migrate(settings.database_url, settings.controller_dir))
    except PolydevError as error:
        print(json.dumps({"code": error.code, "message": error.message, "hint": error.hint}))
        return 1
    print(json.dumps({"was": was, "is": is_now}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
