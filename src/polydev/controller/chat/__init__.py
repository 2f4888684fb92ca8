"""Chat: a user talks to a CLI in their CLI machine.

`chats.py` stores what users request, as rows. `runner/` claims and runs the turns, each with an
agent (`acp/`): a process in the machine that speaks the Agent Client Protocol. `events/` buffers,
stores and streams what agents report. `runner/one_shot.py` runs one turn without a chat.

This package knows neither DBOS nor HTTP. Everything a machine sends is untrusted: it is bounded
and cleaned where it enters.
"""

from polydev.controller.chat.chats import MAX_PROMPT_CHARACTERS, MAX_TITLE_CHARACTERS, Chats
from polydev.controller.chat.runner.one_shot import OneShotTurn, OneShotTurns, TurnEvent
from polydev.controller.chat.runner.runner import Runner

__all__ = [
    "MAX_PROMPT_CHARACTERS",
    "MAX_TITLE_CHARACTERS",
    "Chats",
    "OneShotTurn",
    "OneShotTurns",
    "Runner",
    "TurnEvent",
]
