"""The simulated driver: machines without a VMM, for tests and load tests.

Shipped, selected by `POLYDEV_DRIVER=simulated`, and held to the same contract suite as the other
drivers, with one exception: its machines live inside the host agent and end with it.
"""

from polydev.testing.simulated_vmm.driver import SimulatedDriver
from polydev.testing.simulated_vmm.machine import SimulatedVmm
from polydev.testing.simulated_vmm.provisioner import ROOT, SimulatedProvisioner
from polydev.testing.simulated_vmm.simulation import LoginEnd, Simulation

__all__ = [
    "ROOT",
    "LoginEnd",
    "SimulatedDriver",
    "SimulatedProvisioner",
    "SimulatedVmm",
    "Simulation",
]
