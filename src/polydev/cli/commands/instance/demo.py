"""`polydev demo`: the main job, carried through on this machine, offline, with the real CLIs.

Does what a person would do with the other commands, looks behind each claim, and ends with a
table of the steps and their times. What it started stays up; `polydev down --demo` removes it.
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
from polydev.shared.host_client import Host
from polydev.shared.host_protocol import ExecRequest
from polydev.shared.providers import provider as find_provider
from polydev.shared.providers import provider_ids
from polydev.shared.settings.base import read

WORDS = {
    "images": "Building what machines boot from",
    "stand-in": "Starting the stand-in provider",
    "start": "Starting host agent and controller",
    "browser gone": "Looking that the browser machine is gone",
    "status": "Asking the CLI whether it is logged in",
    "chat": "A chat turn",
}
"""The demo's own steps, in its table."""

STANDIN_ACCOUNT = "ada@example.test, password analytical-engine"
"""Who can sign in there (docs/fake-providers.md)."""

QUESTION = "Say hello to whoever reads this, in one sentence."


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A step that was taken, and how long it took."""

    provider: str | None
    step: str
    seconds: float


@dataclass(slots=True)
class Report:
    """What `--json` ends with."""

    ok: bool = False
    steps: list[TimedStep] = field(default_factory=list)
    url: str = ""
    state_dir: str = ""
    machines: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    account: dict[str, str] = field(default_factory=dict)
    """With what the page is signed in to: the demo's own, made up for it."""
    seconds: float = 0.0
    error: dict[str, str] | None = None


@runs
async def demo(
    provider: Annotated[
        list[str] | None,
        typer.Option(help="A CLI to log in; may be repeated. Default: every CLI."),
    ] = None,
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="Start everything, and leave the logins to you.")
    ] = False,
    keep_approving: Annotated[
        bool,
        typer.Option(
            "--keep-approving", help="Have the stand-in sign people in by itself afterwards, too."
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Log the real CLIs in and talk to them, in real microVMs, against a local provider.

    Examples: `polydev demo`, then `polydev down --demo`; `polydev demo --by-hand`, and then log
    in yourself on the page.
    """
    chosen = provider or list(provider_ids())
    for name in chosen:
        find_provider(name)
    preflight.root()
    world = demo_env.enter()
    with demo_env.demo_lock(world):
        terminal = Terminal(as_json=as_json)
        standin = await _run_demo(world, [] if by_hand else chosen, terminal)
        if not keep_approving:
            standin.stop_auto_approval()


async def _run_demo(
    world: demo_env.DemoSettings, providers: list[str], terminal: Terminal
) -> demo_env.FakeProviders:
    journey = Journey(terminal, Report(state_dir=str(world.state_dir)))
    began = time.monotonic()
    try:
        standin = await journey.prepare(world, by_hand=not providers)
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
    return standin


class Journey:
    """The demo's steps; each adds itself to the report."""

    def __init__(self, terminal: Terminal, report: Report) -> None:
        self._terminal = terminal
        self.report = report

    async def prepare(
        self, world: demo_env.DemoSettings, *, by_hand: bool
    ) -> demo_env.FakeProviders:
        """End an earlier demo, build what machines boot from, start the world and Polydev."""
        self._terminal.heading("Preparing")
        settings = read(HostSettings)
        if await shutdown.stop_and_purge(settings, self._terminal):
            await demo_env.remove(self._terminal)
        plan = Plan.read()
        async with self._timed(None, "images"):
            await image.build_missing(self._terminal, list(ImageKind), renew=False)
        plan.check()
        async with self._step(None, "stand-in", "Starting the stand-in provider"):
            standin = await demo_env.build(world, by_hand=by_hand)
        async with self._step(None, "start", "Starting host agent and controller"):
            await daemonize.start(plan.up.state_dir)
        self.report.url = plan.url
        async with Host(settings.host_socket) as host:
            health = await host.health()
        self._terminal.say(f"    {plan.url}, machines by {health.driver} ({health.accelerator})")
        return standin

    async def run_provider(self, api: ApiClient, provider: str) -> None:
        """Log a CLI in, look that it is true, and talk to it."""
        self._terminal.heading(provider)
        session = await connect.connected(api, provider, self._terminal)
        for step in session["steps"]:
            if step["seconds"] is not None:
                self._add(provider, step["step"], step["seconds"])
        if error := connect.session_error(session):
            raise error
        vm_id = session["cliVM"]["vmId"]
        self.report.machines[provider] = vm_id
        async with self._step(provider, "browser gone", "The browser machine is gone"):
            await self._only_cli_machines(api)
        command = " ".join(find_provider(provider).status_argv)
        async with self._step(provider, "status", f"{command}, in the CLI machine") as said:
            said.append(await self._status(api, provider, vm_id))
        async with self._step(provider, "chat", "A chat turn, in the CLI machine"):
            answer = await chat.turn(api, provider, QUESTION, self._terminal, quiet=True)
            self.report.answers[provider] = answer

    async def create_password(self, api: ApiClient) -> None:
        """Give the account that did all this a password, for whoever wants to look around."""
        me = await api.get("/api/account")
        made = await api.post(f"/api/admin/people/{me['id']}/password")
        self.report.account = {"email": made["email"], "password": made["password"]}

    async def _only_cli_machines(self, api: ApiClient) -> None:
        """Look with the controller, and at the host itself, for anything of a browser machine."""
        machines = await api.list_all("/api/vm/list")
        left = [row["vm_id"] for row in machines if row["vm_type"] != "cli"]
        known = {row["vm_id"] for row in machines}
        async with Host(read(HostSettings).host_socket) as host:
            found = await host.inventory()
        left += sorted({*found.machines, *found.folders, *found.processes} - known)
        left += sorted(set(found.addresses) - known)
        if left or len(found.taps) != len(known):
            raise Failed(f"Something of a browser machine is left: {left or found.taps}")

    async def _status(self, api: ApiClient, provider: str, vm_id: str) -> str:
        argv = list(find_provider(provider).status_argv)
        result = await exec_client.run_captured(api, vm_id, ExecRequest(argv=argv))
        words = (result["stdout"] + result["stderr"]).strip()
        if result["exit_code"] != 0:
            raise CredentialsNotAccepted(f"{provider} says: {words[-300:]}")
        return "logged in" if words.startswith("{") else _first_line(words)

    @asynccontextmanager
    async def _step(self, provider: str | None, name: str, title: str) -> AsyncIterator[list[str]]:
        """A step that is shown; what is put into the list it gives is shown with it."""
        said: list[str] = []
        async with self._timed(provider, name), self._terminal.step(title) as shown:
            yield said
            shown.detail = " ".join(said)

    @asynccontextmanager
    async def _timed(self, provider: str | None, name: str) -> AsyncIterator[None]:
        began = time.monotonic()
        yield
        self._add(provider, name, time.monotonic() - began)

    def _add(self, provider: str | None, name: str, seconds: float) -> None:
        self.report.steps.append(TimedStep(provider, name, round(seconds, 3)))


def _step_label(step: str) -> str:
    return WORDS.get(step) or connect.step_label(step)


def _first_line(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return lines[0][:60] if lines else "(nothing)"


def _report_success(terminal: Terminal, report: Report) -> None:
    if report.answers:
        _report_steps(terminal, report)
    url = report.url.replace("127.0.0.1", "localhost")
    terminal.heading(f"The page is up at {url}")
    terminal.say(f"  sign in as      {report.account['email']}")
    terminal.say(f"  with password   {report.account['password']}")
    terminal.say(f"  the stand-in provider knows {STANDIN_ACCOUNT}")
    here = f"POLYDEV_STATE_DIR={report.state_dir} bin/polydev"
    terminal.say(f'  {here} chat codex "What can you do?"')
    terminal.say(f"  {here} machine list")
    terminal.say("  make down       ends it and leaves nothing")


def _report_steps(terminal: Terminal, report: Report) -> None:
    terminal.heading("What it took")
    terminal.table(
        ("", "step", "seconds"),
        (
            (taken.provider or "prepare", _step_label(taken.step), f"{taken.seconds:7.1f}")
            for taken in report.steps
        ),
    )
    terminal.say(f"Together {report.seconds:.0f} s.")
    for provider, answer in report.answers.items():
        terminal.heading(f"{provider} answered")
        terminal.say(answer)


def _report_failure(terminal: Terminal, report: Report) -> None:
    last = report.steps[-1] if report.steps else None
    after: Any = f" after `{last.provider or 'prepare'}: {last.step}`" if last else ""
    terminal.say()
    terminal.say(f"The demo failed{after}. What it started stays up, so that you can look:", "red")
    terminal.say(f"  logs:      {report.state_dir}/logs/*.log")
    terminal.say(f"  consoles:  {report.state_dir}/machines/*/console.log")
    terminal.say(f"  doctor:    POLYDEV_STATE_DIR={report.state_dir} bin/polydev doctor")
    terminal.say("  make down  ends it and leaves nothing")
