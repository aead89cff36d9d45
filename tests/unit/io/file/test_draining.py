"""Leaving devices that are being drained, by one thread while another one writes."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest

from awsomefsd.base.errors import Fenced, FsError, Overloaded, Unavailable
from awsomefsd.base.types import SEGMENT_LEASED, SegmentInfo, SegmentProgress
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.file.draining import LOOK_S, REST_S, Draining
from awsomefsd.io.segment.writer import Piece, SegmentWriter

DEVICE, MIB = 1, 1 << 20


class Moving:
    """What is known of a segment; when its device is asked for, another thread has just leased one more."""

    def __init__(self, info: SegmentInfo, then: Callable[[], None]) -> None:
        self._info = info
        self._then = then

    def __getattr__(self, name: str) -> Any:
        if name == "device":
            self._then()
        return getattr(self._info, name)


def test_a_segment_that_is_leased_while_the_devices_are_looked_through() -> None:
    """The thread that flushes looks, the one that writes through leases: the look must not end with an error, and the thread with it."""
    free = [SegmentInfo(n, 5, DEVICE, n * MIB, MIB, SEGMENT_LEASED, 0) for n in range(4)]
    writer = SegmentWriter({DEVICE: MemoryDevice(8 * MIB)}, lambda count: [free.pop(0)])
    writer.write([Piece(3, 77, 0, [memoryview(b"x")])])
    first = writer._leased[0]
    first.info = Moving(first.info, lambda: writer._leased.append(first))  # type: ignore[assignment]
    asked: list[int] = []

    def draining() -> tuple[set[int], set[int]]:
        asked.append(1)
        return set(), set()

    Draining(writer, draining, lambda progress: None).poll()
    assert asked, "it looked for what is drained"


def test_what_was_leased_while_the_session_was_replaced_is_given_back_one_by_one() -> None:
    """The new session may hold some of it: one that it does not hold must not keep the others leased."""
    free = [SegmentInfo(n, 5, DEVICE, n * MIB, MIB, SEGMENT_LEASED, 0) for n in range(8)]
    leases: list[int] = []

    def lease(_count: int) -> list[SegmentInfo]:
        leases.append(1)
        if len(leases) == 1:
            writer.abandon()
        return [free.pop(0), free.pop(0)]

    reported: list[list[SegmentProgress]] = []

    def report(progress: list[SegmentProgress]) -> None:
        reported.append(progress)
        if progress[0].segment == 0:
            raise FsError(errno.ESTALE)

    writer = SegmentWriter({DEVICE: MemoryDevice(8 * MIB)}, lease)
    with pytest.raises(Fenced):
        writer.write([Piece(3, 77, 0, [memoryview(b"x")])])
    writer.write([Piece(3, 77, 0, [memoryview(b"x")])])
    Draining(writer, lambda: (set(), set()), report).poll()
    assert [[step.segment for step in progress] for progress in reported] == [[0], [1]]


@pytest.mark.parametrize("failed", [False, True])
def test_a_writer_leaves_an_absent_device_without_touching_it(failed: bool) -> None:
    """Also one that has failed before: until then each write first asks that device whether it writes again, and others wait for it."""
    gone, other = MemoryDevice(8 * MIB), MemoryDevice(8 * MIB)
    absent: set[int] = set()
    numbers = iter(range(100))

    def lease(_count: int) -> list[SegmentInfo]:
        number = next(numbers)
        return [SegmentInfo(number, 5, 2 if absent else 1, number % 8 * MIB, MIB, SEGMENT_LEASED, 0)]

    writer = SegmentWriter({1: gone, 2: other}, lease)
    piece = Piece(3, 77, 0, [memoryview(b"x" * 5_000)])
    [step] = writer.write([piece]).progress

    def fail(_offset: int, _length: int) -> None:
        raise OSError(errno.EIO, "gone")

    gone.on_write = fail
    if failed:
        with pytest.raises(OSError, match="gone"):
            writer.write([piece])
    absent.add(1)
    reported: list[SegmentProgress] = []
    before = len(gone.writes)
    Draining(writer, lambda: (set(), absent), reported.extend).poll()
    written = writer.write([piece])
    assert len(gone.writes) == before
    assert {part.segment for extents in written.extents for part in extents} == {next(numbers) - 1}
    ended = [one for one in [*reported, *written.progress] if one.sealed]
    assert {one.segment for one in ended} >= {step.segment}
    kept = next(one for one in ended if one.segment == step.segment)
    assert (kept.committed_bytes, kept.footer_bytes) == (step.committed_bytes, 0), "what was durable there stays"
    assert writer.devices_in_use() == {2}


def test_no_segment_is_sealed_while_a_write_to_it_is_not_decided() -> None:
    """A write through may wait long for a lease to be given back; its entry would find that the segment is not leased any more."""
    now = 0.0
    free = [SegmentInfo(n, 5, DEVICE, n * MIB, MIB, SEGMENT_LEASED, 0) for n in range(8)]
    writer = SegmentWriter({DEVICE: MemoryDevice(8 * MIB)}, lambda count: [free.pop(0)])
    undecided, reported, leaving = threading.Lock(), list[SegmentProgress](), set[int]()
    draining = Draining(writer, lambda: (leaving, set()), reported.extend, lambda: now, undecided)
    [step] = writer.write([Piece(3, 77, 0, [memoryview(b"x" * 5_000)])]).progress
    with undecided:
        for _ in range(3):
            now += REST_S + LOOK_S
            draining.poll()
            leaving.add(DEVICE)
        assert not reported
    now += LOOK_S
    draining.poll()
    assert [one.segment for one in reported] == [step.segment] and reported[0].sealed


def test_a_refused_report_of_sealed_segments_is_made_again_without_a_write() -> None:
    """Nothing is leased any more then; these segments would stay this session's until it ends."""
    now = 0.0
    free = [SegmentInfo(n, 5, DEVICE, n * MIB, MIB, SEGMENT_LEASED, 0) for n in range(8)]
    writer = SegmentWriter({DEVICE: MemoryDevice(8 * MIB)}, lambda count: [free.pop(0)])
    reports: list[list[SegmentProgress]] = []

    def report(progress: list[SegmentProgress]) -> None:
        reports.append(progress)
        if len(reports) == 1:
            raise Overloaded("too many requests wait")

    draining = Draining(writer, lambda: (set(), set()), report, lambda: now)
    writer.write([Piece(3, 77, 0, [memoryview(b"x" * 5_000)])])
    for _ in range(4):
        now += REST_S + LOOK_S
        draining.poll()
    assert len(reports) == 2 and reports[0] == reports[1] and reports[0][0].sealed


def test_a_refused_report_of_a_segment_that_was_left_goes_with_the_next_write() -> None:
    free = [SegmentInfo(n, 5, n // 4 + 1, n % 4 * MIB, MIB, SEGMENT_LEASED, 0) for n in range(3, 8)]
    writer = SegmentWriter({1: MemoryDevice(8 * MIB), 2: MemoryDevice(8 * MIB)}, lambda count: [free.pop(0)])
    piece = Piece(3, 77, 0, [memoryview(b"x" * 5_000)])
    [first] = writer.write([piece]).progress

    def report(_progress: list[SegmentProgress]) -> None:
        raise Overloaded("too many requests wait")

    Draining(writer, lambda: ({1}, set()), report).poll()
    assert [(step.segment, step.sealed) for step in writer.write([piece]).progress] == [(first.segment, True), (4, False)]


def test_a_refused_report_of_an_ended_session_is_not_made_again() -> None:
    now = 0.0
    free = [SegmentInfo(n, 5, DEVICE, n * MIB, MIB, SEGMENT_LEASED, 0) for n in range(8)]
    writer = SegmentWriter({DEVICE: MemoryDevice(8 * MIB)}, lambda count: [free.pop(0)])

    def report(_progress: list[SegmentProgress]) -> None:
        writer.abandon()
        raise FsError(errno.ESTALE)

    draining = Draining(writer, lambda: (set(), set()), report, lambda: now)
    piece = Piece(3, 77, 0, [memoryview(b"x" * 5_000)])
    writer.write([piece])
    for _ in range(2):
        now += REST_S + LOOK_S
        draining.poll()
    assert not writer.owes_report() and len(writer.write([piece]).progress) == 1


def test_what_is_in_doubt_is_offered_until_an_answer_says_whose_it_is() -> None:
    """No leader, or too many requests: that says nothing of the segments, and they would stay leased until the session ends."""
    now = 0.0
    leases: list[int] = []

    def lease(_count: int) -> list[SegmentInfo]:
        leases.append(1)
        writer.abandon()
        return [SegmentInfo(n, 5, DEVICE, n * MIB, MIB, SEGMENT_LEASED, 0) for n in range(2)]

    answers: list[Exception] = [Overloaded("too many requests wait"), FsError(errno.ESTALE), Fenced("the session is over")]
    reported: list[int] = []

    def report(progress: list[SegmentProgress]) -> None:
        reported.append(progress[0].segment)
        if answers:
            raise answers.pop(0)

    writer = SegmentWriter({DEVICE: MemoryDevice(8 * MIB)}, lease)
    with pytest.raises(Fenced):
        writer.write([Piece(3, 77, 0, [memoryview(b"x")])])
    draining = Draining(writer, lambda: (set(), set()), report, lambda: now)
    for _ in range(5):
        now += LOOK_S
        draining.poll()
    assert reported == [0, 1, 0, 0], "1 is not this session's"


def test_segments_on_a_device_that_this_node_does_not_see_are_given_back_although_nothing_can_be_written() -> None:
    now = 0.0
    free = [SegmentInfo(n, 5, DEVICE, n * MIB, MIB, SEGMENT_LEASED, 0) for n in range(8)]
    writer = SegmentWriter({}, lambda count: [free.pop(0)])
    reported: list[SegmentProgress] = []
    draining = Draining(writer, lambda: (set(), set()), reported.extend, lambda: now)
    for number in range(3):
        with pytest.raises(Unavailable):
            writer.write([Piece(3, 77, 0, [memoryview(b"x")])])
        draining.poll()
        now += LOOK_S
        assert [(step.segment, step.sealed) for step in reported] == [(n, True) for n in range(number + 1)]
