"""`python -m bench [NAME]…`: all benchmarks, or those named (`NAMES`)."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
from pathlib import Path

from postgres import a_cluster

from bench import measure, memory
from bench.agent import running_agent
from bench.chat import chat_relay
from bench.connect import connect_steps
from bench.disk import new_disk
from bench.effort import TRIAL, Effort
from bench.hibernate import hibernate
from bench.load import load as under_load
from bench.machine_start import machine_start
from bench.start_parts import picture, start_parts
from bench.terminal import terminal
from bench.warm import warm_browsers

NAMES = (
    *("disk", "machine", "parts", "memory", "many", "hibernate", "warm"),
    *("connect", "chat", "terminal", "load"),
)
ON_A_HOST = {"disk", "machine", "parts", "memory", "many", "hibernate"}


def run(names: list[str], effort: Effort, drawn: Path | None) -> None:
    """Measure, and print a table as it grows."""
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores", flush=True)
    print(measure.HEADER, flush=True)
    if ON_A_HOST & set(names):
        asyncio.run(machines(names, effort, drawn))
    if "warm" in names:
        asyncio.run(warm(effort))
    if "connect" in names:
        print("connect, each step: seconds and share", flush=True)
        print(*asyncio.run(connect_steps(effort)), sep="\n", flush=True)
    if "chat" in names:
        print(*asyncio.run(chat_relay(effort.chat_pieces)), sep="\n", flush=True)
    if "terminal" in names:
        print(asyncio.run(terminal(effort.rounds * 3, effort.terminal_bytes)).row(), flush=True)
    if "load" in names:
        load(effort)


def load(effort: Effort) -> None:
    """Connect sessions at once, on both databases; a trial of the one that needs more."""
    sessions = effort.sessions
    print(f"{sessions} connect sessions at once, on a simulated host", flush=True)
    if not effort.is_trial:
        print(*asyncio.run(under_load(None, sessions)).rows(), sep="\n", flush=True)
    with a_cluster(is_durable=True) as cluster:
        urls = (cluster.database(), cluster.database())
        print(*asyncio.run(under_load(urls, sessions)).rows(), sep="\n", flush=True)


async def machines(names: list[str], effort: Effort, drawn: Path | None) -> None:
    """What needs golden images and a host agent that starts them."""
    rounds = effort.rounds
    async with running_agent() as agent:
        if "disk" in names:
            found, lines = await new_disk(agent.images_dir, effort.disk_rounds)
            print(found.row(), *lines, sep="\n", flush=True)
        if "machine" in names:
            health = await agent.host.health()
            found = await machine_start(agent, rounds)
            print(found.row(), f"({health.driver}, {health.accelerator})", flush=True)
        if "parts" in names:
            health = await agent.host.health()
            starts = await start_parts(agent, rounds)
            print(*(row for start in starts for row in start.rows()), sep="\n", flush=True)
            if drawn is not None:
                cores = len(os.sched_getaffinity(0))
                how = f"{health.driver}, {health.accelerator}, {cores} cores"
                told = picture(starts, f"Medians of {rounds} starts ({how})")
                await asyncio.to_thread(drawn.write_text, told)
        if "memory" in names:
            print(*await memory.idle(agent, effort), sep="\n", flush=True)
        if "many" in names:
            print(*await memory.many(agent, effort), sep="\n", flush=True)
        if "hibernate" in names:
            found, slept = await hibernate(agent, rounds)
            print(found.row(), *slept.rows(), sep="\n", flush=True)


async def warm(effort: Effort) -> None:
    """Three agents side by side: one has a clone wait, one only clones, one may not even that."""
    async with (
        running_agent(POLYDEV_WARM_START="true", POLYDEV_WARM_WAITING="1") as waiting,
        running_agent(POLYDEV_WARM_START="true", POLYDEV_WARM_WAITING="0") as cloning,
        running_agent() as cold,
    ):
        async for row in warm_browsers(waiting, cloning, cold, effort):
            print(row, flush=True)


def _interrupted(*_: object) -> None:
    """As Ctrl-C, and once only: `timeout` tells a process and its group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs a side")
    parser.add_argument("--sessions", type=int, default=200, help="of `load`, at once")
    parser.add_argument("--machines", type=int, default=10, help="of `many`, at once")
    parser.add_argument(
        "--trial",
        action="store_true",
        help="one short round on simulated machines, to see that it runs: its figures say nothing",
    )
    parser.add_argument("--picture", type=Path, help="of `parts`: draw it there (SVG)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupted)  # what was started is ended then too
    names = arguments.names or list(NAMES)
    effort = Effort(arguments.rounds, arguments.sessions, arguments.machines)
    if arguments.trial:
        os.environ["POLYDEV_DRIVER"] = "simulated"
        effort = TRIAL
    run(names, effort, arguments.picture)


if __name__ == "__main__":
    main()
