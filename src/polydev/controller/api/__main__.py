"""`python -m polydev.controller.api`: print the OpenAPI document."""

import json
import sys

from polydev.controller.api.server import routes_of

if __name__ == "__main__":
    json.dump(routes_of(None).openapi(), sys.stdout, indent=2)
    print()
