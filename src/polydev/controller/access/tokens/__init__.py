"""API tokens, the administrator token and view tickets."""
