"""`/api/vm/{vmId}/terminal`: a person's terminal in their machine.

What runs in it outlives the connection: it is a session of tmux in the machine, to which whoever
opens the terminal of that name attaches, and is told first what has scrolled away. A machine
without tmux has a plain login shell, which ends with its connection.

Binary frames are bytes, both ways; a text frame of the client is `{"resize": [columns, rows]}`,
and the last one of the server is an `ExecEnd` (hostapi.py). Who does not read makes the program
wait. What a machine prints is for a terminal emulator, and is passed on as it is.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from polydev.api import problems, streams
from polydev.api.at_once import TERMINALS
from polydev.api.ids import VmIdInPath
from polydev.api.own_machines import host_of_own
from polydev.api.services import Reach, caller_of, still_may
from polydev.domain import Scope, VmId
from polydev.errors import BadRequest, PolydevError, QuotaExceeded
from polydev.hostapi import ExecEnd, ExecRequest
from polydev.hosts import GuestProcess, Host

router = APIRouter(prefix="/api/vm", tags=["machines"])

MAX_COLUMNS, MAX_ROWS = 1000, 500
MAX_SESSIONS = 8
"""Terminals that go on in one machine."""
HISTORY_LINES = 5000
_FULL_EXIT = 75
"""EX_TEMPFAIL of sysexits.h: says the script below when there are as many as there may be."""

Columns = Annotated[int, Query(ge=1, le=MAX_COLUMNS)]
Rows = Annotated[int, Query(ge=1, le=MAX_ROWS)]
Name = Annotated[str, Query(max_length=16, pattern=r"^[a-z0-9](-?[a-z0-9])*$")]

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


class _Resize(BaseModel):
    """A text frame of the client."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: tuple[
        Annotated[int, Field(ge=1, le=MAX_COLUMNS)], Annotated[int, Field(ge=1, le=MAX_ROWS)]
    ]


@router.websocket("/{vmId}/terminal")
async def open_terminal(
    socket: WebSocket,
    vm_id: VmIdInPath,
    services: Reach,
    columns: Columns = 80,
    rows: Rows = 24,
    name: Name = "main",
) -> None:
    """Open, or open again, a terminal in a machine."""
    try:
        caller = await caller_of(socket)
        caller.require(Scope.MACHINES)
        host = await host_of_own(services, caller.user_id, vm_id)
        counted = ExitStack()
        counted.enter_context(TERMINALS.of(caller))
    except PolydevError as error:
        await socket.send_denial_response(problems.document(error))
        return
    with counted:
        await socket.accept()
        request = terminal_request(name, columns, rows)
        await _relay(socket, host, VmId(vm_id), request, still_may(socket, Scope.MACHINES))


def terminal_request(name: str, columns: int, rows: int) -> ExecRequest:
    """The program of the terminal of that name."""
    told = (name, str(rows), str(MAX_SESSIONS), str(HISTORY_LINES))
    return ExecRequest(
        argv=["sh", "-c", _SCRIPT, "polydev-terminal", *told],
        env={"LANG": "C.UTF-8"},
        pty=(columns, rows),
    )


async def _relay(
    socket: WebSocket, host: Host, vm_id: VmId, request: ExecRequest, may: streams.May
) -> None:
    try:
        async with host.exec(vm_id, request) as process:
            await streams.both_ways(_to_program(socket, process), _to_person(socket, process), may)
        end = ExecEnd(exit_code=process.exit_code)
        if process.exit_code == _FULL_EXIT:
            end = streams.ended_by(
                QuotaExceeded(
                    f"This machine has {MAX_SESSIONS} terminals already",
                    hint="Close one: open it, and type `exit`",
                )
            )
    except WebSocketDisconnect:
        return
    except ValidationError:
        end = streams.ended_by(BadRequest('A text frame is {"resize": [columns, rows]}'))
    except PolydevError as error:
        end = streams.ended_by(error)
    await streams.send_end(socket, end)


async def _to_person(socket: WebSocket, process: GuestProcess) -> None:
    async for _, chunk in process:
        await socket.send_bytes(chunk)


async def _to_program(socket: WebSocket, process: GuestProcess) -> None:
    """Raises WebSocketDisconnect when the person is gone, ValidationError."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if data := message.get("bytes"):
            await process.write(data)
        elif (text := message.get("text")) is not None:
            await process.resize(*_Resize.model_validate_json(text).resize)
