"""`polydev demo`: log in the real CLIs offline, against fake providers.

It runs the steps that a user would run, verifies the result of each, and prints their durations.
The instance keeps running afterwards; `polydev down --demo` removes it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer

from polydev.cli.client import exec_client
from polydev.cli.client.api_client import ApiClient, open_client
from polydev.cli.commands import chat, connect
from polydev.cli.commands.instance import image
from polydev.cli.commands.instance.up import Plan
from polydev.cli.demo import demo_env
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor import daemonize, preflight, shutdown
from polydev.hostagent.images import ImageKind
from polydev.hostagent.settings import HostSettings
from polydev.shared.domain import step_label
from polydev.shared.errors import CredentialsNotAccepted, Failed, PolydevError
from polydev.shared.host_client import HostClient, local_agent
from polydev.shared.host_protocol import ExecRequest
from polydev.shared.providers import provider as find_provider
from polydev.shared.providers import provider_ids
from polydev.shared.settings.base import read

LABELS = {
    "images": "Building the golden images",
    "fake-providers": "Starting the fake providers",
    "start": "Starting the host agent and the controller",
    "browser gone": "Checking that the browser machine is gone",
    "status": "Checking the login with the CLI",
    "chat": "Running a chat turn",
}
"""Labels of the demo's own steps."""

FAKE_ACCOUNT = "ada@example.test, password analytical-engine"
"""Account of the fake providers (docs/fake-providers.md)."""

QUESTION = "Say hello in one sentence."


@dataclass(frozen=True, slots=True)
class TimedStep:
    """Step with its duration."""

    provider: str | None
    step: str
    seconds: float


@dataclass(slots=True)
class Report:
    """Result of the demo, which `--json` prints."""

    ok: bool = False
    steps: list[TimedStep] = field(default_factory=list)
    url: str = ""
    state_dir: str = ""
    machines: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    account: dict[str, str] = field(default_factory=dict)
    """E-mail address and generated password of the demo's administrator."""
    seconds: float = 0.0
    error: dict[str, str] | None = None


@runs
async def demo(
    provider: Annotated[
        list[str] | None,
        typer.Option(help="A CLI to log in; may be repeated. Default: every CLI."),
    ] = None,
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="Start everything, but leave the logins to you.")
    ] = False,
    keep_approving: Annotated[
        bool,
        typer.Option(
            "--keep-approving",
            help="Let the fake providers approve logins automatically after the demo, too.",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Log the real CLIs in to fake providers and chat, in real microVMs.

    Examples: `polydev demo`, then `polydev down --demo`; `polydev demo --by-hand`, and then log
    in yourself in the browser.
    """
    chosen = provider or list(provider_ids())
    for name in chosen:
        find_provider(name)
    preflight.root()
    world = demo_env.enter()
    with demo_env.demo_lock(world):
        terminal = Terminal(as_json=as_json)
        fake_providers = await _run_demo(world, [] if by_hand else chosen, terminal)
        if not keep_approving:
            fake_providers.stop_auto_approval()


async def _run_demo(
    world: demo_env.DemoSettings, providers: list[str], terminal: Terminal
) -> demo_env.FakeProviders:
    journey = Journey(terminal, Report(state_dir=str(world.state_dir)))
    began = time.monotonic()
    try:
        fake_providers = await journey.prepare(world, by_hand=not providers)
        async with open_client() as api:
            for provider in providers:
                await journey.run_provider(api, provider)
            await journey.create_password(api)
        journey.report.ok = True
    except PolydevError as error:
        journey.report.error = {"code": error.code, "message": error.message, "hint": error.hint}
        _report_failure(terminal, journey.report)
        raise
    finally:
        journey.report.seconds = round(time.monotonic() - began, 3)
        if terminal.as_json:
            terminal.answer(asdict(journey.report))
    _report_success(terminal, journey.report)
    return fake_providers


class Journey:
    """Steps of the demo. Each adds itself to the report."""

    def __init__(self, terminal: Terminal, report: Report) -> None:
        self._terminal = terminal
        self.report = report

    async def prepare(
        self, world: demo_env.DemoSettings, *, by_hand: bool
    ) -> demo_env.FakeProviders:
        """Remove an earlier demo, build images, and start the fake providers and Polydev."""
        self._terminal.heading("Preparing")
        settings = read(HostSettings)
        if await shutdown.stop_and_purge(settings, self._terminal):
            await demo_env.remove(self._terminal)
        plan = Plan.read()
        async with self._timed(None, "images"):
            await image.build_missing(self._terminal, list(ImageKind), renew=False)
        plan.check()
        async with self._step(None, "fake-providers", LABELS["fake-providers"]):
            fake_providers = await demo_env.build(world, by_hand=by_hand)
        async with self._step(None, "start", LABELS["start"]):
            await daemonize.start(plan.up.state_dir)
        self.report.url = plan.url
        async with local_agent.opened(HostClient(settings.host_socket)) as host:
            health = await host.health()
        self._terminal.say(f"    {plan.url}, driver {health.driver} ({health.accelerator})")
        return fake_providers

    async def run_provider(self, api: ApiClient, provider: str) -> None:
        """Log in a CLI, verify the login, and run a chat turn."""
        self._terminal.heading(provider)
        session = await connect.connected(api, provider, self._terminal)
        for step in session["steps"]:
            if step["seconds"] is not None:
                self._add(provider, step["step"], step["seconds"])
        if error := connect.session_error(session):
            raise error
        vm_id = session["cliVM"]["vmId"]
        self.report.machines[provider] = vm_id
        async with self._step(provider, "browser gone", LABELS["browser gone"]):
            await self._only_cli_machines(api)
        command = " ".join(find_provider(provider).status_argv)
        async with self._step(provider, "status", f"{command}, in the CLI machine") as details:
            details.append(await self._status(api, provider, vm_id))
        async with self._step(provider, "chat", LABELS["chat"]):
            answer = await chat.turn(api, provider, QUESTION, self._terminal, quiet=True)
            self.report.answers[provider] = answer

    async def create_password(self, api: ApiClient) -> None:
        """Reset the administrator's password, so that the user can sign in in the browser."""
        me = await api.get("/api/account")
        made = await api.post(f"/api/admin/people/{me['id']}/password")
        self.report.account = {"email": made["email"], "password": made["password"]}

    async def _only_cli_machines(self, api: ApiClient) -> None:
        """Check controller and host for remains of a browser machine. Raises Failed."""
        machines = await api.list_all("/api/vm/list")
        left = [row["vm_id"] for row in machines if row["vm_type"] != "cli"]
        known = {row["vm_id"] for row in machines}
        async with local_agent.opened(HostClient(read(HostSettings).host_socket)) as host:
            found = await host.inventory()
        left += sorted({*found.machines, *found.folders, *found.processes} - known)
        left += sorted(set(found.addresses) - known)
        if left or len(found.taps) != len(known):
            raise Failed(f"Remains of a browser machine: {left or found.taps}")

    async def _status(self, api: ApiClient, provider: str, vm_id: str) -> str:
        argv = list(find_provider(provider).status_argv)
        result = await exec_client.run_captured(api, vm_id, ExecRequest(argv=argv))
        output = (result["stdout"] + result["stderr"]).strip()
        if result["exit_code"] != 0:
            raise CredentialsNotAccepted(f"{provider} reports: {output[-300:]}")
        return "logged in" if output.startswith("{") else _first_line(output)

    @asynccontextmanager
    async def _step(self, provider: str | None, name: str, title: str) -> AsyncIterator[list[str]]:
        """Show and time a step. Strings in the yielded list become its details."""
        details: list[str] = []
        async with self._timed(provider, name), self._terminal.step(title) as shown:
            yield details
            shown.detail = " ".join(details)

    @asynccontextmanager
    async def _timed(self, provider: str | None, name: str) -> AsyncIterator[None]:
        began = time.monotonic()
        yield
        self._add(provider, name, time.monotonic() - began)

    def _add(self, provider: str | None, name: str, seconds: float) -> None:
        self.report.steps.append(TimedStep(provider, name, round(seconds, 3)))


def _step_label(step: str) -> str:
    return LABELS.get(step) or step_label(step)


def _first_line(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return lines[0][:60] if lines else "(nothing)"


def _report_success(terminal: Terminal, report: Report) -> None:
    if report.answers:
        _report_steps(terminal, report)
    url = report.url.replace("127.0.0.1", "localhost")
    terminal.heading(f"Polydev runs at {url}")
    terminal.say(f"  sign in as        {report.account['email']}")
    terminal.say(f"  with password     {report.account['password']}")
    terminal.say(f"  fake provider account: {FAKE_ACCOUNT}")
    here = f"POLYDEV_STATE_DIR={report.state_dir} bin/polydev"
    terminal.say(f'  {here} chat codex "What can you do?"')
    terminal.say(f"  {here} machine list")
    terminal.say("  make down         stops and removes the demo")


def _report_steps(terminal: Terminal, report: Report) -> None:
    terminal.heading("Durations")
    terminal.table(
        ("", "step", "seconds"),
        (
            (taken.provider or "prepare", _step_label(taken.step), f"{taken.seconds:7.1f}")
            for taken in report.steps
        ),
    )
    terminal.say(f"Total {report.seconds:.0f} s.")
    for provider, answer in report.answers.items():
        terminal.heading(f"{provider} answered")
        terminal.say(answer)


def _report_failure(terminal: Terminal, report: Report) -> None:
    last = report.steps[-1] if report.steps else None
    after: Any = f" after `{last.provider or 'prepare'}: {last.step}`" if last else ""
    terminal.say()
    terminal.say(f"The demo failed{after}. It keeps running so that you can inspect it:", "red")
    terminal.say(f"  logs:      {report.state_dir}/logs/*.log")
    terminal.say(f"  consoles:  {report.state_dir}/machines/*/console.log")
    terminal.say(f"  doctor:    POLYDEV_STATE_DIR={report.state_dir} bin/polydev doctor")
    terminal.say("  make down  stops and removes the demo")
