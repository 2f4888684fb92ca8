"""Polling of a login in a machine that violates the service's protocol."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import cast

import httpx
import pytest
from new_records import new_session
from pydantic import SecretStr

from polydev.controller.workflows.connect.browser_service_client import BrowserService
from polydev.controller.workflows.connect.login_poller import LoginPoller
from polydev.shared.domain import SessionStatus, VmId, now
from polydev.shared.errors import LoginFailed, MachineBusy
from polydev.shared.host_client import HostClient


class HastyMachine:
    """A machine that answers each poll at once, and never completes."""

    def __init__(self) -> None:
        self.asked = 0
        self._versions = itertools.count()

    def http(self, vm_id: str, port: int, **_: object) -> httpx.AsyncClient:
        transport = httpx.MockTransport(self._answer)
        return httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={})
        self.asked += 1
        if request.url.path.endswith("/oauth-url"):
            return httpx.Response(404, json={"code": "not_known_yet", "detail": ""})
        return httpx.Response(200, json={"step": "starting", "version": next(self._versions)})


def poller(machine: HastyMachine) -> LoginPoller:
    session = replace(new_session(), status=SessionStatus.WAITING, expires_at=now())
    service = BrowserService(cast(HostClient, machine), VmId("vm"), SecretStr("t"))
    return LoginPoller(service, session, _not_lost)


async def _not_lost() -> bool:
    return False


@pytest.mark.parametrize("what", ["start", "wait_until_done"])
async def test_machine_without_long_poll_is_polled_slowly(what: str) -> None:
    machine = HastyMachine()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await getattr(poller(machine), what)()
    assert 1 <= machine.asked <= 5


class EndedMachine(HastyMachine):
    """A machine that its host agent reports as failed."""

    def http(self, vm_id: str, port: int, **_: object) -> httpx.AsyncClient:
        def refused(request: httpx.Request) -> httpx.Response:
            raise MachineBusy("vm is failed", hint="Start it first")

        return httpx.AsyncClient(
            transport=httpx.MockTransport(refused), base_url=f"http://127.0.0.1:{port}"
        )


@pytest.mark.parametrize("what", ["start", "wait_until_done"])
async def test_stopped_machine_ends_the_login_with_a_hint(what: str) -> None:
    with pytest.raises(LoginFailed, match="browser machine vm stopped") as caught:
        await getattr(poller(EndedMachine()), what)()
    assert caught.value.hint == "Connect again"
