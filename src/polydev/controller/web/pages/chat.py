"""`/chat` and `/chat/{chatId}`: the list of chats, and one chat.

The browser (`static/chat/`) renders a chat from the API's events. These pages give the frame: the
list of chats, the CLI of each, and the machine that the CLI runs in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from polydev.controller.access import Caller
from polydev.controller.api.http.path_params import MAX_ID, IdInPath
from polydev.controller.api.http.services import Services, ServicesDep
from polydev.controller.chat import MAX_PROMPT_CHARACTERS, MAX_TITLE_CHARACTERS
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.connect import credentials
from polydev.controller.store.queries.machines import machines
from polydev.controller.web.rendering.render import Signed, fragment, page
from polydev.shared.domain import BY_READINESS, Chat, ChatId, Machine, MachineKind
from polydev.shared.providers import all_providers, provider

router = APIRouter(include_in_schema=False)

INITIAL_COUNT = 50
MAX_COUNT = 500

Filter = Annotated[str, Query(max_length=64, pattern=r"^[a-z0-9_-]*$")]
Shown = Annotated[int, Query(ge=1, le=MAX_COUNT)]


@dataclass(frozen=True, slots=True)
class Cli:
    """A CLI in the list."""

    id: str
    name: str
    connected: bool


@router.get("/chat")
async def show_chats(
    request: Request, caller: Signed, services: ServicesDep, provider: Filter = ""
) -> Response:
    """Show the list of chats."""
    return page(request, "chat/list_page.html", **await _list_context(services, caller, provider))


@router.get("/chat/{chat_id}")
async def show_chat(
    request: Request, chat_id: IdInPath, caller: Signed, services: ServicesDep
) -> Response:
    """Show a chat with the list beside it. Raises NoSuchChat."""
    chat = await services.chats.get(caller, ChatId(chat_id))
    return page(
        request,
        "chat/page.html",
        **await _list_context(services, caller, "", chat_id),
        **await _machine_context(services, caller, chat),
        max_prompt=MAX_PROMPT_CHARACTERS,
    )


@router.get("/fragments/chats")
async def refresh_list(
    request: Request,
    caller: Signed,
    services: ServicesDep,
    provider: Filter = "",
    current: Annotated[str, Query(max_length=MAX_ID)] = "",
    shown: Shown = INITIAL_COUNT,
) -> Response:
    """Render the list again."""
    context = await _list_context(services, caller, provider, current, shown)
    return fragment(request, "chat/list.html", **context)


@router.get("/fragments/chats/{chat_id}/machine")
async def refresh_machine(
    request: Request, chat_id: IdInPath, caller: Signed, services: ServicesDep
) -> Response:
    """Render the CLI and the machine of a chat again. Raises NoSuchChat."""
    chat = await services.chats.get(caller, ChatId(chat_id))
    return fragment(request, "chat/machine.html", **await _machine_context(services, caller, chat))


async def _list_context(
    services: Services,
    caller: Caller,
    only: str,
    current: str = "",
    shown: int = INITIAL_COUNT,
) -> dict[str, Any]:
    clis = await _clis(services, caller)
    only = only if any(it.id == only for it in clis) else ""
    chats = await services.chats.list_chats(caller, PageSpec(shown + 1, None), only or None)
    return {
        "clis": clis,
        "only": only,
        "current": current,
        "chats": chats[:shown],
        "more": min(shown * 2, MAX_COUNT) if len(chats) > shown and shown < MAX_COUNT else 0,
        "shown": shown,
        "max_title": MAX_TITLE_CHARACTERS,
        "names": {it.id: it.name for it in clis},
    }


async def _clis(services: Services, caller: Caller) -> list[Cli]:
    async with services.database.read(caller.user_id) as connection:
        stored = await credentials.list_for_user(connection, caller.user_id)
    connected = {it.provider for it in stored if it.revoked_at is None}
    return [Cli(it.id, it.name, it.id in connected) for it in all_providers()]


async def _machine_context(services: Services, caller: Caller, chat: Chat) -> dict[str, Any]:
    about = provider(chat.provider)
    async with services.database.read(caller.user_id) as connection:
        owned = await machines.list_for_user(connection, caller.user_id)
        stored = await credentials.find_newest_sealed(connection, caller.user_id, chat.provider)
    return {
        "chat": chat,
        "cli": Cli(about.id, about.name, stored is not None),
        "machine": _machine_of(chat, owned),
    }


def _machine_of(chat: Chat, owned: list[Machine]) -> Machine | None:
    """Find the machine for the chat's next turn, as `find_chat_machine` does."""
    here = [it for it in owned if it.vm_type is MachineKind.CLI and not it.status.is_gone]
    here.sort(key=lambda it: (it.vm_id != chat.vm_id, BY_READINESS.index(it.status)))
    return here[0] if here else None
