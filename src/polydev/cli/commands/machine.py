"""`polydev machine`: create, inspect, control and destroy machines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from polydev.cli import options
from polydev.cli.client import exec_client
from polydev.cli.client.api_client import ApiClient, Json, open_client
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.confirm import require_confirmation
from polydev.cli.output.printer import Terminal, moment
from polydev.shared.domain import HIBERNATED_STATES, MachineKind
from polydev.shared.errors import Failed, Invalid, Missing, NoSuchMachine, by_code
from polydev.shared.host_protocol import ExecRequest

app = options.app("Manage your machines, which are private microVMs.")

Which = Annotated[
    str,
    typer.Argument(
        metavar="MACHINE",
        help="Id of a machine, its first characters, or `cli` for the CLI machine.",
    ),
]


@app.command()
@runs
async def create(
    kind: Annotated[
        MachineKind, typer.Argument(metavar="KIND", help="Kind of machine.")
    ] = MachineKind.CLI,
    as_json: JsonFlag = False,
) -> None:
    """Create and start a machine. Example: `polydev machine create cli`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        async with terminal.step(f"Creating a {kind} machine") as step:
            made = await api.post("/api/vm/create", {"vmType": kind.value})
            step.detail = made["vm_id"]
            machine = await _until(api, made["vm_id"], {"running"})
        if as_json:
            terminal.answer(machine)
        else:
            terminal.say(f"{machine['vm_id']} is running at {machine['ip_address']}.")


@app.command(name="list")
@runs
async def list_machines(as_json: JsonFlag = False) -> None:
    """List your machines. Example: `polydev machine list --json`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        machines = await api.list_all("/api/vm/list")
    if as_json:
        return terminal.answer(machines)
    if not machines:
        return terminal.say("No machines. `polydev connect codex` creates the ones it needs.")
    columns = ("machine", "kind", "address", "status", "since")
    terminal.table(columns, (_row(machine) for machine in machines))


@app.command()
@runs
async def show(which: Which, as_json: JsonFlag = False) -> None:
    """Show one machine. Example: `polydev machine show cli`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        machine = await api.get(f"/api/vm/{await resolve(api, which)}")
    if as_json:
        return terminal.answer(machine)
    terminal.table(("field", "value"), _describe(machine))


@app.command(name="exec")
@runs
async def execute(
    which: Which,
    argv: Annotated[
        list[str],
        typer.Argument(metavar="PROGRAM", help="Program and its arguments, after `--`."),
    ],
    pty: Annotated[
        bool, typer.Option("--tty", "-t", help="Allocate a terminal, for shells and editors.")
    ] = False,
    no_stdin: Annotated[
        bool, typer.Option("--no-stdin", "-n", help="Pass no standard input.")
    ] = False,
    cwd: Annotated[str | None, typer.Option(help="Working directory in the machine.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a program as root in a machine, and exit with its exit code.

    Examples: `polydev machine exec cli -- codex login status`,
    `polydev machine exec -t cli -- bash -l`, `polydev machine exec cli -- tee /root/x < x`.
    """
    if pty and (as_json or not sys.stdin.isatty()):
        raise Invalid("-t needs a terminal and does not work with --json", hint="Omit one of them")
    request = ExecRequest(argv=argv, cwd=cwd, pty=exec_client.terminal_size() if pty else None)
    async with open_client() as api:
        vm_id = await resolve(api, which)
        # As JSON, so that standard output holds only the program's output.
        await ensure_running(api, vm_id, Terminal(as_json=True))
        if as_json:
            result = await exec_client.run_captured(api, vm_id, request)
            Terminal(as_json=True).answer({"vm_id": vm_id, **result})
            raise typer.Exit(result["exit_code"])
        raise typer.Exit(await exec_client.run_attached(api, vm_id, request, stdin=not no_stdin))


@app.command()
@runs
async def console(
    which: Which,
    tail_bytes: Annotated[int, typer.Option(help="Number of bytes to show, from the end.")] = 65536,
    as_json: JsonFlag = False,
) -> None:
    """Show the console log of a machine. Example: `polydev machine console cli`."""
    async with open_client() as api:
        vm_id = await resolve(api, which)
        text = await api.text(f"/api/vm/{vm_id}/console", tail_bytes=tail_bytes)
    terminal = Terminal(as_json=as_json)
    if as_json:
        terminal.answer({"vm_id": vm_id, "console": text})
    else:
        terminal.piece(text)


@app.command()
@runs
async def stop(which: Which, as_json: JsonFlag = False) -> None:
    """Stop a machine and keep its disk and address. Example: `polydev machine stop cli`."""
    await _ask(which, "stop", "Stopping", {"stopped"}, Terminal(as_json=as_json))


@app.command()
@runs
async def start(which: Which, as_json: JsonFlag = False) -> None:
    """Start a stopped or failed machine. Example: `polydev machine start vm-0123`."""
    await _ask(which, "start", "Starting", {"running"}, Terminal(as_json=as_json))


@app.command()
@runs
async def hibernate(which: Which, as_json: JsonFlag = False) -> None:
    """Hibernate a machine: save its memory to disk. It resumes on use.

    Example: `polydev machine hibernate cli`.
    """
    terminal = Terminal(as_json=as_json)
    machine = await _ask(which, "hibernate", "Hibernating", {"hibernated"}, terminal)
    size = machine["sleep"]["memory_on_disk_bytes"] or 0
    if not as_json:
        terminal.say(f"Its memory takes {size / 2**20:.0f} MiB on disk.")


@app.command()
@runs
async def resume(which: Which, as_json: JsonFlag = False) -> None:
    """Resume a hibernated machine, or start a stopped one.

    Example: `polydev machine resume cli`.
    """
    terminal = Terminal(as_json=as_json)
    machine = await _ask(which, "resume", "Resuming", {"running"}, terminal)
    if not as_json and (message := _describe_resume(machine)):
        terminal.say(f"{message[0].upper()}{message[1:]}.")


async def _ask(which: str, verb: str, message: str, wanted: set[str], terminal: Terminal) -> Json:
    async with open_client() as api:
        vm_id = await resolve(api, which)
        async with terminal.step(f"{message} {vm_id}"):
            await api.post(f"/api/vm/{vm_id}/{verb}")
            machine = await _until(api, vm_id, wanted)
    if terminal.as_json:
        terminal.answer(machine)
    return machine


async def ensure_running(api: ApiClient, vm_id: str, terminal: Terminal) -> None:
    """Resume a hibernated machine and show that; leave others as they are."""
    machine = await api.get(f"/api/vm/{vm_id}")
    if machine["status"] in HIBERNATED_STATES:
        async with terminal.step(f"Resuming {vm_id}"):
            if machine["status"] == "hibernating":
                await _until(api, vm_id, {"hibernated"})
            await api.post(f"/api/vm/{vm_id}/resume")
            await _until(api, vm_id, {"running"})


@app.command()
@runs
async def destroy(
    which: Which,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Destroy a machine and its disk. Example: `polydev machine destroy cli --yes`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        vm_id = await resolve(api, which)
        await require_confirmation(f"Destroy {vm_id} and its disk?", yes=yes)
        async with terminal.step(f"Destroying {vm_id}"):
            await api.post("/api/vm/destroy", {"vmId": vm_id})
            machine = await _until(api, vm_id, {"destroyed"})
        if as_json:
            terminal.answer(machine)


async def resolve(api: ApiClient, which: str) -> str:
    """Find a machine's id by its first characters. Raises NoSuchMachine, Invalid."""
    if which == "cli":
        return str((await api.get("/api/vm/active-cli"))["vmId"])
    ids = [str(row["vm_id"]) for row in await api.list_all("/api/vm/list")]
    full = which if which.startswith("vm-") else f"vm-{which}"
    found = [vm_id for vm_id in ids if vm_id.startswith(full)]
    if full in found:
        return full
    if len(found) > 1:
        raise Invalid(
            f"{which} matches {len(found)} machines", hint="Use more characters of the id"
        )
    if not found:
        raise NoSuchMachine(
            f"There is no machine {which}", hint="List the machines with `polydev machine list`"
        )
    return found[0]


async def _until(api: ApiClient, vm_id: str, wanted: set[str]) -> Json:
    machine: Json = {"vm_id": vm_id, "status": "unknown"}
    try:
        async for machine in api.changes(f"/api/vm/{vm_id}"):
            if machine["status"] in wanted:
                return machine
            if machine["status"] == "failed" or _failure_reason(machine, wanted):
                break
    except Missing:
        if "destroyed" in wanted:
            return machine | {"status": "destroyed"}
        raise
    if trouble := _failure_reason(machine, wanted):
        raise Failed(f"{vm_id} is still {machine['status']}: {trouble}")
    error = machine.get("error") or {}
    raise by_code(error.get("code", Failed.code))(
        error.get("message", f"{vm_id} is {machine['status']}"), hint=error.get("hint") or ""
    )


def _failure_reason(machine: Json, wanted: set[str]) -> str:
    """Reason why a machine did not hibernate or resume and will not; empty otherwise."""
    back = {"running"} if "hibernated" in wanted else {"hibernated"}
    stays = machine["status"] in back and machine.get("sleep") is not None
    return str(machine["sleep"]["trouble"]) if stays else ""


def _row(machine: Json) -> tuple[str, ...]:
    return (
        machine["vm_id"],
        machine["vm_type"],
        machine["ip_address"] or "-",
        machine["status"],
        moment(machine["created_at"]),
    )


def _describe(machine: Json) -> Iterator[tuple[str, str]]:
    """Rows of `machine show`."""
    names = ("machine", "kind", "address", "status", "since")
    yield from zip(names, _row(machine), strict=True)
    for name, unit in (("memory_mib", " MiB"), ("vcpus", ""), ("disk_mib", " MiB")):
        yield name.removesuffix("_mib"), f"{machine[name]}{unit}"
    yield from _describe_hibernation(machine["sleep"] or {}, machine)
    if error := machine["error"]:
        yield "error", f"{error['message']} ({error['code']})"


def _describe_hibernation(sleep: Json, machine: Json) -> Iterator[tuple[str, str]]:
    if sleep.get("slept_at"):
        size = sleep["memory_on_disk_bytes"]
        on_disk = f"; its memory takes {size / 2**20:.0f} MiB on disk" if size else ""
        yield "hibernated", f"{moment(sleep['slept_at'])}: {sleep['slept_why'] or '-'}{on_disk}"
    if message := _describe_resume(machine):
        yield "resumed", f"{moment(sleep['woke_at'])}: {sleep['woke_why'] or '-'}; {message}"
    if sleep.get("trouble"):
        yield "problem", sleep["trouble"]


def _describe_resume(machine: Json) -> str:
    """Describe the last resume; empty if there was none or the machine is hibernated."""
    sleep = machine["sleep"] or {}
    if not sleep.get("woke_how") or machine["status"] in HIBERNATED_STATES:
        return ""
    took = f"{sleep['took_seconds']:.1f} s"
    if sleep["woke_how"] == "resumed":
        return f"it resumed with its memory ({took})"
    why = sleep["boot_reason"]
    return f"it booted from its disk ({took}): {why or 'its saved memory was not usable'}"
