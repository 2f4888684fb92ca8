"""The channel's command lines, run by this machine's shells."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polydev.hostagent.channel.remote_process import command_line, signal_argv
from polydev.shared.errors import Invalid

ARGUMENTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
PRINT = r'printf "%s\0" "$V" "$(pwd -P)" "$@"'


@pytest.mark.parametrize("shell", ["sh", "bash"])
@settings(max_examples=25, deadline=None)
@given(arguments=st.lists(ARGUMENTS, max_size=4), value=ARGUMENTS)
def test_shell_runs_exactly_the_given_argv(shell: str, arguments: list[str], value: str) -> None:
    argv = ["sh", "-c", PRINT, "sh", *arguments]
    line = command_line(argv, {"V": value}, "/usr/../usr", on_terminal=False)
    done = subprocess.run([shell, "-c", line], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [word.encode() for word in (value, "/usr", *arguments)]


@pytest.mark.parametrize(
    ("argv", "env", "cwd"),
    [
        ([], {}, None),
        ([""], {}, None),
        (["-c"], {}, None),
        (["a\0b"], {}, None),
        (["a"], {"A B": "x"}, None),
        (["a"], {"A;reboot;B": "x"}, None),
        (["a"], {"A": "\0"}, None),
        (["a"], {}, "relative"),
        (["a"], {}, "-"),
    ],
)
def test_invalid_command_lines_are_refused(
    argv: list[str], env: dict[str, str], cwd: str | None
) -> None:
    with pytest.raises(Invalid):
        command_line(argv, env, cwd, on_terminal=False)


def test_signal_reaches_program_and_children() -> None:
    script = "trap '' HUP; sleep 60 & setsid sleep 60 & echo started; wait"
    run = f"{os.getpid()}-run"
    program = subprocess.Popen(
        ["bash", "-c", command_line(["sh", "-c", script], {"R": run}, None, on_terminal=False)],
        stdout=subprocess.PIPE,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"started\n"
    argv = [run if word == "POLYDEV_RUN" else word for word in signal_argv(run, "TERM")]
    assert argv[-2:] == [run, run]
    subprocess.run([*argv[:-2], "R", run], check=True)
    assert program.wait(10) == -15
    assert program.stdout.read() == b""  # closed by all processes
    program.stdout.close()
    subprocess.run([*argv[:-2], "R", run], check=True)  # no process left is no error
