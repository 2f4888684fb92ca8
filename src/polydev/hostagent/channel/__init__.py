"""The private channel into a machine: programs, files and ports, over SSH."""

from polydev.hostagent.channel.channel import Channel, CommandResult
from polydev.hostagent.channel.limits import ChannelLimits
from polydev.hostagent.channel.port_forward import TcpStream
from polydev.hostagent.channel.remote_process import RemoteProcess

__all__ = ["Channel", "ChannelLimits", "CommandResult", "RemoteProcess", "TcpStream"]
