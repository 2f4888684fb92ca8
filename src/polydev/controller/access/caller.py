"""The authenticated caller of a request, with role and scopes.

`Access` creates it from a request's headers. It does not depend on how the caller authenticated.
"""

from __future__ import annotations

from dataclasses import dataclass

from polydev.shared.domain import AuditEntry, Role, Scope, User, UserId
from polydev.shared.errors import NotAllowed

LOCAL = "local"


@dataclass(frozen=True, slots=True, repr=False)
class RequestInfo:
    """The parts of a request that authenticate it.

    They can be secret, so there is no repr.
    """

    authorization: str | None
    cookie: str | None
    """Value of the sign-in cookie."""
    csrf: str | None
    """The X-CSRF-Token header."""
    changes: bool
    """The request may change something, so a cookie alone is not enough."""
    source: str
    """Network address of the client."""
    origin: str | None = None
    """The Origin header: the page that made the browser send the request."""
    host: str = ""
    """The Host header."""
    websocket: bool = False
    """It opens a WebSocket, to which a page cannot add headers."""
    user_agent: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated user."""

    user: User
    scopes: frozenset[Scope]
    via: str
    """`local` (the local administrator's token), `sign-in`, `token:<id>` or `supabase`."""
    source: str
    sign_in_id: str | None = None
    """Id of the sign-in, if authenticated by one."""

    @property
    def user_id(self) -> UserId:
        return self.user.user_id

    @property
    def token_id(self) -> str | None:
        """Id of the API token, if authenticated by one."""
        kind, _, token_id = self.via.partition(":")
        return token_id if kind == "token" else None

    @property
    def owner_filter(self) -> UserId | None:
        """The user whose resources are visible; None for administrators: all users."""
        is_administrator = self.user.role is Role.ADMINISTRATOR and Scope.ADMIN in self.scopes
        return None if is_administrator else self.user_id

    def require(self, scope: Scope) -> None:
        """Raise NotAllowed unless the caller has this scope."""
        if scope is Scope.ADMIN and self.user.role is not Role.ADMINISTRATOR:
            raise NotAllowed("Administrators only", hint="Ask an administrator")
        if scope not in self.scopes:
            raise NotAllowed(
                f"This token lacks the scope `{scope}`",
                hint="Create a token with this scope",
            )

    def resolve_user(self, user_id: str | None) -> UserId:
        """Return the user to act for: any for administrators, otherwise oneself.

        Raises NotAllowed.
        """
        if user_id is None or user_id == self.user_id:
            return self.user_id
        try:
            self.require(Scope.ADMIN)
        except NotAllowed:
            raise NotAllowed("You cannot act for another user", hint="Leave `userId` out") from None
        return UserId(user_id)

    def audit_entry(
        self, action: str, subject: str, owner: UserId | None, reason: str = ""
    ) -> AuditEntry:
        """Return an entry for the audit log."""
        return AuditEntry(self.user_id, action, subject, owner, self.via, self.source, reason)
