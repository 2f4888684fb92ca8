"""Run programs that handle guest data without privileges.

VMMs run this way, and the tools that read guests' filesystems. They get their files as open
descriptors (`/proc/self/fd/N`), so they need access to none of our folders. The chain of wrappers
only uses exec(2): the pid that was started is the program's own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from polydev.hostagent.system.namespaces import path_of
from polydev.shared.errors import MissingTool

UID_BASE = 1_900_000_000
"""First of the uids of VMMs, one per machine: no distribution, container manager or systemd assigns
this range. Source: systemd's "Users, Groups, UIDs and GIDs"."""

_MEMORY_LIMIT = 2 << 30
_OUTPUT_LIMIT = 4 << 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Finished:
    """Exit status and bounded output of a program."""

    status: int
    output: bytes
    errors: bytes


def confined(
    argv: Sequence[str], *, uid: int, groups: Sequence[int] = (), netns: str | None = None
) -> list[str]:
    """Wrap `argv` to run as user and group `uid`, without capabilities.

    `groups` are its only supplementary groups; `netns` names its network namespace.
    Source: choom(1), prlimit(1), setpriv(1), nsenter(1). Raises: MissingTool.
    """
    supplementary = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    chain = [
        *expendable(),
        # A core file would hold the guest's memory, credentials included.
        *(tool("prlimit", "util-linux"), "--core=0:0", "--"),
        *(tool("setpriv", "util-linux"), "--reuid", str(uid), "--regid", str(uid)),
        *(*supplementary, "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"),
        *("--bounding-set=-all", "--", *argv),
    ]
    if netns is None:
        return chain
    return [tool("nsenter", "util-linux"), f"--net={path_of(netns)}", "--", *chain]


def expendable() -> list[str]:
    """Return a command prefix: if memory runs out, the kernel kills this program first.

    Raises: MissingTool.
    """
    return [tool("choom", "util-linux"), "-n", "1000", "--"]


def tool(name: str, package: str) -> str:
    """Return the path of a program. Raises MissingTool that names its Debian package."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise MissingTool(f"`{name}` is not installed", hint=f"Run: apt-get install {package}")
    return found


class MemoryFile:
    """An anonymous file in memory."""

    def __init__(self, content: bytes = b"") -> None:
        self._descriptor = os.memfd_create("polydev", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(self._descriptor), "wb") as file:
            file.write(content)
        os.lseek(self._descriptor, 0, os.SEEK_SET)

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def content(self, limit: int = _OUTPUT_LIMIT) -> bytes:
        return os.pread(self._descriptor, limit, 0)


async def read_with(
    argv: Sequence[str],
    *,
    uid: int,
    descriptors: Sequence[int],
    script: bytes = b"",
    limit_s: float,
    max_output: int = _OUTPUT_LIMIT,
) -> Finished:
    """Run a program for its output, and kill it if that is too long.

    It is also killed on a timeout, or if the caller is cancelled. Raises TimeoutError.
    """
    with MemoryFile(script) as source:
        process = await asyncio.create_subprocess_exec(
            *_limited(argv, uid, limit_s),
            stdin=source.fileno(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
            env={"LC_ALL": "C", "PATH": _PATH},
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(limit_s):
            output, errors = await asyncio.gather(
                _read(process, process.stdout, max_output),
                _read(process, process.stderr, _OUTPUT_LIMIT),
            )
            return Finished(await process.wait(), output, errors)
    finally:
        await _end(process)


async def write_with(
    argv: Sequence[str], *, uid: int, descriptors: Sequence[int], script: bytes, limit_s: float
) -> Finished:
    """Run a program for its effect, to completion.

    It runs on if the caller is cancelled, and even if the agent is killed: it reads from memory and
    prints into memory. Its input must bound its output. Raises TimeoutError after killing it.
    """
    with ExitStack() as stack:
        source, output, errors = (
            stack.enter_context(MemoryFile(content)) for content in (script, b"", b"")
        )
        process = await asyncio.create_subprocess_exec(
            *_limited(argv, uid, limit_s),
            stdin=source.fileno(),
            stdout=output.fileno(),
            stderr=errors.fileno(),
            pass_fds=descriptors,
            env={"LC_ALL": "C", "PATH": _PATH},
            start_new_session=True,
        )
        ending = asyncio.ensure_future(_within(process, limit_s))
        try:
            status = await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise
        return Finished(status, output.content(), errors.content())


def _limited(argv: Sequence[str], uid: int, limit_s: float) -> list[str]:
    prlimit = [tool("prlimit", "util-linux"), f"--as={_MEMORY_LIMIT}", f"--cpu={round(limit_s)}"]
    return confined([*prlimit, "--", *argv], uid=uid)


async def _within(process: asyncio.subprocess.Process, limit_s: float) -> int:
    """Wait for the program; if the ending agent cancels this, the program runs on."""
    try:
        async with asyncio.timeout(limit_s):
            return await process.wait()
    except TimeoutError:
        await _end(process)
        raise


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _read(
    process: asyncio.subprocess.Process, stream: asyncio.StreamReader | None, limit: int
) -> bytes:
    """Read a program's output, and kill the program beyond `limit` bytes."""
    output = bytearray()
    while stream is not None and (chunk := await stream.read(65536)):
        output += chunk[: limit - len(output)]
        if len(output) >= limit:
            with suppress(ProcessLookupError):
                process.kill()
            break
    return bytes(output)
