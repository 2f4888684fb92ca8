"""`polydev host setup`: turn a machine into a VM host, check it, and revert it.

`command` is the command. Each other module manages one concern as resources (`resources`), which
can be checked, applied and reverted. They all work below a `TargetRoot`: the root of this machine,
or a folder that holds the files of another one.
"""

from polydev.cli.host_setup.command import setup

__all__ = ["setup"]
