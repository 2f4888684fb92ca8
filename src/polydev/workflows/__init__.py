"""Workflows: what the controller does over minutes, and over its own death.

`connect.py` is the connect session's table of steps, `machines.py` makes and destroys machines for
a person, `reconcile.py` finds what fell between. `saga.py` runs a table of steps; `engine.py` is
the only module that knows DBOS. The API starts workflows and writes wishes into rows; workflows
call hosts, providers, the vault and the store; nothing below calls back.
"""
