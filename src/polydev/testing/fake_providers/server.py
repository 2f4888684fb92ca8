"""The providers' host names and paths, and the handler of each.

Builds the aiohttp application; every call is logged. The proxy passes it connections; it opens no
port itself.
"""

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from polydev.testing.fake_providers.call_log import CallLog, fingerprint
from polydev.testing.fake_providers.identity.endpoints import IdentityProvider
from polydev.testing.fake_providers.models.anthropic import Anthropic
from polydev.testing.fake_providers.models.base import ModelApi
from polydev.testing.fake_providers.models.google import Google
from polydev.testing.fake_providers.models.openai import OpenAI

OPENAI_IDENTITY = "auth.openai.com"
OPENAI_MODEL = "chatgpt.com"
OPENAI_API = "api.openai.com"
ANTHROPIC_SIGN_IN = ("claude.com", "claude.ai")
ANTHROPIC_PLATFORM = "platform.claude.com"
ANTHROPIC_API = "api.anthropic.com"
GOOGLE_SIGN_IN = "accounts.google.com"
GOOGLE_TOKENS = "oauth2.googleapis.com"
GOOGLE_ACCOUNT = "www.googleapis.com"
GOOGLE_CODE_ASSIST = "cloudcode-pa.googleapis.com"
GOOGLE_API = "generativelanguage.googleapis.com"
GOOGLE_PAGES = "developers.google.com"
GOOGLE_PASTE_A_CODE = "codeassist.google.com"
GOOGLE_STATISTICS = "play.googleapis.com"
HOSTS = (
    OPENAI_IDENTITY,
    OPENAI_MODEL,
    OPENAI_API,
    *ANTHROPIC_SIGN_IN,
    ANTHROPIC_PLATFORM,
    ANTHROPIC_API,
    GOOGLE_SIGN_IN,
    GOOGLE_TOKENS,
    GOOGLE_ACCOUNT,
    GOOGLE_CODE_ASSIST,
    GOOGLE_API,
    GOOGLE_PAGES,
    GOOGLE_PASTE_A_CODE,
    GOOGLE_STATISTICS,
)
REQUEST_BYTES = 32 * 1024 * 1024  # a CLI sends its whole conversation with each turn


def application(identity: IdentityProvider, model: ModelApi, call_log: CallLog) -> web.Application:
    app = web.Application(middlewares=[_call_logging(call_log)], client_max_size=REQUEST_BYTES)
    for host, routes in _routes(identity, model).items():
        part = web.Application(client_max_size=REQUEST_BYTES)
        part.add_routes(routes)
        app.add_domain(host, part)
    return app


def _routes(identity: IdentityProvider, model: ModelApi) -> dict[str, list[web.RouteDef]]:
    return {
        **_openai(identity, OpenAI(model)),
        **_anthropic(identity, Anthropic(model)),
        **_google(identity, Google(model)),
    }


def _sign_in_routes(identity: IdentityProvider) -> list[web.RouteDef]:
    return [
        web.post("/standin/sign-in", identity.sign_in),
        web.post("/standin/consent", identity.consent),
    ]


def _openai(identity: IdentityProvider, api: OpenAI) -> dict[str, list[web.RouteDef]]:
    return {
        OPENAI_IDENTITY: [
            web.get("/oauth/authorize", identity.authorize),
            web.post("/oauth/token", identity.token),
            web.post("/oauth/revoke", identity.revoke),
            *_sign_in_routes(identity),
        ],
        OPENAI_MODEL: [
            web.post("/backend-api/codex/responses", api.responses),
            web.get("/backend-api/codex/responses", api.no_websocket),
            web.get("/backend-api/codex/models", api.models),
            web.get("/backend-api/wham/accounts/check", api.accounts_check),
        ],
        OPENAI_API: [
            web.post("/v1/responses", api.responses),
            web.get("/v1/responses", api.no_websocket),
            web.get("/v1/models", api.models),
        ],
    }


def _anthropic(identity: IdentityProvider, api: Anthropic) -> dict[str, list[web.RouteDef]]:
    sign_in = [
        web.get("/oauth/authorize", identity.authorize),
        web.get("/cai/oauth/authorize", identity.authorize),
        *_sign_in_routes(identity),
    ]
    return {
        **dict.fromkeys(ANTHROPIC_SIGN_IN, sign_in),
        ANTHROPIC_PLATFORM: [
            *sign_in,
            web.post("/v1/oauth/token", identity.token),
            web.post("/v1/oauth/revoke", identity.revoke),
            web.get("/oauth/code/callback", identity.show_code),
            web.get("/oauth/code/success", identity.show_success),
        ],
        ANTHROPIC_API: [
            web.post("/v1/messages", api.messages),
            web.post("/v1/messages/count_tokens", api.count_tokens),
            web.get("/v1/models", api.models),
            web.get("/api/oauth/profile", api.profile),
            web.get("/api/oauth/claude_cli/roles", api.roles),
        ],
    }


def _google(identity: IdentityProvider, api: Google) -> dict[str, list[web.RouteDef]]:
    return {
        GOOGLE_SIGN_IN: [
            web.get("/o/oauth2/v2/auth", identity.authorize),
            *_sign_in_routes(identity),
        ],
        GOOGLE_TOKENS: [
            web.post("/token", identity.token),
            web.post("/revoke", identity.revoke),
            web.get("/tokeninfo", api.token_info),
            web.post("/tokeninfo", api.token_info),
        ],
        GOOGLE_ACCOUNT: [web.get("/oauth2/v2/userinfo", api.user_info)],
        GOOGLE_CODE_ASSIST: [
            web.post("/v1internal:{method}", api.code_assist),
            web.get("/v1internal:{method}", api.code_assist),
        ],
        GOOGLE_API: [
            web.post("/v1beta/models/{model}:{method}", api.gemini),
            web.get("/v1beta/models", api.models),
        ],
        GOOGLE_PAGES: [
            web.get("/gemini-code-assist/auth_success_gemini", identity.show_success),
            web.get("/gemini-code-assist/auth_failure_gemini", identity.show_failure),
        ],
        GOOGLE_PASTE_A_CODE: [web.get("/authcode", identity.show_google_code)],
        GOOGLE_STATISTICS: [web.post("/log", api.log)],
    }


def _call_logging(call_log: CallLog) -> Middleware:
    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = 500
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as answer:
            status = answer.status
            raise
        finally:
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            call_log.record(
                "call",
                host=request.host[:100],
                method=request.method,
                path=request.path[:200],
                status=status,
                token=fingerprint(token) if token else None,
            )

    return note
