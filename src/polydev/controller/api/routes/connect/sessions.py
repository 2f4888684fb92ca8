"""Routes `/api/auth`: connect sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import ExitStack
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import StreamingResponse

from polydev.controller.api.http import routers, streams
from polydev.controller.api.http.concurrency_limits import LONG_POLLS, SESSION_STREAMS
from polydev.controller.api.http.idempotency import IdempotentRoute
from polydev.controller.api.http.openapi_responses import (
    paged_response,
    problem_responses,
    sse_response,
)
from polydev.controller.api.http.pagination import PageParams
from polydev.controller.api.http.path_params import SessionIdInPath
from polydev.controller.api.http.services import (
    ConnectCaller,
    ReadCaller,
    Services,
    ServicesDep,
    permission_check,
    resolve_user,
)
from polydev.controller.api.schemas.base import Accepted
from polydev.controller.api.schemas.connect import (
    CliMachine,
    HandInKey,
    LoginCompleted,
    LoginStarted,
    Paste,
    SessionSummary,
    SessionView,
    StartLogin,
)
from polydev.controller.store.queries.connect import sessions
from polydev.controller.store.queries.machines import machines
from polydev.shared.domain import Scope, SessionId, SessionStatus, UserId
from polydev.shared.errors import (
    BadApiKey,
    BadRequest,
    ChannelLost,
    CredentialDamaged,
    Failed,
    GuestMisbehaved,
    HostUnreachable,
    IdempotencyConflict,
    LoginFailed,
    LoginNotWaiting,
    LoginUnderway,
    NoCapacity,
    NoSuchMachine,
    NoSuchSession,
    NoSuchUser,
    PasteRefused,
    QuotaExceeded,
    SessionEnded,
    SessionNotCompleted,
    TooManyRequests,
    UnknownProvider,
    WrongEncryptionKey,
)

router = routers.router(prefix="/api", tags=["connect sessions"], route_class=IdempotentRoute)
secret_input_router = routers.router(prefix="/api", tags=["connect sessions"])
"""Routes whose requests hold secrets: they support no Idempotency-Key, which stores a hash."""

_SESSION = "/auth/session/{sessionId}"
_START_RESPONSES = problem_responses(
    UnknownProvider, NoSuchUser, QuotaExceeded, TooManyRequests, NoCapacity, IdempotencyConflict
)
_KEY_RESPONSES = problem_responses(
    *(UnknownProvider, BadApiKey, NoSuchUser, QuotaExceeded, TooManyRequests, NoCapacity),
    *(LoginUnderway, WrongEncryptionKey, CredentialDamaged),
)
_INPUT_RESPONSES = problem_responses(
    *(NoSuchSession, LoginNotWaiting, PasteRefused, LoginFailed, GuestMisbehaved, Failed),
    *(NoSuchMachine, HostUnreachable, ChannelLost),
)

After = Annotated[
    str | None,
    Query(max_length=64, description="Wait until the version differs from this one"),
]
Wait = Annotated[
    float,
    Query(ge=0, le=streams.MAX_WAIT_S, description="How long to wait for a change, in seconds"),
]


@router.post("/auth/start", status_code=202, responses=_START_RESPONSES)
@router.post(
    "/vm/auth/start", status_code=202, responses=_START_RESPONSES, operation_id="startSessionOfVm"
)
async def start_session(
    body: StartLogin, caller: ConnectCaller, services: ServicesDep
) -> LoginStarted:
    """Start a connect session.

    Returns the live session of that provider if there is one.
    """
    user = await resolve_user(services, caller, body.userId)
    await services.access.limits.check_connect(caller)
    session = await services.connect.start(caller, user, body.provider)
    return LoginStarted(sessionId=session.session_id, status=session.status)


@secret_input_router.post("/auth/key", status_code=202, responses=_KEY_RESPONSES)
async def connect_by_key(
    body: HandInKey, caller: ConnectCaller, services: ServicesDep
) -> LoginStarted:
    """Connect a CLI with an API key.

    Returns the live session if it uses the same key.
    """
    user = await resolve_user(services, caller, body.userId)
    await services.access.limits.check_connect(caller)
    session = await services.by_key.start(caller, user, body.provider, body.apiKey)
    return LoginStarted(sessionId=session.session_id, status=session.status)


@router.get("/auth/sessions", responses=problem_responses() | paged_response())
async def list_sessions(
    caller: ReadCaller,
    services: ServicesDep,
    paged: PageParams,
    live: Annotated[bool, Query(description="Only live sessions")] = False,
) -> list[SessionSummary]:
    """List your connect sessions, newest first."""
    span = paged.page_spec(datetime, str)
    async with services.database.read(caller.user_id) as connection:
        rows = await sessions.list_page(connection, span, user_id=caller.user_id, live=live)
    return [
        SessionSummary.of(row)
        for row in paged.trim(rows, lambda it: (it.created_at, it.session_id))
    ]


@router.get(_SESSION, responses=problem_responses(NoSuchSession, TooManyRequests))
async def get_session(
    session_id: SessionIdInPath,
    caller: ReadCaller,
    services: ServicesDep,
    after: After = None,
    wait: Wait = 0,
) -> SessionView:
    """Return a session. With `after` and `wait`, wait until its version differs."""
    fetch = _session_fetcher(services, caller.user_id, session_id)
    if after is None:
        return await fetch()
    with LONG_POLLS.acquire(caller):
        return await streams.wait_for_change(services.database, fetch, after, wait)


@router.get(
    f"{_SESSION}/events",
    response_class=StreamingResponse,
    responses=problem_responses(NoSuchSession, TooManyRequests)
    | sse_response("SessionView", "session"),
)
async def watch_session(
    session_id: SessionIdInPath, caller: ReadCaller, services: ServicesDep, request: Request
) -> StreamingResponse:
    """Stream a session as server-sent events until it ends.

    Each event is `session`, its data the session. The stream also ends with the sign-in or token
    that opened it.
    """
    fetch = _session_fetcher(services, caller.user_id, session_id)
    with ExitStack() as stack:
        stack.enter_context(SESSION_STREAMS.acquire(caller))
        await fetch()  # a missing session is answered with 404, not with a stream
        views = streams.watch(services.database, fetch, lambda it: it.status.is_end)
        frames = _events(views, permission_check(request, Scope.READ))
        return streams.ResourceStream(frames, streams.SSE, stack.pop_all())


@router.get(f"{_SESSION}/complete", responses=problem_responses(NoSuchSession, SessionNotCompleted))
@router.post(
    f"{_SESSION}/complete",
    responses=problem_responses(NoSuchSession, SessionNotCompleted, IdempotencyConflict),
    operation_id="completeSession",
)
async def get_completion(
    session_id: SessionIdInPath, caller: ReadCaller, services: ServicesDep
) -> LoginCompleted:
    """Return the machine where the CLI is logged in.

    409 until the session is completed.
    """
    view = await _session_fetcher(services, caller.user_id, session_id)()
    if view.status is not SessionStatus.COMPLETED or view.cliVM is None:
        raise SessionNotCompleted(f"The connect session {session_id} is {view.status}")
    machine = CliMachine(vmId=view.cliVM.vmId, ipAddress=view.cliVM.ipAddress)
    return LoginCompleted(success=True, sessionId=session_id, cliVM=machine)


@router.post(
    f"{_SESSION}/cancel",
    status_code=202,
    responses=problem_responses(NoSuchSession, SessionEnded, IdempotencyConflict),
)
async def cancel_session(
    session_id: SessionIdInPath, caller: ConnectCaller, services: ServicesDep
) -> SessionView:
    """Cancel a session. It ends as `cancelled`."""
    cancelled = await services.connect.cancel(caller, SessionId(session_id))
    return await _session_fetcher(services, cancelled.user_id, session_id)()


@secret_input_router.post(f"{_SESSION}/input", status_code=202, responses=_INPUT_RESPONSES)
async def paste_into_session(
    session_id: SessionIdInPath, body: Paste, caller: ConnectCaller, services: ServicesDep
) -> Accepted:
    """Submit the code or callback URL of a login elsewhere."""
    field: Literal["code", "callbackUrl"] = "code" if body.code else "callbackUrl"
    text = body.code or body.callbackUrl
    if text is None:
        raise BadRequest("Give exactly one of code and callbackUrl")
    await services.connect.paste(caller, SessionId(session_id), field, text.get_secret_value())
    return Accepted(accepted=True)


def _session_fetcher(
    services: Services, user_id: UserId, session_id: str
) -> Callable[[], Coroutine[Any, Any, SessionView]]:
    async def fetch() -> SessionView:
        async with services.database.read(user_id) as connection:
            found = await sessions.get(connection, SessionId(session_id), user_id)
            steps = await sessions.list_steps(connection, found.session_id)
            cli = await machines.find(connection, found.cli_vm_id) if found.cli_vm_id else None
        ahead = services.connect.ahead_of(found)
        return SessionView.of(found, steps, cli, ahead)

    return fetch


async def _events(
    views: AsyncIterator[SessionView], check_access: Callable[[], Awaitable[bool]]
) -> AsyncGenerator[str]:
    async for view in views:
        if not await check_access():
            return
        yield f"event: session\ndata: {view.model_dump_json()}\n\n"
