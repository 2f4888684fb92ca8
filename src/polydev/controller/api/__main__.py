"""Print the OpenAPI document: `python -m polydev.controller.api`."""

import json
import sys

from polydev.controller.api.server import build_routes

if __name__ == "__main__":
    json.dump(build_routes(None).openapi(), sys.stdout, indent=2)
    print()
