"""Render pages and fragments, and find the signed-in user.

Page modules call `page` and `fragment`, and depend on `Signed`. Templates get `caller` (None before
sign-in), `csrf`, `theme` and `here` (the path) besides their own context, and use
`asset('app.css')` and `icon('check')`. Jinja escapes everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast
from urllib.parse import quote

from fastapi import Depends, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse

from polydev.controller.access import Caller
from polydev.controller.access.limits.csrf import csrf_token
from polydev.controller.api.http.services import authenticate, get_request_info, get_services
from polydev.controller.store.queries.system import events
from polydev.controller.web.rendering import filters, labels
from polydev.controller.web.rendering.assets import HERE, Assets
from polydev.controller.web.rendering.safe_redirect import safe_next
from polydev.shared.domain import Role, Scope
from polydev.shared.errors import NotSignedIn

THEME = "polydev_theme"
_THEMES = frozenset({"light", "dark"})

_ICON = Markup('<svg class="icon" {}><use href="{}#{}"></use></svg>')
_LABELLED = Markup('role="img" aria-label="{}"')
_DECORATIVE = Markup('aria-hidden="true"')

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "manifest-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
    "report-uri": "/csp-report",
}


@dataclass(frozen=True, slots=True)
class Site:
    """Assets and templates of the pages."""

    assets: Assets
    templates: Environment


def make_site(assets: Assets) -> Site:
    """Load the templates with their globals and filters."""
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"asset": assets.url, "icon": _icons(assets), "Role": Role}
    templates.filters |= {
        "relative": filters.relative,
        "date": filters.date,
        "mib": filters.mib,
        "size": filters.size,
        "duration": filters.duration,
        "action_label": labels.action_label,
        "browser_label": labels.browser_label,
        "machine_badge": labels.machine_badge,
        "session_badge": labels.session_badge,
        "state_badge": labels.state_badge,
    }
    return Site(assets, templates)


def site_of(connection: HTTPConnection) -> Site:
    """Return the Site of the application that serves the connection."""
    return cast(Site, connection.app.state.site)


def page(
    request: Request,
    name: str,
    /,
    *,
    status: int = 200,
    policy: dict[str, str] | None = None,
    **context: Any,
) -> HTMLResponse:
    """Render a whole page.

    `policy` replaces directives of the Content-Security-Policy, for pages whose libraries need
    more: `{"style-src": "'self' 'unsafe-inline'"}`.
    """
    response = fragment(request, name, status=status, **context)
    response.headers["Content-Security-Policy"] = policy_of(policy)
    return response


def policy_of(replaced: dict[str, str] | None = None) -> str:
    """Build the Content-Security-Policy of a page."""
    directives = _POLICY | (replaced or {})
    return "; ".join(f"{directive} {value}" for directive, value in directives.items())


def fragment(request: Request, name: str, /, *, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a part of a page, which the page fetches and inserts."""
    caller = cast(Caller | None, getattr(request.state, "caller", None))
    cookie = get_request_info(request).cookie
    theme = request.cookies.get(THEME, "")
    common = {
        "caller": caller,
        "csrf": csrf_token(cookie) if caller is not None and cookie else "",
        "theme": theme if theme in _THEMES else "",
        "here": request.url.path,
        "events_after": getattr(request.state, "events_after", 0),
    }
    html = site_of(request).templates.get_template(name).render(common | context)
    return HTMLResponse(html, status, {"Cache-Control": "no-store", "Vary": "Cookie"})


async def current_caller(request: Request) -> Caller | None:
    """Return the user signed in in this browser; None if there is none."""
    if get_request_info(request).cookie is None:
        return None
    try:
        found = await authenticate(request)
    except NotSignedIn:
        return None
    if found.sign_in_id is None:
        return None
    request.state.caller = found
    if not request.url.path.startswith("/fragments/"):
        async with get_services(request).database.read(found.user_id) as connection:
            request.state.events_after = await events.get_newest_id(connection, found.user_id)
    return found


async def signed_in(request: Request) -> Caller:
    found = await current_caller(request)
    if found is None:
        raise _sign_in_required(request)
    return found


async def _signed_in_administrator(request: Request) -> Caller:
    found = await signed_in(request)
    found.require(Scope.ADMIN)
    return found


def _sign_in_required(request: Request) -> HTTPException:
    """Redirect to the sign-in page and back; the page that fetches a fragment does it itself."""
    if request.url.path.startswith("/fragments/"):
        return HTTPException(401)
    query = f"?{request.url.query}" if request.url.query else ""
    path = safe_next(request.url.path + query)
    target = "/sign-in" if path == "/" else f"/sign-in?next={quote(path, safe='')}"
    return HTTPException(303, headers={"Location": target})


def _icons(assets: Assets) -> Any:
    def icon(name: str, label: str = "") -> Markup:
        """Render an icon of `static/icons.svg` or of a provider; decorative without a label."""
        attributes = _LABELLED.format(label) if label else _DECORATIVE
        if assets.find(provider_icon := f"providers/{name}.svg"):
            return _ICON.format(attributes, assets.url(provider_icon), "icon")
        return _ICON.format(attributes, assets.url("icons.svg"), name)

    return icon


Signed = Annotated[Caller, Depends(signed_in)]
"""The signed-in user; others are redirected to the sign-in page."""

Administrator = Annotated[Caller, Depends(_signed_in_administrator)]
"""The signed-in administrator. Raises NotAllowed for other users."""

OptionalCaller = Annotated[Caller | None, Depends(current_caller)]
"""The signed-in user, or None."""
