"""Steps that deliver a session's credential to its CLI machine, for both connect sagas.

Each step is idempotent and reads what it needs from the session's row.
"""

from __future__ import annotations

from dataclasses import dataclass

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials, sessions
from polydev.controller.vault import Vault
from polydev.controller.workflows.credentials.credential_delivery import Delivery
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.shared.domain import ConnectSession, SessionId, VmId, credential_id_for
from polydev.shared.errors import ChannelLost, LoginFailed, MachineBusy
from polydev.shared.providers import provider


@dataclass(frozen=True, slots=True)
class SessionDelivery:
    """Delivers a session's credential."""

    database: Database
    vault: Vault
    machines: MachineOperations

    async def write(self, subject: str) -> None:
        """Write the credential into the CLI machine, and check the login with the CLI."""
        session = await self._session(subject)
        if session.cli_vm_id is None:
            raise LoginFailed("The session has no CLI machine any more", hint="Connect again")
        credential, about = credential_id_for(session.session_id), provider(session.provider)
        await self.machines.bring_up(session.cli_vm_id)
        try:
            delivery = await self._delivery(session.cli_vm_id)
            await delivery.deliver(credential, about, session.cli_vm_id)
        except MachineBusy as error:  # it has stopped; the retry starts it again
            raise ChannelLost(error.message, hint=error.hint) from None

    async def revert(self, subject: str) -> None:
        """Restore the CLI machine's files from before the delivery."""
        session = await self._session(subject)
        if session.cli_vm_id is not None:
            delivery = await self._delivery(session.cli_vm_id)
            await delivery.revert(provider(session.provider), session.cli_vm_id)

    async def delete_credential(self, subject: str) -> None:
        """Delete the session's credential."""
        async with self.database.write() as connection:
            await credentials.delete(connection, credential_id_for(SessionId(subject)))

    async def settle(self, subject: str) -> None:
        """Delete the backups of a successful delivery."""
        session = await self._session(subject)
        async with self.database.read() as connection:
            stands = await credentials.find_sealed(
                connection, credential_id_for(session.session_id)
            )
        if stands is not None and session.cli_vm_id is not None:
            delivery = await self._delivery(session.cli_vm_id)
            await delivery.settle(provider(session.provider), session.cli_vm_id)

    async def _session(self, subject: str) -> ConnectSession:
        async with self.database.read() as connection:
            return await sessions.get(connection, SessionId(subject))

    async def _delivery(self, vm_id: VmId) -> Delivery:
        machine = await self.machines.find(vm_id)
        return Delivery(self.database, self.vault, self.machines.hosts.client(machine.host_id))
