"""Route `/api/vm/{vmId}/terminal`: a terminal in a user's machine.

The terminal is a tmux session in the machine, so it survives the connection. Opening a name again
attaches to the session and first prints its scrollback. A machine without tmux gets a plain login
shell, which ends with the connection.

Binary frames carry bytes both ways. The client sends text frames `{"resize": [columns, rows]}`. The
server sends `{"notice": text}` while the machine resumes, and an `ExecEnd` (`host_protocol`) as its
last frame. A client that does not read blocks the program. Output is passed on unchanged, for a
terminal emulator.

Opening a terminal resumes the machine and typing keeps it running; a terminal that is merely open
does not. A client that reconnects on its own sends `wake=false`, and gets `machine-asleep` if the
machine is hibernated.
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

from polydev.controller.api.http import routers, streams
from polydev.controller.api.http.concurrency_limits import TERMINALS
from polydev.controller.api.http.path_params import VmIdInPath
from polydev.controller.api.http.problem_documents import problem_response
from polydev.controller.api.http.services import ServicesDep, authenticate, permission_check
from polydev.controller.api.routes.machines.machine_access import MachineAccess, get_own_machine
from polydev.controller.workflows.machines.resume_on_use import RESUMING_NOTICE, ActivityRecorder
from polydev.shared.domain import MachineState, Scope, VmId
from polydev.shared.errors import (
    BadRequest,
    ChannelLost,
    MachineHibernated,
    PolydevError,
    QuotaExceeded,
)
from polydev.shared.host_client import GuestProcess, HostClient
from polydev.shared.host_protocol import ExecEnd, ExecRequest

router = routers.router(prefix="/api/vm", tags=["machines"])

MAX_COLUMNS, MAX_ROWS = 1000, 500
MAX_SESSIONS = 8
"""Terminals per machine."""
HISTORY_LINES = 5000
_TOO_MANY_EXIT = 75
"""EX_TEMPFAIL of sysexits.h: the script below exits with it at the limit of terminals."""

Columns = Annotated[int, Query(ge=1, le=MAX_COLUMNS)]
Rows = Annotated[int, Query(ge=1, le=MAX_ROWS)]
Wake = Annotated[bool, Query(description="Resume the machine if it is hibernated")]
Name = Annotated[str, Query(max_length=16, pattern=r"^[a-z0-9](-?[a-z0-9])*$")]

_EMULATOR_REPLIES = re.compile(
    rb"(?:\x1b(?:\[[?>]?[\d;]*[cnRIO]|[\]P][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)))+"
)
"""Automatic output of a terminal emulator: replies to queries, and focus events."""

# $1 name, $2 rows, $3 maximum of sessions, $4 lines of history.
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
    """A text frame from the server."""

    model_config = ConfigDict(frozen=True)

    notice: str


class _Resize(BaseModel):
    """A text frame from the client."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: tuple[
        Annotated[int, Field(ge=1, le=MAX_COLUMNS)], Annotated[int, Field(ge=1, le=MAX_ROWS)]
    ]


@dataclass(frozen=True, slots=True)
class _TerminalParams:
    """The requested terminal."""

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
    params: Annotated[_TerminalParams, Depends(_terminal_params)],
) -> None:
    """Open a terminal in a machine, or attach to it again."""
    try:
        caller = await authenticate(socket)
        caller.require(Scope.MACHINES)
        machine = await get_own_machine(services, caller.user_id, vm_id)
        slot = ExitStack()
        slot.enter_context(TERMINALS.acquire(caller))
    except PolydevError as error:
        await socket.send_denial_response(problem_response(error))
        return
    with slot:
        await socket.accept()
        if (
            not params.wake
            and machine.status is not MachineState.RUNNING
            and machine.status.is_usable
        ):
            return await streams.send_end(socket, streams.error_end(_hibernated_error(vm_id)))
        access = MachineAccess(services, caller, VmId(vm_id), "a terminal")
        await _relay(socket, access, params, permission_check(socket, Scope.MACHINES))


def terminal_request(name: str, columns: int, rows: int) -> ExecRequest:
    """Return the request that runs the terminal of that name."""
    arguments = (name, str(rows), str(MAX_SESSIONS), str(HISTORY_LINES))
    return ExecRequest(
        argv=["sh", "-c", _SCRIPT, "polydev-terminal", *arguments],
        env={"LANG": "C.UTF-8"},
        pty=(columns, rows),
    )


def _hibernated_error(vm_id: str) -> MachineHibernated:
    return MachineHibernated(f"Machine {vm_id} is hibernated", hint="It resumes when you use it")


async def _relay(
    socket: WebSocket,
    access: MachineAccess,
    params: _TerminalParams,
    check_access: streams.PermissionCheck,
) -> None:
    request = terminal_request(params.name, params.columns, params.rows)
    try:
        activity = access.resume_on_use.activity_recorder(access.vm_id)
        host = await _resumed_host(socket, access) if params.wake else await access.current_host()
        async with host.exec(access.vm_id, request) as process:
            inward = _to_program(socket, process, activity)
            await streams.pump(inward, _to_user(socket, process), check_access)
        end = ExecEnd(exit_code=process.exit_code)
        if process.exit_code == _TOO_MANY_EXIT:
            end = streams.error_end(
                QuotaExceeded(
                    f"This machine already has {MAX_SESSIONS} terminals",
                    hint="Open one of them and type `exit`",
                )
            )
    except WebSocketDisconnect:
        return
    except ValidationError:
        end = streams.error_end(BadRequest('A text frame is {"resize": [columns, rows]}'))
    except PolydevError as error:
        end = streams.error_end(await _explain(access, error))
    await streams.send_end(socket, end)


async def _explain(access: MachineAccess, error: PolydevError) -> PolydevError:
    """Return why a terminal broke: its machine may have been hibernated."""
    try:
        services = access.services
        machine = await get_own_machine(services, access.caller.user_id, access.vm_id)
    except PolydevError:
        return error
    is_hibernated = machine.status.is_hibernated
    return (
        _hibernated_error(access.vm_id)
        if is_hibernated and isinstance(error, ChannelLost)
        else error
    )


async def _resumed_host(socket: WebSocket, access: MachineAccess) -> HostClient:
    """Return the machine's host once it runs.

    Send a notice while it resumes.
    """
    waits = asyncio.Event()
    resuming = asyncio.create_task(access.running_host(waits.set))
    notifying = asyncio.create_task(waits.wait())
    try:
        await asyncio.wait({resuming, notifying}, return_when=asyncio.FIRST_COMPLETED)
        if waits.is_set():
            await socket.send_text(_Notice(notice=RESUMING_NOTICE).model_dump_json())
        return await resuming
    finally:
        for task in (resuming, notifying):
            task.cancel()
        await asyncio.gather(resuming, notifying, return_exceptions=True)


async def _to_user(socket: WebSocket, process: GuestProcess) -> None:
    async for _, chunk in process:
        await socket.send_bytes(chunk)


async def _to_program(socket: WebSocket, process: GuestProcess, activity: ActivityRecorder) -> None:
    """Relay input. Raises WebSocketDisconnect when the client is gone, ValidationError."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if data := message.get("bytes"):
            if not _EMULATOR_REPLIES.fullmatch(data):
                await activity.record()
            await process.write(data)
        elif (text := message.get("text")) is not None:
            await process.resize(*_Resize.model_validate_json(text).resize)
