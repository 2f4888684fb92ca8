"""The controller as a process: settings become a running program. `__main__.py` calls `main`.

The only module that names concrete classes of the controller. It checks what can be wrong before
anything starts (port, folder, key, database), takes up the workflows of an earlier process, serves
the API, and lets go of everything on SIGTERM; workflows go on with the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import uvicorn
from starlette.types import ASGIApp

from polydev.controller.access import open_access
from polydev.controller.api.http.idle_timeout import IdleTimeoutProtocol
from polydev.controller.api.http.services import Services
from polydev.controller.chat import Chats, OneShotTurns, Runner
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database, open_database, sqlite_folder
from polydev.controller.store.queries.system import installation as installations
from polydev.controller.telemetry import traces
from polydev.controller.telemetry.host_operations import observe_host_operation
from polydev.controller.vault import Vault, unlock
from polydev.controller.web.rendering.assets import Assets, default_folder
from polydev.controller.web.server import make_site
from polydev.controller.workflows.accounts.account_deletion import Removal
from polydev.controller.workflows.connect.connect import Connect
from polydev.controller.workflows.connect.connect_by_key import ConnectByKey
from polydev.controller.workflows.connect.session_queue import Admission
from polydev.controller.workflows.connect.token_key import token_key
from polydev.controller.workflows.credentials.credential_lifecycle import Custody
from polydev.controller.workflows.credentials.key_rotation import Rotation
from polydev.controller.workflows.engine.cancel_watch import Wishes
from polydev.controller.workflows.engine.dbos_store import journal_of
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.engine.leases import Lease, at_work
from polydev.controller.workflows.engine.saga import OnPoint
from polydev.controller.workflows.health import Checkup
from polydev.controller.workflows.machines.idle import IdlePolicy
from polydev.controller.workflows.machines.machine_commands import MachineRequests
from polydev.controller.workflows.machines.machines import Machines
from polydev.controller.workflows.machines.resume_on_use import Waking
from polydev.controller.workflows.reconcile.host_poller import HostWatch
from polydev.controller.workflows.reconcile.periodic_resume import resume_now_and_then
from polydev.controller.workflows.reconcile.reconcile import Reconciler
from polydev.controller.workflows.reconcile.retention import Retention
from polydev.shared.domain import now
from polydev.shared.errors import AlreadyRunning, BadSettings, PolydevError, PortTaken
from polydev.shared.host_client import Hosts
from polydev.shared.logging import setup
from polydev.shared.sd_notify import tell_ready
from polydev.shared.settings.base import read

log = logging.getLogger("polydev.controller")

_LINGER_S = 3
_WS_FRAME_BYTES = 256 * 1024
_BACKLOG = 128


def main() -> int:
    """Run the controller. The exit code is 0 when it was told to end, 1 when it could not work."""
    try:
        settings = read(ControllerSettings)
        setup.set_up(as_json=settings.log_json)
        run(settings)
    except PolydevError as error:
        print(f"polydev: {error.line()}", file=sys.stderr)
        return 1
    return 0


def run(settings: ControllerSettings, on_point: OnPoint = lambda _step, _point: None) -> None:
    """Run the controller until SIGTERM or SIGINT. `on_point` observes workflows' steps.

    Raises, before anything has started: BadSettings, PortTaken, AlreadyRunning, WrongEncryptionKey.
    """
    os.umask(0o077)
    _take_all_descriptors()
    settings.required_encryption_key()
    listener = _listener(settings.listen, settings.port)
    with contextlib.closing(listener), _alone(settings):
        asyncio.run(_serve_until_told(settings, listener, on_point))


async def _serve_until_told(
    settings: ControllerSettings, listener: socket.socket, on_point: OnPoint
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    traced = traces.exported(settings.otlp_endpoint, settings.otlp_headers, settings.trace_ratio)
    assets = Assets(settings.assets_dir or default_folder(settings.cache_dir))
    async with traced, _services(settings, on_point) as services:
        site = make_site(services, assets, settings.listen, settings.public_url)
        await _serve(site, listener, stop)
    log.info("ended; machines go on, and so will workflows")


@contextlib.asynccontextmanager
async def _services(settings: ControllerSettings, on_point: OnPoint) -> AsyncIterator[Services]:
    """The parts of the controller, put together and running."""
    async with AsyncExitStack() as closing:
        where = settings.database_url, settings.controller_dir
        database = open_database(*where)
        closing.push_async_callback(database.close)
        await database.upgrade()
        vault = await _unlocked(database, settings)
        access = await open_access(database, settings)
        hosts = await _watched_hosts(closing, database, settings)
        machines = await _machines(database, vault, hosts, settings)
        admission = Admission(database, machines)
        journal = await asyncio.to_thread(journal_of, *where)
        lease = Lease(database, vault.key_ids)
        engine = Engine(journal, lease.executor_id, lease.check)
        its = _workflows(database, vault, machines, admission, engine, on_point)
        await closing.enter_async_context(at_work(engine, lease, shared=journal.is_shared))
        chats = Chats(database, settings)
        turns = Runner(database, hosts, settings, chats.live_turns, lease.executor_id, its.waking)
        _beside(closing, admission.run())
        _beside(closing, turns.run())
        _beside(closing, Reconciler(database, engine, machines, its.requests).run())
        _beside(closing, IdlePolicy(database, machines, its.requests, lease.executor_id).run())
        _beside(closing, resume_now_and_then((its.custody.resume, its.removal.resume)))
        _beside(closing, Retention(database, settings).run())
        yield Services(
            database=database,
            access=access,
            hosts=hosts,
            connect=its.connect,
            by_key=its.by_key,
            machines=its.requests,
            chats=chats,
            one_shot_turns=OneShotTurns(database, hosts, its.waking),
            rotation=its.rotation,
            custody=its.custody,
            removal=its.removal,
            checkup=Checkup(database, hosts, settings),
            waking=its.waking,
            file_limit_bytes=settings.file_limit_mib * 1024 * 1024,
            metrics_token=settings.metrics_token,
        )


class _Workflows(NamedTuple):
    waking: Waking
    requests: MachineRequests
    connect: Connect
    by_key: ConnectByKey
    rotation: Rotation
    custody: Custody
    removal: Removal


def _workflows(
    database: Database,
    vault: Vault,
    machines: Machines,
    admission: Admission,
    engine: Engine,
    on_point: OnPoint,
) -> _Workflows:
    """All that the engine does, which must know it before its start."""
    wishes = Wishes(database)
    requests = MachineRequests(machines, engine, on_point)
    waking = Waking(database, requests, machines.settings)
    its = _Workflows(
        waking,
        requests,
        Connect(database, vault, machines, admission, wishes, engine, on_point),
        ConnectByKey(database, vault, machines, admission, wishes, engine, on_point),
        Rotation(database, vault, engine, on_point),
        Custody(database, vault, machines, engine, waking, on_point),
        Removal(database, machines, engine, on_point),
    )
    for each in its[1:]:
        each.register()
    return its


async def _unlocked(database: Database, settings: ControllerSettings) -> Vault:
    """The vault, with the keys of the settings. Raises WrongEncryptionKey, BadSettings."""
    current, others = settings.required_encryption_key(), settings.opening_keys()
    async with database.write() as connection:
        return await unlock(connection, current, now(), others)


async def _machines(
    database: Database, vault: Vault, hosts: Hosts, settings: ControllerSettings
) -> Machines:
    """People's machines, labelled as this installation's."""
    async with database.write() as connection:
        installation = await installations.get_or_create_id(connection)
    key = await token_key(database, vault, settings.controller_dir / "browser-token-key")
    return Machines(database, hosts, settings, installation, key)


async def _watched_hosts(
    closing: AsyncExitStack, database: Database, settings: ControllerSettings
) -> Hosts:
    """The clients of all hosts, each looked at once already, and again and again."""
    hosts = Hosts(observe=observe_host_operation)
    closing.push_async_callback(hosts.aclose)
    watch = HostWatch(database, hosts, settings)
    await watch.begin()
    _beside(closing, watch.run())
    return hosts


def _beside(closing: AsyncExitStack, work: Coroutine[None, None, None]) -> None:
    """Have it done beside everything else, until that is closed."""
    closing.push_async_callback(_ended, asyncio.create_task(work))


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _serve(api: ASGIApp, listener: socket.socket, stop: asyncio.Event) -> None:
    config = uvicorn.Config(
        api,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # access.network knows whose X-Forwarded-For is believed
        server_header=False,
        lifespan="off",
        loop="asyncio",
        http=IdleTimeoutProtocol,
        ws="websockets-sansio",
        ws_max_size=_WS_FRAME_BYTES,
        timeout_graceful_shutdown=_LINGER_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    address, port = listener.getsockname()[:2]
    log.info("the API answers at http://%s:%d", address, port)
    tell_ready()
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stopping.cancel()
    await serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: there is more to close than the server."""
        yield


def _take_all_descriptors() -> None:
    """Every connection costs one: as many as this process may have, not as many as it is given."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listener(address: str, port: int) -> socket.socket:
    """A socket on that port, not listening yet. Raises PortTaken, BadSettings."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"Another program listens on port {port} of {address}",
                hint="End it, or set PORT to another port",
            ) from None
        raise BadSettings(
            f"POLYDEV_LISTEN and PORT cannot be used: {address}, {port} ({error.strerror})"
        ) from None
    except socket.gaierror:
        listener.close()
        raise BadSettings(f"POLYDEV_LISTEN is not an address: {address}") from None
    return listener


@contextlib.contextmanager
def _alone(settings: ControllerSettings) -> Iterator[None]:
    """Hold the controller's folder, and the database's if it is a file. Controllers of one
    PostgreSQL database may share a folder. Raises AlreadyRunning, BadSettings."""
    own = settings.controller_dir
    files = sqlite_folder(settings.database_url, own)
    with contextlib.ExitStack() as held:
        held.enter_context(_held(own, fcntl.LOCK_SH if files is None else fcntl.LOCK_EX))
        if files not in (None, own.resolve()):
            held.enter_context(_held(files, fcntl.LOCK_EX))
        yield


@contextlib.contextmanager
def _held(folder: Path, how: int) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            folder / "controller.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise BadSettings(
            f"The controller's folder {folder} cannot be used ({error.strerror})",
            hint="See POLYDEV_STATE_DIR and DATABASE_URL",
        ) from None
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"Another controller already works in {folder}",
                hint="End it first, or set POLYDEV_STATE_DIR to another folder",
            ) from None
        yield
    finally:
        os.close(descriptor)
