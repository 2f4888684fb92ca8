"""Run the real CLIs in a network namespace with the fake providers.

Provides a home folder and a user with a browser. There is no network beyond the namespace.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import html.parser
import json
import os
import select
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin

import httpx

from polydev.hostagent.images.npm import all_commands
from polydev.hostagent.images.recipe import Recipe

Result = TypeVar("Result")

REPOSITORY = Path(__file__).parents[3]
ADDRESS = "198.51.100.1"  # TEST-NET-2, on the namespace's loopback
CLONE_NEWNET = 0x40000000
PATIENCE_S = 120

BUNDLES = ("clis", "adapters")


def installed_clis() -> Path:
    """Return a folder with the CLIs: POLYDEV_TEST_CLIS, or the locked packages."""
    given = os.environ.get("POLYDEV_TEST_CLIS")
    if given:
        return Path(given)
    recipes = REPOSITORY / "images"
    locks = b"".join((recipes / name / "package-lock.json").read_bytes() for name in BUNDLES)
    folder = Path("/var/cache/polydev") / f"clis-{hashlib.sha256(locks).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "clis.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of the parallel tests installs for all
        if not folder.exists():
            temporary = folder.parent / "clis-new"
            shutil.rmtree(temporary, ignore_errors=True)  # left by an interrupted run
            temporary.mkdir()
            _install(recipes, temporary)
            temporary.rename(folder)
    return folder / "bin"


def _install(recipes: Path, folder: Path) -> None:
    for name in BUNDLES:
        shutil.copytree(recipes / name, folder / name)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=folder / name, check=True, stdout=subprocess.DEVNULL)
    (folder / "bin").mkdir()
    for command in all_commands(Recipe()):
        packages = Path("..", command.bundle, "node_modules")
        (folder / "bin" / command.name).symlink_to(packages / command.package / command.program)


class Namespace:
    """Network namespace with loopback only; its processes end with it."""

    def __init__(self) -> None:
        self.name = f"pdt-{uuid.uuid4().hex[:8]}"
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", self.name, "address", "add", f"{ADDRESS}/32", "dev", "lo")
        self._threads = ThreadPoolExecutor(initializer=self._join)

    def start(
        self, argv: Sequence[str | Path], environment: Mapping[str, str], **options: Any
    ) -> "subprocess.Popen[str]":
        command = ["ip", "netns", "exec", self.name, *map(str, argv)]
        return subprocess.Popen(command, env=dict(environment), text=True, **options)

    def run(
        self, argv: Sequence[str | Path], environment: Mapping[str, str], **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        command = ["ip", "netns", "exec", self.name, *map(str, argv)]
        return subprocess.run(
            command,
            env=dict(environment),
            check=False,
            text=True,
            capture_output=True,
            timeout=PATIENCE_S,
            **options,
        )

    def call(self, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Call a function in a thread of the namespace; its sockets stay there."""
        return self._threads.submit(function, *arguments, **named).result(PATIENCE_S)

    def pids(self) -> list[int]:
        """Return the processes in the namespace."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True
        )
        return [int(word) for word in listed.stdout.split()]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        until_s = time.monotonic() + PATIENCE_S
        while left := self.pids():
            assert time.monotonic() < until_s, f"{left} do not end"
            for pid in left:
                _kill(pid)
        _ip("netns", "delete", self.name)

    def _join(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/run/netns", self.name).open() as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")


class FakeProviders:
    """Process of the fake providers, started as in the demo."""

    def __init__(self, namespace: Namespace, folder: Path, *options: str) -> None:
        self.folder = folder
        self._skipped_calls = 0
        command = [
            sys.executable,
            "-m",
            "polydev.testing.fake_providers",
            "--netns",
            namespace.name,
        ]
        command += ["--listen", ADDRESS, "--proxy-port", "0", "--folder", str(folder), *options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        )
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        assert ready["ready"] is True
        self.proxy: str = ready["proxy"]
        self.ca: str = ready["ca"]

    def calls(self) -> list[dict[str, Any]]:
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines[self._skipped_calls :]]

    def skip_earlier_calls(self) -> None:
        """Hide the calls of earlier tests."""
        self._skipped_calls += len(self.calls())

    def grants(self) -> list[str]:
        """Return the grant types of issued tokens, in order."""
        return [call["grant_type"] for call in self.calls() if call["event"] == "tokens-issued"]

    def statuses(self, path: str) -> list[int]:
        """Return the response statuses of a path."""
        return [call["status"] for call in self.calls() if call.get("path") == path]

    def wait_for_status(self, path: str, status: int) -> None:
        """Wait for a response with a status; a stream is logged after its end."""
        until_s = time.monotonic() + PATIENCE_S
        while status not in self.statuses(path):
            assert time.monotonic() < until_s, f"{path}: {self.statuses(path)}"
            time.sleep(0.05)

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(PATIENCE_S) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass
class World:
    """Environment of a test: runs the CLIs and acts as the user."""

    namespace: Namespace
    providers: FakeProviders
    clis: Path
    folder: Path
    """Files of one test, including the home folder."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def with_new_home(self, home: Path | None = None) -> "World":
        """Return an environment for another test, with its own folder and home.

        The home is empty, or a copy of `home`.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="test-"))
        if home is None:
            (folder / "home").mkdir()
        else:
            shutil.copytree(home, folder / "home", symlinks=True)
        return replace(self, folder=folder)

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": f"{self.clis}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "HTTPS_PROXY": self.providers.proxy,
            "NODE_EXTRA_CA_CERTS": self.providers.ca,
            "SSL_CERT_FILE": self.providers.ca,
            "CODEX_CA_CERTIFICATE": self.providers.ca,
            **more,
        }

    def run(self, *argv: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return self.namespace.run(argv, self.environment(), cwd=self.home, **options)

    def log_in(self, url: str, *, reaches_callbacks: bool = True) -> "Page":
        """Log in at an authorization URL; return the last page.

        With `reaches_callbacks=False` the browser is on another machine than the CLI.
        """
        user = User(self.providers.proxy, self.providers.ca, reaches_callbacks)
        return self.namespace.call(user.log_in, url)


@contextlib.contextmanager
def open_world(*options: str) -> Iterator[World]:
    clis = installed_clis()
    # Not under /tmp: Codex refuses to put its helper programs there.
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="polydev-test-"))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder)
        namespace = Namespace()
        cleanup.callback(namespace.close)
        providers = FakeProviders(namespace, folder / "standin", *options)
        cleanup.callback(providers.close)
        (folder / "home").mkdir()
        yield World(namespace, providers, clis, folder)


def _kill(pid: int) -> None:
    """Kill any process and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], PATIENCE_S)
        finally:
            os.close(process)


@dataclass(frozen=True)
class Page:
    """Last page of the user's browser. A failed URL has no text."""

    url: str
    text: str


@dataclass(frozen=True)
class User:
    """User with a browser that handles forms and redirects."""

    proxy: str
    ca: str
    reaches_callbacks: bool

    def log_in(self, url: str) -> Page:
        with self._browser() as browser:
            answer = browser.get(url)
            answer.raise_for_status()
            form = _FormFields(answer.text).fields
            form |= {"email": "ada@example.test", "password": "analytical-engine"}
            answer = browser.post(urljoin(url, "/standin/sign-in"), data=form)
            answer.raise_for_status()
            form = _FormFields(answer.text).fields | {"decision": "allow"}
            answer = browser.post(urljoin(url, "/standin/consent"), data=form)
            return self._follow(browser, urljoin(url, answer.headers["Location"]))

    def _browser(self) -> httpx.Client:
        local = httpx.HTTPTransport()
        mounts = {"all://localhost": local, "all://127.0.0.1": local}
        context = ssl.create_default_context(cafile=self.ca)
        return httpx.Client(
            proxy=self.proxy, mounts=mounts, verify=context, timeout=60, trust_env=False
        )

    def _follow(self, browser: httpx.Client, url: str) -> Page:
        for _ in range(10):
            if url.startswith("http://") and not self.reaches_callbacks:
                return Page(url, "")
            try:
                answer = browser.get(url)
            except httpx.TransportError:
                return Page(url, "")
            if not answer.has_redirect_location:
                return Page(url, answer.text)
            url = urljoin(url, answer.headers["Location"])
        raise AssertionError("redirected in circles")


class _FormFields(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "input" and found.get("name"):
            self.fields[str(found["name"])] = found.get("value") or ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
