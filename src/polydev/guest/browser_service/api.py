"""HTTP endpoints of the service. They own the only login of this machine."""

import asyncio
import hmac
import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from .login import Login, NotWaiting, PasteRefused, Step
from .recipes import UnknownProvider, load_recipe
from .settings import BODY_BYTES, LONG_POLL_S, ServiceSettings

log = logging.getLogger(__name__)

_SESSION_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
OWN_URL_GRACE_S = 3.0


class Api:
    """Endpoints, and the login once it is started."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._login: Login | None = None
        self._running: asyncio.Task[None] | None = None

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_BYTES)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.post("/auth/{provider}", self._start),
                web.get("/auth/{provider}/oauth-url", self._oauth_url),
                web.get("/auth/{provider}/credentials/status", self._credentials),
                web.post("/auth/{provider}/input", self._input),
                web.get("/auth/{provider}/state", self._state),
            ]
        )
        return app

    def url_arrived(self, text: str) -> None:
        if self._login is not None:
            self._login.url_arrived(text)

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    # -- endpoints -------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.StreamResponse:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return web.json_response({"status": "ok", "timestamp": now})

    async def _start(self, request: web.Request) -> web.StreamResponse:
        provider, body = request.match_info["provider"], await _json_object(request)
        session_id = body.get("sessionId")
        if not isinstance(session_id, str) or _SESSION_ID.fullmatch(session_id) is None:
            return _problem(422, "invalid_session_id", "sessionId must be a UUID")
        if self._login is None:
            try:
                recipe = load_recipe(self._settings.providers, provider)
            except UnknownProvider as unknown:
                return _problem(404, "unknown_provider", str(unknown))
            self._login = Login(session_id, recipe, self._settings)
            self._running = asyncio.create_task(self._login.run())
        login = self._login
        if login.session_id != session_id or login.recipe.provider != provider:
            return _problem(409, "login_in_progress", "this machine is for another login")
        return web.json_response(_state_of(login), status=202)

    async def _oauth_url(self, request: web.Request) -> web.StreamResponse:
        login = self._login_of(request)
        wait_s = _wait_s(request)
        await login.wait_for(lambda: login.url is not None or login.has_ended, wait_s)
        if login.url is None:
            why = login.reason or login.browser_error or "the CLI has not given its URL yet"
            code = "login_failed" if login.step is Step.FAILED else "not_known_yet"
            return _problem(404, code, why)
        # The CLI prints the other URL at about the same moment; give it that moment.
        grace_s = min(wait_s, OWN_URL_GRACE_S)
        await login.wait_for(lambda: login.own_browser_url is not None or login.has_ended, grace_s)
        own = login.own_browser_url
        return web.json_response(
            {
                "url": login.url.text,
                "ownBrowserUrl": None if own is None else own.text,
                "accepts": login.recipe.paste_accepts,
            }
        )

    async def _credentials(self, request: web.Request) -> web.StreamResponse:
        login = self._login_of(request)
        await login.wait_for(lambda: login.has_ended, _wait_s(request))
        failed = login.step is Step.FAILED
        return web.json_response(
            {
                "ready": login.step is Step.READY,
                "credentials": login.credentials,
                "failed": failed,
                "reason": login.reason or None,
                "output": login.reported_output() if failed else None,
            }
        )

    async def _input(self, request: web.Request) -> web.StreamResponse:
        login, body = self._login_of(request), await _json_object(request)
        code, callback_url = body.get("code"), body.get("callbackUrl")
        try:
            if isinstance(code, str) and callback_url is None:
                await login.paste_code(code)
            elif isinstance(callback_url, str) and code is None:
                await login.paste_callback(callback_url)
            else:
                return _problem(422, "invalid_input", "give either code or callbackUrl, as text")
        except PasteRefused as refused:
            return _problem(422, "paste_refused", str(refused))
        except NotWaiting as not_waiting:
            return _problem(409, "not_waiting", str(not_waiting))
        return web.json_response({"accepted": True}, status=202)

    async def _state(self, request: web.Request) -> web.StreamResponse:
        """`?after=version&wait=seconds` answers as soon as there is something newer."""
        login = self._login_of(request)
        after = _whole_number(request.query.get("after", "-1"), "after")
        await login.wait_for(lambda: login.version > after, _wait_s(request))
        return web.json_response(_state_of(login))

    # -- who may call ----------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        port = self._settings.port
        if request.headers.get("Host") not in {f"127.0.0.1:{port}", f"localhost:{port}"}:
            return _problem(403, "wrong_host", "this service answers to its own name only")
        if request.path != "/health" and not self._may(request):
            return _problem(401, "wrong_token", "the bearer token of this machine is needed")
        try:
            response: web.StreamResponse = await handler(request)
        except web.HTTPException as error:
            return _problem(error.status, "http_error", error.reason)
        except Exception as error:
            # Its text may hold what was sent, so only its kind is logged.
            log.error("%s while answering %s", type(error).__name__, request.method)
            return _problem(500, "internal", "the browser service failed; see its log")
        response.headers["Cache-Control"] = "no-store"
        return response

    def _may(self, request: web.Request) -> bool:
        """Read anew each time: a machine that was resumed gets its own token after that."""
        try:
            token = self._settings.token_file.read_bytes().strip()
        except OSError:
            return False
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token)
        return right and bool(token) and scheme.lower() == "bearer"

    def _login_of(self, request: web.Request) -> Login:
        login = self._login
        if login is None or login.recipe.provider != request.match_info["provider"]:
            raise _not_started()
        return login


def _state_of(login: Login) -> dict[str, Any]:
    return {
        "sessionId": login.session_id,
        "provider": login.recipe.provider,
        "step": login.step.value,
        "urlKnown": login.url is not None,
        "opened": login.opened,
        "browserError": login.browser_error or None,
        "reason": login.reason or None,
        "version": login.version,
    }


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(reason="the body is not a JSON object")
    return body


def _wait_s(request: web.Request) -> float:
    return min(float(_whole_number(request.query.get("wait", "0"), "wait")), LONG_POLL_S)


def _whole_number(text: str, name: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,9}", text) is None:
        raise web.HTTPBadRequest(reason=f"{name} is not a whole number")
    return int(text)


def _not_started() -> web.HTTPException:
    return web.HTTPNotFound(reason="no login of this provider was started")


def _problem(status: int, code: str, detail: str) -> web.Response:
    return web.json_response({"code": code, "detail": detail}, status=status)
