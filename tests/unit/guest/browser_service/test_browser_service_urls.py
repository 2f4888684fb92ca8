"""Only URLs of this login are opened or fetched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from login_recipes import RECIPE, URL

from polydev.guest.browser_service.validation.urls import (
    UrlRefused,
    authorization_url,
    callback_url,
    code_to_type,
    own_browser_url,
)

HOSTS = RECIPE.url_hosts
ASKED = authorization_url(URL, HOSTS)
SHOWN = (
    "https://id.example.test/authorize?redirect_uri=https%3A%2F%2Fid.example.test%2Fshown&state=S1"
)


def test_authorization_url_is_parsed() -> None:
    assert (ASKED.redirect_uri, ASKED.state) == ("http://localhost:4444/back", "S1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://",
        "http://id.example.test/authorize",
        "https://evil.example/authorize",
        "https://id.example.test.evil.example/",
        "https://evil.example#id.example.test/",
        "https://id.example.test@evil.example/",
        "https://evil.example\\@id.example.test/",
        "https://user@id.example.test/",
        "https://id.example.test:8443/",
        "https://id.example.test:x/",
        "https://[id.example.test/",
        "https://id.example.test/ x",
        "https://id.example.test/\nSet-Cookie: x",
        "https://id.example.test/é",
        "javascript:alert(1)//https://id.example.test/",
        "https://id.example.test/" + "x" * 5000,
    ],
)
def test_urls_of_others_are_refused(text: str) -> None:
    with pytest.raises(UrlRefused) as refused:
        authorization_url(text, HOSTS)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_callback_is_sent_to_the_clis_address(host: str) -> None:
    pasted = f"http://{host}:4444/back?code=c&state=S1#top"
    assert callback_url(pasted, RECIPE, ASKED) == "http://localhost:4444/back?code=c&state=S1"


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:4445/back?code=c&state=S1",
        "http://localhost/back?code=c&state=S1",
        "https://localhost:4444/back?code=c&state=S1",
        "http://localhost:4444/back/?code=c&state=S1",
        "http://localhost:4444/%62ack?code=c&state=S1",
        "http://localhost:4444/back?code=c&state=S2",
        "http://localhost:4444/back?code=c",
        "http://localhost:4444/back?state=S1",
        "http://localhost:4444/back?code=c&state=S1&state=S2",
        "http://localhost.evil.example:4444/back?code=c&state=S1",
        "http://localhost:4444@evil.example:4444/back?code=c&state=S1",
        "http://0:4444/back?code=c&state=S1",
    ],
)
def test_other_callbacks_are_refused(text: str) -> None:
    with pytest.raises(UrlRefused):
        callback_url(text, RECIPE, ASKED)


@given(st.text())
def test_no_text_crashes_the_checks(text: str) -> None:
    for check in (
        lambda: authorization_url(text, HOSTS),
        lambda: callback_url(text, RECIPE, ASKED),
        lambda: code_to_type(text, RECIPE, ASKED),
    ):
        # None of these occurs by chance, so the only right answer is a refusal.
        with pytest.raises(UrlRefused):
            check()


def test_url_for_the_users_browser_is_found() -> None:
    output = f"visit:\r\n\x1b]8;;{SHOWN}\x07\x1b[94m{SHOWN}\x1b[39m\x1b]8;;\x07\r\nCode: "
    found = own_browser_url(output.encode(), RECIPE, ASKED)
    assert found is not None
    assert found.text == SHOWN
    assert own_browser_url(output.replace("id.", "ed.").encode(), RECIPE, ASKED) is None


def test_code_matches_provider_and_login() -> None:
    own = authorization_url(SHOWN, HOSTS)
    assert code_to_type(" abc#S1\n", RECIPE, own) == "abc#S1"
    for wrong in ("abc", "abc#S2", "abc#S1\rrm -rf", "#S1", "abc#", "a" * 5000 + "#S1"):
        with pytest.raises(UrlRefused):
            code_to_type(wrong, RECIPE, own)
