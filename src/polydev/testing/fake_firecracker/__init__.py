"""Stand-ins for `firecracker` and `jailer`: real processes that play both where no guest can run.

Shipped and tested like the simulated driver. `programs.install` writes the two programs; the driver
is given them and does not know. They take the real ones' command lines, build the real jail (root,
user, network namespace, cgroup as far as the host has one), answer the API as its specification
(`firecracker-api-1.13.1.json`) says, and play a guest as the simulated driver does. What they
cannot show is that a guest boots.
"""

from polydev.testing.fake_firecracker.programs import VERSION, install

__all__ = ["VERSION", "install"]
