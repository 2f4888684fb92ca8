"""A login over ACP always has a result, whatever the agent does."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from login_recipes import RECIPE, URL, login_of

from polydev.guest.browser_service.cli_process.agent import LINE_BYTES
from polydev.guest.browser_service.login import Login, Step
from polydev.guest.browser_service.recipes import LoginKind
from polydev.guest.browser_service.url_fifo import UrlFifo

ANSWERS = """
import json, os, pathlib, subprocess, sys, time
def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)
def write(token="secret-refresh-token"):
    file = pathlib.Path(os.environ["HOME"], ".made-up/login.json")
    file.write_text(json.dumps({"tokens": {"refresh": token}}))
def asked(method):
    line = sys.stdin.readline()
    message = json.loads(line)
    assert message["method"] == method, line
    return message
hello = asked("initialize")
assert hello["params"]["protocolVersion"] == 1
"""
HELLO = 'say(id=hello["id"], result={"protocolVersion": 1})\n'
ASKED = HELLO + 'it = asked("authenticate")\nassert it["params"] == {"methodId": "by-hand"}\n'
DONE = 'write()\nsay(id=it["id"], result={})\nsys.stdin.read()\n'


def agent_login(home: Path, *script: str, **changed: object) -> Login:
    """Create a login whose agent is a script in `home`."""
    login = login_of("", home, **changed)
    argv = (sys.executable, "-c", ANSWERS + "".join(script))
    recipe = replace(RECIPE, kind=LoginKind.ACP, method="by-hand", argv=argv)
    return replace(login, recipe=recipe)


async def outcome(login: Login) -> tuple[Step, str]:
    async with asyncio.timeout(30):
        await login.run()
    return login.step, login.reason


async def test_an_agent_that_authenticates_leaves_credentials(tmp_path: Path) -> None:
    login = agent_login(tmp_path, ASKED, DONE)
    assert await outcome(login) == (Step.READY, "")
    assert login.credentials == {"tokens": {"refresh": "secret-refresh-token"}}


async def test_files_written_at_end_of_input_count(tmp_path: Path) -> None:
    late = 'say(id=it["id"], result={})\nsys.stdin.read()\nwrite()\n'
    assert await outcome(agent_login(tmp_path, ASKED, late)) == (Step.READY, "")


async def test_other_lines_and_messages_are_skipped(tmp_path: Path) -> None:
    noise = (
        'print("Waiting for authentication...\\n[1, 2]\\n{\\"a\\": 1}\\nnull", flush=True)\n'
        f'print("x" * {2 * LINE_BYTES}, flush=True)\n'
        'say(method="session/update", params={})\nsay(id=it["id"] + 7, result={})\n'
        'say(method="fs/read_text_file", id=it["id"], params={"path": "/etc/shadow"})\n'
        'refused = json.loads(sys.stdin.readline())\nassert refused["error"]["code"] == -32601\n'
    )
    login = agent_login(tmp_path, ASKED, noise, DONE)
    assert await outcome(login) == (Step.READY, "")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sys.exit(3)", "it ended with exit code 3"),
        (ASKED + "sys.exit(41)", "it ended with exit code 41"),
        (
            ASKED + 'say(id=it["id"], error={"code": 1, "message": "timed out"})',
            "reports: timed out",
        ),
        (ASKED + 'say(id=it["id"], error="?")', "it did not say why"),
        ('say(id=hello["id"], error={"message": "too old"})', "reports: too old"),
        (ASKED + 'say(id=it["id"], result={})', "the CLI wrote no credentials file"),
    ],
)
async def test_each_refusal_has_a_reason(tmp_path: Path, script: str, why: str) -> None:
    step, reason = await outcome(agent_login(tmp_path, script))
    assert step is Step.FAILED
    assert why in reason


async def test_a_reason_is_short_and_holds_no_secret(tmp_path: Path) -> None:
    text = "no: https://id.test/x?code=c0de1234567890123456789 ya29.aB0cDeFgHiJkLmNoPqRs \x1b[31m"
    error = json.dumps({"code": 1, "message": text * 100})
    login = agent_login(tmp_path, ASKED, f'say(id=it["id"], error={error})')
    _, reason = await outcome(login)
    assert len(reason) < 400
    for secret in ("c0de", "ya29", "\x1b", "\n"):
        assert secret not in reason


async def test_other_output_is_reported_on_failure(tmp_path: Path) -> None:
    script = 'print("cannot reach the provider", file=sys.stderr, flush=True)\ntime.sleep(0.3)\n'
    login = agent_login(tmp_path, ASKED, script, "sys.exit(1)")
    await outcome(login)
    assert "cannot reach the provider" in login.reported_output()


async def test_silent_agent_times_out(tmp_path: Path) -> None:
    login = agent_login(tmp_path, ASKED, "sys.stdin.read()", login_limit_s=0.5)
    assert await outcome(login) == (Step.FAILED, "the login took longer than 0 s")


async def test_cancelled_login_ends_the_agents_children(tmp_path: Path) -> None:
    script = 'child = subprocess.Popen(["sleep", "1000"])\n'
    script += 'pathlib.Path(os.environ["HOME"], "child").write_text(str(child.pid))\n'
    script += f'subprocess.run(["xdg-open", {URL!r}], check=True)\n'
    login = agent_login(tmp_path, ASKED, script, "sys.stdin.read()")
    fifo = UrlFifo(tmp_path / "fifo", login.url_arrived)
    running = asyncio.create_task(login.run())
    try:
        assert await login.wait_for(lambda: login.url is not None, 30)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        fifo.close()
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


async def test_url_arrives_through_open_url(tmp_path: Path) -> None:
    script = f'subprocess.run(["xdg-open", {URL!r}], check=True)\n'
    # Once this is answered, the URL has been read as well.
    script += 'say(method="are/you/there", id="x")\nsys.stdin.readline()\n'
    login = agent_login(tmp_path, ASKED, script, DONE)
    fifo = UrlFifo(tmp_path / "fifo", login.url_arrived)
    try:
        assert await outcome(login) == (Step.READY, "")
    finally:
        fifo.close()
    assert login.url is not None
    assert login.url.text == URL


async def test_nothing_is_typed_to_an_agent(tmp_path: Path) -> None:
    login = agent_login(tmp_path, ASKED, DONE)
    assert await outcome(login) == (Step.READY, "")
    with pytest.raises(OSError, match="no terminal"):
        login._cli.type("x")  # type: ignore[union-attr]
