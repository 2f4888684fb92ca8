"""Test the browser service with the logins of the real CLIs.

A small HTTP client replaces Chromium: it serves the debugging port and follows the pages that are
opened there.
"""

import contextlib
import http.server
import json
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import jsonschema
import pytest
from cli_world import PATIENCE_S, REPOSITORY, World, open_world
from provider_files import install_providers

from polydev.shared.providers import provider_ids

pytestmark = pytest.mark.clis

SESSION = "3f0c6c1e-6c0f-4d43-9f40-2a0f4b1d9a01"
PORT, DEBUGGING_PORT = 8080, 9222
PROVIDERS = REPOSITORY / "src/polydev/shared/providers"
SERVICE = REPOSITORY / "src/polydev/guest"


class Browser:
    """Debugging port of a browser that opens pages."""

    def __init__(self, world: World, *, follows: bool) -> None:
        self.opened: list[str] = []
        self.activated: list[str] = []
        browser = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                path, _, query = self.path.partition("?")
                assert path == "/json/new"
                browser.opened.append(unquote(query))
                if follows:
                    threading.Thread(target=world.log_in, args=[browser.opened[-1]]).start()
                self._answer(json.dumps({"id": "0A1B", "type": "page"}).encode())

            def do_GET(self) -> None:
                browser.activated.append(self.path)
                self._answer(b"Target activated")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        address = ("127.0.0.1", DEBUGGING_PORT)
        self._server = world.namespace.call(http.server.ThreadingHTTPServer, address, Handler)
        threading.Thread(target=self._server.serve_forever).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Service:
    """Browser service in the test's namespace, with a client."""

    def __init__(self, world: World, providers: Path | None = None) -> None:
        self._here = world
        providers = providers or install_providers(world.folder / "providers")
        self.token = secrets.token_urlsafe(32)
        (world.folder / "token").write_text(self.token + "\n")
        self.log = world.folder / "service.log"
        command = [sys.executable, "-m", "browser_service"]
        command += ["--token-file", world.folder / "token", "--home", world.home]
        command += ["--url-fifo", world.folder / "browser-url", "--providers", providers]
        for_clis = world.environment()
        lines = [f"{name}={value}" for name, value in for_clis.items() if name != "PATH"]
        (world.folder / "environment").write_text("\n".join(lines) + "\n")
        command += ["--environment-file", world.folder / "environment"]
        environment = {"PATH": for_clis["PATH"], "PYTHONPATH": str(SERVICE)}
        with self.log.open("w") as log:
            self.process = world.namespace.start(command, environment, stderr=log)
        self._wait_until_listening()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        url = f"http://127.0.0.1:{PORT}{path}"
        options |= {"headers": headers, "timeout": PATIENCE_S, "trust_env": False}
        return self._here.namespace.call(httpx.request, method, url, **options)

    def start(self, provider: str, session: str = SESSION) -> httpx.Response:
        return self.request("POST", f"/auth/{provider}", json={"sessionId": session})

    def urls(self, provider: str) -> dict[str, str]:
        answer = self.request("GET", f"/auth/{provider}/oauth-url?wait=30")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def outcome(self, provider: str) -> dict[str, Any]:
        for _ in range(4):
            answer = self.request("GET", f"/auth/{provider}/credentials/status?wait=30").json()
            if answer["ready"] or answer["failed"]:
                return dict(answer)
        raise AssertionError("the login neither finished nor failed")

    def paste(self, provider: str, **what: str) -> httpx.Response:
        return self.request("POST", f"/auth/{provider}/input", json=what)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0

    def _wait_until_listening(self) -> None:
        for _ in range(PATIENCE_S * 10):
            with contextlib.suppress(httpx.TransportError):
                if self.request("GET", "/health").status_code == 200:
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
                break
        raise AssertionError(self.log.read_text())


@pytest.fixture
def world() -> Iterator[World]:
    with open_world() as it:
        yield it


@pytest.fixture
def service(world: World) -> Iterator[Service]:
    with contextlib.closing(Service(world)) as running:
        yield running


def check_credentials(world: World, provider: str, outcome: dict[str, Any]) -> None:
    assert outcome["ready"], outcome
    schema = json.loads((PROVIDERS / provider / "credentials.schema.json").read_text())
    jsonschema.validate(outcome["credentials"], schema)
    log = (world.folder / "service.log").read_text()
    assert "login of " in log
    for secret in ("standin", "code=", "state=", "eyJ"):
        assert secret not in log


@pytest.mark.parametrize(
    ("provider", "status"),
    [
        ("codex", ["codex", "login", "status"]),
        ("claude_code", ["claude", "auth", "status", "--json"]),
        ("gemini_cli", [str(PROVIDERS / "gemini_cli/status.js")]),
    ],
)
def test_login_in_machine_browser_yields_complete_credentials(
    world: World, service: Service, provider: str, status: list[str]
) -> None:
    with contextlib.closing(Browser(world, follows=True)) as browser:
        assert service.start(provider).status_code == 202
        url = service.urls(provider)["url"]
        check_credentials(world, provider, service.outcome(provider))
    assert browser.opened == [url]
    assert browser.activated == ["/json/activate/0A1B"]
    assert world.run(*status).returncode == 0
    state = service.request("GET", f"/auth/{provider}/state").json()
    assert (state["step"], state["opened"], state["reason"]) == ("ready", True, None)


def test_code_from_local_browser_is_entered_for_claude_code(world: World, service: Service) -> None:
    service.start("claude_code")
    urls = service.urls("claude_code")
    assert urls["accepts"] == "code"
    page = world.log_in(urls["ownBrowserUrl"])
    code = page.text.partition('<code id="code">')[2].partition("</code>")[0]
    refused = service.paste("claude_code", code=code.partition("#")[0])
    assert (refused.status_code, refused.json()["code"]) == (422, "paste_refused")
    other = service.paste("claude_code", code=code + "x")
    assert "another login" in other.json()["detail"]
    assert service.paste("claude_code", code=f" {code}\n").status_code == 202
    check_credentials(world, "claude_code", service.outcome("claude_code"))


@pytest.mark.parametrize("provider", provider_ids())
def test_callback_url_from_local_browser_is_delivered(
    world: World, service: Service, provider: str
) -> None:
    service.start(provider)
    url = service.urls(provider)["url"]
    # The user's browser runs elsewhere: it cannot reach the callback and shows its URL.
    callback = callback_of(world, url)
    wrong = callback.replace("state=", "state=x")
    assert "another login" in service.paste(provider, callbackUrl=wrong).json()["detail"]
    assert service.paste(provider, callbackUrl=callback).status_code == 202
    check_credentials(world, provider, service.outcome(provider))


@pytest.mark.parametrize(
    "callback",
    [
        "http://127.0.0.1:8080/health",
        "http://127.0.0.1:1455/success?code=x",
        "http://127.0.0.1:22/auth/callback?code=x",
        "http://192.168.100.1:1455/auth/callback?code=x",
        "http://localhost:1455@192.168.100.1/auth/callback?code=x",
        "https://127.0.0.1:1455/auth/callback?code=x",
        "file:///run/polydev/token",
        "x" * 5000,
    ],
)
def test_only_the_cli_callback_is_fetched(service: Service, callback: str) -> None:
    service.start("codex")
    service.urls("codex")
    answer = service.paste("codex", callbackUrl=callback)
    assert (answer.status_code, answer.json()["code"]) == (422, "paste_refused")


def test_wrong_code_ends_with_cli_error(world: World, service: Service) -> None:
    service.start("claude_code")
    own = service.urls("claude_code")["ownBrowserUrl"]
    code = f"made-up-code-0123456789#{httpx.URL(own).params['state']}"
    assert service.paste("claude_code", code=code).status_code == 202
    outcome = service.outcome("claude_code")
    assert outcome["failed"]
    assert "exit code 1" in outcome["reason"]
    assert "wasn't accepted" in outcome["output"]
    assert outcome["credentials"] is None
    for secret in ("made-up-code", "code_challenge", code.partition("#")[2], "\x1b"):
        assert secret not in outcome["output"]
    late = service.paste("claude_code", code=code)
    assert (late.status_code, late.json()["code"]) == (409, "not_waiting")


def test_denied_consent_fails_login(world: World, service: Service) -> None:
    service.start("codex")
    url = service.urls("codex")["url"]
    state = httpx.URL(url).params["state"]
    callback = f"{httpx.URL(url).params['redirect_uri']}?error=access_denied&state={state}"
    service.paste("codex", callbackUrl=callback)
    assert service.outcome("codex")["failed"]


def test_machine_runs_one_login(service: Service) -> None:
    assert service.start("codex").status_code == 202
    first = service.urls("codex")
    assert service.start("codex").status_code == 202  # a repeated request returns the same login
    assert service.urls("codex") == first
    for answer in (
        service.start("codex", "5b0a4a7e-0000-4000-8000-000000000000"),
        service.start("claude_code"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "login_in_progress")


def test_requests_without_machine_token_are_refused(service: Service) -> None:
    service.start("codex")
    for header in ("", "Bearer", "Bearer wrong", f"Basic {service.token}", service.token):
        for method, path in (
            ("POST", "/auth/codex"),
            ("GET", "/auth/codex/oauth-url"),
            ("GET", "/auth/codex/credentials/status"),
            ("GET", "/auth/codex/state"),
            ("POST", "/auth/codex/input"),
            ("GET", "/nothing/here"),
        ):
            answer = service.request(method, path, headers={"Authorization": header})
            assert (answer.status_code, answer.json()["code"]) == (401, "wrong_token")
    assert service.request("GET", "/health", headers={"Authorization": ""}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8080", "127.0.0.1", "localhost:80"])
def test_unknown_host_name_is_refused(service: Service, host: str) -> None:
    for path in ("/health", "/auth/codex/state"):
        answer = service.request("GET", path, headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (403, "wrong_host")


def test_stopped_service_ends_cli(world: World) -> None:
    service = Service(world)
    service.start("codex")
    service.urls("codex")
    assert in_namespace(world, "codex")
    service.close()
    assert not in_namespace(world, "codex")


def callback_of(world: World, url: str) -> str:
    """Log in with a browser that cannot reach the CLI's callback."""
    page = world.log_in(url, reaches_callbacks=False)
    assert page.url.startswith("http://")
    assert page.text == ""
    return page.url


def in_namespace(world: World, program: str) -> bool:
    names = set()
    for pid in world.namespace.pids():
        with contextlib.suppress(OSError):  # it has just ended
            names.add(Path("/proc", str(pid), "comm").read_text().strip())
    return program in names
