"""The host agent with one injected fault, for tests of recovery on real machines.

`FAULT_AT` is `module:Class.method:before|after:N`, the N-th call of the method. `FAULT` is what
happens then: `kill` (the agent), `vmm` (kill every VMM of its state folder) or `full` (ENOSPC).
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


def inject() -> None:
    if os.environ["FAULT"] == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if os.environ["FAULT"] == "kill":
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
            inject()

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
    """Run the agent with the fault."""
    patch(os.environ["FAULT_AT"])
    return agent.main()
