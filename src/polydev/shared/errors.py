"""All errors that Polydev raises on purpose, as one tree.

    PolydevError
    ├── Invalid       the request cannot be valid
    ├── Refused       the caller may not do this
    ├── Missing       the named object does not exist
    ├── Conflict      the object's state does not allow this
    ├── Unavailable   not possible now; worth a retry
    └── Failed        an attempt failed and was reverted

The class determines the stable `code` and the HTTP status, which most classes inherit from their
kind. The message says what happened and to which object; the hint says what to do. Foreign
exceptions are translated into these where they enter. No error text contains a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar


class PolydevError(Exception):
    """Base of the tree: `str(error)` says what happened, `hint` what to do."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            cls.code = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def line(self) -> str:
        """Message and hint in one line, for terminals and logs."""
        text = f"{self.message}. {self.hint}" if self.hint else self.message
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[PolydevError], message: str, hint: str) -> PolydevError:
    return kind(message, hint=hint)


class Invalid(PolydevError):
    """The request cannot be valid; repeating it will not help."""

    http_status = 422


class Refused(PolydevError):
    """The caller is not allowed to do this."""

    http_status = 403


class Missing(PolydevError):
    """The named object does not exist."""

    http_status = 404


class Conflict(PolydevError):
    """The object exists, but its state does not allow this."""

    http_status = 409


class Unavailable(PolydevError):
    """Not possible now; the caller or the workflow retries."""

    http_status = 503


class Failed(PolydevError):
    """An attempt failed and was reverted."""

    http_status = 502


class BadSettings(Invalid):
    """A setting is missing or invalid; the message names the variable."""


class UnknownProvider(Invalid):
    """No provider has this id."""


class BadCredentials(Invalid):
    """Credentials from a machine are malformed, incomplete or too large."""


class BadApiKey(Invalid):
    """The text is not an API key of this provider."""


class BadOAuthUrl(Invalid):
    """Users may not be sent to the login URL that a machine reported."""


class BadRequest(Invalid):
    """The request does not match the schema of the API."""


class TooLarge(Invalid):
    """The request has too many bytes or header fields."""

    http_status = 413


class PasteRefused(Invalid):
    """The pasted text is not a code or callback URL of this login."""


class BadPath(Invalid):
    """The path is relative, contains `..`, or has forbidden characters."""


class PasswordRefused(Invalid):
    """The new password is too easy to guess, or too long."""


class NotSignedIn(Refused):
    """There is no token, or an unknown one."""

    http_status = 401


class NotAllowed(Refused):
    """The caller is signed in but may not do this."""


class WrongEncryptionKey(Refused):
    """ENCRYPTION_KEY does not decrypt the content of this database."""


class QuotaExceeded(Refused):
    """The user has reached a quota; the message names it."""


class TooManyRequests(Refused):
    """A rate limit is reached; `Retry-After` says when to retry."""

    http_status = 429

    def __init__(self, message: str, *, hint: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class NotRoot(Refused):
    """The operation needs root privileges."""


class NoSuchMachine(Missing):
    """No machine with this id, or it belongs to another user."""


class NoSuchSession(Missing):
    """No connect session with this id, or it belongs to another user."""


class NoSuchFile(Missing):
    """The machine has no such file."""


class NoSuchOperation(Missing):
    """The host agent does not know this operation, or no longer."""


class MissingImage(Missing):
    """A golden image is not built."""


class NotConnected(Missing):
    """The user has no active credential or no CLI machine for this provider."""


class NoSuchUser(Missing):
    """No user with this id or e-mail address."""

    code = "no-such-person"  # clients know it by this name


class NoSuchToken(Missing):
    """No such token, invitation or sign-in, or it belongs to another user."""


class NoSuchCredential(Missing):
    """No credential with this id, or it belongs to another user."""


class NoSuchHost(Missing):
    """No VM host with this id."""


class NoSuchKey(Missing):
    """No encryption key or rotation with this id."""


class NoSuchChat(Missing):
    """No chat with this id, or it belongs to another user."""


class NoSuchPermission(Missing):
    """The CLI has not asked for this permission in this chat."""


class MachineBusy(Conflict):
    """The machine's state does not allow the operation."""


class MachineHibernated(Conflict):
    """The machine is hibernated, and the request does not resume it."""

    code = "machine-asleep"  # clients know it by this name


class ImageInUse(Conflict):
    """A VMM has the disk image open, so writing to it would destroy it."""


class OperationMismatch(Conflict):
    """The operation id was already used for another operation."""


class SessionNotCompleted(Conflict):
    """The connect session has not completed."""


class SessionEnded(Conflict):
    """The connect session has already ended."""


class LoginUnderway(Conflict):
    """Another session of the user is connecting the same provider."""


class LoginNotWaiting(Conflict):
    """The login is not waiting for this input."""


class NoLiveView(Conflict):
    """The connect session has no browser machine to show."""


class AlreadyRunning(Conflict):
    """Another Polydev process holds this folder, socket or session."""


class AlreadyExists(Conflict):
    """An object with this name already exists."""


class FileRefused(Conflict):
    """The machine refused a file operation: not empty, read-only or not permitted."""


class IdempotencyConflict(Conflict):
    """The Idempotency-Key belongs to another request, or to a running one."""


class HostInUse(Conflict):
    """The host still has machines."""


class KeyInUse(Conflict):
    """The encryption key is in use, or a controller may still use it."""


class ChatBusy(Conflict):
    """A turn of this chat is running; the next one has to wait."""


class PermissionAnswered(Conflict):
    """The permission request is answered or withdrawn."""


class HostUnreachable(Unavailable):
    """The host agent does not answer."""


class IssuerUnreachable(Unavailable):
    """The identity provider (OpenID, Supabase) does not answer as expected."""


class ControllerUnreachable(Unavailable):
    """The controller does not answer."""


class ChannelLost(Unavailable):
    """The machine's private channel is lost or does not answer."""


class NoCapacity(Unavailable):
    """No address, memory or slot is free."""


class DatabaseUnavailable(Unavailable):
    """The database does not answer in time; the outcome may be unknown."""


class PortTaken(Unavailable):
    """Another program uses the port."""


class MachineNotReady(Failed):
    """A machine was not ready in time; the message names its console log."""


class VmmFailed(Failed):
    """The VMM did not start, or exited; the message has its last log line."""


class ImageDamaged(Failed):
    """A disk image failed e2fsck or its checksum."""


class ImageBuildFailed(Failed):
    """The build of a golden image failed; the message names stage and log."""


class DiskFull(Failed):
    """The disk has too little free space; the message names the folder."""


class SnapshotUnusable(Failed):
    """A machine's saved memory is damaged or of another version or host."""


class MissingTool(Failed):
    """A required program is not installed; the hint names its package."""


class NetworkFailed(Failed):
    """The VM network could not be set up."""


class LoginFailed(Failed):
    """The CLI's login ended without credentials."""


class LoginExpired(Failed):
    """The user did not complete the login in time."""


class LoginCancelled(Failed):
    """The user cancelled the login."""


class CredentialsNotAccepted(Failed):
    """The CLI reports that it is not logged in after the delivery."""


class SettingsUnreadable(Failed):
    """A user's settings file, which needs an entry of Polydev, is not JSON."""


class CredentialDamaged(Failed):
    """A stored credential does not decrypt: changed, or moved to another owner."""


class GuestMisbehaved(Failed):
    """A machine sent an invalid answer: too long, or malformed."""


class ChatFailed(Failed):
    """A chat turn ended without an answer."""


class HostLost(Failed):
    """A host has not answered for so long that its machines count as lost."""


class StepTimedOut(Failed):
    """A step of a workflow exceeded its time limit; the message names both."""


def by_code(code: str) -> type[PolydevError]:
    """Find the class of an error code from the wire; `Failed` for an unknown code."""
    return next((kind for kind in _descendants(PolydevError) if kind.code == code), Failed)


def _descendants(kind: type[PolydevError]) -> Iterator[type[PolydevError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)
