"""`python -m polydev.cli`: the polydev command."""

from polydev.cli import main

main()
