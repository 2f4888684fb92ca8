"""Run chat turns."""
