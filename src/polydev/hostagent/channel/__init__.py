"""The private channel into a machine: programs, files and ports, over SSH (docs/machines.md)."""

from polydev.hostagent.channel.channel import Channel, Outcome
from polydev.hostagent.channel.limits import ChannelLimits
from polydev.hostagent.channel.port_forward import TcpStream
from polydev.hostagent.channel.remote_process import Process

__all__ = ["Channel", "ChannelLimits", "Outcome", "Process", "TcpStream"]
