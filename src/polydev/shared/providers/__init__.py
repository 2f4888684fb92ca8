"""Providers: the login, credentials and commands of each CLI.

A provider is a folder here with data files; its images carry `provider.toml` too. `registry` reads
the folders, `checks` validates what a machine reports, `credential_files` plans which files a CLI
machine gets, and `output_parsers` reads what a CLI prints in a chat turn. Machines are hostile, so
everything that comes from one is bounded. Nothing here knows machines, database rows or HTTP.
"""

from polydev.shared.providers.checks import check_credentials, check_oauth_url
from polydev.shared.providers.credential_claims import login_expiry, same_account, same_login
from polydev.shared.providers.credential_files import (
    MAX_KEY_CHARACTERS,
    Change,
    check_api_key,
    credential_paths,
    plan_install,
    plan_removal,
    read_api_key,
    user_file_paths,
)
from polydev.shared.providers.output_parsers import AnswerReader, ChatEvent, clean_text
from polydev.shared.providers.registry import Chat, Provider, all_providers, provider, provider_ids

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
    "clean_text",
    "credential_paths",
    "login_expiry",
    "plan_install",
    "plan_removal",
    "provider",
    "provider_ids",
    "read_api_key",
    "same_account",
    "same_login",
    "user_file_paths",
]
