"""Templates escape what they are given; the policy allows nothing inline or from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from starlette.requests import Request

from polydev.controller.settings import ControllerSettings
from polydev.controller.web.rendering.assets import HERE, Assets, default_folder
from polydev.controller.web.rendering.render import _sign_in_first, make_site_of, policy_of

SITE = make_site_of(Assets(default_folder(ControllerSettings.model_fields["cache_dir"].default)))
TEMPLATES = sorted((HERE / "templates").rglob("*.html"))
EVIL = "<script>alert(1)</script>\"' onload=x"


def rendered(template: str, **context: object) -> str:
    return SITE.templates.from_string(template).render(context)


def test_what_a_template_is_given_is_text() -> None:
    assert "<script>" not in rendered("<p title='{{ x }}'>{{ x }}</p>", x=EVIL)


def test_filters_give_back_no_html_of_what_they_are_given() -> None:
    for name in ("action_label", "browser_label"):
        assert "<script>" not in rendered(f"{{{{ x | {name} }}}}", x=EVIL), name


def test_an_icons_label_is_text() -> None:
    html = rendered("{{ icon('check', x) }}", x=EVIL)
    assert "<script>" not in html
    assert html.count('"') == 8  # class, role, aria-label, href: none of them was left


def test_an_icon_without_a_label_is_hidden_from_screen_readers() -> None:
    assert 'aria-hidden="true"' in rendered("{{ icon('check') }}")


def test_what_is_missing_is_an_error_and_not_an_empty_place() -> None:
    with pytest.raises(UndefinedError):
        rendered("{{ not_there }}")


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    policy = dict(part.split(" ", 1) for part in policy_of({}).split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["base-uri"] == "'none'"
    assert policy["report-uri"] == "/csp-report"
    for directive, value in policy.items():
        assert "unsafe" not in value, directive
        assert "http" not in value, directive
        assert "*" not in value, directive


def test_a_page_can_replace_a_directive_and_keeps_the_others() -> None:
    policy = policy_of({"style-src": "'self' 'unsafe-inline'"})
    assert "style-src 'self' 'unsafe-inline'" in policy
    assert "script-src 'self'" in policy
    assert policy.count("style-src") == 1


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda it: str(it.relative_to(HERE)))
def test_no_template_holds_a_script_a_style_or_a_handler(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    assert not re.search(r"<style|\bstyle=", text)
    assert not re.search(r"<[^>]*\son[a-z]+=", text)
    assert not re.search(r"\|\s*safe\b", text)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda it: str(it.relative_to(HERE)))
def test_every_symbol_that_a_template_names_exists(path: Path) -> None:
    there = set(re.findall(r'id="([\w-]+)"', (HERE / "static" / "icons.svg").read_text()))
    named = set(re.findall(r"icon\('([\w-]+)'", path.read_text()))
    assert named <= there


@pytest.mark.parametrize(
    ("told", "leads"),
    [
        ("http://localhost:4000/chat?provider=codex", "%2Fchat%3Fprovider%3Dcodex"),
        ("http://[", "%2F"),
        ("https://other.example//elsewhere", "%2F"),
        ("javascript:alert(1)", "%2F"),
        ("", "%2F"),
    ],
)
def test_a_fragment_leads_who_is_not_signed_in_to_the_door(told: str, leads: str) -> None:
    headers = [(b"host", b"localhost:4000"), (b"hx-current-url", told.encode())]
    asked = {"path": "/fragments/home", "query_string": b"", "headers": headers}
    refused = _sign_in_first(Request({"type": "http", "method": "GET", **asked}))
    assert refused.status_code == 401
    assert refused.headers == {"HX-Redirect": f"/sign-in?next={leads}"}
