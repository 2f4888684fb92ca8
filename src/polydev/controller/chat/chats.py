"""Chats as rows: what the API reads and changes; `runner/` does the work.

A queued turn waits until a controller claims it. An answer to a permission request and a request to
stop wait until the controller that runs the turn sees them. So the API can call any controller.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from polydev.controller.access import Caller
from polydev.controller.chat import sanitize
from polydev.controller.chat.events.buffer import LiveTurns
from polydev.controller.chat.events.subscribe import subscribe
from polydev.controller.chat.machine_lookup import find_chat_machine
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine import locks
from polydev.controller.store.engine.database import Database
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.chats import chat_events, chats
from polydev.controller.store.queries.system import audit
from polydev.shared.domain import Chat, ChatEvent, ChatId, ChatStatus, TitledBy, now
from polydev.shared.errors import (
    BadRequest,
    ChatBusy,
    NoSuchPermission,
    PermissionAnswered,
    QuotaExceeded,
    TooManyRequests,
)
from polydev.shared.providers import provider

MAX_PROMPT_CHARACTERS = 32 * 1024
MAX_TITLE_CHARACTERS = 120

_MIB = 1024 * 1024
_RETRY_AFTER_S = 15
_MAX_ROWS_PER_REQUEST = 4000
"""Stored events that one request reads at most, before they are joined."""


@dataclass(frozen=True, slots=True)
class Chats:
    """Create, read, change and follow chats."""

    database: Database
    settings: ControllerSettings
    live_turns: LiveTurns = field(default_factory=LiveTurns)

    async def create(
        self, caller: Caller, provider_id: str, title: str, chat_id: ChatId | None = None
    ) -> Chat:
        """Create a chat. Idempotent with `chat_id`.

        Raises: UnknownProvider, QuotaExceeded.
        """
        about, at, user_id = provider(provider_id), now(), caller.user_id
        title = sanitize.one_line(title, MAX_TITLE_CHARACTERS)
        chat = Chat(
            chat_id=chat_id or ChatId(str(uuid.uuid4())),
            user_id=user_id,
            provider=about.id,
            title=title,
            titled_by=TitledBy.USER if title else TitledBy.UNTITLED,
            vm_id=None,
            acp_session_id=None,
            turn=0,
            status=ChatStatus.IDLE,
            executor_id=None,
            created_at=at,
            updated_at=at,
        )
        async with self.database.write() as connection:
            await locks.acquire(connection, "chats", user_id)
            existing = await chats.find(connection, chat.chat_id)
            if existing is not None and existing.user_id == user_id:
                return existing
            limit = self.settings.chats_each
            if (
                caller.owner_filter is not None
                and await chats.count_for_user(connection, user_id) >= limit
            ):
                raise QuotaExceeded(
                    f"You have reached the limit of {limit} chats", hint="Delete one of them"
                )
            await chats.insert(connection, chat)
            await audit.record(connection, caller.audit_entry("chat.create", chat.chat_id, user_id))
        return chat

    async def get(self, caller: Caller, chat_id: ChatId) -> Chat:
        """Return one of the caller's chats. Raises NoSuchChat."""
        async with self.database.read(caller.user_id) as connection:
            return await chats.get(connection, chat_id, caller.user_id)

    async def list_chats(
        self, caller: Caller, span: PageSpec, provider_id: str | None
    ) -> list[Chat]:
        """Return a page of the caller's chats, newest first."""
        async with self.database.read(caller.user_id) as connection:
            return await chats.list_for_user(connection, caller.user_id, span, provider_id)

    async def rename(self, caller: Caller, chat_id: ChatId, title: str) -> Chat:
        """Set a title that the CLI does not replace. Raises NoSuchChat, BadRequest."""
        title = sanitize.one_line(title, MAX_TITLE_CHARACTERS)
        if not title:
            raise BadRequest("The title is empty")
        async with self.database.write() as connection:
            await chats.get(connection, chat_id, caller.user_id, to_change=True)
            await chats.set_title(connection, chat_id, title, TitledBy.USER, list(TitledBy))
            return await chats.get(connection, chat_id, caller.user_id)

    async def delete(self, caller: Caller, chat_id: ChatId) -> None:
        """Delete a chat with all its events; a running turn stops. Raises NoSuchChat."""
        async with self.database.write() as connection:
            chat = await chats.get(connection, chat_id, caller.user_id, to_change=True)
            await chats.delete(connection, chat)
            await audit.record(connection, caller.audit_entry("chat.delete", chat_id, chat.user_id))

    async def start_turn(self, caller: Caller, chat_id: ChatId, prompt: str) -> int:
        """Queue a turn and return its number.

        Raises: NoSuchChat, BadRequest; ChatBusy while a turn runs; NotConnected, MachineBusy if no
        CLI is available; TooManyRequests.
        """
        prompt = sanitize.clean(prompt, MAX_PROMPT_CHARACTERS)
        if not prompt.strip():
            raise BadRequest("The message is empty")
        at, user_id = now(), caller.user_id
        await find_chat_machine(self.database, await self.get(caller, chat_id))
        async with self.database.write() as connection:
            await locks.acquire(connection, "chats", user_id)
            chat = await chats.get(connection, chat_id, user_id, to_change=True)
            if chat.status is not ChatStatus.IDLE:
                raise ChatBusy(
                    "The CLI is still answering in this chat",
                    hint="Wait until it has finished, or stop it",
                )
            limit = self.settings.chat_turns_each
            if (
                caller.owner_filter is not None
                and await chats.count_active_for_user(connection, user_id) >= limit
            ):
                raise TooManyRequests(
                    f"CLIs are already answering in {limit} of your chats",
                    hint="Wait until one has finished, or stop it",
                    retry_after_s=_RETRY_AFTER_S,
                )
            beyond = await chats.find_turn_over_size(
                connection, chat_id, self.settings.chat_mib * _MIB
            )
            if beyond:
                await chat_events.delete_up_to_turn(connection, chat_id, beyond, at)
                await chats.delete_turns_up_to(connection, chat_id, beyond)
            title = sanitize.first_line(prompt, MAX_TITLE_CHARACTERS)
            return await chats.insert_turn(connection, chat, prompt, title, at)

    async def stop_turn(self, caller: Caller, chat_id: ChatId) -> Chat:
        """Request that the running turn stops, if there is one. Raises NoSuchChat."""
        async with self.database.write() as connection:
            chat = await chats.get(connection, chat_id, caller.user_id, to_change=True)
            if chat.status is not ChatStatus.IDLE:
                await chats.request_stop(connection, chat_id, chat.turn, now())
        return chat

    async def answer_permission(
        self, caller: Caller, chat_id: ChatId, request_id: str, option_id: str
    ) -> None:
        """Store the user's answer to a permission request.

        Raises: NoSuchChat, NoSuchPermission, BadRequest; PermissionAnswered if it is closed.
        """
        async with self.database.write() as connection:
            await chats.get(connection, chat_id, caller.user_id, to_change=True)
            request = await chat_events.find_permission(connection, chat_id, request_id)
            if request is None:
                raise NoSuchPermission(f"This chat has no permission request {request_id}")
            if option_id not in request.options:
                raise BadRequest("The permission request has no such option")
            if not await chat_events.answer_permission(
                connection, chat_id, request_id, option_id, now()
            ):
                raise PermissionAnswered(
                    "This permission request is already closed", hint="Reload the chat"
                )

    async def list_events(
        self, caller: Caller, chat_id: ChatId, after: int, limit: int
    ) -> list[ChatEvent]:
        """Return stored events after an id.

        Fewer than `limit` if they are large; none only at the end. Raises NoSuchChat.
        """
        async with self.database.read(caller.user_id) as connection:
            await chats.get(connection, chat_id, caller.user_id)
            found: list[ChatEvent] = []
            read = 0
            while len(found) < limit and read < _MAX_ROWS_PER_REQUEST:
                known = found[-1].event_id if found else after
                more = await chat_events.list_after(connection, chat_id, known)
                read += len(more)
                found = chat_events.merge_text([*found, *more])
                if len(more) < chat_events.PAGE:
                    break
        return found[:limit]

    def subscribe(
        self, caller: Caller, chat_id: ChatId, after: int, idle_s: float
    ) -> AsyncGenerator[list[ChatEvent]]:
        """Stream events after an id as they happen; see `events.subscribe`."""
        return subscribe(self.database, self.live_turns, chat_id, caller.user_id, after, idle_s)
