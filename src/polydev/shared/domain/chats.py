"""Chats: what was said in them, and how far a turn is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from polydev.shared.domain.ids import ChatId, UserId, VmId

TURN_IDS = 1_000_000
"""An event's id is its turn's number times this, and its own number within the turn."""
ASKING_IDS = 9
"""So many first numbers of a turn are of what asks it, written with the asking."""
LAST_IN_TURN = TURN_IDS - 1
"""The number of a turn's end, whoever ends it: after all that a controller that died may have told
and not stored."""


class ChatStatus(StrEnum):
    """What a chat's last turn does."""

    IDLE = "idle"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    """For the person to allow something, or not."""


class EventKind(StrEnum):
    """What an event of a chat tells."""

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
    """Why a turn ended."""

    END_TURN = "end_turn"
    MAX_TOKENS = "max_tokens"
    REFUSAL = "refusal"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class TitledBy(StrEnum):
    """Who gave a chat its title: each gives way to those after it."""

    NOBODY = "nobody"
    PROMPT = "prompt"
    AGENT = "agent"
    USER = "person"


@dataclass(frozen=True, slots=True)
class Chat:
    """A row of `chats`: one conversation with one CLI."""

    chat_id: ChatId
    user_id: UserId
    provider: str
    title: str
    titled_by: TitledBy
    vm_id: VmId | None
    """The machine whose CLI knows the conversation."""
    acp_session_id: str | None
    """What the CLI there calls it."""
    turn: int
    """The number of the last turn; 0 before the first."""
    status: ChatStatus
    executor_id: str | None
    """The controller that does its turn, or still holds the agent that did the last one."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A row of `chat_turns`: what a person asked, and how that ended."""

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
    """A row of `chat_events`: a piece of what happened in a chat."""

    event_id: int
    kind: EventKind
    data: dict[str, Any]
    at: datetime

    @property
    def turn(self) -> int:
        return self.event_id // TURN_IDS
