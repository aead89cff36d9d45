"""Discovery by multicast: nodes of one cluster find each other, of another do not; without multicast it says so and finds nothing."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from typing import Any

import pytest
import zeroconf

from awsomefsd.cluster.discovery import SERVICE, Discovery, cluster_mark

WAIT_S = 60
NODES = [f"{number}0000000-0000-4000-8000-000000000000" for number in range(3)]


def multicast_works() -> bool:
    """Whether this host hears what it sends to a group."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
        ear.bind(("", 0))
        try:
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + bytes(4))
            mouth.sendto(b"heard", ("224.0.0.251", ear.getsockname()[1]))
            ear.settimeout(5)
            return ear.recv(16) == b"heard"
        except OSError:
            return False


def test_nodes_of_one_cluster_find_each_other() -> None:
    if not multicast_works():
        pytest.skip("no multicast on this host")
    one, other = (str(uuid.uuid4()) for _ in range(2))  # another run of tests is heard as well
    who = zip((one, one, other), NODES, strict=True)
    made = [Discovery(cluster, node, f"127.0.0.{number}:7440") for number, (cluster, node) in enumerate(who, 1)]
    try:
        end = time.monotonic() + WAIT_S
        while not (made[0].addresses() and made[1].addresses()):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert made[0].addresses() == ["127.0.0.2:7440"] and made[1].addresses() == ["127.0.0.1:7440"]
        assert made[2].addresses() == []
    finally:
        for one in made:
            one.close()


def test_without_multicast_it_says_so_once_and_finds_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(zeroconf, "Zeroconf", no_network)
    with caplog.at_level(logging.WARNING):
        found = Discovery("a", NODES[0], "10.0.0.1:7440")
    assert found.addresses() == [] and len(caplog.records) == 1 and "unreachable" in caplog.text
    found.close()


def test_what_is_announced_names_neither_cluster_nor_secret() -> None:
    info = _announced(Discovery.__new__(Discovery))
    assert info == {"cluster": cluster_mark("a"), "node": NODES[0], "port": "7440"}
    assert cluster_mark("a") != cluster_mark("b")


def _announced(discovery: Any) -> dict[str, str]:
    """What would be registered."""
    seen: list[Any] = []

    class Quiet:
        def register_service(self, info: zeroconf.ServiceInfo, **_: Any) -> None:
            seen.append(info)

    discovery._mark, discovery._node = cluster_mark("a"), NODES[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zeroconf, "Zeroconf", Quiet)
        patch.setattr(zeroconf, "ServiceBrowser", lambda *_, **__: None)
        discovery._start("10.0.0.1:7440")
    [info] = seen
    assert info.type == SERVICE
    return {key.decode(): value.decode() for key, value in info.properties.items()}
