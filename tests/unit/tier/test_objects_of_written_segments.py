"""What real writers leave on a device, with power cuts, kills, failed writes and several writers a segment, can be made an object."""

from __future__ import annotations

import random
from collections.abc import Callable
from uuid import UUID

import pytest

from awsomefsd.base.limits import BLOCK_BYTES, KIB
from awsomefsd.base.types import SEGMENT_SEALED
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.collection import GetPieces
from awsomefsd.tier.names import SegmentName
from awsomefsd.tier.segment_object import content_of, finish, judge_whole, room_for
from tests.rigs.segment_writers import Cluster

SEGMENTS = 400


def storm(chance: random.Random, cluster: Cluster, steps: int) -> None:
    mounts = [cluster.mount(f"v{number}") for number in range(6)]
    for _ in range(steps):
        mount = chance.choice(mounts)
        kind = chance.randrange(20)
        if kind == 0:
            cluster.cut(lambda _block: chance.random() < 0.5)
        elif kind == 1:
            mount.begin()
        elif kind < 5:
            cluster.pause()
        elif kind == 5:
            cluster.device.on_write = fails_once(cluster)
        elif kind == 6:
            mount.report(mount.writer.seal_all())
        else:
            mount.write(chance.randbytes(chance.choice([1, 500, 5_000, 70_000, 300_000])))
    for mount in mounts:
        mount.unmount()


def fails_once(cluster: Cluster) -> Callable[[int, int], None]:
    def on_write(_offset: int, _length: int) -> None:
        cluster.device.on_write = lambda _offset, _length: None
        raise OSError(5, "once")

    return on_write


@pytest.mark.parametrize("physical", [4 * KIB, 16 * KIB, 64 * KIB])
def test_sealed_segments_become_objects(physical: int, seed: int, figures: list[str]) -> None:
    chance = random.Random(seed)
    cluster = Cluster(SEGMENTS, physical_block_bytes=physical)
    storm(chance, cluster, 120)
    made = several = 0
    for number in range(1, SEGMENTS + 1):
        info = cluster.drive.ask(m.GetSegments([number])).segments[0]
        pieces = cluster.drive.ask(GetPieces(number, 0, 0, 0, 0, 10_000)).pieces
        if info.state != SEGMENT_SEALED or not pieces:
            continue
        name = SegmentName(UUID(int=1), UUID(int=2), number, info.incarnation)
        data = cluster.device.content[info.byte_offset : info.byte_offset + info.committed_bytes]
        content = content_of(memoryview(data), number, info.incarnation, physical - BLOCK_BYTES)
        found = {(frame.frame_offset, frame.sequence) for frame in content.frames}
        assert {(one.extent.frame_offset, one.extent.sequence) for one in pieces} <= found
        buffer = bytearray(data) + bytes(room_for(len(data), content) - len(data))
        size = finish(memoryview(buffer), len(data), content, name, 1)
        assert judge_whole(memoryview(buffer)[:size], name).data_end == info.committed_bytes
        made += 1
        several += any(frame.sequence > before.sequence + 1 for before, frame in zip(content.frames, content.frames[1:], strict=False))
    assert made and several
    figures.append(f"{made} segments became objects, {several} of them of several writers, physical blocks of {physical}")
