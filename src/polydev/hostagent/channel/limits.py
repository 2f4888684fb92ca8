"""Limits that bound what a guest can impose on the channel.

The guest controls the other end, so nothing that it sends is accepted without a bound. The limits
leave room for a guest under software emulation on a busy host.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """Times in seconds, sizes in bytes."""

    connect_s: float = 20
    """For a call that has to open the connection."""
    open_s: float = 20
    """Until the guest has started a program or opened a port."""
    files_s: float = 60
    keepalive_s: float = 20
    keepalive_misses: int = 6
    """Unanswered keepalives until the connection counts as lost."""
    stream_window: int = 256 * 1024
    """Unread data that a guest may send on one stream."""
    linger_s: float = 1
    """Wait for output after a program has ended, while a child still holds its output."""
    end_grace_s: float = 3
    """Between SIGTERM and SIGKILL for an abandoned program."""
