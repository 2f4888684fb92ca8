"""The `polydev` command: one module per noun.

Commands use the controller's API like any other client and import none of its internals; `up`
starts the controller as a process of its own.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line. Imports late, so that `polydev --help` is fast."""
    from polydev.cli.main import run

    run()
