"""`polydev doctor`: looks at everything that must be right, each line ok or what to do.

`command.py` puts the parts together; `this_machine.py`, `processes.py` and `network.py` look at
this machine, `controller_side.py` asks the controller what it sees.
"""

from polydev.cli.doctor.command import doctor

__all__ = ["doctor"]
