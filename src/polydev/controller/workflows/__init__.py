"""Workflows: what the controller does over minutes, and over its own death.

Tables of steps: `connect.py` (the connect session), `machine_requests.py` (what people ask of
machines), `custody.py` (credentials after their delivery), `rotation.py` (ENCRYPTION_KEY),
`removal.py` (people). `saga.py` runs a table over `engine.py`, the only module that knows DBOS;
`leases.py` says which controllers are dead, so that others go on with their workflows.

Beside them, for ever: `admission.py` (the queue for room), `reconcile.py` and `orphans.py` (what
fell between), `host_watch.py`, `resumption.py`, `retention.py`. The API starts workflows and writes
wishes into rows; workflows call placement, hosts, providers, the vault and the store; nothing below
calls back.
"""
