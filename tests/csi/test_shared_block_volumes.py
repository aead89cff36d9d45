"""A block volume on several nodes at once, as a virtual machine's live migration wants it: what one device has written, the others read.

Every node has a loop device of its own over the one file of a volume that is mounted with `shared`.  Programs open them with O_DIRECT, as
QEMU does with cache=none.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import random
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.settings import DRIVER
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from tests.csi.rig import Mode, Player, capability, cleared
from tests.rigs.network_namespaces import found_static, start_on_one_disk

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
TOGETHER = capability(Mode.MULTI_NODE_MULTI_WRITER, block=True)
SIZE, BLOCK, SECTOR = 1 << 24, 4096, 512
CONTESTED = 24  # blocks that both write
_DISCARD, _ZERO_OUT = 0x1277, 0x127F
_RANGE = struct.Struct("QQ")


@pytest.fixture(scope="module")
def players(make_cluster: Callable[..., Cluster]) -> Iterator[list[Player]]:
    cluster = make_cluster(3, size_bytes=16 << 30)
    found_static(cluster)
    made = [Player(node) for node in cluster.nodes]
    with ExitStack() as stack:
        for player in made:
            stack.enter_context(cleared(player))
        start_on_one_disk(cluster)
        yield made


class Device:
    """A device, read and written past its page cache.  One thread at a time."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self._page = mmap.mmap(-1, BLOCK)

    def write(self, at: int, data: bytes) -> None:
        self._page[: len(data)] = data
        with memoryview(self._page)[: len(data)] as view:
            assert os.pwritev(self.fd, [view], at) == len(data)

    def read(self, at: int, count: int = BLOCK) -> bytes:
        with memoryview(self._page)[:count] as view:
            assert os.preadv(self.fd, [view], at) == count
            return bytes(view)

    def size(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END)


@contextmanager
def opened(*paths: Path) -> Iterator[list[Device]]:
    devices = [Device(path) for path in paths]
    try:
        yield devices
    finally:
        for device in devices:
            os.close(device.fd)


@pytest.fixture
def shared(players: list[Player]) -> Iterator[tuple[str, list[Path]]]:
    """A volume, staged on the first two nodes at the same moment, and where its devices are."""
    volume = players[2].create("pvc-together", SIZE, TOGETHER)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda player: player.stage(volume, TOGETHER), players[:2]))
    yield volume, [player.publish(volume, "vm", TOGETHER) for player in players[:2]]
    for player in players[:2]:
        player.unpublish(volume, "vm")
        player.unstage(volume)
    players[2].delete(volume)
    for player in players:
        await_true("nothing left over", lambda player=player: not player.left_here(), 120)
    players[0].await_nothing_left()


def test_the_first_stage_on_two_nodes_allocates_once(players: list[Player], shared: tuple[str, list[Path]]) -> None:
    volume, paths = shared
    for player in players[:2]:
        file = (player.kubelet / "plugins" / DRIVER / "volumes" / volume / "block.img").stat()
        assert (file.st_size, file.st_blocks * 512) == (SIZE, SIZE)
    [row] = [row for row in players[2].node.ask("volume", "ls") if row["name"] == f"csi-{volume}"]
    assert SIZE <= row["used_bytes"] < SIZE + (1 << 20)
    for path in paths:
        state = Path(f"/sys/dev/block/{os.major(path.stat().st_rdev)}:{os.minor(path.stat().st_rdev)}")
        assert (state / "loop/dio").read_text().strip() == "1" and (state / "queue/logical_block_size").read_text().strip() == str(SECTOR)


def test_sectors_zeroes_and_growth_are_seen_on_the_other_node(players: list[Player], shared: tuple[str, list[Path]]) -> None:
    volume, paths = shared
    with opened(*paths) as devices:
        one, two = devices

        def write(number: int) -> None:  # the sectors of one block, by turns
            for at in range(number, BLOCK // SECTOR, 2):
                devices[number].write(at * SECTOR, bytes([65 + at]) * SECTOR)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, range(2)))
        wanted = b"".join(bytes([65 + at]) * SECTOR for at in range(BLOCK // SECTOR))
        assert one.read(0) == two.read(0) == wanted
        for request in (_ZERO_OUT, _DISCARD):
            two.write(BLOCK, b"x" * BLOCK)
            assert one.read(BLOCK) == b"x" * BLOCK
            fcntl.ioctl(one.fd, request, _RANGE.pack(BLOCK, BLOCK))
            assert two.read(BLOCK) == bytes(BLOCK), "on the other node"
            assert two.read(0) == wanted, "and nothing beside it"
        asked = pb.CapacityRange(required_bytes=2 * SIZE)
        players[2].call("ControllerExpandVolume", pb.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=asked))
        for player, path, device in zip(players, paths, devices, strict=False):
            player.call("NodeExpandVolume", pb.NodeExpandVolumeRequest(volume_id=volume, volume_path=str(path), capacity_range=asked))
            assert device.size() == 2 * SIZE
        one.write(2 * SIZE - BLOCK, b"e" * BLOCK)
        assert two.read(2 * SIZE - BLOCK) == b"e" * BLOCK and two.read(0) == wanted


@dataclass
class History:
    """Writes of whole blocks and what reads have seen, with times at which they began and ended."""

    clock: Iterator[int] = field(default_factory=itertools.count)
    writes: dict[int, list[list[float]]] = field(default_factory=lambda: defaultdict(lambda: [[-2, -1, 0]]))  # block -> [begin, end, tag]
    reads: list[tuple[int, int, int, int]] = field(default_factory=list)  # block, begin, end, tag

    def write(self, device: Device, block: int, tag: int) -> None:
        row = [next(self.clock), float("inf"), tag]
        self.writes[block].append(row)
        device.write(block * BLOCK, tag.to_bytes(8) * (BLOCK // 8))
        row[1] = next(self.clock)

    def read(self, device: Device, block: int) -> None:
        began = next(self.clock)
        data = device.read(block * BLOCK)
        ended = next(self.clock)
        assert data == data[:8] * (BLOCK // 8), f"half of one write and half of another in block {block}"
        self.reads.append((block, began, ended, int.from_bytes(data[:8])))

    def check(self) -> None:
        """Every read saw a write that no other had overwritten before the read began."""
        for block, began, ended, tag in self.reads:
            rows = self.writes[block]
            seen = next((row for row in rows if row[2] == tag), None)
            assert seen is not None and seen[0] < ended, f"block {block} shows {tag}, which nobody had written"
            later = [row for row in rows if row[0] > seen[1] and row[1] < began]
            assert not later, f"block {block} shows {tag}, but {later[0][2]} was written after it and before the read"


def run(history: History, device: Device, writer: int, seed: int, ended: threading.Event) -> int:
    dice = random.Random(f"{seed}-{writer}")
    for number in itertools.count(1):
        if ended.is_set():
            return number
        block = dice.choice([dice.randrange(CONTESTED), CONTESTED + writer])
        if dice.random() < 0.5:
            history.write(device, block, number << 8 | writer + 1)
        else:
            history.read(device, dice.choice([block, dice.randrange(CONTESTED + 2)]))
    raise AssertionError


def test_two_writers_see_each_others_last_write(players: list[Player], shared: tuple[str, list[Path]], seed: int) -> None:
    """Also while worker, daemon and keeper of each are killed."""
    _, paths = shared
    history, ended = History(), threading.Event()
    with opened(*paths) as devices, ThreadPoolExecutor(2) as pool:
        for block in range(CONTESTED + 2):
            devices[0].write(block * BLOCK, bytes(BLOCK))
        try:
            going = [pool.submit(run, history, device, number, seed, ended) for number, device in enumerate(devices)]

            def more() -> None:
                past = len(history.reads)
                await_true("more reads", lambda: len(history.reads) > past + 200 or any(one.done() for one in going), 120)

            more()
            for roles in (["worker"], ["daemon"], ["keeper"], ["worker", "daemon"]):
                for player in players[:2]:
                    player.node.strike(roles)
                    more()
        finally:
            ended.set()
        for one in going:
            one.result()
    history.check()
