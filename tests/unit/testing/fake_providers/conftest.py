"""A stand-in provider in this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from fake_provider_client import Clock, Provider

from polydev.testing.fake_providers.call_log import Journal
from polydev.testing.fake_providers.identity.endpoints import Identity
from polydev.testing.fake_providers.identity.grants import Grants
from polydev.testing.fake_providers.models.base import Model
from polydev.testing.fake_providers.server import application


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    clock, journal = Clock(), Journal(tmp_path / "calls.jsonl")
    grants = Grants(clock=clock)
    identity = Identity(grants, journal)
    app = application(identity, Model(grants, pace_s=0), journal)
    async with TestClient(TestServer(app)) as client:
        yield Provider(client, clock, tmp_path / "calls.jsonl", identity)
    journal.close()
