"""Authenticate callers: passwords, sign-ins, API tokens, an OpenID provider, Supabase.

`authentication.py` is the entry: its `Access` turns a request into a `Caller`, and gives the API
everything that users do with their accounts. This package knows no HTTP statuses, routes or
machines.
"""

from polydev.controller.access.authentication import Access, open_access
from polydev.controller.access.caller import Caller, RequestInfo
from polydev.controller.access.tokens.admin_token import ADMINISTRATOR

__all__ = ["ADMINISTRATOR", "Access", "Caller", "RequestInfo", "open_access"]
