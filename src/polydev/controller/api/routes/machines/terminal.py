"""`/api/vm/{vmId}/terminal`: a person's terminal in their machine.

What runs in it outlives the connection: it is a session of tmux in the machine, to which whoever
opens the terminal of that name attaches, and is told first what has scrolled away. A machine
without tmux has a plain login shell, which ends with its connection.

Binary frames are bytes, both ways; a text frame of the client is `{"resize": [columns, rows]}`. One
of the server is `{"notice": words}` while its machine wakes up, and the last one an `ExecEnd`
(hostapi.py). Who does not read makes the program wait. What a machine prints is for a terminal
emulator, and is passed on as it is.

Opening a terminal wakes its machine, and typing keeps it awake; one that is only open does not.
Whoever comes again by itself, without anybody at the keyboard, says `wake=false`, and is told
`machine-asleep` instead.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from polydev.controller.api.http import errors, routers, streams
from polydev.controller.api.http.concurrency_limits import TERMINALS
from polydev.controller.api.http.path_params import VmIdInPath
from polydev.controller.api.http.services import ServicesDep, authenticate, permission_check
from polydev.controller.api.routes.machines.machine_access import MachineAccess, get_own_machine
from polydev.controller.workflows.machines.resume_on_use import RESUMING_NOTICE, ActivityRecorder
from polydev.shared.domain import MachineState, Scope, VmId
from polydev.shared.errors import (
    BadRequest,
    ChannelLost,
    MachineAsleep,
    PolydevError,
    QuotaExceeded,
)
from polydev.shared.host_client import GuestProcess, Host
from polydev.shared.host_protocol import ExecEnd, ExecRequest

router = routers.router(prefix="/api/vm", tags=["machines"])

MAX_COLUMNS, MAX_ROWS = 1000, 500
MAX_SESSIONS = 8
"""Terminals that go on in one machine."""
HISTORY_LINES = 5000
_TOO_MANY_EXIT = 75
"""EX_TEMPFAIL of sysexits.h: says the script below when there are as many as there may be."""

Columns = Annotated[int, Query(ge=1, le=MAX_COLUMNS)]
Rows = Annotated[int, Query(ge=1, le=MAX_ROWS)]
Wake = Annotated[bool, Query(description="Wake the machine if it sleeps")]
Name = Annotated[str, Query(max_length=16, pattern=r"^[a-z0-9](-?[a-z0-9])*$")]

_EMULATOR_REPLIES = re.compile(
    rb"(?:\x1b(?:\[[?>]?[\d;]*[cnRIO]|[\]P][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)))+"
)
"""What an emulator sends by itself: answers to questions of a program, and word of its focus."""

# $1 name, $2 rows, $3 sessions at most, $4 lines of history.
# tmux draws on the screen itself, not the alternate one (smcup@), and scrolls by newlines alone
# (indn@): so what scrolls away stays in the emulator's own scrollback. It takes no keys, has no
# status line, and reads no files.
_SCRIPT = """\
cd ~ 2>/dev/null
command -v tmux >/dev/null || exec "${SHELL:-/bin/sh}" -l
mux() { tmux -u -L polydev -f /dev/null "$@"; }
if mux has-session -t "=$1" 2>/dev/null; then
  mux capture-pane -p -e -J -S "-$4" -E -1 -t "=$1:" 2>/dev/null
  printf '%*s' "$2" '' | tr ' ' '\\n'
elif [ "$(mux list-sessions 2>/dev/null | wc -l)" -ge "$3" ]; then
  exit 75
fi
exec tmux -u -L polydev -f /dev/null start-server \\; \
  set-option -s escape-time 10 \\; \
  set-option -s default-terminal tmux-256color \\; \
  set-option -s set-clipboard off \\; \
  set-option -s terminal-overrides 'xterm*:smcup@:rmcup@:indn@:Tc' \\; \
  set-option -g prefix None \\; set-option -g prefix2 None \\; unbind-key -a -T root \\; \
  set-option -g status off \\; set-option -g mouse off \\; \
  set-option -g history-limit "$4" \\; set-option -g window-size latest \\; \
  new-session -A -s "$1"
"""


class _Notice(BaseModel):
    """A text frame of the server."""

    model_config = ConfigDict(frozen=True)

    notice: str


class _Resize(BaseModel):
    """A text frame of the client."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: tuple[
        Annotated[int, Field(ge=1, le=MAX_COLUMNS)], Annotated[int, Field(ge=1, le=MAX_ROWS)]
    ]


@dataclass(frozen=True, slots=True)
class _TerminalParams:
    """A terminal as somebody wants it."""

    columns: int
    rows: int
    name: str
    wake: bool


async def _terminal_params(
    columns: Columns = 80, rows: Rows = 24, name: Name = "main", wake: Wake = True
) -> _TerminalParams:
    return _TerminalParams(columns, rows, name, wake)


@router.websocket("/{vmId}/terminal")
async def open_terminal(
    socket: WebSocket,
    vm_id: VmIdInPath,
    services: ServicesDep,
    wanted: Annotated[_TerminalParams, Depends(_terminal_params)],
) -> None:
    """Open, or open again, a terminal in a machine."""
    try:
        caller = await authenticate(socket)
        caller.require(Scope.MACHINES)
        machine = await get_own_machine(services, caller.user_id, vm_id)
        counted = ExitStack()
        counted.enter_context(TERMINALS.acquire(caller))
    except PolydevError as error:
        await socket.send_denial_response(errors.problem_response(error))
        return
    with counted:
        await socket.accept()
        if (
            not wanted.wake
            and machine.status is not MachineState.RUNNING
            and machine.status.is_usable
        ):
            return await streams.send_end(socket, streams.error_end(_asleep_error(vm_id)))
        reached = MachineAccess(services, caller, VmId(vm_id), "a terminal")
        await _relay(socket, reached, wanted, permission_check(socket, Scope.MACHINES))


def terminal_request(name: str, columns: int, rows: int) -> ExecRequest:
    """The program of the terminal of that name."""
    told = (name, str(rows), str(MAX_SESSIONS), str(HISTORY_LINES))
    return ExecRequest(
        argv=["sh", "-c", _SCRIPT, "polydev-terminal", *told],
        env={"LANG": "C.UTF-8"},
        pty=(columns, rows),
    )


def _asleep_error(vm_id: str) -> MachineAsleep:
    return MachineAsleep(f"Machine {vm_id} sleeps", hint="It wakes when somebody uses it")


async def _relay(
    socket: WebSocket, reached: MachineAccess, wanted: _TerminalParams, may: streams.PermissionCheck
) -> None:
    request = terminal_request(wanted.name, wanted.columns, wanted.rows)
    try:
        typed = reached.resume_on_use.activity_recorder(reached.vm_id)
        host = await _resumed_host(socket, reached) if wanted.wake else await reached.current_host()
        async with host.exec(reached.vm_id, request) as process:
            inward = _to_program(socket, process, typed)
            await streams.pump(inward, _to_user(socket, process), may)
        end = ExecEnd(exit_code=process.exit_code)
        if process.exit_code == _TOO_MANY_EXIT:
            end = streams.error_end(
                QuotaExceeded(
                    f"This machine has {MAX_SESSIONS} terminals already",
                    hint="Close one: open it, and type `exit`",
                )
            )
    except WebSocketDisconnect:
        return
    except ValidationError:
        end = streams.error_end(BadRequest('A text frame is {"resize": [columns, rows]}'))
    except PolydevError as error:
        end = streams.error_end(await _explain(reached, error))
    await streams.send_end(socket, end)


async def _explain(reached: MachineAccess, error: PolydevError) -> PolydevError:
    """Why a terminal was cut: its machine may have been put to sleep."""
    try:
        services = reached.services
        machine = await get_own_machine(services, reached.caller.user_id, reached.vm_id)
    except PolydevError:
        return error
    is_hibernated = machine.status.is_hibernated
    return (
        _asleep_error(reached.vm_id) if is_hibernated and isinstance(error, ChannelLost) else error
    )


async def _resumed_host(socket: WebSocket, reached: MachineAccess) -> Host:
    """The machine's host, once it runs; the person is told while it wakes up."""
    waits = asyncio.Event()
    resuming = asyncio.create_task(reached.running_host(waits.set))
    telling = asyncio.create_task(waits.wait())
    try:
        await asyncio.wait({resuming, telling}, return_when=asyncio.FIRST_COMPLETED)
        if waits.is_set():
            await socket.send_text(_Notice(notice=RESUMING_NOTICE).model_dump_json())
        return await resuming
    finally:
        for task in (resuming, telling):
            task.cancel()
        await asyncio.gather(resuming, telling, return_exceptions=True)


async def _to_user(socket: WebSocket, process: GuestProcess) -> None:
    async for _, chunk in process:
        await socket.send_bytes(chunk)


async def _to_program(socket: WebSocket, process: GuestProcess, typed: ActivityRecorder) -> None:
    """Raises WebSocketDisconnect when the person is gone, ValidationError."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if data := message.get("bytes"):
            if not _EMULATOR_REPLIES.fullmatch(data):
                await typed.show()
            await process.write(data)
        elif (text := message.get("text")) is not None:
            await process.resize(*_Resize.model_validate_json(text).resize)
