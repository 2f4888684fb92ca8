"""Run Alembic's migrations on the connection that `engine/database.py` passes."""

from __future__ import annotations

from alembic import context

from polydev.controller.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
