"""A segment that one writer has begun and sealed is filled by others, of any volume: small volumes keep few segments.

Real writers and readers over the real machine, with a device in memory that lets no block be written twice, however often its power is cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from awsomefsd.base.limits import KIB
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_LEASED
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.file.draining import REST_S
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.collection import GetPieces
from tests.rigs.machine_driver import SEGMENT_BYTES, sound
from tests.rigs.segment_writers import Cluster


def available(cluster: Cluster) -> int:
    return int(cluster.drive.ask(m.GetStatFs(1)).stat.bytes_available)


def test_a_hundred_small_volumes_that_are_mounted_together_keep_little(seed: int) -> None:
    """64 KiB each, 6.7 MiB with headers and footers: 2 segments of 4 MiB, not 200."""
    chance = random.Random(seed)
    cluster = Cluster(256)
    mounts = [cluster.mount(f"v{number}") for number in range(100)]
    before = available(cluster)
    for mount in mounts:
        mount.write(chance.randbytes(64 * KIB))
        cluster.pause()
    assert cluster.used() == 2
    assert before - available(cluster) <= 2 * SEGMENT_BYTES
    assert all(mount.read() == mount.content for mount in mounts)
    sound(cluster.drive)
    for mount in mounts:
        mount.unmount()
    assert cluster.used() == 2
    sound(cluster.drive)


def test_volumes_that_write_at_once_keep_a_segment_each_until_they_rest_and_are_collected(seed: int) -> None:
    chance = random.Random(seed)
    cluster = Cluster(256)
    mounts = [cluster.mount(f"v{number}") for number in range(100)]
    for mount in mounts:
        mount.write(chance.randbytes(64 * KIB))
    assert cluster.used() == 100, "one each: nothing is leased ahead"
    cluster.pause()
    cluster.collect()
    assert cluster.used() <= 3
    for mount in mounts[:30]:
        mount.write(chance.randbytes(10 * KIB))
        cluster.pause()
    assert cluster.used() <= 3, "and fill what others have begun, the collector too"
    assert all(mount.read() == mount.content for mount in mounts)
    sound(cluster.drive)


def test_volumes_that_are_mounted_one_after_the_other_share_a_segment() -> None:
    cluster = Cluster(64)
    mounts = []
    for number in range(20):
        mount = cluster.mount(f"v{number}")
        mount.write(b"%d" % number * 1_000)
        mount.unmount()
        mounts.append(mount)
    assert cluster.used() == 1
    assert all(mount.read() == mount.content for mount in mounts)


def test_a_writer_that_goes_on_keeps_its_segment() -> None:
    cluster = Cluster(64)
    mount = cluster.mount("v")
    for _ in range(5):
        mount.write(b"x")
        cluster.clock.s += REST_S
        mount.draining.poll()
    (info,) = cluster.drive.ask(m.GetSegments([1])).segments
    assert info.state == SEGMENT_LEASED and cluster.used() == 1
    assert not info.footer_bytes, "it was leased all the time"


def test_a_reader_that_knows_an_older_footer_takes_the_newer_one() -> None:
    cluster = Cluster(64)
    first, second, third = (cluster.mount(name) for name in ("first", "second", "third"))
    reader = SegmentReader({1: cluster.device}, lambda number: cluster.drive.ask(m.GetSegments([number])).segments[0], ChecksumCache())
    for mount in (first, second, third):
        (extent,) = mount.write(b"%d" % mount.volume * 70_000)
        cluster.pause()
        into = aligned_buffer(10)
        reader.read(extent, mount.volume, mount.ino, 69_990, 10, into)
        assert bytes(into) == b"%d" % mount.volume * 10
    statistics = reader.statistics()
    assert (statistics.footers_read, statistics.headers_read, statistics.device_reads) == (3, 0, 6)


def test_below_the_level_of_the_rule_nothing_is_shared() -> None:
    cluster = Cluster(64, level=MENDED_RULES - 1)
    for number in range(3):
        mount = cluster.mount(f"v{number}")
        mount.write(b"x" * 10_000)
        mount.unmount()
    assert cluster.used() == 3


def test_bytes_of_another_writer_become_nobodys_by_a_commit() -> None:
    """A lessee may name only what it wrote, not what the segment held before."""
    cluster = Cluster(64)
    first, second = cluster.mount("first"), cluster.mount("second")
    (secret,) = first.write(b"s" * 10_000)
    cluster.pause()
    (own,) = second.write(b"o" * 10_000)
    assert own.segment == secret.segment and own.frame_offset > secret.frame_offset and own.sequence > secret.sequence
    step = c.InodeCommit(second.ino, second.number, 9, 10_000, 9, [secret])
    reply = cluster.drive.apply(c.Commit(second.volume, [step], 0, []), **second.who)
    assert isinstance(reply, m.Failed) or reply.errnos != [0]


@pytest.mark.parametrize("how", ["killed", "expired", "a footer that cannot be written", "a failed write"])
def test_what_was_not_sealed_by_its_own_writer_is_not_shared(how: str) -> None:
    """Something may be on its way there, or lie behind what is committed."""
    cluster = Cluster(64)
    first, second = cluster.mount("first"), cluster.mount("second")
    (left,) = first.write(b"x" * 10_000)
    if how == "killed":
        first.begin()
    elif how == "expired":
        cluster.drive.ok(c.EndSession(first.who["session"], first.who["epoch"], False), session=0, epoch=0, mount=0)
    else:
        cluster.device.on_write = _fails_once(cluster)
        if how == "a failed write":
            first.write(b"y" * 10_000)
            first.write(b"z" * 10_000)
        else:
            first.report(first.writer.seal_all())
    (other,) = second.write(b"o" * 10_000)
    assert other.segment != left.segment
    assert first.read() == first.content
    sound(cluster.drive)


def test_a_recovery_forgets_what_was_begun() -> None:
    """A writer of the time that is lost may have filled it."""
    cluster = Cluster(64)
    mount = cluster.mount("first")
    (begun,) = mount.write(b"x" * 10_000)
    mount.unmount()
    cluster.drive.ok(c.Recover(1, "nobody writes"), session=0, epoch=0, mount=0)
    (other,) = cluster.mount("second").write(b"y" * 10_000)
    assert other.segment != begun.segment
    sound(cluster.drive)


@pytest.mark.parametrize("physical", [4 * KIB, 16 * KIB, 64 * KIB])
def test_power_cuts_kills_and_failed_writes_among_writers_that_share(physical: int, seed: int) -> None:
    """What was committed is there, no block is written twice, and no two frames of a segment have one sequence."""
    chance = random.Random(seed)
    cluster = Cluster(400, physical_block_bytes=physical)
    mounts = [cluster.mount(f"v{number}") for number in range(6)]
    shared = 0
    for _ in range(150):
        mount = chance.choice(mounts)
        kind = chance.randrange(20)
        if kind == 0:
            cluster.cut(lambda _block: chance.random() < 0.5)
        elif kind == 1:
            mount.begin()
        elif kind < 5:
            cluster.pause()
        elif kind == 5:
            cluster.device.on_write = _fails_once(cluster)
        elif kind == 6:
            mount.report(mount.writer.seal_all())
        else:
            size = chance.choice([1, 500, 5_000, 70_000, 300_000])
            shared += any(extent.frame_offset and extent.sequence > 1_000 for extent in mount.write(chance.randbytes(size)))
    assert shared
    cluster.cut(lambda _block: False)
    assert all(mount.read() == mount.content for mount in mounts)
    _all_differ(cluster)
    sound(cluster.drive)
    cluster.collect()
    assert all(mount.read() == mount.content for mount in mounts)
    sound(cluster.drive)


def _fails_once(cluster: Cluster) -> Callable[[int, int], None]:
    def on_write(_offset: int, _length: int) -> None:
        cluster.device.on_write = lambda _offset, _length: None
        raise OSError(5, "once")

    return on_write


def _all_differ(cluster: Cluster) -> None:
    for number in range(1, 401):
        segment = cluster.drive.ask(m.GetSegments([number])).segments[0]
        if segment.state == SEGMENT_FREE:
            continue
        pieces = cluster.drive.ask(GetPieces(number, 0, 0, 0, 0, 10_000)).pieces
        frames = {(one.extent.sequence, one.extent.frame_offset) for one in pieces}
        assert len({sequence for sequence, _ in frames}) == len(frames)
