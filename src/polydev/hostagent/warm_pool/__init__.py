"""The warm pool: browser machines that are cloned from a template instead of booted.

See docs/machines.md, "Warm browser machines".
"""

from polydev.hostagent.warm_pool.headroom import Headroom
from polydev.hostagent.warm_pool.warm_pool import WarmPolicy, WarmPool

__all__ = ["Headroom", "WarmPolicy", "WarmPool"]
