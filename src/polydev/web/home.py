"""`/`: the three CLIs and how each stands. For what is no browser, a line of text instead."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import PlainTextResponse

from polydev.api.general import get_greeting
from polydev.web.rendering import page, signed_in

router = APIRouter(include_in_schema=False)


@router.get("/")
async def show_home(request: Request) -> Response:
    """The home page."""
    if "text/html" not in request.headers.get("accept", ""):
        return PlainTextResponse(await get_greeting())
    await signed_in(request)
    return page(request, "home.html")
