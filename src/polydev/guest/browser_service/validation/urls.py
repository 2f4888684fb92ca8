"""Validation of login URLs, pasted callback URLs and pasted codes."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, urlsplit

from ..recipes import LoginRecipe
from ..settings import URL_CHARACTERS

_PRINTABLE = re.compile(r"[!-~]+")
# A URL in terminal output ends at a blank, a control character or a quote.
_IN_OUTPUT = re.compile(rb"https://[^\x00-\x20\x7f-\xff\"'<>]{1,4096}")


class UrlRefused(Exception):
    """The text is not a URL of this login; the message has the reason without the query."""


@dataclass(frozen=True)
class AuthorizationUrl:
    """Authorization URL of one login, with the parts that its callback must match."""

    text: str
    redirect_uri: str
    state: str


def authorization_url(text: str, hosts: Collection[str]) -> AuthorizationUrl:
    """Validate a URL that the CLI wants to open: https, and a host of the provider."""
    parts = _split(text)
    if parts.scheme != "https" or parts.port not in {None, 443}:
        raise UrlRefused("the CLI's URL is not an https URL")
    if parts.hostname not in hosts:
        raise UrlRefused(f"the CLI's URL has host {parts.hostname}, which is not the provider's")
    query = parse_qs(parts.query)
    return AuthorizationUrl(text, _one(query, "redirect_uri"), _one(query, "state"))


def callback_url(text: str, recipe: LoginRecipe, url: AuthorizationUrl) -> str:
    """Validate a pasted callback URL: of this login and the CLI's callback server.

    Returns the URL to fetch, with the CLI's host name and port.
    """
    pasted, expected = _split(text), _split(url.redirect_uri)
    if pasted.scheme != "http" or pasted.hostname not in {"localhost", "127.0.0.1"}:
        raise UrlRefused("a callback URL starts with http://localhost: or http://127.0.0.1:")
    if pasted.port is None or pasted.port != expected.port:
        raise UrlRefused("the callback URL does not have this login's port")
    if recipe.callback_ports and pasted.port not in recipe.callback_ports:
        raise UrlRefused("the callback URL has a port that the CLI does not use")
    if pasted.path != recipe.callback_path:
        raise UrlRefused(f"the callback URL's path is not {recipe.callback_path}")
    query = parse_qs(pasted.query)
    if url.state and _one(query, "state") != url.state:
        raise UrlRefused("the callback URL belongs to another login")
    if not _one(query, "code") and not _one(query, "error"):
        raise UrlRefused("the callback URL has neither a code nor an error")
    return pasted._replace(netloc=f"{expected.hostname}:{expected.port}", fragment="").geturl()


def own_browser_url(
    output: bytes, recipe: LoginRecipe, url: AuthorizationUrl
) -> AuthorizationUrl | None:
    """URL for the user's own browser: printed by the CLI, or the same URL."""
    if not recipe.paste_url_redirect:
        return url
    for found in _IN_OUTPUT.findall(output):
        try:
            candidate = authorization_url(found.decode("ascii"), recipe.url_hosts)
        except UrlRefused:
            continue
        if candidate.redirect_uri == recipe.paste_url_redirect:
            return candidate
    return None


def code_to_type(text: str, recipe: LoginRecipe, own: AuthorizationUrl | None) -> str:
    """Validate a pasted code: its format, and its login if it contains the state."""
    code = text.strip()
    if len(code) > URL_CHARACTERS or re.fullmatch(recipe.paste_code_pattern, code) is None:
        raise UrlRefused("this is not a complete code: copy all of it from the provider's page")
    _, marked, state = code.partition("#")
    if marked and own is not None and own.state and state != own.state:
        raise UrlRefused("the code belongs to another login")
    return code


def _split(text: str) -> SplitResult:
    if len(text) > URL_CHARACTERS or _PRINTABLE.fullmatch(text) is None:
        raise UrlRefused("not a URL: too long, empty, or not printable")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  (raises for an invalid port)
    except ValueError:
        raise UrlRefused("not a URL") from None
    if "@" in parts.netloc or "\\" in text:
        raise UrlRefused("the URL contains a user name or a backslash")
    return parts


def _one(query: dict[str, list[str]], name: str) -> str:
    values = query.get(name, [])
    return values[0] if len(values) == 1 else ""
