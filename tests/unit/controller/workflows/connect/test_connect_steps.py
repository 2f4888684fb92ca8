"""Steps of connect sessions: the sagas, and the order that the page shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from polydev.controller.workflows.connect.connect import Connect
from polydev.controller.workflows.connect.connect_by_key import ConnectByKey
from polydev.shared.domain import API_KEY_STEPS, LOGIN_STEPS, StepName


class Anything(SimpleNamespace):
    """Part of which only the names are needed."""

    def __getattr__(self, name: str) -> Any:
        return 1 if name.endswith("_s") else Anything()


@pytest.mark.parametrize(
    ("workflow", "shown"), [(Connect, LOGIN_STEPS), (ConnectByKey, API_KEY_STEPS)]
)
def test_page_shows_the_steps_in_the_order_of_the_saga(
    workflow: Any, shown: tuple[StepName, ...]
) -> None:
    saga = workflow(**dict.fromkeys(_parts(workflow), Anything())).saga()
    assert (*(it.name for it in saga.steps), *(it.name for it in saga.always)) == shown


def _parts(workflow: Any) -> list[str]:
    return [name for name in workflow.__dataclass_fields__ if name != "on_point"]
