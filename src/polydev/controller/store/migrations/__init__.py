"""The history of the tables, one module per change, run by Alembic in order."""
