"""`python -m bench [machine] [disk] [connect]`: all of them, or those that are named."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform

from bench import measure
from bench.agent import running_agent
from bench.connect import connect_steps
from bench.disk import new_disk
from bench.machine_start import machine_start

NAMES = ("disk", "machine", "connect")


async def run(names: list[str], rounds: int) -> None:
    """Measure, and print a table as it grows."""
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores", flush=True)
    print(measure.HEADER, flush=True)
    async with running_agent() as agent:
        if "disk" in names:
            found, lines = await new_disk(agent.images_dir, rounds * 4)
            print(found.row(), *lines, sep="\n", flush=True)
        if "machine" in names:
            health = await agent.host.health()
            found = await machine_start(agent, rounds)
            print(found.row(), f"({health.driver}, {health.accelerator})", flush=True)
    if "connect" in names:
        print("connect, each step: seconds and share", flush=True)
        print(*await connect_steps(), sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs a side")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.names or list(NAMES), arguments.rounds))


main()
