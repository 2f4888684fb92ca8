"""How much a machine may make the channel hold, and how long it may make it wait.

What answers at the other end belongs to the guest, so nothing that it sends is taken without a
bound. Each is generous for a guest under software emulation on a busy host.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """Times in seconds, sizes in bytes."""

    connect_s: float = 20
    """For a call that finds no connection and makes one."""
    open_s: float = 20
    """Until the guest has started a program or opened a port."""
    files_s: float = 60
    keepalive_s: float = 20
    keepalive_misses: int = 6
    """Unanswered keepalives before the connection counts as cut."""
    stream_window: int = 256 * 1024
    """What a guest may send ahead on one stream while nobody reads."""
    linger_s: float = 1
    """A program has ended but something it started still holds its output: how long to wait on."""
    end_grace_s: float = 3
    """From asking an abandoned program to end until killing it."""
