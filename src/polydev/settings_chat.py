"""The settings of chats: how many, how long, how much. A part of the controller's settings."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ChatLimits(BaseModel):
    """What chats may take; each is an environment variable, `POLYDEV_` and its name."""

    chats_each: int = Field(200, ge=1)
    """How many chats a person may have."""
    chat_turns_each: int = Field(6, ge=1)
    """In how many chats of a person a turn may go on at once."""
    chat_turns_at_once: int = Field(64, ge=1)
    """How many turns one controller does at once; others wait."""
    chat_turn_limit_s: float = Field(3600, gt=0)
    """How long a turn may take, the person's thinking about permissions included."""
    chat_stop_grace_s: float = Field(10, gt=0)
    """How long a CLI may take to stop a turn before it is ended."""
    chat_start_limit_s: float = Field(120, gt=0)
    """How long a CLI's agent may take to start, and to take up a conversation."""
    chat_idle_s: float = Field(600, gt=0)
    """How long an agent without a turn is kept: it takes 150 to 350 MB in its machine."""
    chat_agents_each: int = Field(2, ge=1)
    """How many agents may run in one machine at once; one serves all chats with its CLI."""
    chat_turn_mib: int = Field(8, ge=1)
    """What is kept of one turn; a CLI that says more is stopped."""
    chat_mib: int = Field(64, ge=1)
    """What is kept of one chat; the oldest turns go."""
