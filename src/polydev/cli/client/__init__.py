"""Clients of the controller API that commands use."""
