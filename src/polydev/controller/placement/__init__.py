"""Placement of machines on hosts, and quotas of users.

    fleet.py   chooses a host; values only, no database
    claims.py  reads rows under the placement lock, and claims resources for a machine
    quotas.py  enforces limits per user

Decisions and the rows that they change share one transaction. Workflows and the API call this
package.
"""

from polydev.controller.placement.claims import Placement
from polydev.controller.placement.fleet import Fleet
from polydev.controller.placement.quotas import Quotas

__all__ = ["Fleet", "Placement", "Quotas"]
