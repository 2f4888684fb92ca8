"""Schemas of accounts, sign-ins, API tokens, invitations and users."""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Self

from pydantic import Field, SecretStr

from polydev.controller.access import Caller
from polydev.controller.access.email_addresses import MAX_CHARACTERS as MAX_ADDRESS
from polydev.controller.access.sign_in.invitations import DEFAULT_DAYS as INVITATION_DAYS
from polydev.controller.access.sign_in.invitations import MAX_DAYS as MAX_INVITATION_DAYS
from polydev.controller.access.tokens.api_tokens import DEFAULT_DAYS as TOKEN_DAYS
from polydev.controller.access.tokens.api_tokens import MAX_DAYS as MAX_TOKEN_DAYS
from polydev.controller.access.tokens.api_tokens import MAX_NAME
from polydev.controller.api.schemas.base import RequestModel, ResponseModel
from polydev.controller.settings import SignUp
from polydev.shared.domain import ApiToken, Invitation, Role, Scope, SignIn, User

Address = Annotated[str, Field(max_length=MAX_ADDRESS, examples=["ann@example.org"])]
NewPassword = Annotated[
    SecretStr,
    Field(
        max_length=1024,
        description="At least 12 characters, at most 256 bytes, not the e-mail address",
        examples=["correct horse battery staple"],
    ),
]
Password = Annotated[SecretStr, Field(max_length=1024, examples=["correct horse battery staple"])]


class SignUpAsked(RequestModel):
    email: Address
    password: NewPassword
    invitation: SecretStr | None = Field(
        None, max_length=256, description="The invitation code from an administrator"
    )


class SignInAsked(RequestModel):
    email: Address
    password: Password


class PasswordChange(RequestModel):
    current: Password
    new: NewPassword


class NewToken(RequestModel):
    name: str = Field(min_length=1, max_length=MAX_NAME, examples=["nightly build"])
    scopes: set[Scope] = Field(min_length=1, examples=[["read", "connect"]])
    expiresInDays: int | None = Field(
        TOKEN_DAYS, ge=1, le=MAX_TOKEN_DAYS, description="null: never expires"
    )

    @property
    def lifetime(self) -> timedelta | None:
        return None if self.expiresInDays is None else timedelta(days=self.expiresInDays)


class NewInvitation(RequestModel):
    email: Address | None = Field(
        None, description="Only this address may use the invitation; null: anyone who has the code"
    )
    role: Role = Role.USER
    expiresInDays: int = Field(INVITATION_DAYS, ge=1, le=MAX_INVITATION_DAYS)


class NewRole(RequestModel):
    role: Role


class ProviderOfPeople(ResponseModel):
    """An OpenID provider."""

    name: str


class WaysIn(ResponseModel):
    """The available ways to sign up and sign in."""

    signUp: SignUp
    oidc: ProviderOfPeople | None = Field(description="If set, start at /api/account/oidc/start")
    supabase: bool = Field(description="Access tokens of a Supabase project are accepted")


class AccountView(ResponseModel):
    """The caller's account."""

    id: str
    email: str
    role: Role
    createdAt: datetime
    via: str = Field(
        description="How the request is authenticated: `sign-in`, `token:<id>`, `supabase`, `local`"
    )
    scopes: list[Scope]
    signInId: str | None = Field(description="Id of the sign-in, if authenticated by one")
    csrfToken: str | None = Field(
        description="For the header X-CSRF-Token, which changes need besides the cookie"
    )

    @classmethod
    def of(cls, caller: Caller, csrf_token: str | None) -> AccountView:
        user = caller.user
        may = [it for it in Scope if it in caller.scopes]
        if user.role is not Role.ADMINISTRATOR:
            may = [it for it in may if it is not Scope.ADMIN]
        return cls(
            id=user.user_id,
            email=user.email,
            role=user.role,
            createdAt=user.created_at,
            via=caller.via,
            scopes=may,
            signInId=caller.sign_in_id,
            csrfToken=csrf_token,
        )


class TokenView(ResponseModel):
    """An API token, without its secret."""

    tokenId: str
    name: str
    scopes: list[Scope]
    createdAt: datetime
    expiresAt: datetime | None = Field(description="null: never expires")
    lastUsedAt: datetime | None = Field(description="Updated about once a minute")

    @classmethod
    def of(cls, token: ApiToken, /, **more: str) -> Self:
        return cls(
            tokenId=token.token_id,
            name=token.name,
            scopes=[it for it in Scope if it in token.scopes],
            createdAt=token.created_at,
            expiresAt=token.expires_at,
            lastUsedAt=token.last_used_at,
            **more,
        )


class CreatedToken(TokenView):
    """A new API token, with its secret."""

    token: str = Field(description="The token itself; it is shown only once")


class PasswordChanged(ResponseModel):
    """The result of a password change."""

    signInsEnded: int = Field(ge=0, description="Number of other sign-ins that were ended")
    tokensKept: list[TokenView] = Field(
        description="API tokens that are still valid; revoke any that you do not recognize"
    )


class SignInView(ResponseModel):
    """A browser in which the user is signed in."""

    signInId: str
    source: str = Field(description="Network address of the browser")
    userAgent: str
    createdAt: datetime
    seenAt: datetime = Field(description="Last use; updated about once a minute")
    expiresAt: datetime
    current: bool = Field(description="This request uses it")

    @classmethod
    def of(cls, sign_in: SignIn, caller: Caller) -> SignInView:
        return cls(
            signInId=sign_in.sign_in_id,
            source=sign_in.source,
            userAgent=sign_in.user_agent,
            createdAt=sign_in.created_at,
            seenAt=sign_in.seen_at,
            expiresAt=sign_in.expires_at,
            current=sign_in.sign_in_id == caller.sign_in_id,
        )


class InvitationView(ResponseModel):
    """An invitation to sign up, without its code."""

    invitationId: str
    email: str | None
    role: Role
    createdBy: str
    createdAt: datetime
    expiresAt: datetime
    usedAt: datetime | None
    usedBy: str | None

    @classmethod
    def of(cls, invitation: Invitation, /, **more: str) -> Self:
        return cls(
            invitationId=invitation.invitation_id,
            email=invitation.email,
            role=invitation.role,
            createdBy=invitation.created_by,
            createdAt=invitation.created_at,
            expiresAt=invitation.expires_at,
            usedAt=invitation.used_at,
            usedBy=invitation.used_by,
            **more,
        )


class CreatedInvitation(InvitationView):
    """A new invitation, with its code."""

    code: str = Field(description="The code for signing up; it is shown only once")


class PersonView(ResponseModel):
    """A user."""

    id: str
    email: str
    role: Role
    createdAt: datetime
    disabledAt: datetime | None
    deletingAt: datetime | None

    @classmethod
    def of(cls, user: User) -> PersonView:
        return cls(
            id=user.user_id,
            email=user.email,
            role=user.role,
            createdAt=user.created_at,
            disabledAt=user.disabled_at,
            deletingAt=user.deleting_at,
        )


class MadePassword(ResponseModel):
    """The result of a password reset."""

    email: str = Field(description="The e-mail address of the account")
    password: str = Field(description="The new password; it is shown only once")
