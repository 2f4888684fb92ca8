"""A local identity provider and model server for the real CLIs.

The demo and the tests run it as `python -m polydev.testing.fake_providers`. Machines reach it
through the ordinary settings for an egress proxy and an additional certificate authority. It
imports nothing else of Polydev but the prompt grammar, and nothing imports it.
"""
