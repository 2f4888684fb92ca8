"""How a program that touches what a guest wrote is run: as nobody in particular, with no way up.

The QEMU driver runs VMMs this way, `e2fs.py` the tools that read guests' filesystems. Both get
their files as open descriptors (`/proc/self/fd/N`), so they need no way into any folder of ours.
The chain only ever replaces itself by exec(2): the pid that was started is the program's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from polydev.errors import MissingTool
from polydev.hostd.network.netns import path_of


def confined(
    argv: Sequence[str], *, uid: int, groups: Sequence[int] = (), netns: str | None = None
) -> list[str]:
    """`argv` run as user and group `uid`, without capabilities, and never with more than that.

    `groups` are its only supplementary groups; `netns` names the network namespace it runs in.
    Source: prlimit(1), setpriv(1), nsenter(1). Raises: MissingTool.
    """
    supplementary = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    chain = [
        # A core file would hold the guest's memory, credentials included.
        *(tool("prlimit", "util-linux"), "--core=0:0", "--"),
        *(tool("setpriv", "util-linux"), "--reuid", str(uid), "--regid", str(uid)),
        *(*supplementary, "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"),
        *("--bounding-set=-all", "--", *argv),
    ]
    if netns is None:
        return chain
    return [tool("nsenter", "util-linux"), f"--net={path_of(netns)}", "--", *chain]


def tool(name: str, package: str) -> str:
    """Where a program is. Raises: MissingTool that names its Debian package."""
    found = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise MissingTool(f"`{name}` is not installed", hint=f"Run: apt-get install {package}")
    return found
