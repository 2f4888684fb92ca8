"""Run the controller until SIGTERM: `python -m polydev.controller`."""

import sys

from polydev.controller.bootstrap import main

if __name__ == "__main__":
    sys.exit(main())
