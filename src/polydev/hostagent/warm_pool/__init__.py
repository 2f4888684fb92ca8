"""Browser machines that are cloned of one whose browser is up, instead of booted: docs/machines.md,
"Warm browser machines"."""

from polydev.hostagent.warm_pool.headroom import Headroom
from polydev.hostagent.warm_pool.warm_pool import WarmPolicy, WarmPool

__all__ = ["Headroom", "WarmPolicy", "WarmPool"]
