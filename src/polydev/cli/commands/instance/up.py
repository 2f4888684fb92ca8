"""`polydev up`: run the host agent and the controller of this machine.

It checks the requirements and reports the first problem in one line. Then it keeps the host agent
(as root) and the controller (as an ordinary user) running until it is stopped. Machines keep
running without it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx
import typer

from polydev.cli.client.api_client import owner_check, uses_tls
from polydev.cli.client.socket_owner import Owners
from polydev.cli.options import runs
from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor import daemonize, preflight, system_user
from polydev.cli.supervisor.pidfile import Instance
from polydev.cli.supervisor.supervisor import Listener, Log, Program, supervise
from polydev.controller.settings import ControllerSettings
from polydev.hostagent.images import ImageStore
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.vmm.driver_selection import capabilities_of
from polydev.shared.errors import PortTaken
from polydev.shared.host_client import local_agent
from polydev.shared.settings.base import CommonSettings, read
from polydev.shared.settings.messages import variable_of

CONTROLLER_VARIABLES = ("ENCRYPTION_KEY", "DATABASE_URL", "PORT", "SUPABASE_")
"""Prefixes of variables that the host agent must never see."""

COMMON_VARIABLES = ("PATH", "LANG", "LC_", "TZ", "POLYDEV_")


class UpSettings(CommonSettings):
    """Settings of `up` alone."""

    user: str = "polydev"
    """System user that the controller runs as."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Valid settings of an instance."""

    up: UpSettings
    controller: ControllerSettings
    host: HostSettings

    @classmethod
    def read(cls) -> Plan:
        plan = cls(read(UpSettings), read(ControllerSettings), read(HostSettings))
        plan.controller.required_encryption_key()
        return plan

    @property
    def instance(self) -> Instance:
        return Instance(self.up.state_dir)

    @property
    def url(self) -> str:
        listen = self.controller.listen
        host = "127.0.0.1" if listen in {"0.0.0.0", "::"} else listen  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.controller.port}"

    def check(self) -> None:
        """Check the requirements. Raises the first problem."""
        preflight.root()
        if self.instance.pid() is not None:
            raise self.instance.already_running()
        preflight.check_all(self.controller.listen, self.controller.port)
        if capabilities_of(self.host.driver).needs_images:
            ImageStore(self.host.images_dir).require_all()


@runs
async def up(
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", "-d", help="Return when Polydev is ready. Stop it with `polydev down`."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --detach: print JSON.")] = False,
    background_only: Annotated[bool, typer.Option("--in-background", hidden=True)] = False,
) -> None:
    """Run the host agent and the controller on this machine until Ctrl-C.

    Examples: `polydev up` in a terminal or a unit; `polydev up --detach`, later `polydev down`.
    """
    preflight.root()
    plan = Plan.read()
    plan.check()
    if background_only:
        return await run_supervised(plan, silent(plan.up.logs_dir))
    terminal = Terminal(as_json=as_json)
    if detach:
        async with terminal.step("Starting the host agent and the controller"):
            pid = await daemonize.start(plan.up.state_dir)
        if as_json:
            terminal.answer({"url": plan.url, "pid": pid, "state_dir": str(plan.up.state_dir)})
        else:
            terminal.say(f"Polydev runs at {plan.url}. Stop it with `polydev down`.")
        return

    def show(name: str, line: str) -> None:
        terminal.say(f"{name:<10} {line}")

    terminal.say(f"Starting Polydev at {plan.url}. Press Ctrl-C to stop it; machines keep running.")
    await run_supervised(plan, Listener(on_event=show, on_output=show))
    terminal.say("Polydev has stopped. Machines keep running.")


def silent(logs: Path) -> Listener:
    """Create a listener that writes to `up.log` and prints nothing."""
    log = Log(logs / "up.log")
    return Listener(
        on_event=lambda name, line: log.write(
            f"{datetime.now(UTC):%FT%TZ} {name} {line}\n".encode()
        ),
        on_output=lambda _name, _line: None,
    )


async def run_supervised(plan: Plan, listener: Listener) -> None:
    """Run until SIGINT or SIGTERM."""
    state_dir = plan.up.state_dir
    owner = system_user.account(plan.up.user)
    system_user.prepare_folders(state_dir, owner)
    with plan.instance.held():
        program = await asyncio.to_thread(system_user.copy_program, state_dir)
        supervising = asyncio.create_task(
            supervise(
                [host_agent(plan, owner, program), controller(plan, owner, program)], listener
            )
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, supervising.cancel)
        with suppress(asyncio.CancelledError):
            await supervising


def host_agent(plan: Plan, owner: system_user.Account, program: Path) -> Program:
    """Host agent, as root, without the controller's variables in its environment."""
    env = _environment(COMMON_VARIABLES, program)
    for name in (*_controller_variables(), "POLYDEV_TOKEN"):
        env.pop(name, None)
    env |= {"POLYDEV_SOCKET_GROUP": owner.group, "HOME": "/root"}
    return Program(
        "hostd",
        ("setpriv", "--pdeathsig=TERM", "--", *_python("polydev.hostagent")),
        env,
        plan.up.logs_dir / "hostd.log",
        lambda: local_agent.answers(plan.up.host_socket),
        is_oom_protected=True,
    )


def controller(plan: Plan, owner: system_user.Account, program: Path) -> Program:
    """Controller, as an ordinary user that cannot regain root."""
    env = _environment((*COMMON_VARIABLES, *CONTROLLER_VARIABLES), program)
    env["HOME"] = str(plan.controller.controller_dir)
    return Program(
        "controller",
        (*owner.setpriv(), *_python("polydev.controller")),
        env,
        plan.up.logs_dir / "controller.log",
        lambda: answers(plan.url, Owners(frozenset({owner.uid}))),
        is_oom_protected=True,
    )


async def answers(url: str, owners: Owners) -> bool:
    """Check that a controller of one of the owners is healthy at a URL."""
    hooks = {"request": [owner_check(owners)]}
    try:
        async with httpx.AsyncClient(
            timeout=5, trust_env=False, verify=uses_tls(url), event_hooks=hooks
        ) as client:
            answer = await client.get(f"{url}/health")
            return answer.is_success and bool(answer.json()["status"] == "ok")
    except (httpx.HTTPError, PortTaken, ValueError, KeyError, TypeError):
        return False


def _controller_variables() -> Iterator[str]:
    """Variables of the controller only, including its secrets."""
    own = ControllerSettings.model_fields.keys() - HostSettings.model_fields.keys()
    for name in own:
        yield variable_of(name, ControllerSettings.model_fields[name])


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", module)


def _environment(
    allowed: tuple[str, ...], program: Path, variables: Mapping[str, str] = os.environ
) -> dict[str, str]:
    passed = {name: value for name, value in variables.items() if name.startswith(allowed)}
    return passed | {"PYTHONPATH": str(program), "PYTHONUNBUFFERED": "1"}
