"""Run the named benchmarks, or all of them."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
from pathlib import Path

from postgres import running_cluster

from bench.common import measure
from bench.common.agent import running_agent
from bench.common.effort import TRIAL, Effort
from bench.controller.chat import chat_relay
from bench.controller.connect import connect_steps
from bench.controller.load import load as under_load
from bench.controller.terminal import terminal
from bench.machines import memory
from bench.machines.disk import new_disk
from bench.machines.hibernate import hibernate
from bench.machines.machine_start import machine_start
from bench.machines.start_parts import picture, start_parts
from bench.machines.warm import warm_browsers

NAMES = (
    *("disk", "machine", "parts", "memory", "many", "hibernate", "warm"),
    *("connect", "chat", "terminal", "load"),
)
NEEDS_AGENT = {"disk", "machine", "parts", "memory", "many", "hibernate"}


def run(names: list[str], effort: Effort, picture_path: Path | None) -> None:
    """Run the benchmarks and print each row as soon as it is measured."""
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores", flush=True)
    print(measure.HEADER, flush=True)
    if NEEDS_AGENT & set(names):
        asyncio.run(machines(names, effort, picture_path))
    if "warm" in names:
        asyncio.run(warm(effort))
    if "connect" in names:
        print("connect: seconds and share of each step", flush=True)
        print(*asyncio.run(connect_steps(effort)), sep="\n", flush=True)
    if "chat" in names:
        print(*asyncio.run(chat_relay(effort.chat_pieces)), sep="\n", flush=True)
    if "terminal" in names:
        print(asyncio.run(terminal(effort.rounds * 3, effort.terminal_bytes)).row(), flush=True)
    if "load" in names:
        load(effort)


def load(effort: Effort) -> None:
    """Run concurrent connect sessions on both databases; a trial uses PostgreSQL only."""
    sessions = effort.sessions
    print(f"{sessions} concurrent connect sessions on a simulated host", flush=True)
    if not effort.is_trial:
        print(*asyncio.run(under_load(None, sessions)).rows(), sep="\n", flush=True)
    with running_cluster(is_durable=True) as cluster:
        urls = (cluster.database(), cluster.database())
        print(*asyncio.run(under_load(urls, sessions)).rows(), sep="\n", flush=True)


async def machines(names: list[str], effort: Effort, picture_path: Path | None) -> None:
    """Run the benchmarks that need golden images and a host agent."""
    rounds = effort.rounds
    async with running_agent() as agent:
        if "disk" in names:
            comparison, lines = await new_disk(agent.images_dir, effort.disk_rounds)
            print(comparison.row(), *lines, sep="\n", flush=True)
        if "machine" in names:
            health = await agent.host.health()
            comparison = await machine_start(agent, rounds)
            print(comparison.row(), f"({health.driver}, {health.accelerator})", flush=True)
        if "parts" in names:
            health = await agent.host.health()
            starts = await start_parts(agent, rounds)
            print(*(row for start in starts for row in start.rows()), sep="\n", flush=True)
            if picture_path is not None:
                cores = len(os.sched_getaffinity(0))
                setup = f"{health.driver}, {health.accelerator}, {cores} cores"
                svg = picture(starts, f"Medians of {rounds} starts ({setup})")
                await asyncio.to_thread(picture_path.write_text, svg)
        if "memory" in names:
            print(*await memory.idle(agent, effort), sep="\n", flush=True)
        if "many" in names:
            print(*await memory.many(agent, effort), sep="\n", flush=True)
        if "hibernate" in names:
            comparison, costs = await hibernate(agent, rounds)
            print(comparison.row(), *costs.rows(), sep="\n", flush=True)


async def warm(effort: Effort) -> None:
    """Compare three agents: one with a standby clone, one that clones, one that boots."""
    async with (
        running_agent(POLYDEV_WARM_START="true", POLYDEV_WARM_WAITING="1") as standby,
        running_agent(POLYDEV_WARM_START="true", POLYDEV_WARM_WAITING="0") as cloning,
        running_agent() as cold,
    ):
        async for row in warm_browsers(standby, cloning, cold, effort):
            print(row, flush=True)


def _interrupted(*_: object) -> None:
    """Handle SIGTERM like Ctrl-C, once: `timeout` signals a process and its group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs of each side")
    parser.add_argument("--sessions", type=int, default=200, help="concurrent sessions of `load`")
    parser.add_argument("--machines", type=int, default=10, help="concurrent machines of `many`")
    parser.add_argument(
        "--trial",
        action="store_true",
        help="one short round on simulated machines, as a smoke test: its figures mean nothing",
    )
    parser.add_argument("--picture", type=Path, help="write the chart of `parts` to this SVG file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupted)  # so that SIGTERM stops the processes too
    names = arguments.names or list(NAMES)
    effort = Effort(arguments.rounds, arguments.sessions, arguments.machines)
    if arguments.trial:
        os.environ["POLYDEV_DRIVER"] = "simulated"
        effort = TRIAL
    run(names, effort, arguments.picture)


if __name__ == "__main__":
    main()
