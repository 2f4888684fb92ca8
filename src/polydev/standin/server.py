"""The providers' host names and paths: which handler answers which call.

Makes the aiohttp application out of the identity and model handlers; every call is noted in the
journal. The proxy hands it connections; it opens no port itself.
"""

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .identity import Identity
from .journal import Journal, fingerprint
from .model import Model

OPENAI_IDENTITY = "auth.openai.com"
OPENAI_MODEL = "chatgpt.com"
ANTHROPIC_SIGN_IN = ("claude.com", "claude.ai")
ANTHROPIC_PLATFORM = "platform.claude.com"
ANTHROPIC_API = "api.anthropic.com"
HOSTS = (
    OPENAI_IDENTITY,
    OPENAI_MODEL,
    *ANTHROPIC_SIGN_IN,
    ANTHROPIC_PLATFORM,
    ANTHROPIC_API,
)
REQUEST_BYTES = 32 * 1024 * 1024  # a CLI sends its whole conversation with each turn


def application(identity: Identity, model: Model, journal: Journal) -> web.Application:
    app = web.Application(middlewares=[_noting(journal)], client_max_size=REQUEST_BYTES)
    for host, routes in _routes(identity, model).items():
        part = web.Application(client_max_size=REQUEST_BYTES)
        part.add_routes(routes)
        app.add_domain(host, part)
    return app


def _routes(identity: Identity, model: Model) -> dict[str, list[web.RouteDef]]:
    signing_in = [
        web.post("/standin/sign-in", identity.sign_in),
        web.post("/standin/consent", identity.consent),
    ]
    claude_sign_in = [
        web.get("/oauth/authorize", identity.authorize),
        web.get("/cai/oauth/authorize", identity.authorize),
        *signing_in,
    ]
    return {
        OPENAI_IDENTITY: [
            web.get("/oauth/authorize", identity.authorize),
            web.post("/oauth/token", identity.token),
            web.post("/oauth/revoke", identity.revoke),
            *signing_in,
        ],
        OPENAI_MODEL: [
            web.post("/backend-api/codex/responses", model.responses),
            web.get("/backend-api/codex/responses", model.no_websocket),
            web.get("/backend-api/codex/models", model.models),
            web.get("/backend-api/wham/accounts/check", model.accounts_check),
        ],
        **dict.fromkeys(ANTHROPIC_SIGN_IN, claude_sign_in),
        ANTHROPIC_PLATFORM: [
            *claude_sign_in,
            web.post("/v1/oauth/token", identity.token),
            web.post("/v1/oauth/revoke", identity.revoke),
            web.get("/oauth/code/callback", identity.show_code),
            web.get("/oauth/code/success", identity.succeeded),
        ],
        ANTHROPIC_API: [
            web.post("/v1/messages", model.messages),
            web.post("/v1/messages/count_tokens", model.count_tokens),
            web.get("/api/oauth/profile", model.profile),
            web.get("/api/oauth/claude_cli/roles", model.roles),
        ],
    }


def _noting(journal: Journal) -> Middleware:
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
            journal.note(
                "call",
                host=request.host[:100],
                method=request.method,
                path=request.path[:200],
                status=status,
                token=fingerprint(token) if token else None,
            )

    return note
