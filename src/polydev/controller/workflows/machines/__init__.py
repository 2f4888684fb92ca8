"""Machine workflows: create, destroy, hibernate, resume."""
