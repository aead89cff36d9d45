"""Strangers that say nothing keep nobody out of a founding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from awsomefsd.cluster.founding import driver, wire
from awsomefsd.cluster.founding.files import FoundingFiles
from awsomefsd.cluster.pki import ca, founding_token
from tests.cluster.founding_rig import WAIT_S, Group, wall_ms
from tests.rigs.descriptors import many_descriptors
from tests.rigs.free_ports import free_ports

STRANGERS = 500  # of each port


@pytest.fixture
def many_files() -> Iterator[None]:
    with many_descriptors():
        yield


async def _shaken(port: int, source: str) -> trio.SSLStream[trio.SocketStream]:
    """Returns a connection from that address that has made the handshake, as those of honest nodes do."""
    plain = await trio.open_tcp_stream("127.0.0.1", port, local_address=source)
    tls = trio.SSLStream(plain, wire.dialling_context(), https_compatible=True)
    await tls.do_handshake()
    return tls


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


@pytest.mark.trio
async def test_a_joiner_keeps_its_place_while_another_address_opens_more_than_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These strangers do all that an honest node does before its proof; they crowd out each other."""
    monkeypatch.setattr(wire, "HANDSHAKE_S", 600.0)
    monkeypatch.setattr(driver, "VISITS_MAX", 16)
    ports = free_ports(2)
    group = Group(tmp_path / "group", founding_token.make(2, (), wall_ms() + 3_600_000), ports)
    async with trio.open_nursery() as nursery:
        group.start(nursery, 0)
        with trio.fail_after(WAIT_S):
            while not group.drivers:
                await trio.sleep(0.01)
            joiner = await _shaken(ports[0], "127.0.0.2")
            strangers = [await _shaken(ports[0], "127.0.0.1") for _ in range(driver.VISITS_MAX + 8)]
            for oldest in strangers[:8]:
                await _await_end(oldest)
            files = FoundingFiles(group.settings[1].state_dir, group.token)
            side = wire.Side(group.token.id, group.token.verifier, files.node, files.authority.id, ca.key_hash(files.key).hex())
            peer = await wire.dial(wire.FoundingWire(joiner), side, f"127.0.0.2:{ports[1]}")
        assert peer.node == group.drivers[0].core.me
        nursery.cancel_scope.cancel()
    for stream in (joiner, *strangers):
        await trio.aclose_forcefully(stream)
