"""`python -m bench [NAME]…`: all benchmarks, or those named (`NAMES`)."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal

from tests.support.postgres import a_cluster

from bench import measure
from bench.agent import running_agent
from bench.chat import chat_relay
from bench.connect import connect_steps
from bench.disk import new_disk
from bench.hibernate import hibernate
from bench.load import load as under_load
from bench.machine_start import machine_start
from bench.terminal import terminal

NAMES = ("disk", "machine", "hibernate", "connect", "chat", "terminal", "load")


def run(names: list[str], rounds: int, sessions: int) -> None:
    """Measure, and print a table as it grows."""
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores", flush=True)
    print(measure.HEADER, flush=True)
    if {"disk", "machine", "hibernate"} & set(names):
        asyncio.run(machines(names, rounds))
    if "connect" in names:
        print("connect, each step: seconds and share", flush=True)
        print(*asyncio.run(connect_steps()), sep="\n", flush=True)
    if "chat" in names:
        print(*asyncio.run(chat_relay()), sep="\n", flush=True)
    if "terminal" in names:
        print(asyncio.run(terminal(rounds * 3)).row(), flush=True)
    if "load" in names:
        load(sessions)


def load(sessions: int) -> None:
    """Connect sessions at once, on both databases."""
    print(f"{sessions} connect sessions at once, on a simulated host", flush=True)
    print(*asyncio.run(under_load(None, sessions)).rows(), sep="\n", flush=True)
    with a_cluster(is_durable=True) as cluster:
        urls = (cluster.database(), cluster.database())
        print(*asyncio.run(under_load(urls, sessions)).rows(), sep="\n", flush=True)


async def machines(names: list[str], rounds: int) -> None:
    """What needs golden images and a host agent that starts them."""
    async with running_agent() as agent:
        if "disk" in names:
            found, lines = await new_disk(agent.images_dir, rounds * 4)
            print(found.row(), *lines, sep="\n", flush=True)
        if "machine" in names:
            health = await agent.host.health()
            found = await machine_start(agent, rounds)
            print(found.row(), f"({health.driver}, {health.accelerator})", flush=True)
        if "hibernate" in names:
            found, slept = await hibernate(agent, rounds)
            print(found.row(), *slept.rows(), sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs a side")
    parser.add_argument("--sessions", type=int, default=200, help="of `load`, at once")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then too
    run(arguments.names or list(NAMES), arguments.rounds, arguments.sessions)


main()
