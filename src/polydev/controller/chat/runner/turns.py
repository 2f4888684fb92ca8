"""One turn of a chat, done: the prompt goes to the CLI's agent, and what it says is recorded.

`runner.py` makes one for each turn that it has claimed; `recording.py` keeps what is told. A turn
ends by itself, or is cut: by its person, by a limit, or because it is nobody's any more. Then the
agent is asked to stop, and ended if it does not.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from polydev.controller.chat.acp.agent import Agent
from polydev.controller.chat.acp.agents import Agents
from polydev.controller.chat.acp.events import Telling, options_of
from polydev.controller.chat.events.buffer import Lives
from polydev.controller.chat.events.writer import Recording
from polydev.controller.chat.machine_lookup import machine_for
from polydev.controller.chat.runner import history_prompt
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.telemetry import metrics
from polydev.controller.workflows.machines.actor import Cause
from polydev.controller.workflows.machines.resume_on_use import WAKES, Waking
from polydev.shared.domain import Chat, EventKind, TurnEnd
from polydev.shared.errors import ChatFailed, GuestMisbehaved, NoSuchChat, PolydevError, Unavailable
from polydev.shared.logging import context
from polydev.shared.providers import provider

log = logging.getLogger("polydev.controller.chat")

_MIB = 1024 * 1024
_MAX_QUESTIONS = 1000
_LOST = "{name} no longer knew this conversation. It was told what was said, and goes on from there"


@dataclass(frozen=True, slots=True)
class Means:
    """What turns are done with."""

    database: Database
    settings: ControllerSettings
    agents: Agents
    lives: Lives
    waking: Waking


class TakenTurn:
    """A turn that this controller has claimed."""

    def __init__(self, means: Means, chat: Chat, prompt: str) -> None:
        self.chat = chat
        self.questions: dict[str, asyncio.Future[str | None]] = {}
        """What the agent waits for, by the requests' ids."""
        self._means = means
        self._prompt = prompt
        self._about = provider(chat.provider)
        max_bytes = means.settings.chat_turn_mib * _MIB
        self._recording = Recording(means.database, means.lives, chat, max_bytes)
        self._telling = Telling(self._recording.tell, self._recording.entitle)
        self._cut: asyncio.Future[PolydevError | None] = asyncio.Future()
        self._asked = 0
        self._agent: Agent | None = None
        self._session_id: str | None = None
        """Of the prompt, once it is being said."""

    async def run(self) -> None:
        """Do it to its end, whatever that is; cancelled, the turn is interrupted."""
        error: PolydevError | None = ChatFailed(
            "Polydev was stopped in the middle of this turn", hint="Say it again"
        )
        reason = TurnEnd.INTERRUPTED
        with context.about(user=self.chat.user_id):
            keeping = asyncio.create_task(self._keep_up())
            try:
                reason, error = await self._outcome()
            finally:
                keeping.cancel()
                self._close_telling()
                await asyncio.shield(self._recording.end(reason, error))

    def stop(self, error: PolydevError | None = None) -> None:
        """Have it end, as its person wants, or because of that error."""
        if not self._cut.done():
            self._cut.set_result(error)

    def answer(self, request_id: str, option_id: str) -> None:
        """The person has chosen."""
        waiting = self.questions.get(request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(option_id)

    # -- what its agent says ---------------------------------------------------------------------

    def told(self, update: dict[str, Any]) -> None:
        """The agent has news."""
        try:
            self._telling.update(update)
        except GuestMisbehaved as error:
            self.stop(error)

    async def asked(self, params: dict[str, Any]) -> str | None:
        """What the person lets the agent do; None: nothing, the turn is being stopped."""
        options = tuple(it["optionId"] for it in options_of(params))
        self._asked += 1
        if self._asked > _MAX_QUESTIONS or not options or self._cut.done():
            return None
        try:
            return await self._answer_to(f"{self.chat.turn}-{self._asked}", options, params)
        except PolydevError as error:
            self.stop(error)
            return None

    async def _answer_to(
        self, request_id: str, options: tuple[str, ...], params: dict[str, Any]
    ) -> str | None:
        waiting: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.questions[request_id] = waiting
        try:
            await self._recording.ask(request_id, options)
            self._telling.ask(request_id, params)
            chosen = await waiting
        finally:
            self.questions.pop(request_id, None)
        told = {"requestId": request_id, "optionId": chosen}
        self._recording.tell(EventKind.PERMISSION_ANSWERED, told)
        if chosen is not None and not self.questions:
            await self._recording.go_on()
        return chosen

    # -- doing it --------------------------------------------------------------------------------

    async def _outcome(self) -> tuple[TurnEnd, PolydevError | None]:
        try:
            with metrics.timed(metrics.chat_turns, self._about.id):
                return await self._done(), None
        except PolydevError as error:
            log.info("turn %d of chat %s: %s", self.chat.turn, self.chat.chat_id, error.code)
            was_cut = self._session_id is not None and isinstance(error, Unavailable)
            return TurnEnd.INTERRUPTED if was_cut else TurnEnd.FAILED, error
        except Exception:
            log.exception("turn %d of chat %s failed", self.chat.turn, self.chat.chat_id)
            return TurnEnd.FAILED, ChatFailed("Something went wrong in Polydev itself")

    async def _done(self) -> TurnEnd:
        limit_s = self._means.settings.chat_turn_limit_s
        work = asyncio.create_task(self._work())
        try:
            waited: set[asyncio.Future[Any]] = {work, self._cut}
            await asyncio.wait(waited, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            self.stop(ChatFailed(f"The turn did not end within {limit_s:g} s", hint="Ask for less"))
            await self._halt(work)
            cause = self._cut.result()
            if cause is not None:
                raise cause
            return TurnEnd.CANCELLED
        finally:
            self._refuse_all()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self) -> TurnEnd:
        means, chat = self._means, self.chat
        there = await machine_for(means.database, chat)
        cause = Cause.of_user(chat.user_id, "chat", "a message in a chat")
        machine = await means.waking.awake(cause, there.vm_id, self._tell_that_it_wakes)
        async with (
            means.waking.in_use(machine.vm_id),
            means.agents.lent(machine, self._about) as agent,
        ):
            self._agent = agent
            known = chat.acp_session_id if chat.vm_id == machine.vm_id else None
            session = await agent.take_up(known)
            texts = [self._prompt]
            if session.is_new:
                await self._recording.note_session(machine.vm_id, session.session_id)
                if chat.acp_session_id is not None:
                    texts = [await history_prompt.of(means.database, chat), *texts]
                    words = _LOST.format(name=self._about.name)
                    self._recording.tell(EventKind.NOTICE, {"code": "session-lost", "text": words})
            self._session_id = session.session_id
            return await agent.prompt(session.session_id, texts, self)

    def _tell_that_it_wakes(self) -> None:
        self._recording.tell(EventKind.NOTICE, {"code": "machine-wakes", "text": WAKES})

    async def _halt(self, work: asyncio.Task[TurnEnd]) -> None:
        """Have the agent stop, and end it if it does not."""
        self._refuse_all()
        if self._agent is None or self._session_id is None:
            return
        with suppress(PolydevError, TimeoutError):
            async with asyncio.timeout(self._means.settings.chat_stop_grace_s):
                await self._agent.cancel(self._session_id)
                await asyncio.wait({work})
        if not work.done():
            self._agent.end()

    def _refuse_all(self) -> None:
        for waiting in self.questions.values():
            if not waiting.done():
                waiting.set_result(None)

    # -- keeping what is told --------------------------------------------------------------------

    async def _keep_up(self) -> None:
        try:
            await self._recording.keep_up()
        except NoSuchChat:
            self.stop()

    def _close_telling(self) -> None:
        with suppress(GuestMisbehaved):
            self._telling.close()
