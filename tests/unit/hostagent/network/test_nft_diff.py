"""Comparison of nftables rulesets, as `nft -j list ruleset` prints them."""

from __future__ import annotations

import json
from typing import Any

from polydev.hostagent.network import nft_diff

OTHER = {"family": "inet", "table": "other"}


def table(*entries: dict[str, Any]) -> nft_diff.Table:
    listing = [{"metainfo": {"json_schema_version": 1}}, *entries]
    tables = nft_diff.parse(json.dumps({"nftables": listing}))
    return tables["inet", "other"]


def test_base_chain_is_a_hook() -> None:
    named = {"name": "input", "handle": 1}
    base = {"type": "filter", "hook": "input", "prio": 0, "policy": "accept"}
    assert table({"chain": OTHER | named | base}).has_hooks
    assert not table({"chain": OTHER | named}).has_hooks


def test_name_or_text_hook_is_no_hook() -> None:
    verdicts = {"type": "ipv4_addr", "map": "verdict", "handle": 2}
    jump = {"jump": {"target": "hook"}}
    log = {"log": {"prefix": "hook"}}
    unhooked = table(
        {"table": {"family": "inet", "name": "other", "handle": 1}},
        {"set": OTHER | {"name": "hook", "type": "ipv4_addr", "handle": 1}},
        {"map": OTHER | verdicts | {"name": "hook", "elem": [["192.0.2.1", jump]]}},
        {"chain": OTHER | {"name": "hook", "handle": 3}},
        {"chain": OTHER | {"name": "idle", "handle": 4}},
        {"rule": OTHER | {"chain": "idle", "handle": 5, "expr": [log, jump]}},
    )
    assert not unhooked.has_hooks
