"""Entry point of `python -m polydev.cli`."""

from polydev.cli import main

main()
