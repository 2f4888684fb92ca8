"""Log lines: one record is one line, also when it quotes a machine."""

from __future__ import annotations

import logging

import pytest

from polydev import logging_setup
from polydev.errors import LoginFailed


@pytest.mark.parametrize("as_json", [False, True])
def test_words_of_a_machine_do_not_forge_a_second_line(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger().handlers[:]
    try:
        logging_setup.set_up(as_json=as_json)
        logging.getLogger("polydev").warning("it says %s", "no\n12:00:00 INFO all is well\r\nyes")
        assert capsys.readouterr().err.count("\n") == 1
    finally:
        logging.basicConfig(handlers=before, force=True)


def test_an_error_is_one_line_also_when_it_quotes_a_machine() -> None:
    assert LoginFailed("it said: a\nb", hint="try\r\nagain").line() == "it said: a b. try again"
