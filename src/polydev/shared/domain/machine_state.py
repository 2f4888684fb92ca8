"""The states of a machine, and the groups of states that code asks about."""

from __future__ import annotations

from enum import StrEnum


class MachineState(StrEnum):
    """Lifecycle state of a machine.

    `is_up`, `is_stopped`, `is_hibernated` and `is_gone` include the way into that state.
    """

    CREATING = "creating"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    HIBERNATING = "hibernating"
    """Its memory is being written to disk."""
    HIBERNATED = "hibernated"
    """Its memory is on disk, and the host's memory is free."""
    RESUMING = "resuming"
    """On its way back to running."""
    DESTROYING = "destroying"
    DESTROYED = "destroyed"
    FAILED = "failed"

    @property
    def holds_memory(self) -> bool:
        """It takes memory and processors of its host, or will in a moment."""
        return not self.can_start and self is not MachineState.DESTROYED

    @property
    def is_settled(self) -> bool:
        """No operation is changing it."""
        return self in _SETTLED

    @property
    def is_at_rest(self) -> bool:
        """Only its disk is there; a start boots it."""
        return self in (MachineState.STOPPED, MachineState.FAILED)

    @property
    def can_start(self) -> bool:
        """It can be started, or resumed."""
        return self.is_at_rest or self is MachineState.HIBERNATED

    @property
    def is_up(self) -> bool:
        """Running or resuming."""
        return self in (MachineState.RUNNING, MachineState.RESUMING)

    @property
    def is_stopped(self) -> bool:
        """Stopped or stopping."""
        return self in (MachineState.STOPPED, MachineState.STOPPING)

    @property
    def is_hibernated(self) -> bool:
        """Hibernated or hibernating."""
        return self in HIBERNATED_STATES

    @property
    def is_gone(self) -> bool:
        """Destroyed or being destroyed."""
        return self in (MachineState.DESTROYED, MachineState.DESTROYING)

    @property
    def is_usable(self) -> bool:
        """It runs, or resumes on use."""
        return self.is_up or self.is_hibernated

    @property
    def is_going_to_rest(self) -> bool:
        """It leaves memory, and can be started again afterwards."""
        return self in (MachineState.STOPPING, MachineState.HIBERNATING)

    @property
    def is_going_down(self) -> bool:
        """It is about to release its host's memory, or is destroyed."""
        return self.is_going_to_rest or self.is_gone

    @property
    def is_incomplete(self) -> bool:
        """Parts of it may be missing on its host."""
        return self is MachineState.CREATING or self.is_gone

    @property
    def keeps_saved_memory(self) -> bool:
        """Its saved memory is complete on disk."""
        return self in (MachineState.HIBERNATED, MachineState.RESUMING)

    @property
    def may_have_saved_memory(self) -> bool:
        """Its saved memory is on disk, whole or in part."""
        return self.keeps_saved_memory or self is MachineState.HIBERNATING


_SETTLED = frozenset(
    {
        MachineState.RUNNING,
        MachineState.STOPPED,
        MachineState.HIBERNATED,
        MachineState.FAILED,
    }
)

HIBERNATED_STATES = frozenset({MachineState.HIBERNATED, MachineState.HIBERNATING})

COMING_UP_STATES = frozenset({MachineState.CREATING, MachineState.RESUMING, MachineState.RUNNING})
"""States that lead to `running`."""

BY_READINESS = (
    MachineState.RUNNING,
    MachineState.RESUMING,
    MachineState.CREATING,
    MachineState.HIBERNATED,
    MachineState.STOPPED,
    MachineState.HIBERNATING,
    MachineState.STOPPING,
    MachineState.FAILED,
)
"""Every state of a machine that is not gone, the quickest to use first."""
