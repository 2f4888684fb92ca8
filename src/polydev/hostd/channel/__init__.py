"""The private channel into a machine: programs, files and ports, over SSH (docs/machines.md)."""

from polydev.hostd.channel.channel import Channel, Outcome
from polydev.hostd.channel.limits import ChannelLimits
from polydev.hostd.channel.process import Process
from polydev.hostd.channel.tcp import TcpStream

__all__ = ["Channel", "ChannelLimits", "Outcome", "Process", "TcpStream"]
