"""The simulated driver: machines without a VMM, for load tests and tests of everything above.

Shipped, chosen by `POLYDEV_DRIVER=simulated`, and held to the same contract suite as the others
but for one promise: its machines live inside the host agent and end with it.
"""

from polydev.hostd.vmm.simulated.driver import ROOT, SimulatedDriver
from polydev.hostd.vmm.simulated.machine import SimulatedVmm
from polydev.hostd.vmm.simulated.simulation import LoginEnd, Simulation

__all__ = ["ROOT", "LoginEnd", "SimulatedDriver", "SimulatedVmm", "Simulation"]
