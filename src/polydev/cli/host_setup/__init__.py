"""`polydev host setup`: makes a machine a VM host of Polydev, looks whether it is, undoes it.

`command.py` is what people type. Each other module is one concern and gives *items* (`items.py`):
what must be so, how to see it, how to make it so, how to take it back. All of them work below a
`Place` (`place.py`), which is this machine or a folder that looks like one.
"""

from polydev.cli.host_setup.command import setup

__all__ = ["setup"]
