"""The controller's HTTP API, served on port 4000 of localhost by default.

A request writes what the caller wants and answers immediately; workflows do the work. This package
knows nothing of DBOS, SQL or the host agent's wire protocol.

`routes/` holds the routers, `schemas/` the bodies, and `http/` the mechanics that all routes share:
authentication, errors, limits, idempotency, pagination and streams.

The OpenAPI document lists every HTTP route. A running controller serves it at `/openapi.json`;
`polydev openapi` and `python -m polydev.controller.api` print it without a controller. It does not
cover WebSockets: see `routes/machines/machines.py` (exec), `routes/machines/terminal.py` and
`routes/connect/live_view.py`.
"""
