"""Durable workflows: work that takes minutes and survives a restart of the controller.

    engine/       sagas over the durable engine (DBOS), leases, cancellation
    connect/      connect sessions, and their queue
    machines/     machine commands, resume on use, the idle policy
    credentials/  delivery, validation, revocation, key rotation
    accounts/     account deletion
    reconcile/    reconciler, orphan cleanup, host polling, retention
    health/       the controller's part of `polydev doctor`

The API changes rows and starts workflows. Workflows call placement, hosts, providers, the vault and
the store; none of these calls back.
"""
