"""The fake CA is reused while it is valid, and recreated otherwise."""

from pathlib import Path

import pytest

from polydev.testing.fake_providers.test_ca import Authority, ensure_authority

HOSTS = ("claude.com", "auth.openai.com")


def test_valid_authority_is_reused(tmp_path: Path) -> None:
    first = ensure_authority(tmp_path, HOSTS).ca.read_bytes()
    assert ensure_authority(tmp_path, HOSTS).ca.read_bytes() == first
    assert ensure_authority(tmp_path, HOSTS[::-1]).ca.read_bytes() == first


def _cut_the_key(authority: Authority) -> None:
    authority.key.write_bytes(authority.key.read_bytes()[:40])


def _remove_the_certificate(authority: Authority) -> None:
    authority.certificate.unlink()


def _swap_the_authority(authority: Authority) -> None:
    other = ensure_authority(authority.ca.parent / "other", HOSTS)
    authority.ca.write_bytes(other.ca.read_bytes())


@pytest.mark.parametrize("damage", [_cut_the_key, _remove_the_certificate, _swap_the_authority])
def test_damaged_authority_is_replaced(tmp_path: Path, damage: object) -> None:
    authority = ensure_authority(tmp_path, HOSTS)
    damage(authority)  # type: ignore[operator]
    before = authority.ca.read_bytes()
    ensure_authority(tmp_path, HOSTS).server_context()
    assert authority.ca.read_bytes() != before


def test_new_hosts_need_a_new_certificate(tmp_path: Path) -> None:
    first = ensure_authority(tmp_path, HOSTS).certificate.read_bytes()
    assert ensure_authority(tmp_path, (*HOSTS, "x.test")).certificate.read_bytes() != first


def test_server_key_is_private_and_ca_key_is_discarded(tmp_path: Path) -> None:
    authority = ensure_authority(tmp_path, HOSTS)
    assert authority.key.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ca.pem",
        "server.key",
        "server.pem",
    ]
