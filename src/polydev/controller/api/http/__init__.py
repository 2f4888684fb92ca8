"""HTTP mechanics of the API: errors, limits, idempotency, pagination, streams."""
