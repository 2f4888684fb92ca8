"""The store: what the controller remembers, in SQLite.

`database.py` opens it, `migrations/` makes its tables, `tables.py` names them; beside them stands
one module of queries per aggregate. Queries are functions that take a connection and return the
frozen dataclasses of `domain.py`; a write happens in `Database.write()`, and the caller holds the
transaction. Nothing here knows HTTP, machines' hosts, or what a credential says.

The SQL keeps to what SQLite and PostgreSQL share, except in `database.py`.
"""
