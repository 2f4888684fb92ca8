"""Has turns done: every controller claims turns that wait, and does them.

It does not matter who was asked for a turn: `Runner` looks whenever something has changed. A chat
goes to the controller that holds its agent, or another chat's with the same CLI and person, while
that controller lives; so agents are not started twice. What a controller that has died was doing is
ended as interrupted by those that live: leases tell (`workflows/leases.py`).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from polydev.controller.chat.acp.agent import Agent
from polydev.controller.chat.acp.agents import Agents
from polydev.controller.chat.events.buffer import Lives
from polydev.controller.chat.events.writer import end_of
from polydev.controller.chat.runner.turns import Means, TakenTurn
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.chats import chat_events, chats
from polydev.controller.store.queries.chats.chats import ActiveChat
from polydev.controller.store.queries.system import controllers
from polydev.controller.workflows.machines.resume_on_use import Waking
from polydev.shared.domain import Chat, ChatId, ChatStatus, TurnEnd, now
from polydev.shared.errors import ChatFailed, NoSuchChat, PolydevError
from polydev.shared.host_client import Hosts

log = logging.getLogger("polydev.controller.chat")

_BREATH_S = 0.02
_AGAIN_S = 2.0
"""While turns wait or go on: another controller may die."""


@dataclass(frozen=True, slots=True)
class _Running:
    turn: TakenTurn
    task: asyncio.Task[None]


class Runner:
    """The turns that this controller does."""

    def __init__(
        self,
        database: Database,
        hosts: Hosts,
        settings: ControllerSettings,
        lives: Lives,
        executor_id: str,
        waking: Waking,
    ) -> None:
        self._database = database
        self._settings = settings
        self._executor_id = executor_id
        self._agents = Agents(hosts, settings, self._on_agent_over)
        self._means = Means(database, settings, self._agents, lives, waking)
        self._running: dict[ChatId, _Running] = {}
        self._letting_go: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Look whenever something has changed, until cancelled; then every turn is interrupted."""
        try:
            while True:
                change = self._database.next_change()
                has_work = True
                try:
                    has_work = await self.once()
                except PolydevError as error:
                    log.warning("looking for turns: %s", error)
                except Exception:
                    log.exception("looking for turns failed")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_S if has_work else None):
                        await change.wait()
                await asyncio.sleep(_BREATH_S)
        finally:
            await asyncio.shield(self._close())

    async def once(self) -> bool:
        """Begin, stop and end what is to be. Whether any turn waits or goes on."""
        known = dict(self._running)
        async with self._database.read() as connection:
            found = await chats.list_active(connection)
            others = await controllers.list_others_alive(connection, self._executor_id)
        await self._hand_on_answers()
        for it in found:
            await self._see_to(it, others)
        there = {it.chat.chat_id: it.chat.turn for it in found}
        for chat_id, running in known.items():
            if there.get(chat_id) != running.turn.chat.turn:
                running.turn.stop()
        return bool(found)

    async def _see_to(self, it: ActiveChat, others: frozenset[str]) -> None:
        chat, is_mine = it.chat, it.chat.executor_id == self._executor_id
        if chat.status is ChatStatus.QUEUED:
            if chat.executor_id not in others and len(self._running) < self._at_once:
                await self._begin(chat, others)
            return
        running = self._running.get(chat.chat_id)
        if is_mine and running is not None:
            if it.stop_requested_at is not None:
                running.turn.stop()
        elif chat.executor_id not in others:
            await self._end_of_dead(chat)

    @property
    def _at_once(self) -> int:
        return self._settings.chat_turns_at_once

    async def _begin(self, chat: Chat, others: frozenset[str]) -> None:
        """Claim a turn and do it, unless it is another's to claim."""
        async with self._database.write() as connection:
            holders = await chats.list_agent_holders(connection, chat.user_id, chat.provider)
            if holders & others and self._executor_id not in holders:
                return
            turn = await chats.find_turn(connection, chat.chat_id, chat.turn)
            claimed = await chats.claim_turn(connection, chat, self._executor_id)
        if claimed is None or turn is None:
            return
        taken = TakenTurn(self._means, claimed, turn.prompt)
        if turn.stop_requested_at is not None:
            taken.stop()
        task = asyncio.create_task(taken.run())
        self._running[chat.chat_id] = running = _Running(taken, task)
        task.add_done_callback(lambda _: self._ended(chat.chat_id, running))

    def _ended(self, chat_id: ChatId, running: _Running) -> None:
        if self._running.get(chat_id) is running:
            del self._running[chat_id]
        error = None if running.task.cancelled() else running.task.exception()
        if error is not None:
            log.error("a turn of chat %s failed", chat_id, exc_info=error)

    async def _end_of_dead(self, chat: Chat) -> None:
        """End a turn whose controller is no more."""
        error = ChatFailed("Polydev ended in the middle of this turn", hint="Say it again")
        try:
            async with self._database.write() as connection:
                await chats.require_turn(connection, chat)
                told = [end_of(chat, TurnEnd.INTERRUPTED, error)]
                await chat_events.insert(connection, chat.chat_id, chat.user_id, told)
                await chat_events.close_permissions(connection, chat.chat_id, now())
                size = await chat_events.get_turn_size(connection, chat.chat_id, chat.turn)
                await chats.end_turn(connection, chat, TurnEnd.INTERRUPTED, size, now())
                await chats.update(connection, chat.chat_id, executor_id=None)
        except NoSuchChat:
            return
        log.info("turn %d of chat %s was interrupted", chat.turn, chat.chat_id)

    async def _hand_on_answers(self) -> None:
        asked = [
            (chat_id, request_id)
            for chat_id, running in self._running.items()
            for request_id in running.turn.questions
        ]
        if not asked:
            return
        async with self._database.read() as connection:
            answers = await chat_events.list_answered_permissions(connection, asked)
        for it in answers:
            running = self._running.get(it.chat_id)
            if running is not None and it.option_id is not None:
                running.turn.answer(it.request_id, it.option_id)

    def _on_agent_over(self, agent: Agent) -> None:
        task = asyncio.create_task(self._let_go(agent))
        self._letting_go.add(task)
        task.add_done_callback(self._letting_go.discard)

    async def _let_go(self, agent: Agent) -> None:
        with suppress(PolydevError):  # who is asked next begins anew in any case
            async with self._database.write() as connection:
                await chats.release_agents(
                    connection, self._executor_id, agent.vm_id, agent.provider.id
                )

    async def _close(self) -> None:
        for running in list(self._running.values()):
            running.task.cancel()
        await asyncio.gather(
            *(it.task for it in list(self._running.values())), return_exceptions=True
        )
        await self._agents.aclose()
        await asyncio.gather(*self._letting_go, return_exceptions=True)
        with suppress(PolydevError):
            async with self._database.write() as connection:
                await chats.release_agents(connection, self._executor_id)
