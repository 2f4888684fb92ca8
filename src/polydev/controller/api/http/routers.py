"""How the API's and the pages' routes are made, and put into the application that serves them.

FastAPI's `include_router` makes every route anew, with the schemas of all that goes in and out, at
the first request after a start: that took longer than all else in a start. Nothing of ours is
changed by being included, so the routes that the modules made are served as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute


def operation_id(route: APIRoute) -> str:
    """`list_machines` becomes `listMachines`."""
    first, *others = route.name.split("_")
    return first + "".join(word.capitalize() for word in others)


def router(
    prefix: str = "", tags: list[str | Enum] | None = None, route_class: type[APIRoute] = APIRoute
) -> APIRouter:
    """A router of the API."""
    return APIRouter(
        prefix=prefix,
        tags=tags,
        route_class=route_class,
        generate_unique_id_function=operation_id,
    )


def mount(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Have the application answer by these routers' routes, in their order."""
    for it in routers:
        app.router.routes.extend(it.routes)
