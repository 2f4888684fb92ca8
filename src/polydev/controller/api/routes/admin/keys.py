"""`/api/admin/keys…`: the keys that credentials are sealed with, and changing them."""

# ruff: noqa: N815  (the names are the wire's)

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from polydev.controller.api.http import routers
from polydev.controller.api.http.error_responses import problem_responses
from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import AdminCaller, ServicesDep
from polydev.controller.workflows.credentials.key_rotation import KeyState, RotationState
from polydev.shared.errors import KeyInUse, NoSuchKey

router = routers.router(prefix="/api/admin/keys", tags=["administration"])

_KEY_ID = "key-0f3a5c7e9b1d"
_ROTATION_ID = f"{_KEY_ID}.5b1e7c2d9a40"


class KeyView(BaseModel):
    """A key, by its id. What it is, nobody is told."""

    model_config = ConfigDict(frozen=True)

    keyId: str | None = Field(
        examples=[_KEY_ID],
        description="null: rows of an earlier Node.js controller, which do not name their key",
    )
    createdAt: datetime | None
    seals: bool = Field(description="Whether the controller that answers seals with it")
    opens: bool = Field(description="Whether the controller that answers has it")
    credentials: int = Field(ge=0, description="How many credentials it seals")
    secrets: int = Field(ge=0, description="How many secrets of the controllers it seals")

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
    """How far a rotation is."""

    model_config = ConfigDict(frozen=True)

    rotationId: str = Field(examples=[_ROTATION_ID])
    keyId: str = Field(examples=[_KEY_ID], description="The key that everything is sealed with")
    left: int = Field(ge=0, description="Rows that other keys still seal")
    over: bool = Field(
        description="Whether it has ended: what is left then could not be opened, and the log of "
        "the controller says why"
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
    """The keys that this database was sealed with, and how much each of them seals."""
    return [KeyView.of(state) for state in await services.key_rotation.every()]


@router.post("/rotate", status_code=202, responses=problem_responses())
async def rotate_keys(caller: AdminCaller, services: ServicesDep) -> RotationView:
    """Have everything sealed anew with the current key, while all goes on."""
    return RotationView.of(await services.key_rotation.start(caller))


@router.get("/rotate/{rotation_id}", responses=problem_responses(NoSuchKey))
async def get_rotation(
    rotation_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> RotationView:
    """How far a rotation is."""
    return RotationView.of(await services.key_rotation.state(rotation_id))


@router.delete("/{key_id}", status_code=204, responses=problem_responses(NoSuchKey, KeyInUse))
async def retire_key(key_id: IdInPath, caller: AdminCaller, services: ServicesDep) -> None:
    """Forget a key that seals nothing any more."""
    await services.key_rotation.retire(caller, key_id)
