"""What each CLI is: its login, its credentials file, how it is asked and how it answers.

Mostly data: one `<id>.toml` and one JSON schema per provider beside this file; browser machines
carry the same files. Workflows, chat and the API ask `provider(id)`; `checks.py` holds what a
machine reports against the data, `places.py` says where credentials stand in a CLI machine,
`answers.py` reads what a CLI prints in a chat turn. Nothing here
knows machines, rows or HTTP. What a machine says is hostile: everything is bounded.
"""

from polydev.shared.providers.checks import check_credentials, check_oauth_url
from polydev.shared.providers.credential_claims import end_of_login, same_account, same_login
from polydev.shared.providers.credential_files import (
    MAX_KEY_CHARACTERS,
    Change,
    check_api_key,
    key_held,
    places,
    shared,
    to_place,
    to_remove,
)
from polydev.shared.providers.output_parsers import AnswerReader, ChatEvent, cleaned
from polydev.shared.providers.registry import Chat, Provider, all_providers, provider

__all__ = [
    "MAX_KEY_CHARACTERS",
    "AnswerReader",
    "Change",
    "Chat",
    "ChatEvent",
    "Provider",
    "all_providers",
    "check_api_key",
    "check_credentials",
    "check_oauth_url",
    "cleaned",
    "end_of_login",
    "key_held",
    "places",
    "provider",
    "same_account",
    "same_login",
    "shared",
    "to_place",
    "to_remove",
]
