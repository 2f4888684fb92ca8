"""What each CLI is: its login, its credentials file, how it is asked and how it answers.

Mostly data: one `<id>.toml` and one JSON schema per provider beside this file; browser machines
carry the same files. Workflows, chat and the API ask `provider(id)`; `checks.py` holds what a
machine reports against the data, `answers.py` reads what a CLI prints in a chat turn. Nothing here
knows machines, rows or HTTP. What a machine says is hostile: everything is bounded.
"""

from polydev.providers.answers import AnswerReader, ChatEvent, cleaned
from polydev.providers.checks import check_credentials, check_oauth_url, files_for_cli_machine
from polydev.providers.registry import Chat, Provider, all_providers, provider
from polydev.providers.telling import end_of_login, same_account, same_login

__all__ = [
    "AnswerReader",
    "Chat",
    "ChatEvent",
    "Provider",
    "all_providers",
    "check_credentials",
    "check_oauth_url",
    "cleaned",
    "end_of_login",
    "files_for_cli_machine",
    "provider",
    "same_account",
    "same_login",
]
