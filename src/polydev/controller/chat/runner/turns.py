"""Run one claimed turn: prompt the CLI's agent and write what it reports.

A turn ends when its agent has finished, or is stopped: by its user, by a limit, or because the
chat was deleted. To stop a turn, the agent is asked to cancel it, and is ended if it does not.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from polydev.controller.chat.acp.agent import Agent
from polydev.controller.chat.acp.agent_pool import AgentPool
from polydev.controller.chat.acp.events import EventTranslator, permission_options
from polydev.controller.chat.events.buffer import LiveTurns
from polydev.controller.chat.events.writer import EventWriter
from polydev.controller.chat.machine_lookup import find_chat_machine
from polydev.controller.chat.runner import history_prompt
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.telemetry import metrics
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.resume_on_use import RESUMING_NOTICE, ResumeOnUse
from polydev.shared.domain import Chat, EventKind, TurnEnd
from polydev.shared.errors import ChatFailed, GuestMisbehaved, NoSuchChat, PolydevError, Unavailable
from polydev.shared.logging import context
from polydev.shared.providers import provider

log = logging.getLogger("polydev.controller.chat")

_MIB = 1024 * 1024
_MAX_PERMISSION_REQUESTS = 1000
_SESSION_LOST = (
    "{name} no longer had this conversation. It received a copy of the last messages and continues "
    "from there"
)


@dataclass(frozen=True, slots=True)
class TurnContext:
    """Dependencies that all turns of a controller share."""

    database: Database
    settings: ControllerSettings
    agents: AgentPool
    live_turns: LiveTurns
    resume_on_use: ResumeOnUse


class ClaimedTurn:
    """A turn that this controller has claimed. Implements TurnListener."""

    def __init__(self, shared: TurnContext, chat: Chat, prompt: str) -> None:
        self.chat = chat
        self.permission_requests: dict[str, asyncio.Future[str | None]] = {}
        """Open requests by id; the result is the option that the user chose."""
        self._shared = shared
        self._prompt = prompt
        self._about = provider(chat.provider)
        max_bytes = shared.settings.chat_turn_mib * _MIB
        self._writer = EventWriter(shared.database, shared.live_turns, chat, max_bytes)
        self._translator = EventTranslator(self._writer.emit, self._writer.set_title)
        self._stop: asyncio.Future[PolydevError | None] = asyncio.Future()
        """Set when the turn is to stop, with the error that is the cause, if any."""
        self._request_count = 0
        self._agent: Agent | None = None
        self._session_id: str | None = None
        """Set once the prompt is sent."""

    async def run(self) -> None:
        """Run the turn to its end; if cancelled, the turn is stored as interrupted."""
        error: PolydevError | None = ChatFailed(
            "Polydev was stopped during this turn", hint="Send your message again"
        )
        reason = TurnEnd.INTERRUPTED
        with context.bound(user=self.chat.user_id):
            flushing = asyncio.create_task(self._flush_forever())
            try:
                reason, error = await self._outcome()
            finally:
                flushing.cancel()
                self._close_translator()
                await asyncio.shield(self._writer.finish(reason, error))

    def stop(self, error: PolydevError | None = None) -> None:
        """Request that the turn stops: for its user, or because of the error."""
        if not self._stop.done():
            self._stop.set_result(error)

    def answer_permission(self, request_id: str, option_id: str) -> None:
        """Pass the user's choice to the agent."""
        request = self.permission_requests.get(request_id)
        if request is not None and not request.done():
            request.set_result(option_id)

    # -- messages of the agent -------------------------------------------------------------------

    def on_update(self, update: dict[str, Any]) -> None:
        """Write a session update as events."""
        try:
            self._translator.on_update(update)
        except GuestMisbehaved as error:
            self.stop(error)

    async def on_permission_request(self, params: dict[str, Any]) -> str | None:
        """Wait for the user's choice; None if the turn is being stopped."""
        options = tuple(it["optionId"] for it in permission_options(params))
        self._request_count += 1
        is_over_limit = self._request_count > _MAX_PERMISSION_REQUESTS
        if is_over_limit or not options or self._stop.done():
            return None
        try:
            request_id = f"{self.chat.turn}-{self._request_count}"
            return await self._wait_for_permission(request_id, options, params)
        except PolydevError as error:
            self.stop(error)
            return None

    async def _wait_for_permission(
        self, request_id: str, options: tuple[str, ...], params: dict[str, Any]
    ) -> str | None:
        request: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.permission_requests[request_id] = request
        try:
            await self._writer.save_permission_request(request_id, options)
            self._translator.on_permission_request(request_id, params)
            chosen = await request
        finally:
            self.permission_requests.pop(request_id, None)
        answer = {"requestId": request_id, "optionId": chosen}
        self._writer.emit(EventKind.PERMISSION_ANSWERED, answer)
        if chosen is not None and not self.permission_requests:
            await self._writer.mark_running()
        return chosen

    # -- execution -------------------------------------------------------------------------------

    async def _outcome(self) -> tuple[TurnEnd, PolydevError | None]:
        try:
            with metrics.timed(metrics.chat_turns, self._about.id):
                return await self._run_until_stopped(), None
        except PolydevError as error:
            log.info("turn %d of chat %s: %s", self.chat.turn, self.chat.chat_id, error.code)
            was_prompted = self._session_id is not None
            is_interrupted = was_prompted and isinstance(error, Unavailable)
            return TurnEnd.INTERRUPTED if is_interrupted else TurnEnd.FAILED, error
        except Exception:
            log.exception("turn %d of chat %s failed", self.chat.turn, self.chat.chat_id)
            return TurnEnd.FAILED, ChatFailed("Polydev had an internal error")

    async def _run_until_stopped(self) -> TurnEnd:
        limit_s = self._shared.settings.chat_turn_limit_s
        work = asyncio.create_task(self._prompt_agent())
        try:
            waited: set[asyncio.Future[Any]] = {work, self._stop}
            await asyncio.wait(waited, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            self.stop(ChatFailed(f"The turn did not end within {limit_s:g} s", hint="Ask for less"))
            await self._cancel_agent(work)
            cause = self._stop.result()
            if cause is not None:
                raise cause
            return TurnEnd.CANCELLED
        finally:
            self._decline_permissions()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _prompt_agent(self) -> TurnEnd:
        shared, chat = self._shared, self.chat
        found = await find_chat_machine(shared.database, chat)
        cause = Actor.for_user(chat.user_id, "chat", "a message in a chat")
        machine = await shared.resume_on_use.ensure_running(cause, found.vm_id, self._report_resume)
        async with (
            shared.resume_on_use.keep_in_use(machine.vm_id),
            shared.agents.lease(machine, self._about) as agent,
        ):
            self._agent = agent
            known_id = chat.acp_session_id if chat.vm_id == machine.vm_id else None
            session = await agent.open_session(known_id)
            texts = [self._prompt]
            if session.is_new:
                await self._writer.save_session(machine.vm_id, session.session_id)
                if chat.acp_session_id is not None:
                    texts = [await history_prompt.build(shared.database, chat), *texts]
                    self._notice("session-lost", _SESSION_LOST.format(name=self._about.name))
            self._session_id = session.session_id
            return await agent.prompt(session.session_id, texts, self)

    def _report_resume(self) -> None:
        self._notice("machine-wakes", RESUMING_NOTICE)

    def _notice(self, code: str, text: str) -> None:
        self._writer.emit(EventKind.NOTICE, {"code": code, "text": text})

    async def _cancel_agent(self, work: asyncio.Task[TurnEnd]) -> None:
        """Ask the agent to cancel the turn, or else stop the agent."""
        self._decline_permissions()
        if self._agent is None or self._session_id is None:
            return
        with suppress(PolydevError, TimeoutError):
            async with asyncio.timeout(self._shared.settings.chat_stop_grace_s):
                await self._agent.cancel(self._session_id)
                await asyncio.wait({work})
        if not work.done():
            self._agent.stop()

    def _decline_permissions(self) -> None:
        for request in self.permission_requests.values():
            if not request.done():
                request.set_result(None)

    async def _flush_forever(self) -> None:
        try:
            await self._writer.flush_forever()
        except NoSuchChat:
            self.stop()

    def _close_translator(self) -> None:
        with suppress(GuestMisbehaved):
            self._translator.close()
