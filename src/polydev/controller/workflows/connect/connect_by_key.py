"""Connect sessions with an API key, which is sealed at once and then delivered.

Apart from its start, it is a connect session like any other: `Connect` cancels it and the
reconciler watches it. It needs no browser machine and no login, so its table is shorter. The
transaction that inserts the session also inserts the sealed key, so neither exists without the
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from pydantic import SecretStr

from polydev.controller.access import Caller
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials
from polydev.controller.vault import Binding, Vault
from polydev.controller.workflows.connect.connect import (
    CONNECT_BY_KEY,
    add_unless_live,
    new_session,
)
from polydev.controller.workflows.connect.connect_progress import ConnectProgress
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
    StepName,
    UserId,
    credential_id_for,
    now,
)
from polydev.shared.errors import DatabaseUnavailable, LoginUnderway
from polydev.shared.providers import check_api_key, provider, same_login


@dataclass(frozen=True, slots=True)
class ConnectByKey:
    """Starts and runs connect sessions with an API key."""

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
        delivery = SessionDelivery(self.database, self.vault, self.machines)
        steps = [
            Step(
                StepName.WAIT_FOR_CAPACITY, self.session_queue.wait,
                limit.queue_limit_s + 2 * grace_s,
                undo=self._release, interruptible=False, retry_on=DatabaseUnavailable,
            ),
            Step(
                StepName.CREATE_CLI_MACHINE, its.start_cli_machine,
                limit.machine_limit_s + 2 * grace_s,
                undo=its.release_cli_machine,
            ),
            Step(
                StepName.WRITE, delivery.write, limit.write_limit_s,
                undo=delivery.revert, interruptible=False,
            ),
        ]  # fmt: skip
        always = [Step(StepName.SETTLE, delivery.settle, limit.write_limit_s)]
        observer = ConnectProgress(self.database, self.cancel_watch)
        return Saga(CONNECT_BY_KEY, steps, always, observer, limit.destroy_limit_s, self.on_point)

    def register(self) -> None:
        """Register the workflow with the engine, before its start."""
        self.engine.register(CONNECT_BY_KEY, partial(self.saga().run, self.engine))

    async def start(
        self, caller: Caller, user_id: UserId, provider_id: str, api_key: SecretStr
    ) -> ConnectSession:
        """Start a session with an API key, or return its live session.

        Raises: UnknownProvider, BadApiKey, NotAllowed, NoSuchUser, QuotaExceeded, LoginUnderway.
        """
        about = provider(provider_id)
        plaintext = check_api_key(about, api_key.get_secret_value())
        session = self._new_session(caller.resolve_user(user_id), about.id)
        sealed = await self._sealed(session, plaintext)
        live = await add_unless_live(self.database, self.machines.quotas, caller, session, sealed)
        if live is not None:
            await self._require_same(live, plaintext)
        session = live or session
        await self.engine.enqueue(CONNECT_BY_KEY, session.session_id)
        return session

    async def _release(self, subject: str) -> None:
        """Release the claimed machine, and delete the key."""
        await SessionMachines(self.database, self.machines).release_cli_machine(subject)
        await SessionDelivery(self.database, self.vault, self.machines).delete_credential(subject)

    async def _sealed(self, session: ConnectSession, plaintext: bytes) -> SealedCredential:
        credential = credential_id_for(session.session_id)
        binding = Binding(credential, session.user_id, session.provider, CredentialKind.API_KEY)
        return await self.vault.seal(plaintext, binding, now())

    async def _require_same(self, live: ConnectSession, plaintext: bytes) -> None:
        async with self.database.read() as connection:
            theirs = await credentials.find_sealed(connection, credential_id_for(live.session_id))
        is_key = theirs is not None and theirs.kind is CredentialKind.API_KEY
        if theirs is not None and is_key and same_login(await self.vault.open(theirs), plaintext):
            return
        raise LoginUnderway(
            f"Another session is connecting {provider(live.provider).name}: {live.session_id}",
            hint="Cancel it, or wait until it ends",
        )

    def _new_session(self, user_id: UserId, provider_id: str) -> ConnectSession:
        limit = self.machines.settings
        within_s = limit.queue_limit_s + limit.machine_limit_s + limit.write_limit_s
        return new_session(user_id, provider_id, within_s, CredentialKind.API_KEY)
