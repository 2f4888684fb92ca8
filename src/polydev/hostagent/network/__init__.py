"""The VM network: namespace, bridge, TAPs, addresses, rules, uplink.

`Network` is the interface for callers; `dial` connects to a port on a namespace's loopback.
"""

from polydev.hostagent.network.connectivity import check_connectivity
from polydev.hostagent.network.network import Attachment, Network, NetworkState
from polydev.hostagent.network.network_config import NetworkConfig
from polydev.hostagent.system.namespaces import dial

__all__ = ["Attachment", "Network", "NetworkConfig", "NetworkState", "check_connectivity", "dial"]
