"""Chat: a person talks to a CLI in their CLI machine.

`chats.py` is what people ask, as rows; `runner.py` has the turns done, `turns.py` does one, with an
agent (`agents.py`, `agent.py`) that runs in the machine and speaks the Agent Client Protocol; what
it tells goes through `updates.py` into `live.py` and the store, and `following.py` reads it.
`single.py` is one turn without a chat. All of it must not know DBOS or HTTP; what a machine says is
hostile: bounded and cleaned where it comes in.
"""

from polydev.controller.chat.chats import MAX_PROMPT_CHARACTERS, MAX_TITLE_CHARACTERS, Chats
from polydev.controller.chat.runner.one_shot import SingleTurns, Turn, TurnEvent
from polydev.controller.chat.runner.runner import Runner

__all__ = [
    "MAX_PROMPT_CHARACTERS",
    "MAX_TITLE_CHARACTERS",
    "Chats",
    "Runner",
    "SingleTurns",
    "Turn",
    "TurnEvent",
]
