"""HTTP mechanics: authentication, errors, limits, idempotency, pagination, streams."""
