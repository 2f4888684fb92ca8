"""Find the machine that runs a chat's next turn."""

from __future__ import annotations

from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.connect import credentials
from polydev.controller.store.queries.machines import machines
from polydev.controller.workflows.machines.resume_on_use import find_usable_cli_machine
from polydev.shared.domain import BY_READINESS, Chat, Machine, MachineKind
from polydev.shared.errors import MachineBusy, NotConnected
from polydev.shared.providers import provider


async def find_chat_machine(database: Database, chat: Chat) -> Machine:
    """Find the machine for the chat's next turn; it runs, or resumes when it is used.

    Prefers the machine of the chat's last turn, whose CLI still knows the conversation, over the
    user's other CLI machine.

    Raises: NotConnected; MachineBusy if the machine cannot be used in its state.
    """
    about = provider(chat.provider)
    hint = f"Connect {about.name}"
    async with database.read() as connection:
        credential = await credentials.find_newest_sealed(connection, chat.user_id, about.id)
        found = None if chat.vm_id is None else await machines.find(connection, chat.vm_id)
        if found is None or found.status.is_gone or found.vm_type is not MachineKind.CLI:
            found = await find_usable_cli_machine(connection, chat.user_id)
            found = found or await machines.find_cli_machine(
                connection, chat.user_id, *BY_READINESS
            )
    if credential is None:
        raise NotConnected(f"You have not connected {about.name}", hint=hint)
    if found is None:
        raise NotConnected(f"You have no CLI machine for {about.name}", hint=hint)
    if not found.status.is_usable:
        raise MachineBusy(
            f"Your CLI machine is {found.status}: {about.name} is not available",
            hint="Start the machine, or wait until it runs",
        )
    return found
