"""The polydev command: one module per noun. It speaks to the controller's API like any client.

Owns what a person types and sees in a terminal. Called by `bin/polydev` and by the installed
script. Must not know the controller's insides: `up` starts it as a process of its own.
"""

from __future__ import annotations


def main() -> None:
    """Entry point; imports late, so that `polydev --help` is quick."""
    from polydev.cli.main import run

    run()
