"""`polydev doctor`: check everything that Polydev needs.

`this_machine`, `processes` and `outside_network` check this machine; `controller_side` gets the
findings of the controller; `command` combines them.
"""

from polydev.cli.doctor.command import doctor

__all__ = ["doctor"]
