"""A local identity provider and model server, against which the real CLIs log in and chat.

Owned here: the whole stand-in. Started as `python -m polydev.standin` by the demo and the tests,
which point machines at it through the ordinary settings for an egress proxy and an additional
certificate authority. It imports nothing of the rest of Polydev, and nothing imports it.
"""
