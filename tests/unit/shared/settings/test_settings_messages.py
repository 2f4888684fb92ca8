"""Errors name the variable, the value unless secret, and the allowed values."""

from __future__ import annotations

import pytest

from polydev.cli.client.api_client import ClientSettings
from polydev.controller.settings import ControllerSettings
from polydev.hostagent.settings import HostSettings
from polydev.shared.errors import BadSettings
from polydev.shared.settings.base import CommonSettings, read


@pytest.mark.parametrize(
    ("kind", "variable", "value", "reported"),
    [
        (ControllerSettings, "PORT", "many", "('many') is invalid: it must be a whole number "
         "from 1 to 65535"),
        (ClientSettings, "PORT", "99999", "('99999') is invalid: it must be a whole number"),
        (ControllerSettings, "POLYDEV_CLI_VCPUS", "0", "a whole number of at least 1"),
        (ControllerSettings, "POLYDEV_MACHINE_LIMIT_S", "-1", "must be a number above 0"),
        (ControllerSettings, "POLYDEV_TRACE_RATIO", "2", "must be a number from 0 to 1"),
        (HostSettings, "POLYDEV_DRIVER", "vmware", "must be one of auto, firecracker, qemu, "
         "simulated"),
        (HostSettings, "POLYDEV_EGRESS", "some", "must be one of open, proxy, none"),
        (HostSettings, "POLYDEV_SUBNET", "192.168.100.0/99", "must be an IPv4 network"),
        (HostSettings, "POLYDEV_GATEWAY", "fe80::1", "must be an IPv4 address"),
        (HostSettings, "POLYDEV_DNS", "one.one", "must be an IPv4 address"),
        (HostSettings, "POLYDEV_NETNS", "Big Net", "lower-case letters"),
        (HostSettings, "POLYDEV_SIMULATION", "{oops", "must be a JSON object"),
        (CommonSettings, "POLYDEV_LOG_JSON", "perhaps", "must be `true` or `false`"),
    ],
)  # fmt: skip
def test_error_names_variable_value_and_rule(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[CommonSettings],
    variable: str,
    value: str,
    reported: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadSettings) as refused:
        read(kind)
    line = refused.value.line()
    assert line.startswith(f"{variable} ")
    assert reported in line
    assert "Input should" not in line
    assert "Value error" not in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("POLYDEV_METRICS_TOKEN", "hunter2"),
        ("POLYDEV_PUBLIC_URL", "https://me:hunter2@polydev.example.org"),
        ("POLYDEV_OTLP_ENDPOINT", "ftp://me:hunter2@collector.example.org"),
    ],
)
def test_secret_values_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadSettings) as refused:
        read(ControllerSettings)
    assert refused.value.line().startswith(f"{variable} is invalid: it must be ")
    assert "hunter2" not in refused.value.line()
