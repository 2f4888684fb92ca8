"""Browser machines that are cloned of one whose browser is up, instead of booted: docs/machines.md,
"Warm browser machines"."""

from polydev.hostagent.warm_pool.headroom import Room
from polydev.hostagent.warm_pool.warm_pool import WarmBrowsers, WarmPolicy

__all__ = ["Room", "WarmBrowsers", "WarmPolicy"]
