"""Output without a terminal, such as a log or a pipe."""

from __future__ import annotations

import json
import re

import pytest

from polydev.cli.output.printer import Terminal, moment, printable


async def test_step_is_printed_once_with_detail_and_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with Terminal().step("Making a machine") as step:
        step.detail = "vm-1"
    [line] = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"[0-9]+\.[0-9] s  Making a machine: vm-1", line.split(maxsplit=1)[1])


async def test_failed_step_is_printed_as_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"):
        async with Terminal().step("Making a machine"):
            raise ValueError("no")
    [line] = capsys.readouterr().out.splitlines()
    assert line.split()[0] in {"✗", "!!"}


async def test_long_step_prints_a_heartbeat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    monkeypatch.setattr("polydev.cli.output.printer.HEARTBEAT_S", 0.05)
    async with Terminal().step("Building"):
        await asyncio.sleep(0.2)
    assert "Building: still running" in capsys.readouterr().out


async def test_json_mode_prints_only_json_to_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal(as_json=True)
    async with terminal.step("Making a machine"):
        terminal.say("words")
    terminal.answer({"ok": True})
    run_captured = capsys.readouterr()
    assert json.loads(run_captured.out) == {"ok": True}
    assert "Making a machine" in run_captured.err


def test_machine_text_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().piece("a\x1b[2Jb\x07\x9bc\nd\te\u202e")
    assert capsys.readouterr().out == "a[2Jbc\nd\te"


def test_json_escapes_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = {"stdout": "ä\x9b2J\x9d0;title\x9c\u202e\x7f\x1b\n\U000e0001"}
    Terminal(as_json=True).answer(answer)
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == answer
    assert printable(line) == line


def test_markup_is_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().say("[red]not red[/red]")
    assert capsys.readouterr().out == "[red]not red[/red]\n"


def test_tables_are_not_truncated(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    Terminal().table(("name", "value"), [("a", long), ("longer", "b")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name    value", f"a       {long}", "longer  b"]


def test_printable_keeps_every_script() -> None:
    assert printable("Grüße, 你好, здравствуйте ✓") == "Grüße, 你好, здравствуйте ✓"


def test_times_are_in_utc_to_the_second() -> None:
    assert moment("2026-01-31T12:00:01.923231Z") == "2026-01-31 12:00:01Z"
    assert moment("2026-01-31T12:00:01+02:00") == "2026-01-31 10:00:01Z"
    assert moment(None) == "-"
    assert moment(None, "never") == "never"
