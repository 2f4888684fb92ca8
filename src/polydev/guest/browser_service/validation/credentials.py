"""Read and validate the credentials file of a CLI.

Its content never appears in an error or a log.
"""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..recipes import LoginRecipe


class CredentialsIncomplete(Exception):
    """The credentials file is missing or incomplete; the message has the reason."""


@dataclass(frozen=True)
class FileIdentity:
    """Identity of a file, to detect that the login replaced it."""

    inode: int
    size: int
    modified_ns: int


def identity_of(path: Path) -> FileIdentity | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return FileIdentity(status.st_ino, status.st_size, status.st_mtime_ns)


def read_credentials(
    path: Path, recipe: LoginRecipe, before: FileIdentity | None
) -> dict[str, Any]:
    """Read the credentials. `before` identifies the file at the start of the login."""
    if before is not None and identity_of(path) == before:
        raise CredentialsIncomplete("the CLI did not change its old credentials file")
    try:
        credentials = json.loads(_read(path, recipe.credentials_bytes), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise CredentialsIncomplete("the credentials file is not JSON") from None
    if not isinstance(credentials, dict):
        raise CredentialsIncomplete("the credentials file is not a JSON object")
    for pointer in recipe.credentials_required:
        value = _at(credentials, pointer)
        if not isinstance(value, str) or not value:
            raise CredentialsIncomplete(f"the credentials file has no value at {pointer}")
    return credentials


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CredentialsIncomplete("the CLI wrote no credentials file") from None
    except OSError as error:
        why = error.strerror or "unknown error"
        raise CredentialsIncomplete(f"the credentials file cannot be read: {why}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CredentialsIncomplete("the credentials file is not a regular file")
        content = os.read(descriptor, max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise CredentialsIncomplete(f"the credentials file is larger than {max_bytes} bytes")
    return content


def _at(document: object, pointer: str) -> object:
    """Value at a JSON pointer (RFC 6901), through objects only."""
    for part in pointer.split("/")[1:]:
        if not isinstance(document, dict):
            return None
        document = document.get(part.replace("~1", "/").replace("~0", "~"))
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
