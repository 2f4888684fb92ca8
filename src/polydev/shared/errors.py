"""Every error Polydev raises on purpose, in one tree.

    PolydevError
    ├── Invalid       what was asked cannot be meant            (413, 422)
    │   ├── BadSettings, UnknownProvider, BadCredentials, BadApiKey, BadOAuthUrl, BadPath,
    │   └── BadRequest, TooLarge, PasteRefused, PasswordRefused
    ├── Refused       who asks may not                          (401, 403, 429)
    │   ├── NotSignedIn, NotAllowed, WrongEncryptionKey, NotRoot, QuotaExceeded,
    │   ├── TooManyRequests
    ├── Missing       what was named is not there               (404)
    │   ├── NoSuchMachine, NoSuchSession, NoSuchFile, NoSuchOperation, MissingImage, NotConnected,
    │   ├── NoSuchUser, NoSuchToken, NoSuchCredential, NoSuchHost, NoSuchKey, NoSuchChat,
    │   ├── NoSuchPermission
    ├── Conflict      it is there, but not in that state        (409)
    │   ├── MachineBusy, ImageInUse, OperationMismatch, SessionNotCompleted, SessionEnded,
    │   ├── LoginNotWaiting, LoginUnderway, AlreadyRunning, AlreadyExists, IdempotencyConflict,
    │   ├── HostInUse, KeyInUse, FileRefused, ChatBusy, PermissionAnswered, MachineAsleep,
    │   └── NoLiveView
    ├── Unavailable   not now; retried                          (503)
    │   ├── HostUnreachable, ControllerUnreachable, ChannelLost, NoCapacity, PortTaken,
    │   └── DatabaseUnavailable, IssuerUnreachable
    └── Failed        it was tried and undone                   (502)
        ├── MachineNotReady, VmmFailed, ImageDamaged, ImageBuildFailed, DiskFull,
        ├── MissingTool, NetworkFailed, LoginFailed, LoginExpired, LoginCancelled,
        ├── CredentialsNotAccepted, CredentialDamaged, SettingsUnreadable, GuestMisbehaved,
        └── ChatFailed, HostLost, StepTimedOut, SnapshotUnusable

Each has a stable `code`, says what happened and to what, and a `hint` says what to do. The kind
alone decides how it is answered; HTTP statuses live in `api/problems.py`. Foreign exceptions are
translated into these once, where they enter. No error text carries a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar


class PolydevError(Exception):
    """Base of the tree: `str(error)` is what happened, `hint` what to do about it."""

    code: ClassVar[str] = "error"

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            cls.code = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def line(self) -> str:
        """One line for a terminal: what happened, then what to do."""
        words = f"{self.message}. {self.hint}" if self.hint else self.message
        return " ".join(words.split())

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[PolydevError], message: str, hint: str) -> PolydevError:
    return kind(message, hint=hint)


class Invalid(PolydevError):
    """What was asked cannot be meant; asking again will not help."""


class Refused(PolydevError):
    """Who asks may not."""


class Missing(PolydevError):
    """What was named is not there."""


class Conflict(PolydevError):
    """It is there, but not in a state that allows this."""


class Unavailable(PolydevError):
    """Not now: the caller, or the workflow, tries again."""


class Failed(PolydevError):
    """It was tried, it did not work, and it was undone."""


class BadSettings(Invalid):
    """A setting is missing or makes no sense; the message names the variable."""


class UnknownProvider(Invalid):
    """No provider has that id."""


class BadCredentials(Invalid):
    """What a machine reported as credentials is malformed, incomplete or too large."""


class BadApiKey(Invalid):
    """What a person handed in is no key of that provider."""


class BadOAuthUrl(Invalid):
    """What a machine reported as the provider's URL is not one that a person may be sent to."""


class BadRequest(Invalid):
    """A request that is not of the shape that the API takes, or too large."""


class TooLarge(Invalid):
    """A request with more bytes, or more header fields, than the API takes."""


class PasteRefused(Invalid):
    """What a person pasted is not a code or callback URL of this login."""


class BadPath(Invalid):
    """A path that is not absolute, climbs, or holds characters no file of ours has."""


class PasswordRefused(Invalid):
    """A new password that is too easy to guess, or too long."""


class NotSignedIn(Refused):
    """No token, or one that is not known."""


class NotAllowed(Refused):
    """Signed in, but not for this: somebody else's, or not from this place."""


class WrongEncryptionKey(Refused):
    """ENCRYPTION_KEY does not open what this database holds."""


class QuotaExceeded(Refused):
    """The person has as many of these as they may have; the message names the quota."""


class TooManyRequests(Refused):
    """Asked too often; `retry_after_s` says when it may be asked again."""

    def __init__(self, message: str, *, hint: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class NotRoot(Refused):
    """Starting machines, and what they need, is root's."""


class NoSuchMachine(Missing):
    """No machine of that id on this host, or none of the caller's."""


class NoSuchSession(Missing):
    """No connect session of that id, or none of the caller's."""


class NoSuchFile(Missing):
    """No such file in the machine."""


class NoSuchOperation(Missing):
    """The host agent was never asked that, or has forgotten it."""


class MissingImage(Missing):
    """A golden image has not been built."""


class NotConnected(Missing):
    """The person has no live credential, or no CLI machine, for that provider."""


class NoSuchUser(Missing):
    """No user has that id or e-mail address."""

    code = "no-such-person"  # clients know it by this name


class NoSuchToken(Missing):
    """No API token, invitation or sign-in of that id, or none of the caller's."""


class NoSuchCredential(Missing):
    """No credential of that id, or none of the caller's."""


class NoSuchHost(Missing):
    """No VM host of that id."""


class NoSuchKey(Missing):
    """No encryption key of that id, or no rotation."""


class NoSuchChat(Missing):
    """No chat of that id, or none of the caller's."""


class NoSuchPermission(Missing):
    """The CLI did not ask permission for that in this chat."""


class MachineBusy(Conflict):
    """The machine is in a state that does not allow the operation."""


class MachineAsleep(Conflict):
    """The machine sleeps, and whoever asked does not want it woken."""


class ImageInUse(Conflict):
    """A VMM holds the disk image: writing into it would destroy it."""


class OperationMismatch(Conflict):
    """An operation id was used again for something else."""


class SessionNotCompleted(Conflict):
    """The connect session has not completed (yet)."""


class SessionEnded(Conflict):
    """The connect session has ended already."""


class LoginUnderway(Conflict):
    """Another session of the person connects the same provider."""


class LoginNotWaiting(Conflict):
    """The login does not wait for what was handed in, or no longer does."""


class NoLiveView(Conflict):
    """The connect session has no browser machine that could be seen now."""


class AlreadyRunning(Conflict):
    """Another Polydev process already holds this folder, socket or session."""


class AlreadyExists(Conflict):
    """Something of that name is there already."""


class FileRefused(Conflict):
    """The machine does not let that be done to a file: not empty, read-only, not permitted."""


class IdempotencyConflict(Conflict):
    """An Idempotency-Key came again with another request, or while the first still runs."""


class HostInUse(Conflict):
    """The host still has machines."""


class KeyInUse(Conflict):
    """The encryption key still seals something, or is about to."""


class ChatBusy(Conflict):
    """A turn of this chat goes on: the next one is taken when it has ended."""


class PermissionAnswered(Conflict):
    """What the CLI asked permission for is decided, or no longer asked."""


class HostUnreachable(Unavailable):
    """The host agent does not answer."""


class IssuerUnreachable(Unavailable):
    """Who vouches for people (OpenID provider, Supabase) does not answer as it should."""


class ControllerUnreachable(Unavailable):
    """The controller does not answer a command."""


class ChannelLost(Unavailable):
    """The machine's private channel was cut, or does not answer."""


class NoCapacity(Unavailable):
    """No address, memory or slot is free."""


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or not in time; nothing was changed, or nobody can tell."""


class PortTaken(Unavailable):
    """Another program listens where this one should."""


class MachineNotReady(Failed):
    """A machine did not become ready in time; the message names its console log."""


class VmmFailed(Failed):
    """The VMM did not start, or ended; the message carries its last words."""


class ImageDamaged(Failed):
    """A disk image is not what it should be: e2fsck or a checksum says so."""


class ImageBuildFailed(Failed):
    """A golden image could not be built; the message names the stage and the build log."""


class DiskFull(Failed):
    """The disk has no room for what was asked; the message names the folder."""


class SnapshotUnusable(Failed):
    """A machine's saved memory is damaged, or of another version or host; its disk is not."""


class MissingTool(Failed):
    """A program that the host needs is not installed; the hint names its package."""


class NetworkFailed(Failed):
    """The VM network could not be put together."""


class LoginFailed(Failed):
    """The CLI's login ended without credentials."""


class LoginExpired(Failed):
    """The person did not log in within the time allowed."""


class LoginCancelled(Failed):
    """The person cancelled the login."""


class CredentialsNotAccepted(Failed):
    """The CLI in the CLI machine does not report itself logged in after the writing."""


class SettingsUnreadable(Failed):
    """A settings file of the person's, in which the CLI must be told something, is not JSON."""


class CredentialDamaged(Failed):
    """A stored credential does not open: changed, or moved from another person or provider."""


class GuestMisbehaved(Failed):
    """A machine answered something that it must not: too long, malformed, of the wrong shape."""


class ChatFailed(Failed):
    """A chat turn ended without an answer."""


class HostLost(Failed):
    """A host has not answered for so long that what was on it is given up."""


class StepTimedOut(Failed):
    """A step of a workflow did not end within its limit; the message names both."""


def by_code(code: str) -> type[PolydevError]:
    """The class of a stable code as it came over the wire; `Failed` when the code is unknown."""
    return next((kind for kind in _descendants(PolydevError) if kind.code == code), Failed)


def _descendants(kind: type[PolydevError]) -> Iterator[type[PolydevError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)
