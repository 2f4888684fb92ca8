"""Rate limits for expensive or guessable requests.

They are token buckets in the database, shared by all controllers. A bucket refills at N per hour,
and holds a sixth of N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from polydev.controller.access import email_addresses
from polydev.controller.access.caller import LOCAL, Caller
from polydev.controller.access.limits.client_address import client_network
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import rate_limits
from polydev.controller.store.queries.accounts.rate_limits import Bucket
from polydev.shared.domain import UserId, now
from polydev.shared.errors import TooManyRequests

_HOUR_S = 3600
_BURST_DIVISOR = 6
"""A bucket holds this fraction of an hour's requests."""
_NETWORK_TO_ADDRESS_RATIO = 3


class RateLimits:
    """Counts a request before it is served. All methods raise TooManyRequests."""

    def __init__(self, database: Database, settings: ControllerSettings) -> None:
        self._database = database
        self._sign_ins = settings.sign_ins_per_hour
        self._sign_ups = settings.sign_ups_per_hour
        self._connects = settings.connects_per_hour

    async def check_sign_in(self, address: str, source: str, known: Sequence[str]) -> None:
        """Count a sign-in attempt, per e-mail address and per network.

        `known` are addresses where this user is already signed in. Attempts from there are counted
        separately, so that an attacker elsewhere cannot lock the user out.
        """
        network, name = client_network(source), email_addresses.hash_address(address)
        if network in map(client_network, known):
            name = f"{network}:{name}"
        await self._take(
            "Too many sign-in attempts",
            _bucket(f"sign-in:{network}", self._sign_ins),
            self._address_bucket(name),
        )

    async def check_oidc(self, source: str) -> None:
        """Count an OpenID sign-in, per network."""
        bucket = _bucket(f"sign-in:{client_network(source)}", self._sign_ins)
        await self._take("Too many sign-in attempts", bucket)

    async def check_password(self, user_id: UserId) -> None:
        """Count an attempt to confirm one's own password."""
        await self._take("Too many password attempts", self._address_bucket(user_id))

    async def check_sign_up(self, source: str) -> None:
        """Count a sign-up, per network."""
        bucket = _bucket(f"sign-up:{client_network(source)}", self._sign_ups)
        await self._take("Too many sign-ups from your network", bucket)

    async def check_connect(self, caller: Caller) -> None:
        """Count the start of a connect session, except the local administrator's."""
        if caller.via != LOCAL:
            bucket = _bucket(f"connect:{caller.user_id}", self._connects)
            await self._take("Too many connect sessions", bucket)

    def _address_bucket(self, name: str) -> Bucket:
        return _bucket(f"address:{name}", self._sign_ins / _NETWORK_TO_ADDRESS_RATIO)

    async def _take(self, message: str, *buckets: Bucket) -> None:
        async with self._database.write() as connection:
            wait_s = await rate_limits.take(connection, buckets, now())
        if wait_s > 0:
            seconds = math.ceil(wait_s)
            raise TooManyRequests(message, hint=f"Try again in {seconds} s", retry_after_s=seconds)


def _bucket(key: str, per_hour: float) -> Bucket:
    return Bucket(key, max(1, per_hour / _BURST_DIVISOR), per_hour / _HOUR_S)
