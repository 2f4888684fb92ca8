"""Commands print help, one line per error, and JSON, and set the exit code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polydev.cli.demo import demo_env
from polydev.cli.main import app

COMMANDS = (
    "up",
    "down",
    "connect",
    "chat",
    "doctor",
    "demo",
    "machine create",
    "machine list",
    "machine show",
    "machine exec",
    "machine console",
    "machine stop",
    "machine start",
    "machine destroy",
    "image build",
    "image list",
    "image verify",
    "image prune",
    "credential list",
    "credential validate",
    "credential revoke",
    "credential export",
    "user list",
    "user invite",
    "user disable",
    "user enable",
    "user role",
    "user delete",
    "token create",
    "token list",
    "token revoke",
    "key list",
    "key rotate",
    "key retire",
    "db migrate",
)


class Typed:
    """Run commands as a user would, with a state folder of their own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "POLYDEV_STATE_DIR": str(state_dir),
            "POLYDEV_IMAGES_DIR": str(state_dir / "images"),
            "POLYDEV_NETNS": "pdt-unit",
            "POLYDEV_DEMO_STATE_DIR": str(state_dir / "demo"),
            "POLYDEV_DEMO_NAME": "pdt-unit",
            "PORT": str(free_port()),
        }

    def __call__(self, *message: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "polydev.cli", *message],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def polydev(tmp_path: Path) -> Typed:
    return Typed(tmp_path)


def assert_one_line(ended: subprocess.CompletedProcess[str], *message: str) -> None:
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("polydev: ")
    for word in message:
        assert word in ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"])
    assert shown.exit_code == 0
    assert "Example" in shown.output
    assert "--json" in shown.output


def test_the_list_of_commands_names_them_all() -> None:
    listed = CliRunner().invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert command.split()[0] in listed


def test_a_command_starts_without_the_libraries_of_the_servers() -> None:
    """Loading them would take longer than most commands."""
    program = "import sys, polydev.cli.main; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert not {"fastapi", "asyncssh", "sqlalchemy", "dbos", "pyroute2"} & {*loaded}


def test_a_command_that_does_not_exist_is_a_usage_error(polydev: Typed) -> None:
    assert polydev("reboot").returncode == 2
    assert polydev("machine", "create", "mainframe").returncode == 2


def test_up_names_a_missing_variable(polydev: Typed) -> None:
    assert_one_line(polydev("up"), "ENCRYPTION_KEY is not set")


def test_up_names_an_invalid_variable(polydev: Typed) -> None:
    assert_one_line(polydev("up", ENCRYPTION_KEY="k", PORT="http"), "PORT ('http') is invalid")
    ended = polydev("up", ENCRYPTION_KEY="k", POLYDEV_CLI_VCPUS="0")
    assert_one_line(ended, "POLYDEV_CLI_VCPUS ('0') is invalid")


def test_demo_refuses_an_unknown_provider_first(polydev: Typed) -> None:
    ended = polydev("demo", "--provider", "codex", "--provider", "hal")
    assert_one_line(ended, "no provider 'hal'", "codex")
    assert not (polydev.state_dir / "demo").exists()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the check for root comes first")


@as_root
class TestUpAsRoot:
    def test_up_names_a_port_in_use(self, polydev: Typed) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            assert_one_line(polydev("up", ENCRYPTION_KEY="k", PORT=port), f"Port {port}", "PORT")

    def test_missing_image_has_a_hint(self, polydev: Typed) -> None:
        assert_one_line(polydev("up", ENCRYPTION_KEY="k"), "polydev image build")

    def test_a_missing_tool_names_its_package(self, polydev: Typed, tmp_path: Path) -> None:
        ended = polydev("up", ENCRYPTION_KEY="k", PATH=str(tmp_path))
        assert_one_line(ended, "is not installed", "Debian package")

    def test_up_needs_root(self, polydev: Typed) -> None:
        polydev.state_dir.chmod(0o755)
        ended = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "--", sys.executable, "-c", NOT_ROOT],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.stdout.strip() == "not-root"


NOT_ROOT = f"""
import sys
sys.path[:] = {sys.path!r}
from polydev.shared.errors import NotRoot
from polydev.cli.supervisor import preflight as requirements
try:
    requirements.root()
except NotRoot as error:
    print(error.code)
"""


def test_unreachable_controller_is_one_line(polydev: Typed) -> None:
    token = {"POLYDEV_ADMIN_TOKEN": "made-up"}
    hint = "polydev up"
    assert_one_line(polydev("machine", "list", **token), "does not answer", hint)
    assert_one_line(polydev("connect", "codex", **token), "does not answer", hint)
    assert_one_line(polydev("chat", "codex", "Hello", **token), "does not answer", hint)


@as_root
def test_unreachable_host_agent_is_named_by_its_socket(polydev: Typed) -> None:
    agent = str(polydev.state_dir / "sockets" / "hostd.sock")
    ended = polydev("image", "warm", ENCRYPTION_KEY="k")
    assert_one_line(ended, "The host agent does not answer", agent, "polydev doctor")


def test_commands_before_the_first_start_have_a_hint(polydev: Typed) -> None:
    assert_one_line(polydev("machine", "list"), "has never run", "polydev up")


def test_a_token_that_is_a_symlink_to_another_file_is_not_sent(polydev: Typed) -> None:
    folder = polydev.state_dir / "controller"
    folder.mkdir(parents=True)
    (polydev.state_dir / "roots-own").write_text("secret")
    (folder / "admin-token").symlink_to(polydev.state_dir / "roots-own")
    assert_one_line(polydev("machine", "list"), "Cannot read the administrator's token")


def test_an_error_with_json_is_json_too(polydev: Typed) -> None:
    ended = polydev("machine", "list", "--json", POLYDEV_ADMIN_TOKEN="made-up")
    answer = json.loads(ended.stdout)
    assert answer["ok"] is False
    assert answer["error"]["code"] == "controller-unreachable"
    assert answer["error"]["hint"]
    assert_one_line(ended)


def test_empty_message_is_refused(polydev: Typed) -> None:
    assert_one_line(polydev("chat", "codex", "-", POLYDEV_ADMIN_TOKEN="t"), "message is empty")


def test_debug_shows_the_traceback(polydev: Typed) -> None:
    ended = polydev("machine", "list", POLYDEV_ADMIN_TOKEN="made-up", POLYDEV_DEBUG="1")
    assert "Traceback" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("polydev: ")


def test_doctor_reports_every_problem_with_a_hint(polydev: Typed) -> None:
    ended = polydev("doctor", "--json")
    assert ended.returncode == 1
    answer = json.loads(ended.stdout)
    assert answer["ok"] is False
    wrong = {check["name"]: check["hint"] for check in answer["checks"] if not check["ok"]}
    assert {"images", "polydev", "host agent", "controller"} <= wrong.keys()
    assert all(wrong.values()), "each line says what to do"


def test_images_are_listed_as_json(polydev: Typed) -> None:
    assert json.loads(polydev("image", "list", "--json").stdout) == []


def test_purge_without_a_terminal_needs_yes(polydev: Typed) -> None:
    assert_one_line(polydev("down", "--purge"), "--yes")


def test_down_reports_that_nothing_is_running(polydev: Typed) -> None:
    ended = polydev("down")
    assert ended.returncode == 0
    assert "not running" in ended.stdout


def test_foreign_folder_is_not_purged(polydev: Typed) -> None:
    precious = polydev.state_dir / "precious"
    precious.write_text("mine")
    assert_one_line(polydev("down", "--purge", "--yes"), "nothing was deleted")
    assert precious.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="the check for root comes first")
def test_running_demo_is_not_removed(polydev: Typed) -> None:
    name = f"pdt-{os.getpid()}"
    with demo_env.demo_lock(demo_env.DemoSettings(name=name)):
        ended = polydev("down", "--demo", POLYDEV_DEMO_NAME=name)
        assert_one_line(ended, "A demo is already running", "Ctrl-C")
    assert not Path(f"/run/{name}.lock").exists()
    assert polydev("down", "--demo", POLYDEV_DEMO_NAME=name).returncode == 0


def test_invalid_demo_name_is_refused(polydev: Typed) -> None:
    assert_one_line(polydev("down", "--demo", POLYDEV_DEMO_NAME="My Demo"), "POLYDEV_DEMO_NAME")
