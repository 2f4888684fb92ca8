"""Create routers and mount their routes in an application.

FastAPI's `include_router` rebuilds every route with its schemas, which took longer than the rest of
the start. Our routes need no changes when included, so they are mounted as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute


def operation_id(route: APIRoute) -> str:
    """Turn `list_machines` into `listMachines`."""
    first, *others = route.name.split("_")
    return first + "".join(word.capitalize() for word in others)


def router(
    prefix: str = "", tags: list[str | Enum] | None = None, route_class: type[APIRoute] = APIRoute
) -> APIRouter:
    """Create a router of the API."""
    return APIRouter(
        prefix=prefix,
        tags=tags,
        route_class=route_class,
        generate_unique_id_function=operation_id,
    )


def mount(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Add the routes of these routers to the application, in order."""
    for it in routers:
        app.router.routes.extend(it.routes)
