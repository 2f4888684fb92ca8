"""Schemas of chats."""

# ruff: noqa: N815  (field names of the API)

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
    title: Title = Field(
        "", description="If empty, the chat gets a title from its first prompt or from the CLI"
    )


class ChatChange(RequestModel):
    title: Title = Field(min_length=1, examples=["The broken test"])


class TurnAsked(RequestModel):
    text: Annotated[
        str,
        StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARACTERS, pattern=_NO_NUL),
    ] = Field(examples=["What is in this folder?"])


class PermissionChoice(RequestModel):
    optionId: OptionId = Field(examples=["allow"], description="One of the offered options")


class ChatView(ResponseModel):
    """A chat, without its messages."""

    chatId: str = Field(examples=[_CHAT_ID])
    provider: str = Field(examples=["codex"])
    title: str = Field(
        examples=["The broken test"], description="Can be empty before the first turn"
    )
    status: ChatStatus = Field(
        description="`idle`: ready for a prompt; `waiting`: the CLI asks for a permission"
    )
    turn: int = Field(description="Number of the last turn; 0 before the first")
    vmId: str | None = Field(description="The machine whose CLI has this chat's history")
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
    """An event of a chat. Its kind decides the further fields:

    `user`, `text`, `thought` {text}: consecutive texts of one kind belong together;
    `tool` {toolCallId, title, toolKind, status, locations: [{path, line}], content: [{type: "text",
    text} or {type: "diff", path, oldText, newText} or {type: "terminal", text}]}: a later event of
    the same toolCallId replaces the fields that it has; `plan` {entries: [{content, priority,
    status}]}; `permission` {requestId, toolCallId, title, toolKind, content, options: [{optionId,
    name, optionKind}]}; `permission_answered` {requestId, optionId or null}; `title` {title};
    `notice` {code, text}: a message from Polydev to the user; `turn_ended` {reason, error: {code,
    message, hint} or null}.
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

    id: int = Field(description="Increases within a chat")
    turn: int
    kind: EventKind
    at: datetime

    @classmethod
    def of(cls, event: ChatEvent) -> ChatEventView:
        return cls.model_validate(event_json(event))


def event_json(event: ChatEvent) -> dict[str, Any]:
    """Return an event as its JSON object."""
    fields = {"id": event.event_id, "turn": event.turn, "kind": event.kind.value}
    return fields | {"at": event.at.isoformat().replace("+00:00", "Z")} | event.data
