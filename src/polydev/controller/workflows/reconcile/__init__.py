"""The reconciler, orphan cleanup, retention and host polling."""
