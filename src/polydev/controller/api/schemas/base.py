"""Share base classes and fields among the API's schemas."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from polydev.shared.providers import all_providers

VM_ID = "vm-5e3c5f0a-2f7b-4f0e-9c3d-6a1b2c3d4e5f"
SESSION_ID = "0b1f6a52-8d1e-4f6d-9a55-3c1d0e7f2b11"

ProviderId = Annotated[
    str,
    Field(
        max_length=64,
        description="Provider id, as listed by `/api/providers`",
        json_schema_extra={"enum": [it.id for it in all_providers()]},
    ),
]


def user_id_field() -> Any:
    """Return the field by which an administrator acts for another user."""
    return Field(
        None, description="Act for this user (administrators only); the caller if left out"
    )


class ResponseModel(BaseModel):
    """Base of everything that the API sends."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class RequestModel(BaseModel):
    """Base of request bodies: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class VersionedModel(ResponseModel):
    """A view with a version that changes whenever another field does."""

    version: str = Field(
        default="",
        description="Changes whenever any other field changes; for `?after=`",
        examples=["9f2c1d0b7a6e5f43"],
    )

    def with_version(self) -> Self:
        digest = hashlib.sha256(self.model_dump_json(exclude={"version"}).encode())
        return self.model_copy(update={"version": digest.hexdigest()[:16]})


class ErrorView(ResponseModel):
    """Why something failed."""

    code: str = Field(examples=["login-expired"], description="Stable error code")
    message: str = Field(examples=["The login was not completed in time"])

    @classmethod
    def of(cls, code: str | None, message: str | None) -> ErrorView | None:
        return None if code is None else cls(code=code, message=message or code)


class Accepted(ResponseModel):
    """The request was accepted."""

    accepted: bool = Field(examples=[True])
