"""The devices of a pool as a node reaches them: what is known is used without asking; who cannot be asked costs one mirror, not a write."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.limits import MIB
from awsomefsd.base.types import BAY_MIRROR, DeviceInfo, SegmentBay
from awsomefsd.base.wait import MustWait, begin_reading_requests
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import Superblock, write_superblock
from awsomefsd.io.pool import pool_devices
from awsomefsd.io.pool.pool_devices import PoolDevices
from tests.rigs.segment_servers import node_of, until

CLUSTER, OWN, OTHER = node_of(999), node_of(1), node_of(2)
SEGMENT_BYTES, BAYS = 4 * MIB, 4
SIZE = BAYS * SEGMENT_BYTES + 3 * MIB


def info(number: int, server: str, **fields: object) -> DeviceInfo:
    made = DeviceInfo(number, node_of(500 + number), SIZE, SEGMENT_BYTES, BAYS, BAYS, MIB, home=server, pool=1, server=server)
    return replace(made, **fields)


class Cluster:
    def __init__(self) -> None:
        self.devices: list[DeviceInfo] = []
        self.asked = 0
        self.away = self.broken = False

    def find(self) -> list[DeviceInfo]:
        self.asked += 1
        if self.away:
            raise Unavailable("no quorum")
        if self.broken:
            raise OSError(errno.EMFILE, "devices.json")
        return self.devices


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[PoolDevices]:
    def no_tls() -> object:
        raise AssertionError("nobody dials here")

    made = PoolDevices(cluster.find, CLUSTER, OWN, "/run/bays.sock", lambda: no_tls, lambda: (1, 1))  # type: ignore[arg-type, return-value]
    yield made
    made.close()


def test_own_devices_by_the_socket_others_by_their_address(cluster: Cluster, pool: PoolDevices) -> None:
    cluster.devices = [info(1, OWN), info(2, OTHER, address="10.0.0.2:7442"), info(3, "", pool=0)]
    assert pool.device_of(1).server.endpoint == "/run/bays.sock"
    assert pool.device_of(2).server.endpoint == f"{OTHER}@10.0.0.2:7442"
    assert pool.device_of(2).server is pool.device_of(2).server and cluster.asked == 1


def test_a_device_that_nobody_serves_is_asked_for_again_in_the_background(cluster: Cluster, pool: PoolDevices) -> None:
    cluster.devices = [info(2, OTHER)]  # its server has not told where it is
    with pytest.raises(OSError) as refused:
        pool.device_of(2)
    assert refused.value.errno == errno.ENODEV
    cluster.devices = [info(2, OTHER, address="10.0.0.2:7442")]

    def reached() -> bool:
        try:
            return bool(pool.device_of(2))
        except OSError:
            return False

    until(reached)


def test_who_cannot_be_asked_is_an_error_of_that_device(cluster: Cluster, pool: PoolDevices) -> None:
    cluster.away = True
    with pytest.raises(OSError) as refused:
        pool.device_of(1)
    assert refused.value.errno == errno.EAGAIN


def test_a_thread_that_reads_requests_asks_nobody(cluster: Cluster, pool: PoolDevices) -> None:
    cluster.devices = [info(1, OWN)]
    raised: list[object] = []

    def serve() -> None:
        begin_reading_requests()
        try:
            pool.device_of(1)
        except MustWait:
            raised.append(cluster.asked)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(60)
    assert raised == [0]


def test_an_own_device_is_read_directly_and_never_another_one_at_its_path(cluster: Cluster, pool: PoolDevices, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    with Device.open(path) as device:
        write_superblock(device, Superblock(CLUSTER, node_of(501), SIZE, SEGMENT_BYTES, BAYS, 5))
    with open(path, "r+b") as file:
        file.seek(MIB + 2 * SEGMENT_BYTES)
        file.write(b"here")
    bay = SegmentBay(1, 2, 0, BAY_MIRROR)
    assert pool.local(bay, SEGMENT_BYTES) is None, "nothing is known yet, and nobody is asked"
    cluster.devices = [info(1, OWN, path=str(path)), info(2, OTHER, path=str(path), address="10.0.0.2:7442")]
    pool.device_of(1)
    own = pool.local(bay, SEGMENT_BYTES)
    assert own is not None
    buffer = aligned_buffer(4096)
    assert own.pread_into(buffer, 0) == 4096 and bytes(buffer[:4]) == b"here"
    assert pool.local(SegmentBay(2, 2, 0, BAY_MIRROR), SEGMENT_BYTES) is None, "another node serves it, whatever is at the path"


def test_what_is_at_the_path_of_an_own_device_has_to_be_that_device(cluster: Cluster, pool: PoolDevices, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    with Device.open(path) as device:
        write_superblock(device, Superblock(CLUSTER, node_of(777), SIZE, SEGMENT_BYTES, BAYS, 5))
    cluster.devices = [info(1, OWN, path=str(path))]
    pool.device_of(1)
    assert pool.local(SegmentBay(1, 2, 0, BAY_MIRROR), SEGMENT_BYTES) is None


def test_an_own_device_that_could_not_be_opened_is_tried_again(
    cluster: Cluster, pool: PoolDevices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_devices, "POOL_DEVICES_MS_MAX", 0)
    path, bay = tmp_path / "disk", SegmentBay(1, 2, 0, BAY_MIRROR)
    cluster.devices = [info(1, OWN, path=str(path))]
    pool.device_of(1)
    assert pool.local(bay, SEGMENT_BYTES) is None
    with open(path, "wb") as file:
        file.truncate(SIZE)
    with Device.open(path) as device:
        write_superblock(device, Superblock(CLUSTER, node_of(501), SIZE, SEGMENT_BYTES, BAYS, 5))
    until(lambda: bool(pool.device_of(1)) and pool.local(bay, SEGMENT_BYTES) is not None)


def test_a_look_that_failed_is_not_the_last(cluster: Cluster, pool: PoolDevices) -> None:
    cluster.devices = [info(2, OTHER)]
    with pytest.raises(OSError):
        pool.device_of(2)
    cluster.broken = True
    before = cluster.asked

    def asked(more: int) -> bool:
        with pytest.raises(OSError):
            pool.device_of(2)
        return cluster.asked >= before + more

    until(lambda: asked(3))


def test_where_a_device_is_served_is_asked_for_again_while_it_is_used(
    cluster: Cluster, pool: PoolDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_devices, "POOL_DEVICES_MS_MAX", 0)
    cluster.devices = [info(2, OTHER, address="10.0.0.2:7442")]
    pool.device_of(2)
    cluster.devices = [info(2, node_of(3), address="10.0.0.3:7442")]
    until(lambda: pool.device_of(2).server.endpoint == f"{node_of(3)}@10.0.0.3:7442")


@pytest.mark.parametrize("address", ["/run/x.sock", f"{node_of(9)}@10.0.0.9:7442"])
def test_an_address_names_neither_a_socket_nor_another_node(cluster: Cluster, pool: PoolDevices, address: str) -> None:
    cluster.devices = [info(2, OTHER, address=address)]
    with pytest.raises(OSError, match="no segment server serves"):
        pool.device_of(2)
