"""Routes `/api/admin/keys`: encryption keys and their rotation."""

# ruff: noqa: N815  (field names of the API)

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import problem_responses
from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import AdminCaller, ServicesDep
from polydev.controller.workflows.credentials.key_rotation import KeyState, RotationState
from polydev.shared.errors import KeyInUse, NoSuchKey

router = routers.router(prefix="/api/admin/keys", tags=["administration"])

_KEY_ID = "key-0f3a5c7e9b1d"
_ROTATION_ID = f"{_KEY_ID}.5b1e7c2d9a40"


class KeyView(BaseModel):
    """An encryption key, by its id; the key itself is never shown."""

    model_config = ConfigDict(frozen=True)

    keyId: str | None = Field(
        examples=[_KEY_ID],
        description="null: rows of an earlier Node.js controller, which name no key",
    )
    createdAt: datetime | None
    seals: bool = Field(description="This controller seals with it")
    opens: bool = Field(description="This controller has it, so it can open what it seals")
    credentials: int = Field(ge=0, description="Number of credentials that it seals")
    secrets: int = Field(ge=0, description="Number of the controllers' own secrets that it seals")

    @classmethod
    def of(cls, state: KeyState) -> KeyView:
        return cls(
            keyId=state.key.key_id if state.key else None,
            createdAt=state.key.created_at if state.key else None,
            seals=state.seals,
            opens=state.opens,
            credentials=state.use.credentials,
            secrets=state.use.secrets,
        )


class RotationView(BaseModel):
    """Progress of a key rotation."""

    model_config = ConfigDict(frozen=True)

    rotationId: str = Field(examples=[_ROTATION_ID])
    keyId: str = Field(examples=[_KEY_ID], description="The key that everything is resealed with")
    left: int = Field(ge=0, description="Number of rows still sealed with other keys")
    over: bool = Field(
        description="It has ended. Rows that are left could not be opened; the controller's log "
        "says why"
    )

    @classmethod
    def of(cls, state: RotationState) -> RotationView:
        return cls(
            rotationId=state.rotation_id,
            keyId=state.key_id,
            left=state.left,
            over=state.has_ended,
        )


@router.get("", responses=problem_responses())
async def list_keys(caller: AdminCaller, services: ServicesDep) -> list[KeyView]:
    """List the encryption keys and how much each one seals."""
    return [KeyView.of(state) for state in await services.key_rotation.list_keys()]


@router.post("/rotate", status_code=202, responses=problem_responses())
async def rotate_keys(caller: AdminCaller, services: ServicesDep) -> RotationView:
    """Reseal everything with the current key, in the background."""
    return RotationView.of(await services.key_rotation.start(caller))


@router.get("/rotate/{rotation_id}", responses=problem_responses(NoSuchKey))
async def get_rotation(
    rotation_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> RotationView:
    """Return the progress of a rotation."""
    return RotationView.of(await services.key_rotation.state(rotation_id))


@router.delete("/{key_id}", status_code=204, responses=problem_responses(NoSuchKey, KeyInUse))
async def retire_key(key_id: IdInPath, caller: AdminCaller, services: ServicesDep) -> None:
    """Delete a key that no longer seals anything."""
    await services.key_rotation.retire(caller, key_id)
