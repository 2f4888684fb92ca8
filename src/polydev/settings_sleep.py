"""The settings of machines' sleep: after how long, and what counts as doing nothing. A part of the
controller's settings."""

from __future__ import annotations

from pydantic import BaseModel, Field


class SleepLimits(BaseModel):
    """When machines sleep; each is an environment variable, `POLYDEV_` and its name."""

    hibernate_idle_s: float = Field(1800, ge=0)
    """For how long nobody must have used a CLI machine before its memory goes to disk; 0: never."""
    hibernate_cpu: float = Field(0.1, gt=0)
    """Processor cores: a machine that used more in any minute of that time is doing something."""
    hibernate_limit_s: float = Field(120, gt=0)
    """How long writing a machine's memory to disk may take."""
