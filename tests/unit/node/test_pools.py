"""What a volume in a pool may want is judged by the hosts and devices that are there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import ConfigError, Refused
from awsomefsd.base.levels import UNFINISHED_VARIABLE
from awsomefsd.node.pools import PoolCatalog


def catalog(*homes: str) -> Any:
    devices = [SimpleNamespace(pool=1, home=home, draining=False, segment_bytes=1 << 26) for home in homes]
    nodes = [SimpleNamespace(node=home, name=f"name-{home}", labels={}) for home in sorted(set(homes))]
    return PoolCatalog(SimpleNamespace(devices=lambda: devices, ask=lambda _body: SimpleNamespace(nodes=nodes)))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNFINISHED_VARIABLE, "1")


def test_mirrors_on_hosts_need_hosts_and_mirrors_on_devices_need_devices() -> None:
    one_node = catalog("a", "a", "a")
    with pytest.raises(Refused, match="different hosts, and the pool has 1"):
        one_node.want("replicas=3")
    assert one_node.want("replicas=3,spread=device").copies == 3
    with pytest.raises(Refused, match="different devices; the pool has 3"):
        one_node.want("replicas=5,spread=device")
    assert catalog("a", "b").want("replicas=3").min_copies == 2, "goes on with two"


def test_what_cannot_be_wanted_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="no device is in a pool"):
        catalog().want("replicas=1")
    with pytest.raises(ConfigError, match="erasure coding"):
        catalog("a").want("ec=4+2")
    monkeypatch.delenv(UNFINISHED_VARIABLE)
    with pytest.raises(Refused, match="not complete in this build"):
        catalog("a").want("replicas=1")
