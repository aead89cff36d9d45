"""Reads of a segment in bays: from the nearest mirror, from another one when that is away or wrong, and never wrong bytes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import Corrupt, FsError, Unavailable
from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, Extent, SegmentBay, SegmentInBays
from awsomefsd.base.wait import MustWait, begin_reading_requests
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.pool.copies import Copies, LocalBay
from awsomefsd.io.pool.remote_device import RemoteDevice
from awsomefsd.io.segment import reader
from awsomefsd.io.segment.locations import Locations
from awsomefsd.io.segment.reader import ReadPlace, SegmentReader
from awsomefsd.io.segment.writer import Piece
from awsomefsd.meta.api.messages import Segments
from tests.rigs.patience import patient  # noqa: F401 - the fixture
from tests.rigs.served_pool import ServedPool

LENGTH = 200_000


@pytest.fixture(autouse=True)
def long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """For mirrors that come back; `in_vain` does not wait for those that do not."""
    monkeypatch.setattr(reader, "MIRRORS_WAIT_MS_MAX", 60_000)


@contextmanager
def in_vain(error: type[Exception], match: str | None = None) -> Iterator[None]:
    """A read that fails in the end."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reader, "MIRRORS_WAIT_MS_MAX", 500)
        with pytest.raises(error, match=match):
            yield


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ServedPool]:
    made = ServedPool(tmp_path)
    yield made
    made.close()


class Reads:
    """A file in a pool, and a reader on a node that may have one of the devices."""

    def __init__(self, pool: ServedPool, own: int = 0) -> None:
        self.pool, self.own = pool, own
        self.ino, self.data = pool.drive.create(b"f"), os.urandom(LENGTH)
        writer = pool.writer()
        written = writer.write([Piece(pool.drive.volume, self.ino, 0, [memoryview(self.data)])])
        pool.commit(written, self.ino, LENGTH)
        pool.report(writer.seal_all())
        self.extent: Extent = written.extents[0][0]
        self.copies = Copies(self._local, pool.device, pool.fanout.avoid)
        self.reader = SegmentReader({}, pool.info, mirrors=self.copies.of)

    def _local(self, bay: SegmentBay, length: int) -> BlockDevice | None:
        if bay.device != self.own:
            return None
        served = self.pool.cluster.nodes[bay.device - 1]
        return LocalBay(served.file, served.bays.place_of(bay.index, 0), length)

    def read(self, skip: int = 0, length: int = LENGTH) -> bytes:
        into = memoryview(bytearray(length))
        self.reader.read(self.extent, self.pool.drive.volume, self.ino, skip, length, into)
        return bytes(into)

    def right(self) -> bool:
        return self.read() == self.data and self.read(70_001, 5) == self.data[70_001:70_006]

    def flip(self, device: int) -> None:
        """Damages the mirror there, in the middle of the data."""
        [bay] = [bay for bay in self.pool.info(self.extent.segment).bays if bay.device == device]
        at = self.extent.frame_offset + self.extent.header_bytes + 100_000
        served = self.pool.cluster.nodes[device - 1]
        was = served.medium(bay.index, 1, at)
        served.put(bay.index, bytes([was[0] ^ 1]), at)

    def forget(self) -> None:
        """Nothing is known of the checksums."""
        self.reader = SegmentReader({}, self.pool.info, mirrors=self.copies.of)


def test_a_mirror_is_read_over_the_wire_and_the_own_one_directly(pool: ServedPool) -> None:
    reads = Reads(pool)
    assert reads.right()
    reads.own = 2
    assert [place.remote for place in reads.copies.of(pool.info(reads.extent.segment), LENGTH)] == [False, True, True]
    for served in pool.cluster.nodes:
        served.server.stop()
    assert reads.right()


def test_any_two_may_be_away(pool: ServedPool) -> None:
    reads = Reads(pool)
    for left in range(3):
        away = [served for number, served in enumerate(pool.cluster.nodes) if number != left]
        for served in away:
            served.server.stop()
        assert reads.right()
        for served in away:
            served.start()
    for served in pool.cluster.nodes:
        served.server.stop()
    with in_vain(OSError):
        reads.read()


@pytest.mark.parametrize("own", [0, 1])
def test_a_wrong_mirror_is_not_believed_and_another_one_serves(pool: ServedPool, own: int) -> None:
    reads = Reads(pool, own)
    for device in (1, 2):
        reads.flip(device)
        reads.forget()
        assert reads.right()
    reads.flip(3)
    with in_vain(Corrupt):
        reads.read()


def test_a_footer_that_one_mirror_has_lost_is_read_from_another(pool: ServedPool) -> None:
    reads = Reads(pool, own=1)
    info = pool.info(reads.extent.segment)
    assert info.footer_bytes
    [bay] = [bay for bay in info.bays if bay.device == 1]
    pool.cluster.nodes[0].put(bay.index, bytes(info.footer_bytes), info.footer_offset)
    assert reads.right()
    assert reads.reader.statistics().footers_read == 1
    reads.reader.checksums.forget(reads.extent.segment, reads.extent.incarnation, reads.extent.sequence)
    reads.own = 2
    assert reads.right()
    assert reads.reader.statistics().footers_read == 2
    assert reads.reader.checksums.table(info.segment, info.incarnation) is not None


def test_a_read_waits_for_a_server_that_starts_again(pool: ServedPool) -> None:
    reads = Reads(pool)
    for served in pool.cluster.nodes:
        served.server.stop()
    starting = threading.Timer(0.3, pool.cluster.nodes[0].start)
    starting.start()
    assert reads.right()
    starting.join()


def test_what_another_mirror_may_have_is_not_called_corrupt(pool: ServedPool) -> None:
    reads = Reads(pool)
    for device in (1, 2):
        reads.flip(device)
    pool.cluster.nodes[2].server.stop()
    with in_vain(OSError):
        reads.read()
    pool.cluster.nodes[2].start()
    assert reads.right()


def test_what_a_mirror_that_nobody_serves_may_have_is_not_called_corrupt(pool: ServedPool) -> None:
    """As the one above, but the device is known to be served by nobody, so it is not among the places."""
    reads = Reads(pool)
    reads.flip(1)
    reads.forget()

    def served(number: int) -> RemoteDevice:
        if number != 1:
            raise OSError(errno.ENODEV, "no segment server serves it now")
        return pool.device(number)

    reads.copies = Copies(reads._local, served, pool.fanout.avoid)
    reads.forget()
    with in_vain(Unavailable):
        reads.read()
    reads.copies = Copies(reads._local, pool.device, pool.fanout.avoid)
    reads.forget()
    assert reads.right()


def test_a_mirror_that_stayed_behind_comes_last(pool: ServedPool) -> None:
    reads = Reads(pool)
    info = pool.info(reads.extent.segment)
    info.bays = [SegmentBay(bay.device, bay.index, 0 if bay.device == 1 else bay.durable, bay.role) for bay in info.bays]
    assert "device 1 " in reads.copies.of(info, LENGTH)[-1].device.path


def test_nobody_serves_it(pool: ServedPool) -> None:
    reads = Reads(pool)
    info = pool.info(reads.extent.segment)
    info.bays = [SegmentBay(bay.device, bay.index, 0, BAY_COPYING) for bay in info.bays]
    reader = SegmentReader({}, lambda _: info, mirrors=reads.copies.of)
    with in_vain(Unavailable, "nobody serves"):
        reader.read(reads.extent, 1, reads.ino, 0, 10, memoryview(bytearray(10)))


def test_a_thread_that_reads_requests_leaves_remote_reads_to_another(pool: ServedPool) -> None:
    reads = Reads(pool)
    raised: list[type[BaseException]] = []

    def serve() -> None:
        begin_reading_requests()
        try:
            reads.read()
        except MustWait as err:
            raised.append(type(err))
        reads.own = 1
        raised.append(type(reads.read()))  # type: ignore[arg-type]

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(60)
    assert raised == [MustWait, bytes]


def test_a_read_asks_again_where_a_segment_is_that_was_moved(pool: ServedPool) -> None:
    reads = Reads(pool)
    now = pool.info(reads.extent.segment)
    locations = Locations(lambda _body: Segments([now]), lambda _command: None)
    locations.learn([replace(now, bays=[SegmentBay(9, 0, now.committed_bytes, BAY_MIRROR)])])  # before it was healed

    def mirrors(info: SegmentInBays, end: int) -> Sequence[ReadPlace]:
        return [] if info.bays[0].device == 9 else reads.copies.of(info, end)

    reads.reader = SegmentReader({}, locations.locate, mirrors=mirrors, locate_again=locations.locate_again)
    assert reads.right()


@pytest.mark.parametrize("freed", [True, False])
def test_a_segment_that_was_freed_is_told_as_an_old_layout_while_a_mirror_of_it_is_away(pool: ServedPool, freed: bool) -> None:
    """Its bay has other bytes by now, and the other mirror's device was removed.  `freed`: its row is gone; else another life has begun."""
    reads = Reads(pool)
    reads.flip(1)
    before = pool.info(reads.extent.segment)

    def now(_body: object) -> Segments:
        if freed:
            raise FsError(errno.ENOENT, f"no segment {before.segment}")
        return Segments([replace(before, incarnation=before.incarnation + 1)])

    locations = Locations(now, lambda _command: None)
    locations.learn([before])

    def mirrors(info: SegmentInBays, end: int) -> Sequence[ReadPlace]:
        return [one for one in reads.copies.of(info, end) if "device 1 " in one.device.path]

    reads.reader = SegmentReader({}, locations.locate, mirrors=mirrors, locate_again=locations.locate_again)
    with pytest.raises(Corrupt, match="which does not exist" if freed else "is in incarnation"):
        reads.read()


def test_a_thread_that_reads_requests_leaves_it_to_another_to_wait_for_mirrors(pool: ServedPool) -> None:
    reads = Reads(pool)
    reads.reader = SegmentReader({}, pool.info, mirrors=lambda _info, _end: ())
    raised: list[type[BaseException]] = []

    def serve() -> None:
        begin_reading_requests()
        try:
            reads.read()
        except (MustWait, Unavailable) as err:
            raised.append(type(err))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(60)
    assert raised == [MustWait]
