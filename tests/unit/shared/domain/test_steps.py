"""Names of workflow steps: one label each, and the order of the connect sagas."""

from polydev.shared.domain import StepName, step_label


def test_every_step_has_a_label_of_its_own() -> None:
    labels = [it.label for it in StepName]

    assert len(set(labels)) == len(labels)
    assert all(step_label(it.value) == it.label for it in StepName)


def test_reverted_and_unknown_steps_have_labels() -> None:
    assert step_label("undo write") == f"Reverting: {StepName.WRITE.label}"
    assert step_label("of-a-newer-version") == "Of a newer version"
