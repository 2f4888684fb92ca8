"""Composition root of the controller: build its parts from the settings, and run them.

It is the only module that names all concrete classes. Before anything starts, it checks the port,
the folder, the key and the database. Then it continues the workflows of an earlier process and
serves the API. SIGTERM closes everything; workflows continue at the next start.
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
from polydev.controller.web.server import make_web_app
from polydev.controller.workflows.accounts.account_deletion import AccountDeletion
from polydev.controller.workflows.connect.connect import Connect
from polydev.controller.workflows.connect.connect_by_key import ConnectByKey
from polydev.controller.workflows.connect.session_queue import SessionQueue
from polydev.controller.workflows.connect.token_key import token_key
from polydev.controller.workflows.credentials.credential_lifecycle import CredentialLifecycle
from polydev.controller.workflows.credentials.key_rotation import KeyRotation
from polydev.controller.workflows.engine.cancel_watch import CancelWatch
from polydev.controller.workflows.engine.dbos_store import open_dbos_store
from polydev.controller.workflows.engine.engine import Engine
from polydev.controller.workflows.engine.leases import Lease, run_engine
from polydev.controller.workflows.engine.saga import OnPoint
from polydev.controller.workflows.health import HealthChecks
from polydev.controller.workflows.machines.idle import IdlePolicy
from polydev.controller.workflows.machines.machine_commands import MachineCommands
from polydev.controller.workflows.machines.machine_operations import MachineOperations
from polydev.controller.workflows.machines.resume_on_use import ResumeOnUse
from polydev.controller.workflows.reconcile.host_poller import HostPoller
from polydev.controller.workflows.reconcile.reconcile import Reconciler
from polydev.controller.workflows.reconcile.restart_lost import restart_lost_periodically
from polydev.controller.workflows.reconcile.retention import Retention
from polydev.shared.domain import now
from polydev.shared.errors import AlreadyRunning, BadSettings, PolydevError, PortTaken
from polydev.shared.hints import Hint
from polydev.shared.host_client import HostClients
from polydev.shared.logging import setup
from polydev.shared.sd_notify import notify_ready
from polydev.shared.settings.base import read

log = logging.getLogger("polydev.controller")

_SHUTDOWN_GRACE_S = 3
_WS_FRAME_BYTES = 256 * 1024
_BACKLOG = 128


def main() -> int:
    """Run the controller. Returns the exit code: 0 after SIGTERM, 1 after an error."""
    try:
        settings = read(ControllerSettings)
        setup.set_up(as_json=settings.log_json)
        run(settings)
    except PolydevError as error:
        print(f"polydev: {error.line()}", file=sys.stderr)
        return 1
    return 0


def run(settings: ControllerSettings, on_point: OnPoint = lambda _step, _point: None) -> None:
    """Run the controller until SIGTERM or SIGINT. `on_point` observes workflow steps.

    Raises before anything has started: BadSettings, PortTaken, AlreadyRunning, WrongEncryptionKey.
    """
    os.umask(0o077)
    _raise_descriptor_limit()
    settings.required_encryption_key()
    listener = _bind(settings.listen, settings.port)
    with contextlib.closing(listener), _lock_folders(settings):
        asyncio.run(_serve_until_signalled(settings, listener, on_point))


async def _serve_until_signalled(
    settings: ControllerSettings, listener: socket.socket, on_point: OnPoint
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    traced = traces.export_traces(
        settings.otlp_endpoint, settings.otlp_headers, settings.trace_ratio
    )
    assets = Assets(settings.assets_dir or default_folder(settings.cache_dir))
    async with traced, _services(settings, on_point) as services:
        site = make_web_app(services, assets, settings.listen, settings.public_url)
        await _serve(site, listener, stop)
    log.info("stopped; machines keep running, workflows continue at the next start")


@contextlib.asynccontextmanager
async def _services(settings: ControllerSettings, on_point: OnPoint) -> AsyncIterator[Services]:
    """Build and run all parts of the controller."""
    async with AsyncExitStack() as closing:
        where = settings.database_url, settings.controller_dir
        database = open_database(*where)
        closing.push_async_callback(database.close)
        await database.upgrade()
        vault = await _unlocked(database, settings)
        access = await open_access(database, settings)
        hosts = await _connect_hosts(closing, database, settings)
        machines = await _machines(database, vault, hosts, settings)
        session_queue = SessionQueue(database, machines)
        dbos_store = await asyncio.to_thread(open_dbos_store, *where)
        lease = Lease(database, vault.key_ids)
        engine = Engine(dbos_store, lease.executor_id, lease.check)
        its = _workflows(database, vault, machines, session_queue, engine, on_point)
        await closing.enter_async_context(run_engine(engine, lease, shared=dbos_store.is_shared))
        chats = Chats(database, settings)
        turns = Runner(
            database, hosts, settings, chats.live_turns, lease.executor_id, its.resume_on_use
        )
        _run_in_background(closing, session_queue.run())
        _run_in_background(closing, turns.run())
        _run_in_background(closing, Reconciler(database, engine, machines, its.commands).run())
        _run_in_background(
            closing, IdlePolicy(database, machines, its.commands, lease.executor_id).run()
        )
        _run_in_background(
            closing,
            restart_lost_periodically(
                (its.credential_lifecycle.restart_lost, its.account_deletion.restart_lost)
            ),
        )
        _run_in_background(closing, Retention(database, settings).run())
        yield Services(
            database=database,
            access=access,
            hosts=hosts,
            connect=its.connect,
            by_key=its.by_key,
            machines=its.commands,
            chats=chats,
            one_shot_turns=OneShotTurns(database, hosts, its.resume_on_use),
            key_rotation=its.key_rotation,
            credential_lifecycle=its.credential_lifecycle,
            account_deletion=its.account_deletion,
            health_checks=HealthChecks(database, hosts, settings),
            resume_on_use=its.resume_on_use,
            file_limit_bytes=settings.file_limit_mib * 1024 * 1024,
            metrics_token=settings.metrics_token,
        )


class _Workflows(NamedTuple):
    resume_on_use: ResumeOnUse
    commands: MachineCommands
    connect: Connect
    by_key: ConnectByKey
    key_rotation: KeyRotation
    credential_lifecycle: CredentialLifecycle
    account_deletion: AccountDeletion


def _workflows(
    database: Database,
    vault: Vault,
    machines: MachineOperations,
    session_queue: SessionQueue,
    engine: Engine,
    on_point: OnPoint,
) -> _Workflows:
    """Build the workflows, and register them with the engine before its start."""
    cancel_watch = CancelWatch(database)
    commands = MachineCommands(machines, engine, on_point)
    resume_on_use = ResumeOnUse(database, commands, machines.settings)
    its = _Workflows(
        resume_on_use,
        commands,
        Connect(database, vault, machines, session_queue, cancel_watch, engine, on_point),
        ConnectByKey(database, vault, machines, session_queue, cancel_watch, engine, on_point),
        KeyRotation(database, vault, engine, on_point),
        CredentialLifecycle(database, vault, machines, engine, resume_on_use, on_point),
        AccountDeletion(database, machines, engine, on_point),
    )
    for each in its[1:]:
        each.register()
    return its


async def _unlocked(database: Database, settings: ControllerSettings) -> Vault:
    """Unlock the vault with the keys of the settings.

    Raises: WrongEncryptionKey, BadSettings.
    """
    current, others = settings.required_encryption_key(), settings.opening_keys()
    async with database.write() as connection:
        return await unlock(connection, current, now(), others)


async def _machines(
    database: Database, vault: Vault, hosts: HostClients, settings: ControllerSettings
) -> MachineOperations:
    """Build the machine operations, with the label and the token key of this installation."""
    async with database.write() as connection:
        installation = await installations.get_or_create_id(connection)
    key = await token_key(database, vault, settings.controller_dir / "browser-token-key")
    return MachineOperations(database, hosts, settings, installation, key)


async def _connect_hosts(
    closing: AsyncExitStack, database: Database, settings: ControllerSettings
) -> HostClients:
    """Connect to all hosts, and poll them: once now, then in the background."""
    hosts = HostClients(observe=observe_host_operation)
    closing.push_async_callback(hosts.aclose)
    watch = HostPoller(database, hosts, settings)
    await watch.begin()
    _run_in_background(closing, watch.run())
    return hosts


def _run_in_background(closing: AsyncExitStack, work: Coroutine[None, None, None]) -> None:
    """Run a background task until `closing` is closed."""
    closing.push_async_callback(_cancel, asyncio.create_task(work))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _serve(api: ASGIApp, listener: socket.socket, stop: asyncio.Event) -> None:
    config = uvicorn.Config(
        api,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # access.limits.client_address handles X-Forwarded-For
        server_header=False,
        lifespan="off",
        loop="asyncio",
        http=IdleTimeoutProtocol,
        ws="websockets-sansio",
        ws_max_size=_WS_FRAME_BYTES,
        timeout_graceful_shutdown=_SHUTDOWN_GRACE_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    address, port = listener.getsockname()[:2]
    log.info("listening on http://%s:%d", address, port)
    notify_ready()
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stopping.cancel()
    await serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to us: there is more to close than the server."""
        yield


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors to the hard limit: each connection needs one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _bind(address: str, port: int) -> socket.socket:
    """Open the listening socket. Raises PortTaken, BadSettings."""
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
                hint=Hint.SET_PORT.text(),
            ) from None
        raise BadSettings(
            f"POLYDEV_LISTEN and PORT cannot be used: {address}, {port} ({error.strerror})"
        ) from None
    except socket.gaierror:
        listener.close()
        raise BadSettings(f"POLYDEV_LISTEN is not an address: {address}") from None
    return listener


@contextlib.contextmanager
def _lock_folders(settings: ControllerSettings) -> Iterator[None]:
    """Lock the controller's folder, and the folder of an SQLite database.

    Controllers of one PostgreSQL database may share a folder. Raises AlreadyRunning, BadSettings.
    """
    own = settings.controller_dir
    files = sqlite_folder(settings.database_url, own)
    with contextlib.ExitStack() as held:
        held.enter_context(_lock_folder(own, fcntl.LOCK_SH if files is None else fcntl.LOCK_EX))
        if files not in (None, own.resolve()):
            held.enter_context(_lock_folder(files, fcntl.LOCK_EX))
        yield


@contextlib.contextmanager
def _lock_folder(folder: Path, how: int) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            folder / "controller.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise BadSettings(
            f"The controller's folder {folder} cannot be used ({error.strerror})",
            hint=Hint.CHECK_STATE_SETTINGS.text(),
        ) from None
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"Another controller is running in {folder}",
                hint=Hint.SET_STATE_DIR.text(),
            ) from None
        yield
    finally:
        os.close(descriptor)
