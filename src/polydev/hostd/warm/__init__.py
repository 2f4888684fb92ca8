"""Browser machines that are cloned of one whose browser is up, instead of booted: docs/machines.md,
"Warm browser machines"."""

from polydev.hostd.warm.room import Room
from polydev.hostd.warm.warm_browsers import WarmBrowsers, WarmPolicy

__all__ = ["Room", "WarmBrowsers", "WarmPolicy"]
