"""Templates escape their context; the policy allows nothing inline or external."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from polydev.controller.settings import ControllerSettings
from polydev.controller.web.rendering.assets import HERE, Assets, default_folder
from polydev.controller.web.rendering.render import _sign_in_required, make_site, policy_of

SITE = make_site(Assets(default_folder(ControllerSettings.model_fields["cache_dir"].default)))
TEMPLATES = sorted((HERE / "templates").rglob("*.html"))
EVIL = "<script>alert(1)</script>\"' onload=x"


def rendered(template: str, **context: object) -> str:
    return SITE.templates.from_string(template).render(context)


def test_template_context_is_escaped() -> None:
    assert "<script>" not in rendered("<p title='{{ x }}'>{{ x }}</p>", x=EVIL)


def test_filter_results_are_escaped() -> None:
    for name in ("action_label", "browser_label"):
        assert "<script>" not in rendered(f"{{{{ x | {name} }}}}", x=EVIL), name


def test_icon_label_is_escaped() -> None:
    html = rendered("{{ icon('check', x) }}", x=EVIL)
    assert "<script>" not in html
    assert html.count('"') == 8  # class, role, aria-label and href are complete


def test_icon_without_label_is_hidden_from_screen_readers() -> None:
    assert 'aria-hidden="true"' in rendered("{{ icon('check') }}")


def test_missing_variable_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        rendered("{{ not_there }}")


def test_policy_allows_nothing_inline_or_external() -> None:
    policy = dict(part.split(" ", 1) for part in policy_of({}).split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["base-uri"] == "'none'"
    assert policy["report-uri"] == "/csp-report"
    for directive, value in policy.items():
        assert "unsafe" not in value, directive
        assert "http" not in value, directive
        assert "*" not in value, directive


def test_page_can_replace_a_directive() -> None:
    policy = policy_of({"style-src": "'self' 'unsafe-inline'"})
    assert "style-src 'self' 'unsafe-inline'" in policy
    assert "script-src 'self'" in policy
    assert policy.count("style-src") == 1


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda it: str(it.relative_to(HERE)))
def test_template_has_no_inline_script_or_style(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    assert not re.search(r"<style|\bstyle=", text)
    assert not re.search(r"<[^>]*\son[a-z]+=", text)
    assert not re.search(r"\|\s*safe\b", text)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda it: str(it.relative_to(HERE)))
def test_every_icon_of_a_template_exists(path: Path) -> None:
    there = set(re.findall(r'id="([\w-]+)"', (HERE / "static" / "icons.svg").read_text()))
    named = set(re.findall(r"icon\('([\w-]+)'", path.read_text()))
    assert named <= there


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda it: str(it.relative_to(HERE)))
def test_every_template_compiles(path: Path) -> None:
    SITE.templates.get_template(path.relative_to(HERE / "templates").as_posix())


def _signed_out(path: str, query: bytes = b"") -> HTTPException:
    headers = [(b"host", b"localhost:4000")]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query}
    return _sign_in_required(Request({**scope, "headers": headers}))


def test_signed_out_page_leads_to_sign_in_and_back() -> None:
    refused = _signed_out("/chat", b"provider=codex")
    assert refused.status_code == 303
    assert refused.headers == {"Location": "/sign-in?next=%2Fchat%3Fprovider%3Dcodex"}
    assert _signed_out("/").headers == {"Location": "/sign-in"}


def test_signed_out_fragment_leaves_the_redirect_to_its_page() -> None:
    refused = _signed_out("/fragments/home")
    assert (refused.status_code, refused.headers) == (401, None)
