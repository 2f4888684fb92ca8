"""The host agent's HTTP server on a Unix socket."""
