"""Test how exceptions of the host agent look on its wire."""

from __future__ import annotations

import errno

import pytest

from polydev.hostagent.system.error_mapping import problem_of, status_of
from polydev.shared.errors import (
    ChannelLost,
    DiskFull,
    Failed,
    MachineBusy,
    NoSuchMachine,
    NotRoot,
    NotSignedIn,
    PolydevError,
    TooLarge,
    TooManyRequests,
    UnknownProvider,
    VmmFailed,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownProvider, 422),
        (NotRoot, 403),
        (NoSuchMachine, 404),
        (MachineBusy, 409),
        (ChannelLost, 503),
        (VmmFailed, 502),
        (PolydevError, 500),
    ],
)
def test_kind_of_an_error_decides_its_status(error: type[PolydevError], status: int) -> None:
    assert status_of(error("It failed")) == status == error.http_status


@pytest.mark.parametrize(
    ("error", "status"), [(TooLarge, 422), (NotSignedIn, 403), (TooManyRequests, 403)]
)
def test_statuses_of_single_classes_stay_off_the_wire(
    error: type[PolydevError], status: int
) -> None:
    assert status_of(error("It failed")) == status != error.http_status


def test_full_disk_is_reported_with_its_file() -> None:
    problem = problem_of(OSError(errno.ENOSPC, "No space left on device", "/var/lib/polydev/x"))
    assert problem.code == DiskFull.code
    assert "/var/lib/polydev/x" in problem.message


def test_foreign_exception_is_reported_without_its_text() -> None:
    problem = problem_of(ExceptionGroup("both", [RuntimeError("a secret")]))
    assert problem.code == Failed.code
    assert "RuntimeError" in problem.message
    assert "secret" not in problem.message
