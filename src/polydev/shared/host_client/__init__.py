"""Client of a host agent: `HostClient`, and `HostClients` by name.

It uses the protocol of `shared.host_protocol` over the agent's Unix socket and raises the agent's
errors. It knows no databases, users or providers.
"""

from polydev.shared.host_client.client import HostClient, ProgramOutput
from polydev.shared.host_client.guest_transport import MAX_BODY_BYTES, GuestTransport
from polydev.shared.host_client.host_clients import HostClients
from polydev.shared.host_client.streams import GuestProcess, GuestStream

__all__ = [
    "MAX_BODY_BYTES",
    "GuestProcess",
    "GuestStream",
    "GuestTransport",
    "HostClient",
    "HostClients",
    "ProgramOutput",
]
