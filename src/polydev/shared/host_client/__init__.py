"""The controller's typed client of a host agent.

Workflows, chat and commands call `Host`, which `Hosts` has by name; it speaks the wire of
`hostapi.py` over the agent's Unix socket and raises the errors of `errors.py`. It must not know
databases, people or providers, and imports nothing of `hostd`.
"""

from polydev.shared.host_client.client import Host, ProgramOutput
from polydev.shared.host_client.http import MAX_BODY_BYTES, GuestTransport
from polydev.shared.host_client.registry import Hosts
from polydev.shared.host_client.streams import GuestProcess, GuestStream

__all__ = [
    "MAX_BODY_BYTES",
    "GuestProcess",
    "GuestStream",
    "GuestTransport",
    "Host",
    "Hosts",
    "ProgramOutput",
]
