"""Fakes of `firecracker` and `jailer`, for hosts where no guest can run.

They are real processes, shipped and tested like the simulated driver; the driver cannot distinguish
them. `programs.install` writes both programs. They take the real command lines, build the real jail
(root, user, network namespace, cgroup if the host has one), serve the API according to its
specification (`firecracker-api-1.13.1.json`), and simulate a guest. They cannot show that a guest
boots.
"""

from polydev.testing.fake_firecracker.programs import VERSION, install

__all__ = ["VERSION", "install"]
