"""Chats, their turns and their events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from polydev.shared.domain.ids import ChatId, UserId, VmId

TURN_IDS = 1_000_000
"""An event id is the turn number times this, plus the event's number within the turn."""
ASKING_IDS = 9
"""Number of ids at the start of a turn that are reserved for the prompt's own events."""
LAST_IN_TURN = TURN_IDS - 1
"""Number of the event that ends a turn. It comes after every event that a dead controller may have
sent but not stored."""


class ChatStatus(StrEnum):
    """State of a chat's last turn."""

    IDLE = "idle"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    """For the user's answer to a permission request."""


class EventKind(StrEnum):
    """Kind of a chat event."""

    USER = "user"
    TEXT = "text"
    THOUGHT = "thought"
    TOOL = "tool"
    PLAN = "plan"
    PERMISSION = "permission"
    PERMISSION_ANSWERED = "permission_answered"
    TITLE = "title"
    NOTICE = "notice"
    TURN_ENDED = "turn_ended"


class TurnEnd(StrEnum):
    """Reason for the end of a turn."""

    END_TURN = "end_turn"
    MAX_TOKENS = "max_tokens"
    REFUSAL = "refusal"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class TitledBy(StrEnum):
    """Source of a chat's title. A later member overrides an earlier one."""

    UNTITLED = "nobody"
    PROMPT = "prompt"
    AGENT = "agent"
    USER = "person"


@dataclass(frozen=True, slots=True)
class Chat:
    """Row of `chats`: one conversation with one CLI."""

    chat_id: ChatId
    user_id: UserId
    provider: str
    title: str
    titled_by: TitledBy
    vm_id: VmId | None
    """Machine whose CLI has the conversation."""
    acp_session_id: str | None
    """Id of the conversation in that CLI."""
    turn: int
    """Number of the last turn; 0 before the first."""
    status: ChatStatus
    executor_id: str | None
    """Controller that runs the turn, or still holds the agent of the last one."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """Row of `chat_turns`: a prompt, and how its turn ended."""

    chat_id: ChatId
    turn: int
    user_id: UserId
    prompt: str
    stop_requested_at: datetime | None
    created_at: datetime
    ended_at: datetime | None
    reason: TurnEnd | None


@dataclass(frozen=True, slots=True)
class ChatEvent:
    """Row of `chat_events`."""

    event_id: int
    kind: EventKind
    data: dict[str, Any]
    at: datetime

    @property
    def turn(self) -> int:
        return self.event_id // TURN_IDS
