"""`polydev host setup`: turn a machine into a VM host, check it, and revert it.

`command` is the command. `resources` has one module per concern, with resources that can be
checked, applied and reverted (`resource`). They all work below a `TargetRoot`: the root of this
machine, or a folder that holds the files of another one.
"""

from polydev.cli.host_setup.command import setup

__all__ = ["setup"]
