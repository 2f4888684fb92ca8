"""`python -m polydev.controller`: run the controller until SIGTERM."""

import sys

from polydev.controller.bootstrap import main

if __name__ == "__main__":
    sys.exit(main())
