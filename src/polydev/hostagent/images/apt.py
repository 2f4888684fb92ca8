"""The host's package manager: its archives, and downloads of packages.

The kernel and root image builders use it. No archive is named in this repository: the host's
configuration or the settings name the source of packages.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from polydev.hostagent.images.build_context import BuildContext
from polydev.hostagent.images.recipe import Distribution

_FORMAT = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)"
_UPDATE_HINT = "run apt-get update, or set the suite and the mirror"
# Host settings without which its archives may be unreachable.
_INHERITED = re.compile(
    r'^(Acquire::(Check-Valid-Until|Check-Date|https?::Proxy)) "(.+)";$', re.MULTILINE
)


async def sources_list(context: BuildContext, distribution: Distribution) -> tuple[str, str]:
    """Return the suite to bootstrap, and its `sources.list`.

    Raises: ImageBuildFailed if the host's apt has no archive of the suite.
    """
    suite = distribution.suite or _host_suite()
    if distribution.mirror is not None:
        lines = [
            f"deb {distribution.mirror} {release} {distribution.components}"
            for release in (suite, f"{suite}-updates")
        ]
        return suite, "\n".join(lines) + "\n"
    lines = []
    output = await context.run(
        ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"]
    )
    for line in output.splitlines():
        uri, release, component, origin = (line.split("\t") + [""] * 4)[:4]
        ours = release == suite or release.startswith((f"{suite}-", f"{suite}/"))
        # Third-party archives on the host do not belong in machines.
        if ours and origin in {"Debian", "Ubuntu"}:
            lines.append(f"deb {uri} {release} {component}")
    if not any(line.split()[2] == suite for line in lines):
        raise context.failed(f"apt on this host has no archive of {suite}", hint=_UPDATE_HINT)
    return suite, "\n".join(dict.fromkeys(lines)) + "\n"


async def inherited_options(context: BuildContext) -> list[str]:
    """Return the host's apt settings for its archives, as `--aptopt` arguments."""
    dump = await context.run(["apt-config", "dump", "Acquire"])
    return [f'--aptopt={key} "{value}"' for key, _, value in _INHERITED.findall(dump)]


async def real_package(context: BuildContext, meta_package: str) -> str:
    """Resolve a meta package to its kernel package."""
    depends = await context.run(["apt-cache", "depends", "--important", meta_package])
    match = re.search(r"^\s*Depends: (linux-image-[0-9]\S*)$", depends, re.MULTILINE)
    return match[1] if match else meta_package


async def download(context: BuildContext, package: str, folder: Path) -> tuple[str, Path]:
    """Download a package into a new folder; return `<name> <version>` and the file.

    apt verifies the file against the archive's signed index. Nothing is installed on the host.
    """
    await asyncio.to_thread(folder.mkdir)
    await context.run(
        ["apt-get", "--option", "APT::Sandbox::User=root", "download", package], cwd=folder
    )
    files = await asyncio.to_thread(lambda: list(folder.glob("*.deb")))
    if len(files) != 1:
        raise context.failed(f"apt did not download {package}", hint=_UPDATE_HINT)
    version = await context.run(["dpkg-deb", "--field", str(files[0]), "Version"])
    return f"{package} {version.strip()}", files[0]


def _host_suite() -> str:
    """Return the host's `VERSION_CODENAME`."""
    match = re.search(
        r'^VERSION_CODENAME="?([a-z0-9]+)"?$', Path("/etc/os-release").read_text(), re.MULTILINE
    )
    return match[1] if match else "bookworm"
