"""Strangers that say nothing keep nobody out of a founding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from awsomefsd.cluster.founding import driver, wire
from awsomefsd.cluster.pki import founding_token
from tests.cluster.founding_rig import WAIT_S, Group, wall_ms
from tests.rigs.descriptors import many_descriptors
from tests.rigs.free_ports import free_ports

STRANGERS = 500  # of each port


@pytest.fixture
def many_files() -> Iterator[None]:
    with many_descriptors():
        yield


async def _stranger(port: int, number: int) -> trio.abc.ReceiveStream:
    """Returns one that is silent, or has said half of a handshake, a handshake, or half of a Hello."""
    plain = await trio.open_tcp_stream("127.0.0.1", port)
    if number % 10 == 1:
        await plain.send_all(b"\x16\x03\x01\x02\x00\x01")
    elif number % 25 == 2:
        tls = trio.SSLStream(plain, wire.dialling_context(), https_compatible=True)
        await tls.do_handshake()
        await tls.send_all(b"\x00\x00\x00\x09ab"[: 6 * (number % 50 == 2)])
        return tls
    return plain


async def _await_end(stranger: trio.abc.ReceiveStream) -> None:
    try:
        while await stranger.receive_some(1_024):
            pass
    except trio.BrokenResourceError:
        pass


@pytest.mark.trio
@pytest.mark.usefixtures("many_files")
async def test_a_cluster_is_founded_under_a_thousand_half_open_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HANDSHAKE_S", 600.0)  # so that strangers stay for as long as they are let
    ports = free_ports(2)
    group = Group(tmp_path / "group", founding_token.make(2, (), wall_ms() + 3_600_000), ports)
    addresses: list[str] = []  # the nodes hear of each other when the strangers are there
    async with trio.open_nursery() as nursery:
        for number in range(2):
            group.start(nursery, number, lambda: list(addresses))
        with trio.fail_after(WAIT_S):
            while len(group.drivers) < 2:
                await trio.sleep(0.01)
            strangers = []
            for port in ports:
                came = [await _stranger(port, number) for number in range(STRANGERS)]
                for oldest in came[: STRANGERS - 2 * driver.VISITS_MAX]:  # who comes at the same time begins in any order
                    await _await_end(oldest)
                strangers += came
        assert all(len(one._strangers) <= driver.VISITS_MAX for one in group.drivers.values())
        addresses += [f"127.0.0.1:{port}" for port in ports]
        await group.formed(2)
        group.check(2)
        nursery.cancel_scope.cancel()
    for stranger in strangers:
        await trio.aclose_forcefully(stranger)
