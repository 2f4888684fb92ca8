"""The one place where what asyncssh raises becomes an error of ours.

Every module of this package calls it; texts that the guest chose are shortened and cleaned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncssh

from polydev.shared.errors import ChannelLost, GuestMisbehaved, NoSuchFile, PolydevError

_WORDS = 160

CUT = (
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
        case asyncssh.SFTPError() if not isinstance(error, CUT):
            return GuestMisbehaved(f"{what}: {_words(error)}")
        case _:
            return ChannelLost(f"{what}: {_words(error)}")


def shown(text: str) -> str:
    """A guest's words, short, and without what a terminal or a page would obey."""
    return "".join(char if char.isprintable() else " " for char in text[:_WORDS]).strip()


def _words(error: Exception) -> str:
    return shown(str(error)) or type(error).__name__
