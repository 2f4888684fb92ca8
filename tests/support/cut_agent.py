"""The host agent with one thing wrong: it is `polydev.hostagent`, but at a certain call something
happens. For tests of what real machines become when their agent is cut.

`CUT_AT` is `module:Class.method:before|after:N`, the N-th call of that; `CUT` what happens then:
`kill` (the agent), `vmm` (every VMM of its state folder is killed) or `full` (no space left).
"""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import signal
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

from polydev.hostagent import __main__ as agent
from polydev.hostagent.vmm import process


def cut() -> None:
    if os.environ["CUT"] == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if os.environ["CUT"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    machines = Path(os.environ["POLYDEV_STATE_DIR"]).resolve() / "machines"
    for pid, _, _ in process.find_in_folder(machines, "qemu-system-x86_64"):
        os.kill(pid, signal.SIGKILL)


def patch(where: str) -> None:
    module, path, when, number = where.split(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, importlib.import_module(module))
    call, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def counted(here: str, count: int) -> None:
        if when == here and count == int(number):
            cut()

    def plain(*args: Any, **named: Any) -> Any:
        count = next(calls)
        counted("before", count)
        result = call(*args, **named)
        counted("after", count)
        return result

    async def awaited(*args: Any, **named: Any) -> Any:
        count = next(calls)
        counted("before", count)
        result = await call(*args, **named)
        counted("after", count)
        return result

    patched: Callable[..., Any] = awaited if inspect.iscoroutinefunction(call) else plain
    setattr(owner, name, patched)


def main() -> int:
    """Run the agent until it is cut, or ends."""
    patch(os.environ["CUT_AT"])
    return agent.main()
