"""Schema migrations, run by Alembic in order."""
