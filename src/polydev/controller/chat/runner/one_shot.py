"""Run one turn without a chat: the prompt goes to the CLI's standard input.

The API streams the events. A turn is not durable: it ends when its caller disconnects.
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
from polydev.controller.workflows.machines.actor import Actor
from polydev.controller.workflows.machines.resume_on_use import (
    RESUMING_NOTICE,
    ResumeOnUse,
    find_usable_cli_machine,
)
from polydev.shared.domain import MachineState, UserId, VmId
from polydev.shared.errors import (
    BadRequest,
    ChatFailed,
    GuestMisbehaved,
    NotConnected,
    PolydevError,
)
from polydev.shared.hints import Hint
from polydev.shared.host_client import GuestProcess, HostClient, HostClients
from polydev.shared.host_protocol import ExecRequest
from polydev.shared.providers import AnswerReader, ChatEvent, Provider, provider

log = logging.getLogger("polydev.controller.chat")

MAX_OUTPUT_BYTES = 32 * 1024 * 1024
MAX_ANSWER_CHARACTERS = 4 * 1024 * 1024
"""The answer stays in memory until the turn ends."""
TURN_LIMIT_S = 15 * 60.0
_WORKING_FOLDER = "/root"


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """Event of a turn.

    `type` is `delta`, `text` or `tool` as in ChatEvent; `notice` for a message of Polydev; `error`;
    and `end`, always last.
    """

    type: str
    text: str = ""
    ok: bool = True
    error: PolydevError | None = None


@dataclass(frozen=True, slots=True)
class OneShotTurn:
    """A turn whose user is connected and whose machine runs or can resume."""

    host: HostClient
    provider: Provider
    vm_id: VmId
    prompt: str
    resume_on_use: ResumeOnUse
    cause: Actor
    must_resume: bool

    async def events(self) -> AsyncGenerator[TurnEvent]:
        """Yield the answer as it comes. Raises no PolydevError: errors are events.

        A CLI also prints errors of attempts that it repeats. So the turn has failed only if the CLI
        exits with an error or gives no answer; then its last error says why.
        """
        texts: dict[str, list[str]] = {"text": [], "delta": [], "tool": [], "error": []}
        failure: PolydevError | None = None
        try:
            with metrics.timed(metrics.chat_turns, self.provider.id):
                if self.must_resume:
                    yield TurnEvent("notice", RESUMING_NOTICE)
                await self.resume_on_use.ensure_running(self.cause, self.vm_id)
                async with (
                    asyncio.timeout(TURN_LIMIT_S),
                    self.resume_on_use.keep_in_use(self.vm_id),
                ):
                    async for event in self._answer():
                        texts[event.kind].append(event.text)
                        if event.kind != "error":
                            yield TurnEvent(event.kind, event.text)
        except PolydevError as error:
            failure = error
        except TimeoutError:
            failure = ChatFailed(f"The turn did not end within {TURN_LIMIT_S:g} s")
        answer = "\n\n".join(texts["text"]) or "".join(texts["delta"])
        if not answer and failure is None:
            failure = ChatFailed(f"{self.provider.name} ended without an answer")
        if failure is not None:
            log.info("chat turn in %s failed: %s", self.vm_id, failure.code)
            if texts["error"] and isinstance(failure, ChatFailed):
                message = f"{self.provider.name} reports: {texts['error'][-1]}"
                failure = ChatFailed(message, hint=failure.hint)
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
                command = f"polydev machine exec {self.vm_id} -- "
                command += " ".join(self.provider.status_argv)
                raise ChatFailed(
                    f"{self.provider.name} ended with exit code {process.exit_code}",
                    hint=f"Run `{command}` to check whether it is logged in",
                )

    async def _read(self, process: GuestProcess) -> AsyncIterator[ChatEvent]:
        reader, output_bytes, characters = AnswerReader(self.provider.chat.output), 0, 0
        async for chunk in process.stdout():
            output_bytes += len(chunk)
            if output_bytes > MAX_OUTPUT_BYTES:
                raise GuestMisbehaved(f"{self.provider.name} printed too much")
            for event in reader.feed(chunk):
                characters += len(event.text)
                if characters > MAX_ANSWER_CHARACTERS:
                    raise GuestMisbehaved(f"The answer of {self.provider.name} is too long")
                yield event
        for event in reader.close():
            yield event


@dataclass(frozen=True, slots=True)
class OneShotTurns:
    """Opens turns that belong to no chat."""

    database: Database
    hosts: HostClients
    resume_on_use: ResumeOnUse

    async def open(self, user_id: UserId, provider_id: str, prompt: str) -> OneShotTurn:
        """Prepare a turn with the user's CLI.

        Raises: UnknownProvider, NotConnected, BadRequest.
        """
        about = provider(provider_id)
        if not prompt.strip() or len(prompt) > MAX_PROMPT_CHARACTERS:
            raise BadRequest(f"A prompt has between 1 and {MAX_PROMPT_CHARACTERS} characters")
        async with self.database.read() as connection:
            credential = await credentials.find_newest_sealed(connection, user_id, about.id)
            machine = await find_usable_cli_machine(connection, user_id)
        hint = Hint.CONNECT_CLI.text(provider=about.id)
        if credential is None:
            raise NotConnected(f"You have not connected {about.name}", hint=hint)
        if machine is None:
            raise NotConnected(f"You have no running CLI machine for {about.name}", hint=hint)
        cause = Actor.for_user(user_id, "chat", "a message to a CLI")
        must_resume = machine.status is not MachineState.RUNNING
        host = self.hosts.client(machine.host_id)
        return OneShotTurn(
            host, about, machine.vm_id, prompt, self.resume_on_use, cause, must_resume
        )
