"""Running the migrations. `database.py` asks, where the tables are not of this version's shape."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from polydev.controller.store.engine.schema_version import MIGRATIONS


def upgrade(connection: sa.Connection) -> None:
    """Run what is missing, in the connection's transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
