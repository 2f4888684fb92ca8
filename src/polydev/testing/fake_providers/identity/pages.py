"""HTML pages of the identity provider: sign-in, consent, code to paste, messages.

Pure functions; every value is escaped.
"""

import html
import secrets
from dataclasses import dataclass
from string import Template

AUTOMATIC_AFTER_MS = 1500

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; background: #eef1f5; color: #1c2430; margin: 0 }
main { max-width: 24rem; margin: 8vh auto; padding: 2rem; background: #fff; border-radius: 12px;
  box-shadow: 0 2px 16px #1c243022 }
h1 { font-size: 1.4rem; margin: 0 0 .5rem }
label { display: block; margin: 1rem 0 }
input { box-sizing: border-box; width: 100%; padding: .6rem; font: inherit;
  border: 1px solid #9aa5b4; border-radius: 6px }
button { padding: .6rem 1.2rem; font: inherit; border: 0; border-radius: 6px; cursor: pointer;
  background: #2456c8; color: #fff }
button.quiet { background: #dfe4ec; color: #1c2430 }
code { display: block; padding: .8rem; background: #eef1f5; border-radius: 6px;
  overflow-wrap: anywhere }
.error { color: #a11; font-weight: 600 } small { color: #5a6675 }
</style></head><body><main>
<h1>$title</h1>
$body
<p><small>Fake provider. Nothing you type here leaves this deployment.</small></p>
</main>$script</body></html>
""")


@dataclass(frozen=True)
class Page:
    """A page, and the nonce of its own script (empty: no script)."""

    text: str
    nonce: str = ""

    def content_security_policy(self) -> str:
        script = f"'nonce-{self.nonce}'" if self.nonce else "'none'"
        return (
            f"default-src 'none'; style-src 'unsafe-inline'; script-src {script}; "
            "base-uri 'none'; frame-ancestors 'none'"
        )


@dataclass(frozen=True)
class Prefilled:
    """Initial values of the sign-in form; `automatic` makes it submit itself."""

    email: str = ""
    password: str = ""
    automatic: bool = False


def sign_in(sign_in_id: str, client_name: str, prefilled: Prefilled, error: str = "") -> Page:
    problem = f'<p class="error" role="alert">{html.escape(error)}</p>' if error else ""
    body = f"""<p>to continue to <b>{html.escape(client_name)}</b></p>{problem}
<form method="post" action="/standin/sign-in">
<input type="hidden" name="sign_in" value="{html.escape(sign_in_id)}">
<label>Email <input type="email" name="email" required autocomplete="username"
 value="{html.escape(prefilled.email)}"></label>
<label>Password <input type="password" name="password" required
 autocomplete="current-password" value="{html.escape(prefilled.password)}"></label>
<button type="submit">Continue</button></form>"""
    return _page("Sign in", body, prefilled.automatic)


def consent(sign_in_id: str, client_name: str, email: str, *, automatic: bool) -> Page:
    body = f"""<p><b>{html.escape(client_name)}</b> would like to use your account
<b>{html.escape(email)}</b>.</p>
<form method="post" action="/standin/consent">
<input type="hidden" name="sign_in" value="{html.escape(sign_in_id)}">
<button type="submit" name="decision" value="allow">Authorize</button>
<button type="submit" name="decision" value="deny" class="quiet">Deny</button></form>"""
    return _page(f"Authorize {client_name}", body, automatic)


def code_to_paste(code: str) -> Page:
    body = f"""<p>Paste this code into your terminal:</p>
<code id="code">{html.escape(code)}</code>"""
    return _page("Authentication code", body, automatic=False)


def message(title: str, text: str) -> Page:
    return _page(title, f"<p>{html.escape(text)}</p>", automatic=False)


def _page(title: str, body: str, automatic: bool) -> Page:
    nonce = secrets.token_urlsafe(16) if automatic else ""
    script = ""
    if automatic:
        # Submit with the first button, so that its name and value are included.
        script = (
            f'<script nonce="{nonce}">setTimeout(() => document.forms[0].requestSubmit('
            f"document.querySelector('button')), {AUTOMATIC_AFTER_MS})</script>"
        )
    text = _PAGE.substitute(title=html.escape(title), body=body, script=script)
    return Page(text, nonce)
