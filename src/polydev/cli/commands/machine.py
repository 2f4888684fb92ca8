"""`polydev machine`: makes machines, looks at them, runs programs in them, ends them."""

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

app = options.app("Machines: private microVMs.")

Which = Annotated[
    str,
    typer.Argument(
        metavar="MACHINE", help="A machine's id or its beginning, or `cli` for the CLI machine."
    ),
]


@app.command()
@runs
async def create(
    kind: Annotated[
        MachineKind, typer.Argument(metavar="KIND", help="What it is for.")
    ] = MachineKind.CLI,
    as_json: JsonFlag = False,
) -> None:
    """Make a machine and start it. Example: `polydev machine create cli`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        async with terminal.step(f"Making a {kind} machine") as step:
            made = await api.post("/api/vm/create", {"vmType": kind.value})
            step.detail = made["vm_id"]
            machine = await _until(api, made["vm_id"], {"running"})
        if as_json:
            terminal.answer(machine)
        else:
            terminal.say(f"{machine['vm_id']} runs at {machine['ip_address']}.")


@app.command(name="list")
@runs
async def list_machines(as_json: JsonFlag = False) -> None:
    """List the machines. Example: `polydev machine list --json`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        machines = await api.list_all("/api/vm/list")
    if as_json:
        return terminal.answer(machines)
    if not machines:
        return terminal.say("No machines; `polydev connect codex` makes what it needs.")
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
    terminal.table(("what", "value"), _describe(machine))


@app.command(name="exec")
@runs
async def execute(
    which: Which,
    argv: Annotated[
        list[str],
        typer.Argument(metavar="PROGRAM...", help="The program and its arguments, after `--`."),
    ],
    pty: Annotated[
        bool, typer.Option("--tty", "-t", help="Give it a terminal (for shells and editors).")
    ] = False,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Give it no input.")] = False,
    cwd: Annotated[str | None, typer.Option(help="Folder in the machine to run it in.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run a program as root in a machine; its exit code becomes this command's.

    Examples: `polydev machine exec cli -- codex login status`,
    `polydev machine exec -t cli -- bash -l`, `polydev machine exec cli -- tee /root/x < x`.
    """
    if pty and (as_json or not sys.stdin.isatty()):
        raise Invalid(
            "-t needs a terminal, and cannot be used with --json", hint="Leave one of them out"
        )
    request = ExecRequest(argv=argv, cwd=cwd, pty=exec_client.terminal_size() if pty else None)
    async with open_client() as api:
        vm_id = await resolve(api, which)
        await ensure_running(api, vm_id, Terminal(as_json=True))  # its words are not the program's
        if as_json:
            result = await exec_client.run_captured(api, vm_id, request)
            Terminal(as_json=True).answer({"vm_id": vm_id, **result})
            raise typer.Exit(result["exit_code"])
        raise typer.Exit(await exec_client.run_attached(api, vm_id, request, stdin=not no_stdin))


@app.command()
@runs
async def console(
    which: Which,
    tail_bytes: Annotated[int, typer.Option(help="How much of its end.")] = 65536,
    as_json: JsonFlag = False,
) -> None:
    """Show what a machine printed on its console. Example: `polydev machine console cli`."""
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
    """End a machine; its disk and address stay. Example: `polydev machine stop cli`."""
    await _ask(which, "stop", "Stopping", {"stopped"}, Terminal(as_json=as_json))


@app.command()
@runs
async def start(which: Which, as_json: JsonFlag = False) -> None:
    """Start a machine that is stopped or has failed. Example: `polydev machine start vm-0123`."""
    await _ask(which, "start", "Starting", {"running"}, Terminal(as_json=as_json))


@app.command()
@runs
async def hibernate(which: Which, as_json: JsonFlag = False) -> None:
    """Put a machine to sleep: its memory goes to disk, and it wakes when it is used.

    Example: `polydev machine hibernate cli`.
    """
    terminal = Terminal(as_json=as_json)
    machine = await _ask(which, "hibernate", "Putting to sleep", {"hibernated"}, terminal)
    size = machine["sleep"]["memory_on_disk_bytes"] or 0
    if not as_json:
        terminal.say(f"It sleeps; its memory takes {size / 2**20:.0f} MiB on disk.")


@app.command()
@runs
async def resume(which: Which, as_json: JsonFlag = False) -> None:
    """Wake a machine that sleeps, or start one that is stopped. Example: `polydev machine resume
    cli`."""
    terminal = Terminal(as_json=as_json)
    machine = await _ask(which, "resume", "Waking", {"running"}, terminal)
    if not as_json and (words := _describe_resume(machine)):
        terminal.say(f"{words[0].upper()}{words[1:]}.")


async def _ask(which: str, verb: str, words: str, wanted: set[str], terminal: Terminal) -> Json:
    async with open_client() as api:
        vm_id = await resolve(api, which)
        async with terminal.step(f"{words} {vm_id}"):
            await api.post(f"/api/vm/{vm_id}/{verb}")
            machine = await _until(api, vm_id, wanted)
    if terminal.as_json:
        terminal.answer(machine)
    return machine


async def ensure_running(api: ApiClient, vm_id: str, terminal: Terminal) -> None:
    """Wake a machine that sleeps, and say so; others are left as they are."""
    machine = await api.get(f"/api/vm/{vm_id}")
    if machine["status"] in HIBERNATED_STATES:
        async with terminal.step(f"Waking {vm_id}"):
            if machine["status"] == "hibernating":
                await _until(api, vm_id, {"hibernated"})
            await api.post(f"/api/vm/{vm_id}/resume")
            await _until(api, vm_id, {"running"})


@app.command()
@runs
async def destroy(
    which: Which,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Destroy a machine with its disk. Example: `polydev machine destroy cli --yes`."""
    terminal = Terminal(as_json=as_json)
    async with open_client() as api:
        vm_id = await resolve(api, which)
        await require_confirmation(f"Destroy {vm_id} with its disk?", yes=yes)
        async with terminal.step(f"Destroying {vm_id}"):
            await api.post("/api/vm/destroy", {"vmId": vm_id})
            machine = await _until(api, vm_id, {"destroyed"})
        if as_json:
            terminal.answer(machine)


async def resolve(api: ApiClient, which: str) -> str:
    """The id of the machine that a person means. Raises NoSuchMachine, Invalid."""
    if which == "cli":
        return str((await api.get("/api/vm/active-cli"))["vmId"])
    ids = [str(row["vm_id"]) for row in await api.list_all("/api/vm/list")]
    full = which if which.startswith("vm-") else f"vm-{which}"
    found = [vm_id for vm_id in ids if vm_id.startswith(full)]
    if full in found:
        return full
    if len(found) > 1:
        raise Invalid(f"{which} is the beginning of {len(found)} machines", hint="Say more of it")
    if not found:
        raise NoSuchMachine(
            f"There is no machine {which}", hint="`polydev machine list` tells those there are"
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
        raise Failed(f"{vm_id} is {machine['status']} as before: {trouble}")
    error = machine.get("error") or {}
    raise by_code(error.get("code", Failed.code))(
        error.get("message", f"{vm_id} is {machine['status']}"), hint=error.get("hint") or ""
    )


def _failure_reason(machine: Json, wanted: set[str]) -> str:
    """Why a machine that was to sleep, or to wake, did not and will not; empty otherwise."""
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
    """What there is to tell of a machine, a line each."""
    told = ("machine", "kind", "address", "status", "since")
    yield from zip(told, _row(machine), strict=True)
    for name, unit in (("memory_mib", " MiB"), ("vcpus", ""), ("disk_mib", " MiB")):
        yield name.removesuffix("_mib"), f"{machine[name]}{unit}"
    yield from _describe_hibernation(machine["sleep"] or {}, machine)
    if error := machine["error"]:
        yield "error", f"{error['message']} ({error['code']})"


def _describe_hibernation(sleep: Json, machine: Json) -> Iterator[tuple[str, str]]:
    if sleep.get("slept_at"):
        size = sleep["memory_on_disk_bytes"]
        on_disk = f"; its memory takes {size / 2**20:.0f} MiB on disk" if size else ""
        yield "slept", f"{moment(sleep['slept_at'])}: {sleep['slept_why'] or '-'}{on_disk}"
    if words := _describe_resume(machine):
        yield "woke", f"{moment(sleep['woke_at'])}: {sleep['woke_why'] or '-'}; {words}"
    if sleep.get("trouble"):
        yield "trouble", sleep["trouble"]


def _describe_resume(machine: Json) -> str:
    """In words; empty for one that never slept, or sleeps."""
    sleep = machine["sleep"] or {}
    if not sleep.get("woke_how") or machine["status"] in HIBERNATED_STATES:
        return ""
    took = f"{sleep['took_seconds']:.1f} s"
    if sleep["woke_how"] == "resumed":
        return f"it went on where it was ({took})"
    why = sleep["boot_reason"]
    return f"it was started from its disk ({took}): {why or 'its memory could not be used'}"
