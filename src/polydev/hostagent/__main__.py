"""`python -m polydev.hostagent`: the host agent as a process.

It assembles the parts, checks the host, recovers the machines, and serves until it is stopped. The
machines run on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI

from polydev.hostagent.health import preflight
from polydev.hostagent.health.checks import HealthChecker
from polydev.hostagent.images import ImageStore
from polydev.hostagent.machines.context import HostContext
from polydev.hostagent.machines.image_gc import ImageCollector
from polydev.hostagent.machines.provisioner import probe_files, provisioner_for
from polydev.hostagent.machines.registry import MachineRegistry
from polydev.hostagent.machines.service import MachineService
from polydev.hostagent.network import Network
from polydev.hostagent.operations.dispatch import perform
from polydev.hostagent.operations.journal import OperationJournal
from polydev.hostagent.operations.operations import Operations
from polydev.hostagent.resources import capacity
from polydev.hostagent.resources.resource_usage import UsageLog
from polydev.hostagent.server import routes, single_instance
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.snapshots import MemoryKeys
from polydev.hostagent.system.log_archive import LogArchive
from polydev.hostagent.vmm.driver_selection import select
from polydev.hostagent.warm_pool import Headroom, WarmPolicy, WarmPool
from polydev.shared.domain import Finding
from polydev.shared.errors import PolydevError
from polydev.shared.host_protocol import Health
from polydev.shared.logging import setup
from polydev.shared.sd_notify import notify_ready
from polydev.shared.settings.base import read

log = logging.getLogger("polydev.hostagent")

_STOP_GRACE_S = 8.0
_SERVER_GRACE_S = 2
_WS_FRAME_BYTES = 256 * 1024


def main() -> int:
    """Run the agent; exit with 0 after a stop, 1 if it cannot work."""
    try:
        settings = read(HostSettings)
        setup.set_up(as_json=settings.log_json)
        preflight.require(settings.driver)
        with single_instance.only_agent(settings.state_dir, settings.netns):
            asyncio.run(_run(settings))
    except PolydevError as error:
        print(f"polydev-hostd: {error.line()}", file=sys.stderr)
        return 1
    return 0


async def _run(settings: HostSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as closing:
        images = ImageStore(settings.images_dir)
        selected = await select(settings, partial(probe_files, images))
        capabilities = selected.driver.capabilities
        provisioner = provisioner_for(selected.driver, settings, images)
        network = Network.from_settings(settings)
        closing.push_async_callback(network.close)
        await network.ensure()
        offered = capacity.Capacity.measure(
            settings,
            driver=selected.driver.name,
            accelerator=selected.probe.accelerator,
            driver_version=selected.probe.version,
            host_memory=capabilities.host_memory,
        )
        host = HostContext(
            machines_dir=settings.state_dir / "machines",
            sockets_dir=settings.sockets_dir,
            log_archive=LogArchive(settings.logs_dir / "machines"),
            driver=selected.driver,
            network=network,
            provisioner=provisioner,
            memory_keys=MemoryKeys.for_state(settings.state_dir, settings.memory_key_dir),
            admission=offered.admission(settings),
        )
        warm = WarmPolicy(
            root=settings.state_dir / "warm",
            headroom=Headroom(settings.state_dir),
            is_on=capabilities.needs_images if settings.warm_start is None else settings.warm_start,
            quiet_s=settings.warm_quiet_s,
            waiting=settings.warm_waiting,
        )
        registry = MachineRegistry(host)
        warm_pool = WarmPool(host, registry, warm)
        machines = MachineService(host, registry, warm_pool)
        closing.push_async_callback(machines.close)
        await machines.recover()
        operations = Operations(
            OperationJournal(settings.state_dir / "operations"), partial(perform, machines)
        )
        await operations.open()
        with single_instance.listening(settings.host_socket, settings.socket_group) as listener:
            checker = HealthChecker(settings, network)
            usage = UsageLog(machines)
            closing.callback(asyncio.create_task(usage.run()).cancel)
            if capabilities.needs_images:
                collector = ImageCollector(images, host.machines_dir)
                closing.callback(asyncio.create_task(collector.run()).cancel)
            closing.push_async_callback(_end, asyncio.create_task(warm_pool.run()))

            async def health() -> Health:
                return await offered.health(await warm_pool.view())

            async def diagnose() -> list[Finding]:
                warm = await warm_pool.view()
                return await checker.diagnose(machines, selected.probe, warm)

            app = routes.build(machines, operations, health, diagnose, usage, warm_pool)
            await _serve(app, listener, operations, stop)


async def _serve(
    app: FastAPI, listener: socket.socket, operations: Operations, stop: asyncio.Event
) -> None:
    http = _Server(server_config(app))
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    log.info("ready at %s", listener.getsockname())
    notify_ready()
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    log.info("stopping; machines keep running")
    await operations.stop(_STOP_GRACE_S)
    http.should_exit = True
    await serving


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task, and wait while it undoes its work."""
    task.cancel()
    await asyncio.wait({task}, timeout=_STOP_GRACE_S)


def server_config(app: FastAPI) -> uvicorn.Config:
    """Configure uvicorn: bounded frames, no pings on a local socket."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        loop="asyncio",
        http="h11",
        ws="websockets-sansio",
        ws_max_size=_WS_FRAME_BYTES,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        server_header=False,
        timeout_graceful_shutdown=_SERVER_GRACE_S,
    )


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


if __name__ == "__main__":
    sys.exit(main())
