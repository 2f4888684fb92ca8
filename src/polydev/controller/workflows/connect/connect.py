"""The connect session: a user logs one CLI in. The saga's table below lists its steps.

The API calls `Connect` to start, cancel and paste. The workflow does the rest, and survives a
restart of the controller. Results of steps are in the session's row, in the vault and on the host.
Ids are derived from the session's id, so a step that runs twice finds its own resources.

An existing CLI machine of the user is reused and never undone. The database allows one live session
per user and provider; a second request returns the first session.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Literal

from sqlalchemy.exc import IntegrityError

from polydev.controller.access import Caller
from polydev.controller.placement.quotas import Quotas, lock_user
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials, sessions
from polydev.controller.store.queries.system import audit
from polydev.controller.vault import Binding, Vault
from polydev.controller.workflows.connect.browser_service_client import LoginUrl
from polydev.controller.workflows.connect.connect_progress import ConnectProgress
from polydev.controller.workflows.connect.login_poller import LoginPoller
from polydev.controller.workflows.connect.session_delivery import SessionDelivery
from polydev.controller.workflows.connect.session_machines import SessionMachines
from polydev.controller.workflows.connect.session_queue import SessionQueue
from polydev.controller.workflows.engine.cancel_watch import CancelWatch
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.engine.saga import OnPoint, Saga, Step
from polydev.controller.workflows.machines.machine_operations import (
    ANSWER_GRACE_S,
    MachineOperations,
)
from polydev.shared.domain import (
    ConnectSession,
    CredentialKind,
    SealedCredential,
    SessionId,
    SessionStatus,
    StepName,
    UserId,
    credential_id_for,
    now,
)
from polydev.shared.errors import (
    DatabaseUnavailable,
    HostUnreachable,
    LoginExpired,
    LoginNotWaiting,
    SessionEnded,
)
from polydev.shared.providers import check_credentials, login_expiry, provider

log = logging.getLogger("polydev.controller.workflows")

CONNECT = "connect"
CONNECT_BY_KEY = "connect-by-key"
"""The workflow in `connect_by_key.py`, without a browser machine."""


def workflow_for(session: ConnectSession) -> str:
    """Return the workflow of a session."""
    return CONNECT if session.method is CredentialKind.LOGIN else CONNECT_BY_KEY


def new_session(
    user_id: UserId,
    provider_id: str,
    within_s: float,
    method: CredentialKind = CredentialKind.LOGIN,
) -> ConnectSession:
    """Build a new session with a deadline."""
    at = now()
    return ConnectSession(
        session_id=SessionId(str(uuid.uuid4())),
        user_id=user_id,
        provider=provider_id,
        status=SessionStatus.QUEUED,
        step=None,
        oauth_url=None,
        own_browser_url=None,
        cli_vm_id=None,
        error_code=None,
        error=None,
        cancel_requested_at=None,
        created_at=at,
        expires_at=at + timedelta(seconds=within_s),
        ended_at=None,
        method=method,
    )


async def add_unless_live(
    database: Database,
    quotas: Quotas,
    caller: Caller,
    session: ConnectSession,
    sealed_key: SealedCredential | None = None,
) -> ConnectSession | None:
    """Insert a session and its API key, unless one is live.

    Returns the live session of that user and provider, if any. Raises QuotaExceeded.
    """
    try:
        async with database.write() as connection:
            await lock_user(connection, session.user_id)
            live = await sessions.find_live(connection, session.user_id, session.provider)
            if live is None:
                if caller.owner_filter is not None:
                    await quotas.require_session(connection, session.user_id)
                await sessions.insert(connection, session)
                entry = caller.audit_entry("session.start", session.session_id, session.user_id)
                await audit.record(connection, entry)
                if sealed_key is not None:
                    await credentials.upsert(connection, sealed_key)
            return live
    except IntegrityError:
        async with database.read(session.user_id) as connection:
            return await sessions.find_live(connection, session.user_id, session.provider)


@dataclass(frozen=True, slots=True)
class Connect:
    """Starts, cancels and runs connect sessions."""

    database: Database
    vault: Vault
    machines: MachineOperations
    session_queue: SessionQueue
    cancel_watch: CancelWatch
    engine: Engine
    on_point: OnPoint = lambda _step, _point: None

    def saga(self) -> Saga:
        """Build the table of steps."""
        its, limit = SessionMachines(self.database, self.machines), self.machines.settings
        grace_s = ANSWER_GRACE_S
        delivery = self._delivery()
        steps = [
            Step(
                StepName.WAIT_FOR_CAPACITY, self.session_queue.wait,
                limit.queue_limit_s + 2 * grace_s,
                undo=its.release_cli_machine, interruptible=False, retry_on=DatabaseUnavailable,
            ),
            Step(
                StepName.CREATE_MACHINES, its.create, limit.machine_limit_s + 2 * grace_s,
                undo=its.release_cli_machine,
            ),
            Step(StepName.BROWSER_READY, its.wait_for_browser, limit.healthy_limit_s + grace_s),
            Step(StepName.START_LOGIN, self._start_login, limit.login_start_limit_s),
            Step(StepName.WAIT_FOR_USER, self._wait_for_user, limit.person_limit_s + grace_s),
            Step(
                StepName.CAPTURE, self._capture, limit.capture_limit_s,
                undo=delivery.delete_credential,
            ),
            Step(
                StepName.WRITE, delivery.write, limit.write_limit_s,
                undo=delivery.revert, interruptible=False,
            ),
        ]  # fmt: skip
        always = [Step(StepName.DESTROY_BROWSER, self._clean_up, limit.destroy_limit_s)]
        observer = ConnectProgress(self.database, self.cancel_watch)
        return Saga(CONNECT, steps, always, observer, limit.destroy_limit_s, self.on_point)

    def register(self) -> None:
        """Register the workflow with the engine, before its start."""
        self.engine.register(CONNECT, partial(self.saga().run, self.engine))

    # -- called by the API ------------------------------------------------------------------------

    async def start(self, caller: Caller, user_id: UserId, provider_id: str) -> ConnectSession:
        """Start a session, or return the live one for that provider.

        Raises: UnknownProvider, NotAllowed, NoSuchUser, QuotaExceeded.
        """
        session = self._new_session(caller.resolve_user(user_id), provider(provider_id).id)
        live = await add_unless_live(self.database, self.machines.quotas, caller, session)
        session = live or session
        await self.engine.enqueue(workflow_for(session), session.session_id)
        return session

    async def cancel(
        self, caller: Caller, session_id: SessionId, reason: str = ""
    ) -> ConnectSession:
        """Request a session's cancellation. Raises NoSuchSession, SessionEnded."""
        async with self.database.write() as connection:
            session = await sessions.get(connection, session_id, caller.owner_filter)
            if not await sessions.request_cancel(connection, session_id, now()):
                raise SessionEnded(f"The connect session {session_id} has already ended")
            entry = caller.audit_entry("session.cancel", session_id, session.user_id, reason)
            await audit.record(connection, entry)
            return await sessions.get(connection, session_id, caller.owner_filter)

    def ahead_of(self, session: ConnectSession) -> int | None:
        """Return the number of sessions ahead in the queue. None if it is not queued."""
        if session.status is not SessionStatus.QUEUED:
            return None
        return self.session_queue.ahead_of(session.session_id)

    async def paste(
        self,
        caller: Caller,
        session_id: SessionId,
        what: Literal["code", "callbackUrl"],
        text: str,
    ) -> None:
        """Pass what the user pasted to the browser machine, without storing it.

        Raises: NoSuchSession, LoginNotWaiting, PasteRefused.
        """
        async with self.database.write(caller.user_id) as connection:
            session = await sessions.get(connection, session_id, caller.user_id)
            entry = caller.audit_entry("session.input", session_id, session.user_id)
            await audit.record(connection, entry)
        if session.status is not SessionStatus.WAITING:
            raise LoginNotWaiting("The login is not waiting for a pasted code or URL")
        service = await SessionMachines(self.database, self.machines).browser_service(session_id)
        await service.paste(session.provider, what, text)

    # -- the steps -------------------------------------------------------------------------------

    async def _start_login(self, subject: str) -> None:
        session = await self._session(subject)
        urls = await self._start(session)
        async with self.database.write() as connection:
            fresh = await sessions.get(connection, session.session_id)
            if fresh.status is SessionStatus.WAITING:
                return  # a repeated step: the user's deadline stays
            limit = timedelta(seconds=self.machines.settings.person_limit_s)
            await sessions.update(
                connection,
                session.session_id,
                status=SessionStatus.WAITING,
                oauth_url=urls.url,
                own_browser_url=urls.ownBrowserUrl,
                expires_at=now() + limit,
            )

    async def _start(self, session: ConnectSession) -> LoginUrl:
        try:
            return await (await self._watch(session)).start()
        except HostUnreachable:
            its = SessionMachines(self.database, self.machines)
            await its.recreate_browser(session.session_id)
            raise

    async def _wait_for_user(self, subject: str) -> None:
        session = await self._session(subject)
        left_s = (session.expires_at - now()).total_seconds()
        try:
            async with asyncio.timeout(max(left_s, 0)):
                await (await self._watch(session)).wait_until_done()
        except TimeoutError:
            raise LoginExpired(
                "The login was not completed in time", hint="Connect again when you are ready"
            ) from None

    async def _capture(self, subject: str) -> None:
        """Read and seal the credentials in one step, so none are stored unsealed."""
        session = await self._session(subject)
        about = provider(session.provider)
        its = SessionMachines(self.database, self.machines)
        service = await its.browser_service(session.session_id)
        reported = await service.credentials(about.id)
        plaintext = check_credentials(about, reported)
        binding = Binding(credential_id_for(session.session_id), session.user_id, about.id)
        sealed = await self.vault.seal(plaintext, binding, now())
        async with self.database.write() as connection:
            await credentials.upsert(connection, sealed, login_expiry(about, plaintext))

    async def _clean_up(self, subject: str) -> None:
        """Destroy the browser machine, and complete a successful delivery."""
        await SessionMachines(self.database, self.machines).destroy_browser(subject)
        await self._delivery().settle(subject)

    # -- shared by the steps -------------------------------------------------------------------

    async def _session(self, subject: str) -> ConnectSession:
        async with self.database.read() as connection:
            return await sessions.get(connection, SessionId(subject))

    async def _watch(self, session: ConnectSession) -> LoginPoller:
        its = SessionMachines(self.database, self.machines)
        is_lost = partial(its.is_browser_lost, session.session_id)
        return LoginPoller(await its.browser_service(session.session_id), session, is_lost)

    def _delivery(self) -> SessionDelivery:
        return SessionDelivery(self.database, self.vault, self.machines)

    def _new_session(self, user_id: UserId, provider_id: str) -> ConnectSession:
        limit = self.machines.settings
        before_s = limit.queue_limit_s + limit.machine_limit_s
        before_s += limit.healthy_limit_s + limit.login_start_limit_s
        return new_session(user_id, provider_id, before_s + limit.person_limit_s)
