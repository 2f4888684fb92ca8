"""The programs of a simulated machine, and the parser of their shell lines.

`machine.py` passes each SSH session to `Programs.run`. The CLIs' output has the real format; as
with them, the credentials file alone determines who is logged in.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from polydev.hostagent.channel.remote_process import DEATH_SIGNAL, RUN_ID, signal_argv
from polydev.testing.simulated_vmm.acp.agent import AcpAgent
from polydev.testing.simulated_vmm.acp.wire import Wire
from polydev.testing.simulated_vmm.programs import login_status
from polydev.testing.simulated_vmm.programs.server_process import ServerProcess
from polydev.testing.simulated_vmm.programs.terminals import (
    TERMINAL,
    Terminals,
    parse_zeros,
    print_zeros,
)
from polydev.testing.simulated_vmm.simulation import Simulation

_AFTER_RESUME = "polydev-awake"
"""Name of the script in `machines/guest_resume.py`, which is not imported here."""
_SETTLE, _FIRST_PAINT, _RENEW = "polydev-settle", "polydev-first-paint", "polydev-renew"
"""Names of the scripts in `warm_pool/guest_scripts.py`, likewise."""
_SEED_BYTES, _CONFIG_BYTES = 64, 1024 * 1024
_CHUNK = 64 * 1024
_PROMPT_BYTES = 1024 * 1024
_GEMINI_NOT_LOGGED_IN = 41
_NOT_FOUND = 127
_SIGNALLED = 128


@dataclass(frozen=True, slots=True)
class Command:
    """A parsed shell line."""

    argv: tuple[str, ...]
    env: dict[str, str]


def parsed(line: str) -> Command:
    """Parse a shell line of the channel (`remote_process.command_line`)."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
    lexer.whitespace_split = True
    tokens, env = list(lexer), {}
    if tokens[:1] == ["export"]:
        end = tokens.index(";")
        env = dict(_pair(word) for word in tokens[1:end])
        tokens = tokens[end + 1 :]
    if tokens[:1] == ["cd"] and tokens[2:3] == ["&&"]:
        tokens = tokens[3:]
    if tokens[:1] == ["exec"]:
        tokens = tokens[1:]
    if tuple(tokens[: len(DEATH_SIGNAL)]) == DEATH_SIGNAL:
        tokens = tokens[len(DEATH_SIGNAL) :]
    return Command(tuple(tokens), env)


class Programs:
    """Runs programs on one machine's filesystem."""

    def __init__(
        self,
        root: Path,
        simulation: Simulation,
        *,
        power_off: Callable[[], None],
        renew: Callable[[bytes], None],
    ) -> None:
        """`renew` applies another config drive to the machine."""
        self._root = root
        self._simulation = simulation
        self._power_off = power_off
        self._renew_with = renew
        self._running: dict[str, tuple[ServerProcess, asyncio.Task[int]]] = {}
        self._terminals = Terminals()

    def move(self, root: Path) -> None:
        """Switch to another root folder."""
        self._root = root

    async def run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Serve one SSH session."""
        await self.serve(parsed(process.command or ""), process)

    async def serve(self, command: Command, process: ServerProcess) -> None:
        """Run a program, or report that it does not exist."""
        work = asyncio.ensure_future(self._program(command)(process))
        name = command.env.get(RUN_ID, "")
        self._running[name] = (process, work)
        try:
            process.exit(await work)
        except asyncio.CancelledError:
            work.cancel()
        except (asyncssh.Error, OSError, EOFError):
            process.close()
        finally:
            self._running.pop(name, None)
        if command.argv == ("poweroff",):
            asyncio.get_running_loop().call_soon(self._power_off)

    def _program(self, command: Command) -> Callable[[ServerProcess], Awaitable[int]]:
        argv = command.argv
        if len(argv) > 4 and list(argv[:4]) == signal_argv("", "TERM")[:4]:
            return lambda process: self._signal(argv[4], argv[-1])
        if argv[:2] == ("sh", "-c") and argv[3:4] == (TERMINAL,):
            return lambda process: self._terminals.attach(argv[4], process)
        if argv[:2] == ("sh", "-c") and (printed := parse_zeros(argv[2])) is not None:
            return lambda process: print_zeros(printed, process)
        if (script := self._script(argv)) is not None:
            return script
        if argv[:1] == ("sleep",) and len(argv) == 2:
            return lambda process: _sleep(float(argv[1]))
        programs: dict[tuple[str, ...], Callable[[ServerProcess], Awaitable[int]]] = {
            ("true",): _true,
            ("sync",): _true,
            ("poweroff",): _true,
            ("cat",): _cat,
            ("codex", "login", "status"): self._codex_status,
            ("claude", "auth", "status"): self._claude_status,
            ("/usr/lib/polydev/gemini-status",): self._gemini_status,
            ("claude-agent-acp",): lambda it: self._agent(it, login_status.CLAUDE),
            ("codex-acp",): lambda it: self._agent(it, login_status.CODEX),
            ("gemini", "--acp"): lambda it: self._agent(it, login_status.GEMINI),
            ("gemini",): self._gemini_turn,
            ("codex", "exec"): self._codex_turn,
            ("claude", "-p"): self._claude_turn,
        }
        return next(
            (run for tokens, run in programs.items() if argv[: len(tokens)] == tokens), _not_found
        )

    def _script(self, argv: tuple[str, ...]) -> Callable[[ServerProcess], Awaitable[int]] | None:
        """Find a script that the host sends (`guest/`), by its name."""
        programs: dict[str, Callable[[ServerProcess], Awaitable[int]]] = {
            _AFTER_RESUME: self._resume_guest,
            _SETTLE: self._settle,
            _FIRST_PAINT: _true,
            _RENEW: self._renew,
        }
        return next((programs[word] for word in argv[3:5] if word in programs), None)

    async def _signal(self, name: str, run: str) -> int:
        if run in self._running:
            process, work = self._running[run]
            process.exit(_SIGNALLED + signal.Signals[f"SIG{name}"])
            work.cancel()
        return 0

    async def _resume_guest(self, process: ServerProcess) -> int:
        """Act like guest/after_resume.sh, as far as possible without a clock."""
        process.stdout.write(b"ready\n")
        received = await process.stdin.read()
        (self._root / "run" / "awake_since").write_bytes(received[_SEED_BYTES:] + b"\n")
        return 0

    async def _settle(self, process: ServerProcess) -> int:
        """Act like guest/warm/settle.sh: wait for the browser."""
        await asyncio.sleep(self._simulation.browser_s)
        return 0

    async def _renew(self, process: ServerProcess) -> int:
        """Act like guest/warm/renew.pl, as far as possible without a network."""
        process.stdout.write(b"ready\n")
        received = b""
        while (data := await process.stdin.read(_CHUNK)) and len(received) < _CONFIG_BYTES:
            received += data
        await asyncio.sleep(self._simulation.renew_s)
        if not self._simulation.renews:
            process.stderr.write(b"the simulation makes the renewal fail\n")
            return 1
        self._renew_with(received[_SEED_BYTES:].partition(b"\n")[2])
        return 0

    async def _codex_status(self, process: ServerProcess) -> int:
        logged_in = self._is_logged_in(login_status.CODEX)
        process.stderr.write(b"Logged in using ChatGPT\n" if logged_in else b"Not logged in\n")
        return 0 if logged_in else 1

    async def _claude_status(self, process: ServerProcess) -> int:
        logged_in = self._is_logged_in(login_status.CLAUDE)
        method = "claude.ai" if logged_in else "none"
        _print_json(process, {"loggedIn": logged_in, "authMethod": method})
        return 0 if logged_in else 1

    async def _gemini_status(self, process: ServerProcess) -> int:
        logged_in = self._is_logged_in(login_status.GEMINI)
        process.stdout.write(b"Logged in\n" if logged_in else b"Not logged in\n")
        return 0 if logged_in else 1

    async def _agent(self, process: ServerProcess, login: str) -> int:
        agent = AcpAgent(
            self._root,
            Wire(process.stdout),
            is_logged_in=lambda: self._is_logged_in(login),
            answer_s=self._simulation.answer_s,
        )
        return await agent.run(process.stdin)

    async def _codex_turn(self, process: ServerProcess) -> int:
        prompt = await self._prompt(process)
        _print_json(process, {"type": "thread.started", "thread_id": str(uuid.uuid4())})
        _print_json(process, {"type": "turn.started"})
        if not self._is_logged_in(login_status.CODEX):
            error = {"message": "unexpected status 401 Unauthorized"}
            _print_json(process, {"type": "turn.failed", "error": error})
            return 1
        item = {"id": "item_0", "type": "agent_message", "text": _answer(prompt)}
        _print_json(process, {"type": "item.completed", "item": item})
        usage = {"input_tokens": len(prompt), "cached_input_tokens": 0, "output_tokens": 1}
        _print_json(process, {"type": "turn.completed", "usage": usage})
        return 0

    async def _claude_turn(self, process: ServerProcess) -> int:
        prompt = await self._prompt(process)
        session = {"session_id": str(uuid.uuid4())}
        _print_json(process, {"type": "system", "subtype": "init", **session})
        logged_in = self._is_logged_in(login_status.CLAUDE)
        text = _answer(prompt) if logged_in else "Not logged in · Please run /login"
        if logged_in:
            delta = {"type": "text_delta", "text": text}
            event = {"type": "content_block_delta", "index": 0, "delta": delta}
            _print_json(process, {"type": "stream_event", "event": event, **session})
        message = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        _print_json(process, {"type": "assistant", "message": message, **session})
        result = {"type": "result", "subtype": "success", "is_error": not logged_in, "result": text}
        _print_json(process, {**result, **session})
        return 0 if logged_in else 1

    async def _gemini_turn(self, process: ServerProcess) -> int:
        prompt = await self._prompt(process)
        _print_json(process, {"type": "init", "session_id": str(uuid.uuid4()), "model": "auto"})
        if not self._is_logged_in(login_status.GEMINI):
            error = {"type": "FatalAuthenticationError", "message": "Please set an Auth method"}
            _print_json(process, {"type": "result", "status": "error", "error": error})
            return _GEMINI_NOT_LOGGED_IN
        message = {"type": "message", "role": "assistant", "delta": True}
        _print_json(process, {**message, "content": _answer(prompt)})
        _print_json(process, {"type": "result", "status": "success", "stats": {}})
        return 0

    async def _prompt(self, process: ServerProcess) -> str:
        prompt = b""
        while (data := await process.stdin.read(_CHUNK)) and len(prompt) < _PROMPT_BYTES:
            prompt += data
        await asyncio.sleep(self._simulation.answer_s)
        return prompt.decode(errors="replace").strip()

    def _is_logged_in(self, login: str) -> bool:
        return login_status.is_logged_in(self._root, login)


async def _true(process: ServerProcess) -> int:
    return 0


async def _cat(process: ServerProcess) -> int:
    while data := await process.stdin.read(_CHUNK):
        process.stdout.write(data)
        await process.stdout.drain()
    return 0


async def _sleep(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 0


async def _not_found(process: ServerProcess) -> int:
    process.stderr.write(b"sh: not found: a simulated machine has few programs\n")
    return _NOT_FOUND


def _answer(prompt: str) -> str:
    return f"You said: {prompt}"


def _print_json(process: ServerProcess, message: dict[str, object]) -> None:
    process.stdout.write(json.dumps(message).encode() + b"\n")


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value
