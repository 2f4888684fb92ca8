"""The controller's database, in SQLite or PostgreSQL.

`engine/` opens the database and runs transactions, `tables.py` defines the tables, `migrations/`
creates them with their row-level security, and `queries/` holds a module per aggregate. Queries are
functions that take a connection and return frozen dataclasses of `shared/domain`; the caller holds
the transaction. `get` raises if a row is missing, `find` returns None.

SQL stays within what SQLite and PostgreSQL share, except in `engine/`. This package knows nothing
of HTTP, host agents or the content of credentials.
"""
