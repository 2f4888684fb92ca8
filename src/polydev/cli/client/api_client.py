"""Client of the controller's HTTP API.

Errors of the controller are raised here as the same classes. Unless `POLYDEV_URL` is set, the token
is sent only to a process of the controller's user: while the controller is down, any user of this
machine may listen on its port (`socket_owner`).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field, SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus

from polydev.cli.client.socket_owner import Owners
from polydev.shared.errors import ControllerUnreachable, NotSignedIn, PolydevError, by_code
from polydev.shared.settings.base import CommonSettings, read

WAIT_S = 20
REQUEST_LIMIT_S = 60.0
CONNECT_LIMIT_S = 10.0
_TOKEN_BYTES = 8192

Json = dict[str, Any]


class TokenUnreadable(NotSignedIn):
    """This user may not read the administrator's token."""

    code = NotSignedIn.code


class ClientSettings(CommonSettings):
    """Address of the controller, and the token that opens it."""

    url: str | None = None
    """Address of a controller on another machine. Unset: the one on this machine."""
    port: int = Field(4000, ge=1, le=65535, validation_alias="PORT")
    """Port of the controller on this machine."""
    admin_token: SecretStr | None = None
    """The administrator's API token. Unset: the one in `admin-token`."""
    own_token: SecretStr | None = Field(None, validation_alias="POLYDEV_TOKEN")
    """Your API token. It is used instead of the administrator's."""
    user: str = "polydev"
    """The system user that the controller runs as."""

    @property
    def base_url(self) -> str:
        return (self.url or f"http://127.0.0.1:{self.port}").rstrip("/")

    @property
    def owners(self) -> Owners | None:
        """Users that may own the controller's socket; None if `POLYDEV_URL` is set."""
        return None if self.url else Owners.for_instance(self.state_dir, self.user)

    def token(self) -> str:
        """Return the user's or the administrator's token. Raises an error if there is none."""
        if self.own_token is not None and self.own_token.get_secret_value():
            return self.own_token.get_secret_value()
        if self.admin_token is not None:
            return self.admin_token.get_secret_value()
        path = self.state_dir / "controller" / "admin-token"
        try:
            return _read_token_file(path)
        except FileNotFoundError:
            raise ControllerUnreachable(
                f"Polydev has never run in {self.state_dir}",
                hint="Start it with `polydev up`, or set POLYDEV_STATE_DIR to its folder",
            ) from None
        except OSError as error:
            raise TokenUnreadable(
                f"Cannot read the administrator's token: {path} ({error.strerror})",
                hint="Set POLYDEV_TOKEN to your API token; or run the command as root, with "
                "POLYDEV_STATE_DIR set to the folder of this Polydev",
            ) from None


def _read_token_file(path: Path) -> str:
    """Read the token file. Raises OSError.

    Root reads a folder of another user here, so a symlink or a pipe must not be followed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_TOKEN_BYTES).decode("ascii", "replace").strip()


class ApiClient:
    """Calls to the API. Methods raise ControllerUnreachable or the controller's error."""

    def __init__(self, client: httpx.AsyncClient, token: str, owners: Owners | None = None) -> None:
        self._client = client
        self._token = token
        self._owners = owners

    async def get(self, path: str, **parameters: Any) -> Any:
        return (await self._ask("GET", path, params=parameters)).json()

    async def text(self, path: str, **parameters: Any) -> str:
        return (await self._ask("GET", path, params=parameters)).text

    async def post(self, path: str, body: Json | None = None) -> Any:
        return (await self._ask("POST", path, json=body or {})).json()

    async def delete(self, path: str) -> Any:
        """Delete a resource; returns the answer, if any."""
        answer = await self._ask("DELETE", path)
        return answer.json() if answer.content else None

    async def list_all(self, path: str) -> list[Json]:
        """Read all pages of a listing."""
        found: list[Json] = []
        following: str | None = path
        while following is not None:
            answer = await self._ask("GET", following)
            found += answer.json()
            following = answer.links.get("next", {}).get("url")
        return found

    async def changes(self, path: str) -> AsyncIterator[Json]:
        """Yield a session or a machine now and after each change."""
        current: Json = await self.get(path)
        yield current
        while True:
            after: Json = await self.get(path, after=current["version"], wait=WAIT_S)
            if after["version"] != current["version"]:
                yield after
            current = after

    async def lines(self, path: str, body: Json) -> AsyncIterator[Json]:
        """Yield the JSON objects of a streamed answer, one per line."""
        limits = httpx.Timeout(REQUEST_LIMIT_S, read=None)
        try:
            async with self._client.stream("POST", path, json=body, timeout=limits) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise parse_problem(answer.status_code, answer.content)
                async for line in answer.aiter_lines():
                    if line.strip():
                        yield json.loads(line)
        except httpx.HTTPError as error:
            raise self._unreachable(type(error).__name__) from None

    async def stream(self, path: str, **parameters: Any) -> AsyncIterator[Json]:
        """Yield the data of server-sent events until the controller ends the stream."""
        limits = httpx.Timeout(REQUEST_LIMIT_S, read=None)
        try:
            async with self._client.stream(
                "GET", path, params=parameters, timeout=limits
            ) as events:
                if not events.is_success:
                    await events.aread()
                    raise parse_problem(events.status_code, events.content)
                async for line in events.aiter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line.removeprefix("data:"))
        except httpx.HTTPError as error:
            raise self._unreachable(type(error).__name__) from None

    @asynccontextmanager
    async def websocket(self, path: str) -> AsyncIterator[ClientConnection]:
        """Open a WebSocket. Raises the controller's error if it refuses the upgrade."""
        url = str(self._client.base_url).replace("http", "ws", 1).rstrip("/") + path
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            connection = await connect(
                url,
                sock=await self._connected(),
                additional_headers=headers,
                max_size=2**20,
                proxy=None,
                compression=None,
            )
        except InvalidStatus as refused:
            raise parse_problem(
                refused.response.status_code, bytes(refused.response.body or b"")
            ) from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise self._unreachable(type(error).__name__) from None
        async with connection:
            yield connection

    async def _connected(self) -> socket.socket | None:
        """Connect and check the owner of the other end; None if no check is needed."""
        if self._owners is None:
            return None
        url = self._client.base_url
        address = (url.host, url.port or 80)
        sock = await asyncio.to_thread(socket.create_connection, address, CONNECT_LIMIT_S)
        try:
            sock.setblocking(False)
            await self._owners.require(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        try:
            answer = await self._client.request(method, path, **what)
        except httpx.HTTPError as error:
            raise self._unreachable(type(error).__name__) from None
        if not answer.is_success:
            raise parse_problem(answer.status_code, answer.content)
        return answer

    def _unreachable(self, why: str) -> ControllerUnreachable:
        return ControllerUnreachable(
            f"The controller does not answer at {self._client.base_url} ({why})",
            hint="Start it with `polydev up`, or set POLYDEV_URL to its address",
        )


def parse_problem(status: int, body: bytes) -> PolydevError:
    """Convert a problem document (RFC 9457) to its error."""
    try:
        problem = json.loads(body)
        kind = by_code(str(problem["code"]))
        return kind(str(problem["detail"]), hint=str(problem.get("hint") or ""))
    except (ValueError, KeyError, TypeError):
        return ControllerUnreachable(
            f"The server at this address is not a Polydev controller ({status})"
        )


@asynccontextmanager
async def open_client() -> AsyncIterator[ApiClient]:
    """Open a client of the configured controller. Calls raise PortTaken on a foreign socket.

    Every call opens its own connection: the controller may close an idle one as it is used again.
    """
    settings = read(ClientSettings)
    token, owners = settings.token(), settings.owners
    async with httpx.AsyncClient(
        base_url=settings.base_url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=REQUEST_LIMIT_S,
        limits=httpx.Limits(max_keepalive_connections=0),
        trust_env=False,
        verify=uses_tls(settings.base_url),
        event_hooks={"request": [owner_check(owners)] if owners else []},
    ) as client:
        yield ApiClient(client, token, owners)


def uses_tls(url: str) -> bool:
    """Check for https. Loading all certificate authorities is slow, so plain http skips it."""
    return url.startswith("https:")


def owner_check(owners: Owners) -> Callable[[httpx.Request], Awaitable[None]]:
    """Create an httpx hook that checks the socket's owner before anything is sent.

    Source: httpx, "Request extensions", `trace`. An exception ends the request.
    """

    async def on_event(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            stream = info["return_value"]
            try:
                await owners.require(stream.get_extra_info("socket"))
            except TimeoutError:
                await stream.aclose()
                raise httpx.ConnectTimeout("no process accepts the connection") from None
            except BaseException:
                await stream.aclose()
                raise

    async def before(request: httpx.Request) -> None:
        request.extensions["trace"] = on_event

    return before
