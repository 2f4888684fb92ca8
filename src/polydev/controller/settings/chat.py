"""Settings of chats: numbers, time limits, sizes."""

from __future__ import annotations

from pydantic import Field

from polydev.shared.settings.base import Settings


class ChatSettings(Settings):
    """Numbers, time limits and sizes of chats."""

    chats_each: int = Field(200, ge=1)
    """Chats per user."""
    chat_turns_each: int = Field(6, ge=1)
    """Turns of one user that may run at once."""
    chat_turns_at_once: int = Field(64, ge=1)
    """Turns that one controller runs at once. Others wait."""
    chat_turn_limit_s: float = Field(3600, gt=0)
    """Time limit of a turn. The time that the user takes for permissions counts."""
    chat_stop_grace_s: float = Field(10, gt=0)
    """Time that a CLI gets to stop a turn before it is killed."""
    chat_start_limit_s: float = Field(120, gt=0)
    """Time limit for the start of a CLI's agent, and for loading a conversation."""
    chat_idle_s: float = Field(600, gt=0)
    """Time after which an agent without a turn is stopped. It takes 150 to 350 MB in its
    machine."""
    chat_agents_each: int = Field(2, ge=1)
    """Agents that may run in one machine at once. One agent serves all chats with its CLI."""
    chat_turn_mib: int = Field(8, ge=1)
    """Stored output per turn. A CLI that writes more is stopped."""
    chat_mib: int = Field(64, ge=1)
    """Stored content per chat. The oldest turns are deleted first."""
