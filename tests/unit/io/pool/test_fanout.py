"""A writer whose segments are mirrored on three segment servers: what is committed is on the mirrors that the log names, whatever fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import Fenced, Unavailable
from awsomefsd.base.limits import BLOCK_BYTES, MIB
from awsomefsd.base.types import SEGMENT_SEALED, Extent, Redundancy, SegmentInfo
from awsomefsd.io.pool import ensemble
from awsomefsd.io.pool.fanout import MirroredSegment
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.io.segment.writer import Piece, SegmentWriter, Written
from tests.rigs.machine_driver import sound
from tests.rigs.patience import LONG_MS, patient  # noqa: F401 - the fixture
from tests.rigs.segment_servers import ServedNode, until
from tests.rigs.served_pool import ServedPool


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ServedPool]:
    made = ServedPool(tmp_path)
    yield made
    made.close()


class File:
    """What was written to a file of the pool and committed."""

    def __init__(self, pool: ServedPool, writer: SegmentWriter) -> None:
        self.pool, self.writer, self.ino = pool, writer, pool.drive.create(b"f%d" % pool.drive.index)
        self.bytes = bytearray()
        self.extents: list[Extent] = []

    def write(self, length: int) -> Written:
        data = os.urandom(length)
        written = self.writer.write([Piece(self.pool.drive.volume, self.ino, len(self.bytes), [memoryview(data)])])
        self.bytes += data
        self.pool.commit(written, self.ino, len(self.bytes))
        self.extents += written.extents[0]
        return written

    def check(self) -> None:
        """Every mirror that the log counts for a segment has its bytes."""
        sound(self.pool.drive)
        for extent in self.extents:
            info = self.pool.info(extent.segment)
            counted = [bay for bay in info.bays if bay.durable >= info.committed_bytes]
            assert len(counted) >= self.pool.drive.want.min_copies
            for bay in counted:
                served = self.pool.cluster.nodes[bay.device - 1]
                origin = served.bays.place_of(bay.index, 0)
                place = SegmentInfo(info.segment, info.incarnation, bay.device, origin, info.bytes, info.state, info.committed_bytes)
                into = memoryview(bytearray(extent.length))
                reader = SegmentReader({bay.device: served.file}, {info.segment: place}.__getitem__)
                reader.read(extent, 1, self.ino, 0, extent.length, into)
                assert into == self.bytes[extent.file_offset : extent.file_offset + extent.length]


def state_of(pool: ServedPool, written: Written) -> list[int]:
    return [pool.info(step.segment).state for step in written.progress]


def test_all_three_mirrors_have_what_was_committed(pool: ServedPool) -> None:
    file = File(pool, pool.writer())
    for length in (1, 100, BLOCK_BYTES, 70_000, 3 * MIB, 6 * MIB, 5):  # more than a segment: footers are among it
        written = file.write(length)
    assert {len(step.durable) for step in written.progress} == {3}
    file.check()
    assert any(pool.info(extent.segment).footer_bytes for extent in file.extents)
    progress = file.writer.seal_all()
    pool.report(progress)
    assert {pool.info(extent.segment).state for extent in file.extents} == {SEGMENT_SEALED}
    file.check()


def fail_writes(served: ServedNode) -> None:
    served.file.fail_writes = True


def fail_flushes(served: ServedNode) -> None:
    served.file.fail_flushes = True


def end_server(served: ServedNode) -> None:
    served.server.stop()


@pytest.mark.parametrize("fail", [fail_writes, fail_flushes, end_server])
def test_a_mirror_that_fails_ends_the_segment_and_costs_no_rewriting(pool: ServedPool, fail: Callable[[ServedNode], None]) -> None:
    file = File(pool, pool.writer())
    file.write(50_000)
    [first] = {extent.segment for extent in file.extents}
    fail(pool.cluster.nodes[1])
    written = file.write(70_000)
    assert [step.segment for step in written.progress] == [first], "the batch counts by the two others"
    assert state_of(pool, written) == [SEGMENT_SEALED]
    assert {device for device, _, reached in written.progress[0].durable if reached >= written.progress[0].committed_bytes} == {1, 3}
    file.check()
    again = file.write(90_000)
    assert {bay.device for step in again.progress for bay in pool.info(step.segment).bays} == {1, 3}, "device 2 is left out"
    assert file.writer.statistics().failures == 0
    file.check()


def test_fewer_than_min_lose_the_batch_and_nothing_that_was_committed(pool: ServedPool) -> None:
    file = File(pool, pool.writer())
    file.write(50_000)
    for served in pool.cluster.nodes[1:]:
        served.server.stop()
    data = [memoryview(bytes(9_000))]
    with pytest.raises((OSError, Unavailable)):
        file.writer.write([Piece(pool.drive.volume, file.ino, len(file.bytes), data)])
    file.check()
    for served in pool.cluster.nodes[1:]:
        served.start()
    until_written(file, 9_000)
    file.check()


def _wait(event: threading.Event) -> None:
    event.wait(60)


def test_a_silent_mirror_is_given_up_and_the_batch_counts_without_it(pool: ServedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(pool, pool.writer())
    file.write(50_000)
    [segment] = [one.bays for one in file.writer._leased]
    assert isinstance(segment, MirroredSegment)
    begun, woken = threading.Event(), threading.Event()

    def stall() -> None:
        begun.set()
        woken.wait(60)

    def be_short() -> None:
        """The other two may take as long as they like."""
        assert begun.wait(60)
        until(lambda: sum(one.owes for one in segment._ensemble._mirrors) == 1)
        monkeypatch.setattr(ensemble, "SEGMENT_STALL_MS", 1)

    pool.cluster.nodes[2].file.before_flush = stall  # type: ignore[method-assign]
    beside = threading.Thread(target=be_short)
    beside.start()
    try:
        written = file.write(1_000)
    finally:
        woken.set()
        beside.join()
    monkeypatch.setattr(ensemble, "SEGMENT_STALL_MS", LONG_MS)
    assert state_of(pool, written) == [SEGMENT_SEALED]
    file.check()
    again = file.write(10)
    assert {bay.device for step in again.progress for bay in pool.info(step.segment).bays} == {1, 2}
    file.check()


def test_with_quorum_a_silent_mirror_holds_nobody_up(tmp_path: Path) -> None:
    pool = ServedPool(tmp_path, want=Redundancy(3, 2, quorum=True))
    woken = threading.Event()
    try:
        file = File(pool, pool.writer())
        file.write(10)
        pool.cluster.nodes[0].file.before_flush = lambda: _wait(woken)  # type: ignore[method-assign]
        for _ in range(3):
            written = file.write(20_000)
            assert [step.sealed for step in written.progress] == [False]
        file.check()
        woken.set()
    finally:
        woken.set()
        pool.close()


@pytest.fixture
def quorum(tmp_path: Path) -> Iterator[ServedPool]:
    """A pool where a majority suffices, and nobody is given up for being behind."""
    made = ServedPool(tmp_path, want=Redundancy(3, 2, quorum=True))
    yield made
    made.close()


def _is_whole(pool: ServedPool, segment: int) -> bool:
    info = pool.info(segment)
    return info.state == SEGMENT_SEALED and all(bay.durable >= info.committed_bytes for bay in info.bays)


def test_a_segment_is_not_sealed_before_a_mirror_that_is_behind_has_all(quorum: ServedPool) -> None:
    file, woken = File(quorum, quorum.writer()), threading.Event()
    quorum.cluster.nodes[2].file.before_flush = lambda: _wait(woken)  # type: ignore[method-assign]
    try:
        written = file.write(5 * MIB)
        first = written.progress[0].segment
        assert quorum.info(first).state != SEGMENT_SEALED
        assert {2, 3} <= file.writer.devices_in_use()
        woken.set()
        until(lambda: bool(file.write(10)) and _is_whole(quorum, first))
    finally:
        woken.set()
    file.check()


def test_who_seals_all_waits_for_a_mirror_that_is_behind(quorum: ServedPool) -> None:
    file, woken, waiting = File(quorum, quorum.writer()), threading.Event(), threading.Event()

    def late() -> None:
        waiting.set()
        woken.wait(60)

    quorum.cluster.nodes[2].file.before_flush = late  # type: ignore[method-assign]
    try:
        [step] = file.write(70_000).progress
        assert waiting.wait(60)
        waking = threading.Timer(0.3, woken.set)
        waking.start()
        quorum.report(file.writer.seal_all())
        waking.join()
    finally:
        woken.set()
    assert _is_whole(quorum, step.segment)
    file.check()


def test_a_mirror_that_is_given_up_takes_no_other_segment_of_its_server_with_it(pool: ServedPool) -> None:
    """It is slow, but its server answers, and has taken all that was sent."""
    file = File(pool, pool.writer())
    file.write(50_000)
    [slow] = [one.bays for one in file.writer._leased]
    assert isinstance(slow, MirroredSegment)
    other = pool.leases.opened(pool.leases.lease(1)[0])
    assert other is not None
    with pool.fanout.changed:
        slow._ensemble._give_up(slow._ensemble._mirrors[0], "it is slow", pool.fanout.monotonic_ns())
        slow._take_failures()
    block = memoryview(bytes(BLOCK_BYTES))
    other.begin(BLOCK_BYTES)
    other.pwritev([block], 0)
    other.flush()
    assert [reached for _, _, reached in other.durable()] == [BLOCK_BYTES] * 3
    other.leave()


def until_written(file: File, length: int) -> None:
    """As a flusher does, which tries again after a while."""
    for _ in range(200):
        try:
            file.write(length)
            return
        except (OSError, Unavailable):
            threading.Event().wait(0.05)
    raise AssertionError("it was never written")


def test_a_bay_that_nobody_can_confirm_is_no_fault_of_its_device(pool: ServedPool) -> None:
    pool.cluster.leader.away = True
    with pytest.raises(Unavailable):
        File(pool, pool.writer()).write(10)
    assert pool.fanout.avoid() == []
    pool.cluster.leader.away = False
    File(pool, pool.writer()).write(10)


def test_a_replaced_session_leaves_its_bays(pool: ServedPool) -> None:
    file = File(pool, pool.writer())
    file.write(10)
    file.writer.abandon()
    pool.end_session()
    file.write(20)
    assert len({extent.segment for extent in file.extents}) == 2
    file.check()


@pytest.mark.parametrize("want", [Redundancy(1, 1), Redundancy(2, 1), Redundancy(3, 2, quorum=True)])
def test_other_policies(tmp_path: Path, want: Redundancy) -> None:
    pool = ServedPool(tmp_path, want=want)
    try:
        file = File(pool, pool.writer())
        for length in (1, 70_000, 5 * MIB, 3):
            file.write(length)
        file.check()
    finally:
        pool.close()


def test_a_mirror_whose_medium_writes_larger_blocks_as_one(pool: ServedPool) -> None:
    pool.cluster.nodes[1].file.physical_block_bytes = 16_384
    file = File(pool, pool.writer())
    for length in (1, 100, BLOCK_BYTES, 70_000, 3 * MIB, 6 * MIB, 5):
        file.write(length)
    assert {extent.frame_offset % 16_384 for extent in file.extents[:3]} == {0}
    file.check()
    pool.report(file.writer.seal_all())
    file.check()


def test_segments_that_a_replaced_session_had_leased_leave_their_bays(pool: ServedPool) -> None:
    writer, ino, lease = pool.writer(), pool.drive.create(b"f"), pool.leases.lease

    def leased(count: int) -> list[SegmentInfo]:
        found = lease(count)
        writer.abandon()
        return found

    writer._lease = leased
    with pytest.raises(Fenced):
        writer.write([Piece(pool.drive.volume, ino, 0, [memoryview(bytes(10))])])
    pool.end_session()
    writer._lease = lease
    writer.write([Piece(pool.drive.volume, ino, 0, [memoryview(bytes(10))])])
    assert not pool.leases._open
    until(lambda: retired(pool))


def retired(pool: ServedPool) -> bool:
    """The connections of the session before are not used any more."""
    return not any(old.busy for server in pool._servers.values() for old in server._writes._old)
