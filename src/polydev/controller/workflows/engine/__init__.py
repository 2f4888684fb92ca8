"""The durable engine, sagas, leases and cancellation."""
