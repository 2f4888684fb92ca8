"""`python -m polydev.testing.fake_providers`: serve the fake providers until SIGTERM.

Prints one line of JSON once it listens; everything else goes to the call log in its folder.
"""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from aiohttp import web

from polydev.testing.fake_providers.call_log import CallLog
from polydev.testing.fake_providers.identity.endpoints import IdentityProvider
from polydev.testing.fake_providers.identity.grants import Grants
from polydev.testing.fake_providers.models.base import ModelApi
from polydev.testing.fake_providers.proxy import ConnectProxy
from polydev.testing.fake_providers.server import HOSTS, application
from polydev.testing.fake_providers.test_ca import ensure_authority

CLONE_NEWNET = 0x40000000


def main() -> int:
    options = _parser().parse_args()
    try:
        if options.netns:
            _enter_network_namespace(options.netns)
        options.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        asyncio.run(_run(options))
    except OSError as error:
        print(f"polydev.testing.fake_providers: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    call_log = CallLog(folder / "calls.jsonl")
    grants = Grants(options.access_token_lifetime_s)
    identity = IdentityProvider(grants, call_log, options.approve_automatically)
    app = application(identity, ModelApi(grants), call_log)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    assert runner.server is not None  # noqa: S101  (setup made it)
    authority = ensure_authority(folder, HOSTS)
    proxy = ConnectProxy(frozenset(HOSTS), authority.server_context(), runner.server, call_log)
    listening = await proxy.listen(options.listen, options.proxy_port)
    address, port = listening.sockets[0].getsockname()[:2]
    ready = {"ready": True, "proxy": f"http://{address}:{port}", "ca": str(authority.ca)}
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGUSR1, identity.disable_automatic_approval
    )
    print(json.dumps(ready), flush=True)
    await _until_signalled()
    listening.close()
    await proxy.close()
    await runner.cleanup()
    call_log.close()


async def _until_signalled() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()


def _enter_network_namespace(name: str) -> None:
    """Join a namespace made by `ip netns add`; `os.setns` needs Python 3.12."""
    if "/" in name or name in {".", ".."}:
        raise OSError(f"not the name of a network namespace: {name}")
    libc = ctypes.CDLL(None, use_errno=True)
    with (Path("/run/netns") / name).open() as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m polydev.testing.fake_providers",
        description="A local provider that the real CLIs can log in to and chat with, offline.",
    )
    parser.add_argument("--listen", default="127.0.0.1", help="address of the proxy")
    parser.add_argument("--proxy-port", type=int, default=3128, help="0 takes a free one")
    parser.add_argument("--folder", type=Path, required=True, help="for ca.pem and calls.jsonl")
    parser.add_argument(
        "--approve-automatically",
        action="store_true",
        help="submit the sign-in and consent forms automatically, until SIGUSR1",
    )
    parser.add_argument(
        "--access-token-lifetime-s",
        type=int,
        help="lifetime of a login's access token, until its first refresh (Claude Code "
        "refreshes five minutes early: below that, it refreshes during the login)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--netns", help="network namespace to listen in (ip netns)")
    where.add_argument(
        "--host-netns",
        action="store_true",
        help="listen in the current namespace (the default)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
