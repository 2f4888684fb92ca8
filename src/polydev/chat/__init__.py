"""Chat: a person talks to a CLI in their CLI machine.

`turn.py` does one turn without a person in between: a prompt in, an answer out. The API streams it.
It must not know DBOS or HTTP; what the CLI prints is hostile, and `providers` reads it.
"""

from polydev.chat.turn import MAX_PROMPT_CHARACTERS, Chats, Turn, TurnEvent

__all__ = ["MAX_PROMPT_CHARACTERS", "Chats", "Turn", "TurnEvent"]
