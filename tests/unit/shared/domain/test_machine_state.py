"""Groups of machine states: each names its members exactly."""

import pytest

from polydev.shared.domain import BY_READINESS, MachineState

GROUPS = {
    "holds_memory": "creating running stopping hibernating resuming destroying",
    "is_settled": "running stopped hibernated failed",
    "is_at_rest": "stopped failed",
    "can_start": "stopped failed hibernated",
    "is_up": "running resuming",
    "is_stopped": "stopped stopping",
    "is_hibernated": "hibernated hibernating",
    "is_gone": "destroyed destroying",
    "is_usable": "running resuming hibernated hibernating",
    "is_going_to_rest": "stopping hibernating",
    "is_going_down": "stopping hibernating destroying destroyed",
    "is_incomplete": "creating destroying destroyed",
    "keeps_saved_memory": "hibernated resuming",
    "may_have_saved_memory": "hibernated hibernating resuming",
}


@pytest.mark.parametrize("group", GROUPS)
def test_group_holds_exactly_its_states(group: str) -> None:
    assert {it for it in MachineState if getattr(it, group)} == set(GROUPS[group].split())


def test_every_property_is_covered() -> None:
    properties = {name for name, it in vars(MachineState).items() if isinstance(it, property)}

    assert properties == set(GROUPS)


def test_order_of_readiness_holds_every_state_that_is_not_gone() -> None:
    assert set(BY_READINESS) == {it for it in MachineState if not it.is_gone}
