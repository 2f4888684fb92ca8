"""A program that dies in the middle of a launch, for test_firecracker_driver.

Its argument is JSON: the machine's spec, the binaries, and `at`, the number of the API request
before which it kills itself (-1: as soon as the VMM process exists).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.contract import LaunchSpec
from polydev.hostagent.vmm.firecracker import session
from polydev.hostagent.vmm.firecracker.api import Api
from polydev.hostagent.vmm.firecracker.binaries import Binaries
from polydev.hostagent.vmm.firecracker.driver import FirecrackerDriver
from polydev.hostagent.vmm.firecracker.limits import RateLimits

_PATHS = ("folder", "kernel", "initramfs", "root_image", "disk", "config_drive")


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(asked: dict[str, Any]) -> None:
    fields = asked["spec"]
    spec = LaunchSpec(**{k: Path(v) if k in _PATHS else v for k, v in fields.items()})
    left = asked["at"]
    ask = Api._request

    async def counted(self: Api, method: str, path: str, *rest: Any) -> Any:
        nonlocal left
        if left == 0:
            die()
        left -= 1
        return await ask(self, method, path, *rest)

    Api._request = counted  # type: ignore[method-assign]
    if left < 0:
        session.FirecrackerSession._attach = die  # type: ignore[method-assign, assignment]
    driver = FirecrackerDriver(
        machines_dir=spec.folder.parent,
        cache_dir=spec.folder,
        boot_files=lambda: BootFiles(spec.kernel, spec.initramfs),
        binaries=lambda: Binaries(Path(asked["firecracker"]), Path(asked["jailer"])),
        rates=RateLimits(),
        parent_cgroup=asked["parent_cgroup"],
    )
    await driver.launch(spec)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
