"""Schemas of health and providers."""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

from pydantic import Field

from polydev.controller.api.schemas.base import ResponseModel
from polydev.shared.providers import Provider


class ApiKeyView(ResponseModel):
    url: str = Field(
        description="Where the provider hands keys out",
        examples=["https://platform.openai.com/api-keys"],
    )
    example: str = Field(description="What one looks like", examples=["sk-proj-..."])


class ProviderView(ResponseModel):
    id: str = Field(examples=["codex"])
    name: str = Field(examples=["Codex"])
    accepts: str = Field(description="What a person may paste in a login")
    apiKey: ApiKeyView = Field(description="What to know of connecting with an API key")

    @classmethod
    def of(cls, one: Provider) -> ProviderView:
        key = ApiKeyView(url=one.api_key.url, example=one.api_key.example)
        return cls(id=one.id, name=one.name, accepts=one.accepts, apiKey=key)


class HealthView(ResponseModel):
    status: str = Field(description="`ok`, or `degraded` if a check fails")
    version: str
    checks: dict[str, bool]
