"""Makes HTML: templates, what each of them may use, and what browsers are told beside the page.

Page modules call `page` and `fragment`, and ask who is signed in with `Signed`. A template is given
`caller` (None before signing in), `csrf`, `theme` and `here` (the path) besides what the page says;
it names files by `asset('app.css')` and `icon('check')`. Everything is escaped by Jinja.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast
from urllib.parse import quote, urlsplit

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
_DECORATES = Markup('aria-hidden="true"')

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
    """What every page is made with."""

    assets: Assets
    templates: Environment


def make_site_of(assets: Assets) -> Site:
    """The templates, and what they can use."""
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
    """What the pages of the controller that serves this are made with."""
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
    """A whole page. `policy` replaces directives of the Content-Security-Policy, for the few pages
    whose libraries need more than the others: `{"style-src": "'self' 'unsafe-inline'"}`."""
    answer = fragment(request, name, status=status, **context)
    answer.headers["Content-Security-Policy"] = policy_of(policy)
    return answer


def policy_of(replaced: dict[str, str] | None = None) -> str:
    """The Content-Security-Policy of a page."""
    directives = _POLICY | (replaced or {})
    return "; ".join(f"{directive} {value}" for directive, value in directives.items())


def fragment(request: Request, name: str, /, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A piece of a page, which the page fetches and puts in its place."""
    caller = cast(Caller | None, getattr(request.state, "caller", None))
    cookie = get_request_info(request).cookie
    theme = request.cookies.get(THEME, "")
    about = {
        "caller": caller,
        "csrf": csrf_token(cookie) if caller is not None and cookie else "",
        "theme": theme if theme in _THEMES else "",
        "here": request.url.path,
        "events_after": getattr(request.state, "events_after", 0),
    }
    html = site_of(request).templates.get_template(name).render(about | context)
    return HTMLResponse(html, status, {"Cache-Control": "no-store", "Vary": "Cookie"})


async def known(request: Request) -> Caller | None:
    """Who is signed in in this browser, or nobody: for pages that both may see."""
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
    found = await known(request)
    if found is None:
        raise _sign_in_first(request)
    return found


async def _administers(request: Request) -> Caller:
    found = await signed_in(request)
    found.require(Scope.ADMIN)
    return found


def _sign_in_first(request: Request) -> HTTPException:
    """Leads to the page for signing in, and from there back to where somebody wanted to go."""
    if request.url.path.startswith("/fragments/"):
        there = safe_next(_path_of(request.headers.get("hx-current-url", "")))
        return HTTPException(401, headers={"HX-Redirect": f"/sign-in?next={quote(there, safe='')}"})
    query = f"?{request.url.query}" if request.url.query else ""
    there = safe_next(request.url.path + query)
    where = "/sign-in" if there == "/" else f"/sign-in?next={quote(there, safe='')}"
    return HTTPException(303, headers={"Location": where})


def _path_of(url: str) -> str:
    """The path of an address and its query; nothing for what is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return parts.path + (f"?{parts.query}" if parts.query else "")


def _icons(assets: Assets) -> Any:
    def icon(name: str, label: str = "") -> Markup:
        """Symbol of `static/icons.svg`, or a provider's icon; decorative without a label."""
        told = _LABELLED.format(label) if label else _DECORATES
        if assets.find(own := f"providers/{name}.svg"):
            return _ICON.format(told, assets.url(own), "icon")
        return _ICON.format(told, assets.url("icons.svg"), name)

    return icon


Signed = Annotated[Caller, Depends(signed_in)]
"""Who is signed in in this browser; others are led to the page for signing in."""

Administrator = Annotated[Caller, Depends(_administers)]
"""The same, for pages of administrators. Raises NotAllowed."""

Known = Annotated[Caller | None, Depends(known)]
"""Who is signed in, or nobody."""
