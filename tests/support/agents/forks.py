"""Fork server: starts controllers and host agents without the cost of their imports.

Imports take more than a second of CPU time per process, and the tests start hundreds. A fork is a
normal process: tests kill, stop and wait for it. Run as a program, this module is the server;
`fork` and `Forked.wait` are its clients.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_server: list[socket.socket] = []
_turn = threading.Lock()


class Forked:
    """A forked process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end: asyncio.Task[int] | None = None

    async def wait(self) -> int:
        """Wait for its end; return its exit code or the negated signal number."""
        if self._end is None:
            self._end = asyncio.create_task(self._reaped())
        return await asyncio.shield(self._end)

    async def _reaped(self) -> int:
        self.returncode = await _reap(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended, like `Popen.send_signal`."""
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)


def fork(program: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Forked:
    """Start a program in a new process.

    Programs: `controller` (controller_process.main), `journal` (controller_process.make_journal),
    `agent` and `faulty-agent` (the host agent; no arguments).
    """
    what = {"program": program, "argv": list(argv), "env": dict(env), "log": str(log)}
    return Forked(int(_ask(what)))


def run(program: str, argv: Sequence[str], log: Path) -> None:
    """Run a program to its end; blocks this and every other request to the server."""
    process = fork(program, argv, os.environ, log)
    code = _ask({"reap": process.pid})
    assert code == 0, f"{program} ended with {code}: {log.read_text()}"


async def _reap(pid: int) -> int:
    descriptor = os.pidfd_open(pid)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return int(_ask({"reap": pid}))


def _ask(what: Mapping[str, Any]) -> Any:
    with _turn:
        return _ask_locked(what)


def _ask_locked(what: Mapping[str, Any]) -> Any:
    if not _server:
        _server.append(_begin())
    with _server[0].makefile("rw") as stream:
        stream.write(json.dumps(what) + "\n")
        stream.flush()
        return json.loads(stream.readline())


def _begin() -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(asked: socket.socket) -> None:
    # Modules that a controller imports at startup or on its first request.
    import anyio._backends._asyncio  # noqa: F401
    import controller_process
    import faulty_agent

    import polydev.controller.bootstrap
    import polydev.controller.store.engine.alembic_runner  # noqa: F401
    from polydev.hostagent import __main__ as host_agent

    gc.collect()
    gc.freeze()  # the collectors of forks would otherwise touch, and copy, all of this memory
    programs = {
        "controller": controller_process.main,
        "journal": controller_process.make_journal,
        "agent": lambda _: host_agent.main(),
        "faulty-agent": lambda _: faulty_agent.main(),
    }
    with asked.makefile("rw") as stream:
        for line in stream:
            what = json.loads(line)
            if "reap" in what:
                answer = os.waitstatus_to_exitcode(os.waitpid(what["reap"], 0)[1])
            else:
                answer = os.fork()
                if answer == 0:
                    _become(what, asked)
                    os._exit(programs[what["program"]](what["argv"]))
            stream.write(f"{answer}\n")
            stream.flush()


def _become(what: Mapping[str, Any], asked: socket.socket) -> None:
    """Set up the environment and output of a normally started program."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(what["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(asked.fileno())
    os.environ.clear()
    os.environ.update(what["env"])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
