"""Settings files of the units, and the encryption key.

    /etc/polydev/polydev.env      0640 root:<controller's group>   for both programs; no secrets
    /etc/polydev/controller.env   0600 root   for the controller, with secrets; systemd reads it
    /etc/polydev/encryption-key   0600 root   a systemd credential of the controller

Setup creates each file once; then the administrator owns it. The key is never printed, and the host
agent's unit reads neither of the last two.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass

from polydev.cli.host_setup.resource import State, Status
from polydev.cli.host_setup.resources.accounts import user_ids
from polydev.cli.host_setup.target_root import CONFIG, Shape, TargetRoot
from polydev.controller.settings import ControllerSettings
from polydev.hostagent.settings import HostSettings
from polydev.shared.settings.base import read
from polydev.shared.settings.messages import variable_of

SETTINGS = f"{CONFIG}/polydev.env"
CONTROLLER_SETTINGS = f"{CONFIG}/controller.env"
KEY = f"{CONFIG}/encryption-key"

_ROOT_ONLY = Shape(0o600)
_COMMON_TEXT = """\
# Settings of the host agent and the controller, as NAME=value. Put secrets into controller.env
# instead. After a change, run: polydev host setup
"""
_CONTROLLER_TEXT = """\
# Settings of the controller, as NAME=value, including secrets such as DATABASE_URL.
# ENCRYPTION_KEY is in the file encryption-key instead. After a change, run:
#     systemctl restart polydev-controller
"""


@dataclass(frozen=True, slots=True)
class SettingsFiles:
    """Settings files and encryption key."""

    target: TargetRoot
    user: str
    name: str = "settings"

    def check(self) -> Status:
        for path, shape in self._wanted():
            if not self.target.is_file(path, None, shape):
                message = f"{path} is missing or does not have mode {shape.mode:04o}"
                return Status(self.name, State.MISSING, message, "Run `polydev host setup`")
        return Status(self.name, State.OK, f"{SETTINGS}, {CONTROLLER_SETTINGS}, {KEY}")

    def apply(self) -> None:
        self.target.folder(CONFIG, Shape(0o755))
        contents = {SETTINGS: _common, CONTROLLER_SETTINGS: lambda: _CONTROLLER_TEXT, KEY: _key}
        for path, shape in self._wanted():
            there = self.target.at(path)
            content = there.read_bytes() if there.exists() else contents[path]().encode()
            self.target.file(path, content, shape)

    def revert(self, *, purge: bool) -> Sequence[str]:
        """Keep the files unless `purge`: without the key, stored data cannot be decrypted."""
        paths = [path for path, _ in self._wanted()]
        if purge:
            for path in paths:
                self.target.remove(path)
            return []
        is_there = any(self.target.at(path).exists() for path in paths)
        return [f"{CONFIG}, with the settings and the encryption key"] if is_there else []

    def _wanted(self) -> Sequence[tuple[str, Shape]]:
        _, gid = user_ids(self.target, self.user) or (0, 0)
        return (
            (SETTINGS, Shape(0o640, 0, gid)),
            (CONTROLLER_SETTINGS, _ROOT_ONLY),
            (KEY, _ROOT_ONLY),
        )


def load_installed_settings(target: TargetRoot, environment: MutableMapping[str, str]) -> None:
    """Use the installed settings as defaults for this run."""
    try:
        lines = target.at(SETTINGS).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        name, is_setting, value = line.partition("=")
        if is_setting and (name.startswith("POLYDEV_") or name == "PORT"):
            environment.setdefault(name, value)


def _common() -> str:
    return _COMMON_TEXT + "".join(f"{name}={value}\n" for name, value in _current_settings())


def _current_settings() -> Iterator[tuple[str, str]]:
    """Yield the host agent's settings, and the user, that are set in the environment."""
    names = [variable_of(name, field) for name, field in HostSettings.model_fields.items()]
    for name in (*sorted(names), "POLYDEV_USER"):
        value = os.environ.get(name, "")
        if value and "\n" not in value:
            yield name, value


def _key() -> str:
    """Return the key that is set, so that existing data stays readable; otherwise a new one."""
    settings = read(ControllerSettings)
    if settings.encryption_key is None and settings.encryption_key_file is None:
        return secrets.token_hex(32) + "\n"
    return settings.required_encryption_key().get_secret_value() + "\n"
