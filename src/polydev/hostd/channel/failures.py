"""The one place where what asyncssh raises becomes an error of ours.

Every module of this package calls it; texts that the guest chose are shortened and cleaned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncssh

from polydev.errors import ChannelLost, GuestMisbehaved, NoSuchFile, PolydevError

_WORDS = 160

_CUT = (
    asyncssh.ConnectionLost,
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    asyncssh.SFTPEOFError,
)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Run a piece of work called `what` (it begins the message) with its errors translated."""
    try:
        yield
    except TimeoutError as error:
        raise ChannelLost(f"{what}: the machine does not answer") from error
    except (asyncssh.Error, OSError, asyncssh.KeyImportError) as error:
        raise _ours(what, error) from error


def _ours(what: str, error: Exception) -> PolydevError:
    match error:
        case asyncssh.HostKeyNotVerifiable():
            return GuestMisbehaved(f"{what}: it answers with another host key than its own")
        case asyncssh.PermissionDenied():
            return GuestMisbehaved(f"{what}: it no longer accepts the channel's key")
        case asyncssh.SFTPNoSuchFile() | asyncssh.SFTPNoSuchPath():
            return NoSuchFile(f"{what}: no such file")
        case asyncssh.ChannelOpenError():
            return ChannelLost(f"{what}: {_words(error)}")
        case asyncssh.SFTPError() if not isinstance(error, _CUT):
            return GuestMisbehaved(f"{what}: {_words(error)}")
        case _:
            return ChannelLost(f"{what}: {_words(error)}")


def _words(error: Exception) -> str:
    text = "".join(char if char.isprintable() else " " for char in str(error))
    return text[:_WORDS].strip() or type(error).__name__
