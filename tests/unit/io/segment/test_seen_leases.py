"""A node that does not see one of several shared devices writes to the others, and takes nothing of that device out of use."""

from __future__ import annotations

import errno
import itertools
from collections import UserDict

import pytest

from awsomefsd.base.errors import FsError, Overloaded, Unavailable
from awsomefsd.base.limits import KIB, MIB
from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.base.types import SEGMENT_LEASED, SegmentInfo
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.segment.seen_leases import SeenLeases
from awsomefsd.io.segment.writer import Piece, SegmentWriter
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.rigs.machine_driver import SEGMENT_BYTES, sound
from tests.rigs.segment_writers import Cluster, Mount


def two_devices(segments: int = 16, **fields: int) -> Cluster:
    cluster = Cluster(segments, **fields)
    size = (segments + 1) * SEGMENT_BYTES
    cluster.devices[2] = MemoryDevice(size)
    cluster.drive.ok(c.AddDevice("second", size, SEGMENT_BYTES, segments, MIB, True), session=0, epoch=0, mount=0)
    return cluster


def device_of(mount: Mount, data: bytes) -> tuple[int, int]:
    """Where a write has landed: device and segment."""
    segment = mount.write(data)[0].segment
    return mount.locations.locate(segment).device, segment


def leased(cluster: Cluster, device: int) -> list[int]:
    found = cluster.drive.ask(m.GetSegments(list(range(1, 33)))).segments
    return [info.segment for info in found if info.device == device and info.state == SEGMENT_LEASED]


def test_a_write_goes_to_a_device_that_the_node_sees() -> None:
    cluster = two_devices()
    blind = cluster.mount("blind", "n2", {2: cluster.devices[2]})
    assert device_of(blind, b"x" * 10 * KIB)[0] == 2
    assert device_of(blind, b"y" * 3 * SEGMENT_BYTES)[0] == 2, "also when several are leased ahead"
    assert blind.read() == blind.content
    cluster.pause()
    assert not leased(cluster, 1), "what was leased there was given back"
    sound(cluster.drive)


def test_what_another_writer_has_begun_there_stays_to_be_filled() -> None:
    cluster = two_devices()
    first, second = cluster.mount("first"), cluster.mount("second")
    begun = device_of(first, b"a" * 10 * KIB)
    assert begun[0] == 1
    cluster.pause()
    blind = cluster.mount("blind", "n2", {2: cluster.devices[2]})
    assert device_of(blind, b"x" * 10 * KIB)[0] == 2
    cluster.pause()
    assert device_of(second, b"b" * 10 * KIB) == begun, "the node that does not see it has given it back as it was"
    assert first.read() == first.content and second.read() == second.content
    sound(cluster.drive)


def test_a_device_that_is_back_is_used_again() -> None:
    cluster = two_devices()
    seen = {2: cluster.devices[2]}
    mount = cluster.mount("v", "n2", seen)
    assert device_of(mount, b"x")[0] == 2
    cluster.pause()
    cluster.drive.ok(c.DrainDevice(2, True), session=0, epoch=0, mount=0)
    with pytest.raises(AssertionError, match="sees none of the devices"):
        mount.write(b"y")
    seen[1] = cluster.devices[1]
    assert device_of(mount, b"z")[0] == 1


def test_a_cluster_that_acts_at_a_lower_level_is_asked_once_more_and_no_more() -> None:
    cluster = two_devices(level=DELEGATION - 1)
    blind = cluster.mount("blind", "n2", {2: cluster.devices[2]})
    for _ in range(3):
        with pytest.raises(Unavailable):
            blind.write(b"x")


def test_each_question_but_the_last_teaches_something_and_nothing_leased_is_lost() -> None:
    def info(number: int) -> SegmentInfo:
        return SegmentInfo(number, 1, number, 0, MIB, SEGMENT_LEASED, 0)

    asked: list[list[int]] = []

    def lease(count: int, avoid: list[int]) -> list[SegmentInfo]:
        asked.append(avoid)
        left = [number for number in range(1, 5) if number not in avoid]
        if not left:
            raise FsError(errno.EIO, "none")
        return [info(left[0])]

    devices: dict[int, MemoryDevice] = {}
    leases = SeenLeases(devices, lease)
    assert [one.device for one in leases.lease(1)] == [1, 2, 3, 4], "all are given back by the caller"
    assert asked == [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    with pytest.raises(FsError):
        leases.lease(1)
    devices[3] = MemoryDevice(MIB)
    assert [one.device for one in leases.lease(1)] == [3] and asked[-1] == [1, 2, 4]


class AskedInVain(UserDict[int, MemoryDevice]):
    """Devices of which the service does not say, after some answers, where they are, as OpenDevices tells it."""

    answers = 0

    def __getitem__(self, number: int) -> MemoryDevice:
        self.answers -= 1
        if self.answers < 0:
            raise Overloaded("too many requests wait")
        return self.data[number]


def one(number: int) -> SegmentInfo:
    return SegmentInfo(number, 1, 1, number * MIB, MIB, SEGMENT_LEASED, 0)


@pytest.mark.parametrize("avoids", [True, False])
def test_segments_are_given_back_when_nobody_says_where_their_device_is(avoids: bool) -> None:
    """They were nobody's until the session ended."""
    numbers = itertools.count(1)

    def lease(count: int, avoid: list[int] | None = None) -> list[SegmentInfo]:
        return [] if avoid else [one(next(numbers)) for _ in range(count)]

    devices = AskedInVain()
    writer = SegmentWriter(devices, SeenLeases(devices, lease).lease if avoids else lease)
    for _ in range(3):
        with pytest.raises((FsError, Unavailable)):
            writer.write([Piece(3, 77, 0, [memoryview(b"x")])])
    assert {step.segment for step in writer.seal_all()} == set(range(1, next(numbers)))


def test_a_device_that_nobody_finds_any_more_has_failed() -> None:
    """The segments of that attempt are not written again, as after any other failure."""
    numbers = itertools.count(1)
    devices = AskedInVain({1: MemoryDevice(8 * MIB)})
    devices.answers = 1
    writer = SegmentWriter(devices, lambda count: [one(next(numbers)) for _ in range(count)])
    with pytest.raises((OSError, Unavailable)):
        writer.write([Piece(3, 77, 0, [memoryview(b"x")])])
    devices.answers = 1_000
    extents = writer.write([Piece(3, 77, 0, [memoryview(b"x")])]).extents[0]
    assert extents[0].segment > 1
