"""How a CLI stands is told by what is there, and by the one thing that helps."""

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


def told(
    *sessions: ConnectSession,
    credential: Credential | None = None,
    machine: Machine | None = None,
) -> Card:
    records = UserRecords(
        sessions, [credential] if credential else [], [machine] if machine else []
    )
    return make_card(CODEX, records, AT)


def test_without_anything_it_is_to_be_connected() -> None:
    assert (told().badge, told().action) == (BadgeKind.OFF, CardAction.CONNECT)


def test_there_is_a_card_for_each_cli_and_what_is_anothers_does_not_show_in_it() -> None:
    shown = make_cards(all_providers(), UserRecords([], [CREDENTIAL], [MACHINE]), AT)
    assert [it.provider for it in shown] == list(all_providers())
    assert {it.provider.id: it.badge for it in shown if it.badge is not BadgeKind.OFF} == {
        "codex": BadgeKind.CONNECTED
    }


def test_a_session_that_goes_on_leads_to_it_also_when_an_older_login_stands() -> None:
    it = told(SESSION, credential=CREDENTIAL, machine=MACHINE)
    assert (it.badge, it.action, it.session) == (BadgeKind.BUSY, CardAction.CONTINUE, SESSION)


def test_a_session_that_waits_for_its_person_says_so() -> None:
    it = told(replace(SESSION, status=SessionStatus.WAITING))
    assert (it.badge, it.label, it.action) == (
        BadgeKind.ATTENTION,
        "Waiting for you",
        CardAction.CONTINUE,
    )


def test_a_try_that_failed_says_why_and_can_be_made_again() -> None:
    it = told(replace(SESSION, status=SessionStatus.FAILED, error="The machine did not start"))
    assert (it.badge, it.action) == (BadgeKind.OFF, CardAction.CONNECT)
    assert "The machine did not start." in it.message


def test_a_try_that_was_cancelled_is_not_held_up_to_anybody() -> None:
    it = told(replace(SESSION, status=SessionStatus.CANCELLED, error="Cancelled"))
    assert "Cancelled" not in it.message


def test_a_failed_try_does_not_hide_the_login_that_stands() -> None:
    failed = replace(SESSION, status=SessionStatus.FAILED, error="no")
    it = told(failed, credential=CREDENTIAL, machine=MACHINE)
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
def test_what_is_wrong_is_told_with_what_helps(
    credential: Credential, machine: Machine | None, action: CardAction
) -> None:
    it = told(credential=credential, machine=machine)
    assert (it.badge, it.action) == (BadgeKind.ATTENTION, action)
    assert it.message.endswith(".")


@pytest.mark.parametrize("status", [it for it in MachineState if it is not MachineState.DESTROYED])
def test_every_state_of_a_machine_has_words(status: MachineState) -> None:
    it = told(credential=CREDENTIAL, machine=replace(MACHINE, status=status))
    assert it.message
    assert str(status) not in it.message.split() or status is MachineState.STOPPED


def test_a_login_that_is_being_removed_offers_nothing() -> None:
    it = told(credential=replace(CREDENTIAL, revoked_at=AT), machine=MACHINE)
    assert (it.badge, it.action) == (BadgeKind.BUSY, CardAction.NONE)
