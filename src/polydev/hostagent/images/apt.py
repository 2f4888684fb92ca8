"""The host's own package manager, asked: which archives it uses, and for packages' files.

The kernel and root filesystem builders call it. No archive is named in this repository: the
host's configuration, or the deployment's settings, say where packages come from.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from polydev.hostagent.images.build_context import Workshop
from polydev.hostagent.images.recipe import Distribution

_FORMAT = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)"
_UPDATE_HINT = "run apt-get update, or set the suite and the mirror"
# Host settings that decide whether its archives can be read at all.
_INHERITED = re.compile(
    r'^(Acquire::(Check-Valid-Until|Check-Date|https?::Proxy)) "(.+)";$', re.MULTILINE
)


async def sources_list(shop: Workshop, distribution: Distribution) -> tuple[str, str]:
    """The suite to bootstrap and the `sources.list` to do it from.

    Raises: ImageBuildFailed if the host's apt has no archive for the suite.
    """
    suite = distribution.suite or _host_suite()
    if distribution.mirror is not None:
        lines = [
            f"deb {distribution.mirror} {release} {distribution.components}"
            for release in (suite, f"{suite}-updates")
        ]
        return suite, "\n".join(lines) + "\n"
    lines = []
    output = await shop.run(
        ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"]
    )
    for line in output.splitlines():
        uri, release, component, origin = (line.split("\t") + [""] * 4)[:4]
        ours = release == suite or release.startswith((f"{suite}-", f"{suite}/"))
        # Other archives on the host (a database's, a cloud's) have no place in machines.
        if ours and origin in {"Debian", "Ubuntu"}:
            lines.append(f"deb {uri} {release} {component}")
    if not any(line.split()[2] == suite for line in lines):
        raise shop.failed(f"apt on this host knows no archive of {suite}", hint=_UPDATE_HINT)
    return suite, "\n".join(dict.fromkeys(lines)) + "\n"


async def inherited_options(shop: Workshop) -> list[str]:
    """The host's apt settings that its archives need, as `mmdebstrap --aptopt` arguments."""
    dump = await shop.run(["apt-config", "dump", "Acquire"])
    return [f'--aptopt={key} "{value}"' for key, _, value in _INHERITED.findall(dump)]


async def real_package(shop: Workshop, meta_package: str) -> str:
    """The kernel package that a meta package stands for (itself, if it is none)."""
    depends = await shop.run(["apt-cache", "depends", "--important", meta_package])
    match = re.search(r"^\s*Depends: (linux-image-[0-9]\S*)$", depends, re.MULTILINE)
    return match[1] if match else meta_package


async def download(shop: Workshop, package: str, folder: Path) -> tuple[str, Path]:
    """Fetch a package's file into a new folder. Returns `<name> <version>` and the file.

    apt checks the file against the archive's signed index. Nothing is installed on the host.
    """
    await asyncio.to_thread(folder.mkdir)
    await shop.run(
        ["apt-get", "--option", "APT::Sandbox::User=root", "download", package], cwd=folder
    )
    files = await asyncio.to_thread(lambda: list(folder.glob("*.deb")))
    if len(files) != 1:
        raise shop.failed(f"apt did not download {package}", hint=_UPDATE_HINT)
    version = await shop.run(["dpkg-deb", "--field", str(files[0]), "Version"])
    return f"{package} {version.strip()}", files[0]


def _host_suite() -> str:
    """`VERSION_CODENAME` of the host."""
    match = re.search(
        r'^VERSION_CODENAME="?([a-z0-9]+)"?$', Path("/etc/os-release").read_text(), re.MULTILINE
    )
    return match[1] if match else "bookworm"
