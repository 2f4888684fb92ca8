"""Translation of asyncssh's errors to Polydev's.

Texts from the guest are shortened and cleaned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncssh

from polydev.shared.errors import ChannelLost, GuestMisbehaved, NoSuchFile, PolydevError

_MAX_CHARS = 160

CONNECTION_ERRORS = (
    asyncssh.ConnectionLost,
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    asyncssh.SFTPEOFError,
)


@contextlib.contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Run a block whose errors are translated; `what` begins their message."""
    try:
        yield
    except TimeoutError as error:
        raise ChannelLost(f"{what}: the machine does not answer") from error
    except (asyncssh.Error, OSError, asyncssh.KeyImportError) as error:
        raise _to_polydev_error(what, error) from error


def _to_polydev_error(what: str, error: Exception) -> PolydevError:
    match error:
        case asyncssh.HostKeyNotVerifiable():
            return GuestMisbehaved(f"{what}: it presented a wrong host key")
        case asyncssh.PermissionDenied():
            return GuestMisbehaved(f"{what}: it no longer accepts the channel's key")
        case asyncssh.SFTPNoSuchFile() | asyncssh.SFTPNoSuchPath():
            return NoSuchFile(f"{what}: no such file")
        case asyncssh.ChannelOpenError():
            return ChannelLost(f"{what}: {_error_text(error)}")
        case asyncssh.SFTPError() if not isinstance(error, CONNECTION_ERRORS):
            return GuestMisbehaved(f"{what}: {_error_text(error)}")
        case _:
            return ChannelLost(f"{what}: {_error_text(error)}")


def printable(text: str) -> str:
    """Shorten a guest's text, and replace characters that a terminal or page would interpret."""
    return "".join(char if char.isprintable() else " " for char in text[:_MAX_CHARS]).strip()


def _error_text(error: Exception) -> str:
    return printable(str(error)) or type(error).__name__
