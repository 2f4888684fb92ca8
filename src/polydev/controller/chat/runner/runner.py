"""Run queued turns: every controller claims turns and executes them.

It does not matter which controller queued a turn: `Runner` checks whenever the database changes. A
chat prefers the controller that holds its agent, or an agent of the same CLI and user, while that
controller is alive; so agents are not started twice. Turns of a dead controller (its lease has
expired) are ended as interrupted by the others.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from polydev.controller.chat.acp.agent import Agent
from polydev.controller.chat.acp.agent_pool import AgentPool
from polydev.controller.chat.events.buffer import LiveTurns
from polydev.controller.chat.events.writer import turn_ended_event
from polydev.controller.chat.runner.turns import ClaimedTurn, TurnContext
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.chats import chat_events, chats
from polydev.controller.store.queries.chats.chats import ActiveChat
from polydev.controller.store.queries.system import controllers
from polydev.controller.workflows.machines.resume_on_use import ResumeOnUse
from polydev.shared.domain import Chat, ChatId, ChatStatus, TurnEnd, now
from polydev.shared.errors import ChatFailed, NoSuchChat, PolydevError
from polydev.shared.host_client import HostClients

log = logging.getLogger("polydev.controller.chat")

_MIN_PAUSE_S = 0.02
_POLL_S = 2.0
"""While turns are queued or running: another controller may die without a change of the rows."""


@dataclass(frozen=True, slots=True)
class _Running:
    turn: ClaimedTurn
    task: asyncio.Task[None]


class Runner:
    """Claims and runs turns in this controller."""

    def __init__(
        self,
        database: Database,
        hosts: HostClients,
        settings: ControllerSettings,
        live_turns: LiveTurns,
        executor_id: str,
        resume_on_use: ResumeOnUse,
    ) -> None:
        self._database = database
        self._settings = settings
        self._executor_id = executor_id
        self._agents = AgentPool(hosts, settings, self._on_agent_ended)
        self._context = TurnContext(database, settings, self._agents, live_turns, resume_on_use)
        self._running: dict[ChatId, _Running] = {}
        self._releases: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Reconcile on every change until cancelled; then interrupt all turns."""
        try:
            while True:
                change = self._database.next_change()
                has_work = True
                try:
                    has_work = await self.run_once()
                except PolydevError as error:
                    log.warning("cannot check for turns: %s", error)
                except Exception:
                    log.exception("checking for turns failed")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S if has_work else None):
                        await change.wait()
                await asyncio.sleep(_MIN_PAUSE_S)
        finally:
            await asyncio.shield(self._close())

    async def run_once(self) -> bool:
        """Start, stop and end turns as the rows demand; True while any is queued or running."""
        known = dict(self._running)
        async with self._database.read() as connection:
            found = await chats.list_active(connection)
            others = await controllers.list_others_alive(connection, self._executor_id)
        await self._deliver_answers()
        for it in found:
            await self._reconcile(it, others)
        turns = {it.chat.chat_id: it.chat.turn for it in found}
        for chat_id, running in known.items():
            if turns.get(chat_id) != running.turn.chat.turn:
                running.turn.stop()
        return bool(found)

    async def _reconcile(self, it: ActiveChat, others: frozenset[str]) -> None:
        chat, is_mine = it.chat, it.chat.executor_id == self._executor_id
        if chat.status is ChatStatus.QUEUED:
            has_capacity = len(self._running) < self._settings.chat_turns_at_once
            if chat.executor_id not in others and has_capacity:
                await self._claim_and_start(chat, others)
            return
        running = self._running.get(chat.chat_id)
        if is_mine and running is not None:
            if it.stop_requested_at is not None:
                running.turn.stop()
        elif chat.executor_id not in others:
            await self._end_orphaned(chat)

    async def _claim_and_start(self, chat: Chat, others: frozenset[str]) -> None:
        """Claim and start a turn, unless another controller has the agent for it."""
        async with self._database.write() as connection:
            holders = await chats.list_agent_holders(connection, chat.user_id, chat.provider)
            if holders & others and self._executor_id not in holders:
                return
            row = await chats.find_turn(connection, chat.chat_id, chat.turn)
            claimed = await chats.claim_turn(connection, chat, self._executor_id)
        if claimed is None or row is None:
            return
        turn = ClaimedTurn(self._context, claimed, row.prompt)
        if row.stop_requested_at is not None:
            turn.stop()
        task = asyncio.create_task(turn.run())
        self._running[chat.chat_id] = running = _Running(turn, task)
        task.add_done_callback(lambda _: self._on_turn_done(chat.chat_id, running))

    def _on_turn_done(self, chat_id: ChatId, running: _Running) -> None:
        if self._running.get(chat_id) is running:
            del self._running[chat_id]
        error = None if running.task.cancelled() else running.task.exception()
        if error is not None:
            log.error("a turn of chat %s failed", chat_id, exc_info=error)

    async def _end_orphaned(self, chat: Chat) -> None:
        """End a turn whose controller is dead."""
        error = ChatFailed("Polydev stopped during this turn", hint="Send your message again")
        try:
            async with self._database.write() as connection:
                await chats.require_turn(connection, chat)
                end = turn_ended_event(chat, TurnEnd.INTERRUPTED, error)
                await chat_events.insert(connection, chat.chat_id, chat.user_id, [end])
                await chat_events.close_permissions(connection, chat.chat_id, now())
                size = await chat_events.get_turn_size(connection, chat.chat_id, chat.turn)
                await chats.end_turn(connection, chat, TurnEnd.INTERRUPTED, size, now())
                await chats.update(connection, chat.chat_id, executor_id=None)
        except NoSuchChat:
            return
        log.info("turn %d of chat %s was interrupted", chat.turn, chat.chat_id)

    async def _deliver_answers(self) -> None:
        pending = [
            (chat_id, request_id)
            for chat_id, running in self._running.items()
            for request_id in running.turn.permission_requests
        ]
        if not pending:
            return
        async with self._database.read() as connection:
            answers = await chat_events.list_answered_permissions(connection, pending)
        for it in answers:
            running = self._running.get(it.chat_id)
            if running is not None and it.option_id is not None:
                running.turn.answer_permission(it.request_id, it.option_id)

    def _on_agent_ended(self, agent: Agent) -> None:
        task = asyncio.create_task(self._release(agent))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _release(self, agent: Agent) -> None:
        with suppress(PolydevError):  # the next turn starts a new agent in any case
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
        await asyncio.gather(*self._releases, return_exceptions=True)
        with suppress(PolydevError):
            async with self._database.write() as connection:
                await chats.release_agents(connection, self._executor_id)
