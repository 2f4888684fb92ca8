"""Compute cards from stored records."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from polydev.controller.web.rendering.provider_status import (
    BadgeKind,
    Card,
    CardAction,
    UserRecords,
    make_card,
    make_cards,
)
from polydev.shared.domain import (
    ConnectSession,
    Credential,
    CredentialId,
    Machine,
    MachineKind,
    MachineSize,
    MachineState,
    SessionId,
    SessionStatus,
    UserId,
    Validity,
    VmId,
)
from polydev.shared.providers import all_providers, provider

AT = datetime(2026, 3, 14, tzinfo=UTC)
ANN = UserId("ann")
CODEX = provider("codex")

SESSION = ConnectSession(
    session_id=SessionId("s"),
    user_id=ANN,
    provider="codex",
    status=SessionStatus.RUNNING,
    step="create-machines",
    oauth_url=None,
    own_browser_url=None,
    cli_vm_id=None,
    error_code=None,
    error=None,
    cancel_requested_at=None,
    created_at=AT,
    expires_at=AT + timedelta(minutes=15),
    ended_at=None,
)
CREDENTIAL = Credential(
    credential_id=CredentialId("c"),
    user_id=ANN,
    provider="codex",
    key_id="k",
    created_at=AT,
    vm_id=VmId("vm-1"),
    expires_at=None,
    checked_at=AT,
    validity=Validity.VALID,
    revoked_at=None,
)
MACHINE = Machine(
    vm_id=VmId("vm-1"),
    user_id=ANN,
    vm_type=MachineKind.CLI,
    status=MachineState.RUNNING,
    ip_address="192.168.100.5",
    session_id=None,
    host_id=None,
    size=MachineSize(512, 1, 4096),
    error_code=None,
    error=None,
    created_at=AT,
)


def card_of(
    *sessions: ConnectSession,
    credential: Credential | None = None,
    machine: Machine | None = None,
) -> Card:
    records = UserRecords(
        sessions, [credential] if credential else [], [machine] if machine else []
    )
    return make_card(CODEX, records, AT)


def test_new_user_can_connect() -> None:
    assert (card_of().badge, card_of().action) == (BadgeKind.OFF, CardAction.CONNECT)


def test_each_cli_has_a_card_of_its_own_records() -> None:
    shown = make_cards(all_providers(), UserRecords([], [CREDENTIAL], [MACHINE]), AT)
    assert [it.provider for it in shown] == list(all_providers())
    assert {it.provider.id: it.badge for it in shown if it.badge is not BadgeKind.OFF} == {
        "codex": BadgeKind.CONNECTED
    }


def test_running_session_takes_precedence_over_a_login() -> None:
    it = card_of(SESSION, credential=CREDENTIAL, machine=MACHINE)
    assert (it.badge, it.action, it.session) == (BadgeKind.BUSY, CardAction.CONTINUE, SESSION)


def test_waiting_session_needs_attention() -> None:
    it = card_of(replace(SESSION, status=SessionStatus.WAITING))
    assert (it.badge, it.label, it.action) == (
        BadgeKind.ATTENTION,
        "Waiting for you",
        CardAction.CONTINUE,
    )


def test_failed_session_shows_its_error() -> None:
    it = card_of(replace(SESSION, status=SessionStatus.FAILED, error="The machine did not start"))
    assert (it.badge, it.action) == (BadgeKind.OFF, CardAction.CONNECT)
    assert "The machine did not start." in it.message


def test_cancelled_session_shows_no_error() -> None:
    it = card_of(replace(SESSION, status=SessionStatus.CANCELLED, error="Cancelled"))
    assert "Cancelled" not in it.message


def test_failed_session_does_not_hide_a_valid_login() -> None:
    failed = replace(SESSION, status=SessionStatus.FAILED, error="no")
    it = card_of(failed, credential=CREDENTIAL, machine=MACHINE)
    assert (it.badge, it.action) == (BadgeKind.CONNECTED, CardAction.CHAT)


@pytest.mark.parametrize(
    ("credential", "machine", "action"),
    [
        (replace(CREDENTIAL, validity=Validity.INVALID), MACHINE, CardAction.RECONNECT),
        (replace(CREDENTIAL, expires_at=AT), MACHINE, CardAction.RECONNECT),
        (CREDENTIAL, None, CardAction.RECONNECT),
        (CREDENTIAL, replace(MACHINE, vm_id=VmId("vm-2")), CardAction.RECONNECT),
        (CREDENTIAL, replace(MACHINE, status=MachineState.STOPPED), CardAction.START_MACHINE),
        (CREDENTIAL, replace(MACHINE, status=MachineState.FAILED), CardAction.OPEN_MACHINE),
    ],
)
def test_problem_comes_with_the_action_that_helps(
    credential: Credential, machine: Machine | None, action: CardAction
) -> None:
    it = card_of(credential=credential, machine=machine)
    assert (it.badge, it.action) == (BadgeKind.ATTENTION, action)
    assert it.message.endswith(".")


@pytest.mark.parametrize("status", [it for it in MachineState if it is not MachineState.DESTROYED])
def test_every_machine_state_has_a_message(status: MachineState) -> None:
    it = card_of(credential=CREDENTIAL, machine=replace(MACHINE, status=status))
    assert it.message
    assert str(status) not in it.message.split() or status is MachineState.STOPPED


def test_revoked_login_offers_no_action() -> None:
    it = card_of(credential=replace(CREDENTIAL, revoked_at=AT), machine=MACHINE)
    assert (it.badge, it.action) == (BadgeKind.BUSY, CardAction.NONE)
