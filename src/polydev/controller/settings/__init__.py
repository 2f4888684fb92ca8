"""The controller's settings. `bootstrap.py` reads them once at start.

A module per subject; `ControllerSettings` holds them all.
"""

from __future__ import annotations

from polydev.controller.settings.accounts import AccountSettings, SignUp
from polydev.controller.settings.base import BaseControllerSettings
from polydev.controller.settings.chat import ChatSettings
from polydev.controller.settings.limits import LimitSettings
from polydev.controller.settings.machines import MachineSettings
from polydev.shared.settings.base import read

__all__ = ["ControllerSettings", "SignUp", "read"]


class ControllerSettings(
    AccountSettings, ChatSettings, MachineSettings, LimitSettings, BaseControllerSettings
):
    """All settings of the controller."""
