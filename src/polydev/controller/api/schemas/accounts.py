"""What goes over the wire about accounts, sign-ins, API tokens, invitations and people."""

# ruff: noqa: N815  (the names are the wire's)

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
        None, max_length=256, description="The code that an administrator gave"
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
        TOKEN_DAYS, ge=1, le=MAX_TOKEN_DAYS, description="null: it does not expire"
    )

    @property
    def lifetime(self) -> timedelta | None:
        return None if self.expiresInDays is None else timedelta(days=self.expiresInDays)


class NewInvitation(RequestModel):
    email: Address | None = Field(None, description="null: whoever has the code")
    role: Role = Role.USER
    expiresInDays: int = Field(INVITATION_DAYS, ge=1, le=MAX_INVITATION_DAYS)


class NewRole(RequestModel):
    role: Role


class ProviderOfPeople(ResponseModel):
    """An OpenID provider."""

    name: str


class WaysIn(ResponseModel):
    """How people come in here."""

    signUp: SignUp
    oidc: ProviderOfPeople | None = Field(description="Begin at /api/account/oidc/start")
    supabase: bool = Field(description="Whether a Supabase project's access tokens are taken")


class AccountView(ResponseModel):
    """Who asks."""

    id: str
    email: str
    role: Role
    createdAt: datetime
    via: str = Field(
        description="How this request proved it: `sign-in`, `token:<id>`, `supabase`, `local`"
    )
    scopes: list[Scope]
    signInId: str | None = Field(description="Which sign-in this is, if it is one")
    csrfToken: str | None = Field(
        description="For the header X-CSRF-Token, which changes need beside the cookie"
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
    tokenId: str
    name: str
    scopes: list[Scope]
    createdAt: datetime
    expiresAt: datetime | None = Field(description="null: it does not expire")
    lastUsedAt: datetime | None = Field(description="To the minute")

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
    token: str = Field(description="The token itself: nobody is told it again")


class PasswordChanged(ResponseModel):
    signInsEnded: int = Field(ge=0, description="How many other sign-ins were ended")
    tokensKept: list[TokenView] = Field(
        description="API tokens still hold: revoke those that are not yours"
    )


class SignInView(ResponseModel):
    signInId: str
    source: str = Field(description="The network address that signed in")
    userAgent: str
    createdAt: datetime
    seenAt: datetime = Field(description="To the minute")
    expiresAt: datetime
    current: bool = Field(description="Whether it is the one that asks")

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
    code: str = Field(description="For signing up: nobody is told it again")


class PersonView(ResponseModel):
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
    email: str = Field(description="What they sign in with, beside it")
    password: str = Field(description="The new password: nobody is told it again")
