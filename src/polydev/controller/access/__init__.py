"""Who asks, and how they proved it: passwords, sign-ins, API tokens, an OpenID provider, Supabase.

`gate.py` is the way in: `app.py` opens it, the API asks it about every request, and reaches what
people do with their accounts through it. `caller.py` is what everything else is given. It must not
know HTTP statuses, routes or machines.
"""

from polydev.controller.access.authentication import Access, open_access
from polydev.controller.access.caller import Caller, RequestInfo
from polydev.controller.access.tokens.admin_token import ADMINISTRATOR

__all__ = ["ADMINISTRATOR", "Access", "Caller", "RequestInfo", "open_access"]
