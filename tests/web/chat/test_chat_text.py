"""Untrusted text as the chat page shows it."""

from __future__ import annotations

import pytest
from module_page import ModulePage

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _run(modules: ModulePage, function: str, *given: object) -> str:
    body = f"const text = await load('chat/render/text.js'); return text.{function}(...given);"
    found: str = await modules.run(body, list(given))
    return found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("report\u202efdp.exe", "report⟨U+202E⟩fdp.exe"),
        ("a\u2066b\u2069", "a⟨U+2066⟩b⟨U+2069⟩"),
        ("pay\u200bpal", "pay⟨U+200B⟩pal"),
        ("a\u0000b\u001b[31m\u009b", "a⟨U+0000⟩b⟨U+001B⟩[31m⟨U+009B⟩"),
        ("x\U000e0041", "x⟨U+E0041⟩"),
        ("\ufeff\u00ad", "⟨U+FEFF⟩⟨U+00AD⟩"),
        ("two\nlines\tof", "two\nlines\tof"),
        ("naïve 日本語 עברית العربية", "naïve 日本語 עברית العربية"),
        ("👩\u200d💻 and ❤\ufe0f\u200d🔥", "👩\u200d💻 and ❤\ufe0f\u200d🔥"),
        ("a\u200db", "a⟨U+200D⟩b"),
    ],
)
async def test_invisible_characters_are_named(modules: ModulePage, text: str, shown: str) -> None:
    assert await _run(modules, "visible", text) == shown


async def test_one_line_is_bounded(modules: ModulePage) -> None:
    assert await _run(modules, "oneLine", " a\r\n  b\tc ", 200) == "a⟨U+000D⟩ b c"
    long = await _run(modules, "oneLine", "x" * 1_000_000, 50)
    assert long == "x" * 49 + "…"
    assert await _run(modules, "oneLine", "🙂" * 40, 10) == "🙂" * 4 + "…"
    assert await _run(modules, "oneLine", None, 10) == ""


async def test_short_path_keeps_its_end(modules: ModulePage) -> None:
    path = "/root/" + "folder/" * 60 + "the-file.py"
    short = await _run(modules, "shortPath", path, 60)
    assert len(short) == 60
    assert short.startswith("/root/folder/")
    assert short.endswith("/the-file.py")


@pytest.mark.parametrize(
    ("output", "left"),
    [
        ("\u001b[1;31mred\u001b[0m", "red"),
        ("\u001b]8;;https://evil.example\u0007link\u001b]8;;\u0007", "link"),
        ("\u001b]0;title\u001b\\text", "text"),
        ("\u001bP1$r\u001b\\x\u001b(By\u001b7z", "xyz"),
        ("10%\r50%\rdone\nnext", "done\nnext"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("abX\bc", "abc"),
        ("\b\b\ba", "a"),
        ("open\u001b]52;c;never ended", "open52;c;never ended"),
    ],
)
async def test_terminal_output_becomes_text(modules: ModulePage, output: str, left: str) -> None:
    assert await _run(modules, "terminalText", output) == left


@pytest.mark.parametrize(
    "piece", ["\u001b]", "\u001b[", "\u001b[1;", "\r", "\b", "\u001b", "\u202e"]
)
async def test_terminal_output_is_converted_quickly(modules: ModulePage, piece: str) -> None:
    took = await modules.run(
        """const { terminalText } = await load('chat/render/text.js');
        const started = performance.now();
        terminalText(given);
        return performance.now() - started;""",
        piece * 50_000,
    )
    assert took < 2_000
