"""What goes over the wire about chats."""

# ruff: noqa: N815  (the names are the wire's)

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from polydev.controller.api.schemas.base import ProviderId, RequestModel, ResponseModel
from polydev.controller.chat import MAX_PROMPT_CHARACTERS, MAX_TITLE_CHARACTERS
from polydev.shared.domain import Chat, ChatEvent, ChatStatus, EventKind

_CHAT_ID = "4a0f4c5e-93b1-4c8e-8d1f-0c6f7a1e2b3d"
_NO_NUL = r"^[^\x00]*$"

Title = Annotated[str, StringConstraints(max_length=MAX_TITLE_CHARACTERS, pattern=_NO_NUL)]
OptionId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_NO_NUL)]


class NewChat(RequestModel):
    provider: ProviderId
    title: Title = Field("", description="Empty: it gets one by itself")


class ChatChange(RequestModel):
    title: Title = Field(min_length=1, examples=["The broken test"])


class TurnAsked(RequestModel):
    text: Annotated[
        str,
        StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARACTERS, pattern=_NO_NUL),
    ] = Field(examples=["What is in this folder?"])


class PermissionChoice(RequestModel):
    optionId: OptionId = Field(examples=["allow"], description="One of those that were offered")


class ChatView(ResponseModel):
    """A chat, without what was said in it."""

    chatId: str = Field(examples=[_CHAT_ID])
    provider: str = Field(examples=["codex"])
    title: str = Field(examples=["The broken test"], description="Empty before the first turn")
    status: ChatStatus = Field(
        description="`idle`: it can be asked; `waiting`: the CLI wants to be allowed something"
    )
    turn: int = Field(description="The number of its last turn; 0 before the first")
    vmId: str | None = Field(description="The machine whose CLI knows it")
    createdAt: datetime
    updatedAt: datetime

    @classmethod
    def of(cls, chat: Chat) -> ChatView:
        return cls(
            chatId=chat.chat_id,
            provider=chat.provider,
            title=chat.title,
            status=chat.status,
            turn=chat.turn,
            vmId=chat.vm_id,
            createdAt=chat.created_at,
            updatedAt=chat.updated_at,
        )


class ChatTurn(RequestModel):
    provider: ProviderId
    text: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS, examples=["What is here?"])


class TurnTaken(ResponseModel):
    chatId: str = Field(examples=[_CHAT_ID])
    turn: int = Field(examples=[3])


class ChatEventView(ResponseModel):
    """Something that happened in a chat. What else it has, its kind says:

    `user`, `text`, `thought` {text}: the texts of one kind that follow each other are one text;
    `tool` {toolCallId, title, toolKind, status, locations: [{path, line}], content: [{type: "text",
    text} or {type: "diff", path, oldText, newText} or {type: "terminal", text}]}: of the same
    toolCallId again, it replaces the fields that it has; `plan` {entries: [{content, priority,
    status}]}; `permission` {requestId, toolCallId, title, toolKind, content, options: [{optionId,
    name, optionKind}]}; `permission_answered` {requestId, optionId or null}; `title` {title};
    `notice` {code, text}: something that the person should know; `turn_ended` {reason, error:
    {code, message, hint} or null}.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        json_schema_extra={
            "example": {
                "id": 3000011,
                "turn": 3,
                "kind": "text",
                "at": "2026-01-02T03:04:05Z",
                "text": "There are two files.",
            }
        },
    )

    id: int = Field(description="Ever growing within a chat")
    turn: int
    kind: EventKind
    at: datetime

    @classmethod
    def of(cls, event: ChatEvent) -> ChatEventView:
        return cls.model_validate(event_json(event))


def event_json(event: ChatEvent) -> dict[str, Any]:
    """An event as JSON has it."""
    told = {"id": event.event_id, "turn": event.turn, "kind": event.kind.value}
    return told | {"at": event.at.isoformat().replace("+00:00", "Z")} | event.data
