"""What people ask of chats. The API asks `Chats`; `runner.py` does the turns.

Everything here is rows: a turn that is asked for waits until a controller claims it, an answer to a
permission and a wish to stop wait until the controller that does the turn sees them. So any
controller may be asked.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from polydev.controller.access import Caller
from polydev.controller.chat import sanitize
from polydev.controller.chat.events.buffer import Lives
from polydev.controller.chat.events.subscribe import follow
from polydev.controller.chat.machine_lookup import machine_for
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
_MOST_PIECES = 4000
"""Of stored events that one request reads."""


@dataclass(frozen=True, slots=True)
class Chats:
    """Conversations with CLIs, as rows."""

    database: Database
    settings: ControllerSettings
    lives: Lives = field(default_factory=Lives)

    async def create(
        self, caller: Caller, provider_id: str, title: str, chat_id: ChatId | None = None
    ) -> Chat:
        """A new chat; `chat_id` for who may ask twice for the same one.

        Raises: UnknownProvider, QuotaExceeded.
        """
        about, at, user_id = provider(provider_id), now(), caller.user_id
        title = sanitize.one_line(title, MAX_TITLE_CHARACTERS)
        chat = Chat(
            chat_id=chat_id or ChatId(str(uuid.uuid4())),
            user_id=user_id,
            provider=about.id,
            title=title,
            titled_by=TitledBy.USER if title else TitledBy.NOBODY,
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
            there = await chats.find(connection, chat.chat_id)
            if there is not None and there.user_id == user_id:
                return there
            limit = self.settings.chats_each
            if (
                caller.owner_filter is not None
                and await chats.count_for_user(connection, user_id) >= limit
            ):
                raise QuotaExceeded(f"You have {limit} chats", hint="Delete one of them")
            await chats.insert(connection, chat)
            await audit.record(connection, caller.audit_entry("chat.create", chat.chat_id, user_id))
        return chat

    async def get(self, caller: Caller, chat_id: ChatId) -> Chat:
        """A chat of the caller's. Raises NoSuchChat."""
        async with self.database.read(caller.user_id) as connection:
            return await chats.get(connection, chat_id, caller.user_id)

    async def listed(self, caller: Caller, span: PageSpec, provider_id: str | None) -> list[Chat]:
        """A span of the caller's chats, the newest first."""
        async with self.database.read(caller.user_id) as connection:
            return await chats.list_for_user(connection, caller.user_id, span, provider_id)

    async def entitle(self, caller: Caller, chat_id: ChatId, title: str) -> Chat:
        """Give a chat a title that stays. Raises NoSuchChat, BadRequest."""
        title = sanitize.one_line(title, MAX_TITLE_CHARACTERS)
        if not title:
            raise BadRequest("A title has at least one letter")
        async with self.database.write() as connection:
            await chats.get(connection, chat_id, caller.user_id, to_change=True)
            await chats.set_title(connection, chat_id, title, TitledBy.USER, list(TitledBy))
            return await chats.get(connection, chat_id, caller.user_id)

    async def delete(self, caller: Caller, chat_id: ChatId) -> None:
        """Delete a chat with everything in it, and stop its turn. Raises NoSuchChat."""
        async with self.database.write() as connection:
            chat = await chats.get(connection, chat_id, caller.user_id, to_change=True)
            await chats.delete(connection, chat)
            await audit.record(connection, caller.audit_entry("chat.delete", chat_id, chat.user_id))

    async def ask(self, caller: Caller, chat_id: ChatId, prompt: str) -> int:
        """Have the CLI take a turn; answers with its number at once.

        Raises: NoSuchChat, BadRequest; ChatBusy while one goes on; NotConnected, MachineBusy when
        no CLI can be asked; TooManyRequests.
        """
        prompt = sanitize.cleaned(prompt, MAX_PROMPT_CHARACTERS)
        if not prompt.strip():
            raise BadRequest("There is nothing to say")
        at, user_id = now(), caller.user_id
        await machine_for(self.database, await self.get(caller, chat_id))
        async with self.database.write() as connection:
            await locks.acquire(connection, "chats", user_id)
            chat = await chats.get(connection, chat_id, user_id, to_change=True)
            if chat.status is not ChatStatus.IDLE:
                raise ChatBusy(
                    "The CLI still answers in this chat", hint="Wait for its end, or stop it"
                )
            limit = self.settings.chat_turns_each
            if (
                caller.owner_filter is not None
                and await chats.count_active_for_user(connection, user_id) >= limit
            ):
                raise TooManyRequests(
                    f"CLIs answer in {limit} chats of yours already",
                    hint="Wait for one of them, or stop it",
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

    async def stop(self, caller: Caller, chat_id: ChatId) -> Chat:
        """Have the turn that goes on stopped, if one does. Raises NoSuchChat."""
        async with self.database.write() as connection:
            chat = await chats.get(connection, chat_id, caller.user_id, to_change=True)
            if chat.status is not ChatStatus.IDLE:
                await chats.request_stop(connection, chat_id, chat.turn, now())
        return chat

    async def answer(
        self, caller: Caller, chat_id: ChatId, request_id: str, option_id: str
    ) -> None:
        """Choose what the CLI may do.

        Raises: NoSuchChat, NoSuchPermission, BadRequest; PermissionAnswered if it is decided.
        """
        async with self.database.write() as connection:
            await chats.get(connection, chat_id, caller.user_id, to_change=True)
            asked = await chat_events.find_permission(connection, chat_id, request_id)
            if asked is None:
                raise NoSuchPermission(f"The CLI did not ask for {request_id} in this chat")
            if option_id not in asked.options:
                raise BadRequest("That is none of the choices that the CLI gives")
            if not await chat_events.answer_permission(
                connection, chat_id, request_id, option_id, now()
            ):
                raise PermissionAnswered(
                    "This is decided already, or no longer asked", hint="See what the CLI does now"
                )

    async def events(
        self, caller: Caller, chat_id: ChatId, after: int, limit: int
    ) -> list[ChatEvent]:
        """What is stored of a chat after an event: so many at most, fewer if they are large, none
        only if there are none. Raises NoSuchChat."""
        async with self.database.read(caller.user_id) as connection:
            await chats.get(connection, chat_id, caller.user_id)
            found: list[ChatEvent] = []
            read = 0
            while len(found) < limit and read < _MOST_PIECES:
                known = found[-1].event_id if found else after
                more = await chat_events.list_after(connection, chat_id, known)
                read += len(more)
                found = chat_events.merge_text([*found, *more])
                if len(more) < chat_events.PAGE:
                    break
        return found[:limit]

    def follow(
        self, caller: Caller, chat_id: ChatId, known: int, idle_s: float
    ) -> AsyncGenerator[list[ChatEvent]]:
        """Events of a chat after a known one, as they happen: see `following.follow`."""
        return follow(self.database, self.lives, chat_id, caller.user_id, known, idle_s)
