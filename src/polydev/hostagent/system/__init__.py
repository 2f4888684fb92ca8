"""Linux building blocks: sandbox, namespaces, cancellation, disk space."""
