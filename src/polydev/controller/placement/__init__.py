"""Where machines go, and how many a person may have: decided by rows, in one transaction.

`fleet.py` chooses among hosts and knows no database, `claims.py` reads the rows, holds the lock and
claims room for a machine in the transaction that writes the machine's row, `quotas.py` holds people
to their limits. Workflows and the API call them; how a machine is made is the host agent's.
"""

from polydev.controller.placement.claims import Placement
from polydev.controller.placement.fleet import Fleet, Resources
from polydev.controller.placement.quotas import Quotas

__all__ = ["Fleet", "Placement", "Quotas", "Resources"]
