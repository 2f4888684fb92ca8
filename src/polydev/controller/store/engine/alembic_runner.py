"""Run Alembic, imported only if the schema is out of date."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from polydev.controller.store.engine.schema_version import MIGRATIONS


def upgrade(connection: sa.Connection) -> None:
    """Run the missing migrations in the connection's transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
