"""The VM network: namespace, bridge, TAPs, addresses, rules, uplink (SPEC section 4).

`Network` is the whole of it for callers; `dial` reaches a port on a namespace's loopback.
"""

from polydev.hostd.network.netns import dial
from polydev.hostd.network.network import Attachment, Network, NetworkState
from polydev.hostd.network.plan import NetworkPlan
from polydev.hostd.network.reach import reach_outside

__all__ = ["Attachment", "Network", "NetworkPlan", "NetworkState", "dial", "reach_outside"]
