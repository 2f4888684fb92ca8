"""One turn without a chat: the prompt goes to the CLI's standard input, its answer comes as events.

Called by the API, which streams the events. A turn is not durable: who goes away ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from polydev.controller.chat.chats import MAX_PROMPT_CHARACTERS
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials
from polydev.controller.telemetry import metrics
from polydev.controller.workflows.machines.actor import Cause
from polydev.controller.workflows.machines.resume_on_use import WAKES, Waking, usable_cli_of
from polydev.shared.domain import MachineState, UserId, VmId
from polydev.shared.errors import (
    BadRequest,
    ChatFailed,
    GuestMisbehaved,
    NotConnected,
    PolydevError,
)
from polydev.shared.host_client import GuestProcess, Host, Hosts
from polydev.shared.host_protocol import ExecRequest
from polydev.shared.providers import AnswerReader, ChatEvent, Provider, provider

log = logging.getLogger("polydev.controller.chat")

MAX_OUTPUT_BYTES = 32 * 1024 * 1024
MAX_ANSWER_CHARACTERS = 4 * 1024 * 1024
"""It is held here until the turn ends."""
TURN_LIMIT_S = 15 * 60.0
_WORKING_FOLDER = "/root"


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """`delta`, `text`, `tool` as ChatEvent has them; `notice`, a word of Polydev's own; `error`;
    and `end`, always the last."""

    type: str
    text: str = ""
    ok: bool = True
    error: PolydevError | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that can be done: the person is connected, and their machine runs."""

    host: Host
    provider: Provider
    vm_id: VmId
    prompt: str
    waking: Waking
    cause: Cause
    waits: bool
    """Whether its machine sleeps, or nearly so."""

    async def events(self) -> AsyncGenerator[TurnEvent]:
        """The answer as it comes. Raises nothing of ours: an error is an event.

        What the CLI calls an error need not be one (it tells of tries that it repeats): the turn
        failed if the CLI ended badly or gave no answer, and its last error says why.
        """
        said: dict[str, list[str]] = {"text": [], "delta": [], "tool": [], "error": []}
        failure: PolydevError | None = None
        try:
            with metrics.timed(metrics.chat_turns, self.provider.id):
                if self.waits:
                    yield TurnEvent("notice", WAKES)
                await self.waking.awake(self.cause, self.vm_id)
                async with asyncio.timeout(TURN_LIMIT_S), self.waking.in_use(self.vm_id):
                    async for event in self._answer():
                        said[event.kind].append(event.text)
                        if event.kind != "error":
                            yield TurnEvent(event.kind, event.text)
        except PolydevError as error:
            failure = error
        except TimeoutError:
            failure = ChatFailed(f"The turn did not end within {TURN_LIMIT_S:g} s")
        answer = "\n\n".join(said["text"]) or "".join(said["delta"])
        if not answer and failure is None:
            failure = ChatFailed(f"{self.provider.name} ended without an answer")
        if failure is not None:
            log.info("chat turn in %s failed: %s", self.vm_id, failure.code)
            if said["error"] and isinstance(failure, ChatFailed):
                why = f"{self.provider.name} says: {said['error'][-1]}"
                failure = ChatFailed(why, hint=failure.hint)
            yield TurnEvent("error", error=failure)
        yield TurnEvent("end", answer, ok=failure is None)

    async def _answer(self) -> AsyncIterator[ChatEvent]:
        request = ExecRequest(
            argv=list(self.provider.chat.argv),
            env=dict(self.provider.environment),
            cwd=_WORKING_FOLDER,
        )
        async with self.host.exec(self.vm_id, request) as process:
            await process.write(self.prompt.encode("utf-8", "replace"))
            await process.write_eof()
            async for event in self._read(process):
                yield event
            if process.exit_code != 0:
                raise ChatFailed(
                    f"{self.provider.name} ended with exit code {process.exit_code}",
                    hint=f"`polydev machine exec {self.vm_id} -- "
                    f"{' '.join(self.provider.status_argv)}` shows whether it is logged in",
                )

    async def _read(self, process: GuestProcess) -> AsyncIterator[ChatEvent]:
        reader, total, told = AnswerReader(self.provider.chat.output), 0, 0
        async for chunk in process.stdout():
            total += len(chunk)
            if total > MAX_OUTPUT_BYTES:
                raise GuestMisbehaved(f"{self.provider.name} printed too much")
            for event in reader.feed(chunk):
                told += len(event.text)
                if told > MAX_ANSWER_CHARACTERS:
                    raise GuestMisbehaved(f"{self.provider.name} answered too much")
                yield event
        for event in reader.close():
            yield event


@dataclass(frozen=True, slots=True)
class SingleTurns:
    """Opens turns that belong to no chat."""

    database: Database
    hosts: Hosts
    waking: Waking

    async def open(self, user_id: UserId, provider_id: str, prompt: str) -> Turn:
        """A turn with the person's CLI. Raises UnknownProvider, NotConnected, BadRequest."""
        about = provider(provider_id)
        if not prompt.strip() or len(prompt) > MAX_PROMPT_CHARACTERS:
            raise BadRequest(f"A prompt has between 1 and {MAX_PROMPT_CHARACTERS} characters")
        async with self.database.read() as connection:
            credential = await credentials.find_newest_sealed(connection, user_id, about.id)
            machine = await usable_cli_of(connection, user_id)
        hint = f"`polydev connect {about.id}` logs it in"
        if credential is None:
            raise NotConnected(f"You have not connected {about.name}", hint=hint)
        if machine is None:
            raise NotConnected(f"You have no running CLI machine for {about.name}", hint=hint)
        cause = Cause.of_user(user_id, "chat", "a message to a CLI")
        waits = machine.status is not MachineState.RUNNING
        host = self.hosts.of(machine.host_id)
        return Turn(host, about, machine.vm_id, prompt, self.waking, cause, waits)
