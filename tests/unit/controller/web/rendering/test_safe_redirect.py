"""Accept only own pages as redirect targets."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.controller.web.rendering.safe_redirect import HOME, safe_next

OURS = "http://localhost:4000"


@pytest.mark.parametrize("path", ["/", "/settings", "/chat/3f?turn=2", "/machine/vm-1?a=b%20c"])
def test_own_page_is_accepted(path: str) -> None:
    assert safe_next(path) == path


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        "",
        "settings",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/ /evil.example",
        "\n//evil.example",
        "https://evil.example/",
        "javascript:alert(1)",
        "data:text/html,x",
        "/settings\r\nSet-Cookie: a=b",
        "/settings#<script>\u2028",
        "/" + "a" * 5000,
    ],
)
def test_other_targets_lead_home(wanted: str | None) -> None:
    assert safe_next(wanted) == HOME


@pytest.mark.parametrize(
    "wanted",
    ["/api/account/oidc/start", "/fragments/home", "/static/x/app.js", "/sign-in?next=/sign-in"],
)
def test_paths_that_are_not_pages_lead_home(wanted: str) -> None:
    assert safe_next(wanted) == HOME


@given(st.text(max_size=40) | st.text(alphabet="/\\.:@?#%\t\n ae", max_size=12))
def test_any_target_stays_on_the_origin(wanted: str) -> None:
    there = safe_next(wanted)
    assert there.startswith("/")
    landed = urlsplit(urljoin(f"{OURS}/sign-in", there))
    assert f"{landed.scheme}://{landed.netloc}" == OURS
