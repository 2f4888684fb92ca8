"""Fake providers in this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from fake_provider_client import Clock, Provider

from polydev.testing.fake_providers.call_log import CallLog
from polydev.testing.fake_providers.identity.endpoints import IdentityProvider
from polydev.testing.fake_providers.identity.grants import Grants
from polydev.testing.fake_providers.models.base import ModelApi
from polydev.testing.fake_providers.server import application


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    clock, call_log = Clock(), CallLog(tmp_path / "calls.jsonl")
    grants = Grants(clock=clock)
    identity = IdentityProvider(grants, call_log)
    app = application(identity, ModelApi(grants, pace_s=0), call_log)
    async with TestClient(TestServer(app)) as client:
        yield Provider(client, clock, tmp_path / "calls.jsonl", identity)
    call_log.close()
