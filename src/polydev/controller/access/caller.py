"""Who asks, and what they may: what every route is given.

`Access` makes it from a request's headers; routes ask `whom` and `require`. It must not know HTTP
statuses or how somebody proved who they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from polydev.shared.domain import AuditEntry, Role, Scope, User, UserId
from polydev.shared.errors import NotAllowed

LOCAL = "local"


@dataclass(frozen=True, slots=True, repr=False)
class RequestInfo:
    """What of a request tells who asks. It may hold secrets, so it has no repr."""

    authorization: str | None
    cookie: str | None
    """The value of the sign-in cookie."""
    csrf: str | None
    """The X-CSRF-Token header."""
    changes: bool
    """Whether the request may change something: a cookie alone does not suffice then."""
    source: str
    """The network address that it came from."""
    origin: str | None = None
    """The Origin header: which page had a browser send it."""
    host: str = ""
    """The Host header."""
    websocket: bool = False
    """Whether it opens a WebSocket, to which a page cannot add a header."""
    user_agent: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who has proved who they are."""

    user: User
    scopes: frozenset[Scope]
    via: str
    """`local` (the administrator's token of this machine), `sign-in`, `token:<id>`, `supabase`."""
    source: str
    sign_in_id: str | None = None
    """Which sign-in it is, if it is one."""

    @property
    def user_id(self) -> UserId:
        return self.user.user_id

    @property
    def token_id(self) -> str | None:
        """Which API token it is, if it is one."""
        kind, _, token_id = self.via.partition(":")
        return token_id if kind == "token" else None

    @property
    def owner_filter(self) -> UserId | None:
        """Whose things they may reach: their own, or anybody's (None) for administration."""
        is_administrator = self.user.role is Role.ADMINISTRATOR and Scope.ADMIN in self.scopes
        return None if is_administrator else self.user_id

    def require(self, scope: Scope) -> None:
        """Raises NotAllowed unless the caller may do that."""
        if scope is Scope.ADMIN and self.user.role is not Role.ADMINISTRATOR:
            raise NotAllowed("This is for administrators", hint="Ask one, or use a token of theirs")
        if scope not in self.scopes:
            raise NotAllowed(
                f"This token is not for that: it lacks the scope `{scope}`",
                hint="Make a token with that scope",
            )

    def resolve_user(self, user_id: str | None) -> UserId:
        """For whom to act: an administrator may name anybody, others only themselves.

        Raises NotAllowed.
        """
        if user_id is None or user_id == self.user_id:
            return self.user_id
        try:
            self.require(Scope.ADMIN)
        except NotAllowed:
            raise NotAllowed(
                "You cannot act for somebody else", hint="Leave `userId` out, or give your own"
            ) from None
        return UserId(user_id)

    def audit_entry(
        self, action: str, subject: str, owner: UserId | None, reason: str = ""
    ) -> AuditEntry:
        """An entry for the audit log."""
        return AuditEntry(self.user_id, action, subject, owner, self.via, self.source, reason)
