"""API routes, a folder per resource."""
