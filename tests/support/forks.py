"""Controllers and host agents that start quickly: forks of one that has imported everything.

Importing takes either more than a second of a processor, and the tests start hundreds. A fork is a
process like any other: it may be killed, stopped, and waited for. Run as a program this is the one
that forks; `fork` and `Forked.wait` ask it.
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
_asking: list[socket.socket] = []
_turn = threading.Lock()


class Forked:
    """A process that was forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end: asyncio.Task[int] | None = None

    async def wait(self) -> int:
        """Wait for its end; its exit code, or the negative number of its signal."""
        if self._end is None:
            self._end = asyncio.create_task(self._reaped())
        return await asyncio.shield(self._end)

    async def _reaped(self) -> int:
        self.returncode = await _reap(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """As `Popen.send_signal`: nothing happens to a process that has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self.pid, number)


def fork(program: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Forked:
    """Start a program in a process of its own: `controller` (controller_process.main), `journal`
    (controller_process.make_journal), `agent` or `cut-agent` (the host agent, sound or not; they
    take no arguments)."""
    what = {"program": program, "argv": list(argv), "env": dict(env), "log": str(log)}
    return Forked(int(_ask(what)))


def run(program: str, argv: Sequence[str], log: Path) -> None:
    """Run a program to its end. Blocks, and so does whoever else asks for a fork meanwhile."""
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
        return _ask_alone(what)


def _ask_alone(what: Mapping[str, Any]) -> Any:
    if not _asking:
        _asking.append(_begin())
    with _asking[0].makefile("rw") as stream:
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
    # What a controller imports when it starts, or is asked for the first time: every fork has it.
    import anyio._backends._asyncio  # noqa: F401
    import controller_process
    import cut_agent

    import polydev.controller.bootstrap
    import polydev.controller.store.engine.alembic_runner  # noqa: F401
    from polydev.hostagent import __main__ as host_agent

    gc.collect()
    gc.freeze()  # or each fork's collector would copy all of this memory by looking at it
    programs = {
        "controller": controller_process.main,
        "journal": controller_process.make_journal,
        "agent": lambda _: host_agent.main(),
        "cut-agent": lambda _: cut_agent.main(),
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
    """What a program that was started in the usual way would find."""
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
