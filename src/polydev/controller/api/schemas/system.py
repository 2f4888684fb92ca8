"""Schemas of health and providers."""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

from pydantic import Field

from polydev.controller.api.schemas.base import ResponseModel
from polydev.shared.providers import Provider


class ApiKeyView(ResponseModel):
    """API keys of a provider."""

    url: str = Field(
        description="The provider's page for API keys",
        examples=["https://platform.openai.com/api-keys"],
    )
    example: str = Field(description="Format of a key", examples=["sk-proj-..."])


class ProviderView(ResponseModel):
    """A provider whose CLI can be connected."""

    id: str = Field(examples=["codex"])
    name: str = Field(examples=["Codex"])
    accepts: str = Field(description="What can be pasted during a login")
    apiKey: ApiKeyView = Field(description="How to connect with an API key")

    @classmethod
    def of(cls, one: Provider) -> ProviderView:
        key = ApiKeyView(url=one.api_key.url, example=one.api_key.example)
        return cls(id=one.id, name=one.name, accepts=one.accepts, apiKey=key)


class HealthView(ResponseModel):
    """Health of the controller and of what it depends on."""

    status: str = Field(description="`ok`, or `degraded` if a check fails")
    version: str
    checks: dict[str, bool]
