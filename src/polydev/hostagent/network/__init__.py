"""The VM network: namespace, bridge, TAPs, addresses, rules, uplink (SPEC section 4).

`Network` is the whole of it for callers; `dial` reaches a port on a namespace's loopback.
"""

from polydev.hostagent.network.connectivity import reach_outside
from polydev.hostagent.network.network import Attachment, Network, NetworkState
from polydev.hostagent.network.network_config import NetworkPlan
from polydev.hostagent.system.namespaces import dial

__all__ = ["Attachment", "Network", "NetworkPlan", "NetworkState", "dial", "reach_outside"]
