"""The reader of segments: it brings the bytes of an extent, checked, into the caller's memory.  Thread-safe.

A read fetches only the checksum blocks that cover it.  What is aligned (offset on the device, address in memory) goes straight into the
caller's memory, at most the first and the last block by way of a bounce buffer; otherwise everything does.  The checksums come from a
cache, from the segment's footer (one I/O for all its frames), or from the frame's header, which a cold read of the start of a frame brings
along in the same I/O.

A segment in bays is read from the first of its mirrors that has it.  Where that is another node's, the thread must be one that may wait.

Identity first: the segment must be in the extent's incarnation, the frame must carry its sequence.  Then every block read must have its
checksum, which is seeded with that identity.  A mismatch is read again once, past all caches (a transfer may go wrong), or from the other
mirrors; if it stays, the read raises Corrupt and never returns wrong bytes.  `into` may hold anything after an error.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from awsomefsd.base.errors import Corrupt, FormatTooNew, Unavailable
from awsomefsd.base.limits import BLOCK_BYTES, MIB, MIRRORS_LOOK_MS, MIRRORS_WAIT_MS_MAX, NS_PER_MS, STREAM_READERS_MAX
from awsomefsd.base.types import BAY_MIRROR, SEGMENT_FREE, SEGMENT_SEALED, Extent, SegmentInBays, SegmentInfo, bays_of
from awsomefsd.base.wait import MustWait, may_wait
from awsomefsd.io.device.buffers import BOUNCE_BYTES, BufferPool, aligned_buffer, is_aligned
from awsomefsd.io.device.checksum import block_count, first_mismatch, seed_of
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.footer import ChecksumTable, FrameChecks, checks_of, unpack_footer
from awsomefsd.io.segment.frame import CODEC_NONE, align_up, unpack_header

FOOTER_READ_BYTES_MAX = 2 * MIB  # of a larger footer (hundreds of thousands of tiny frames) the headers are read instead
_FOOTER_LOCKS = 16  # of segments in bays
BOUNCE_BUFFERS = 6  # FUSE_READERS, read-ahead, and some for threads that finish the waits of others
assert BOUNCE_BUFFERS <= STREAM_READERS_MAX

log = logging.getLogger("awsomefsd.reader")


class ReaderStatistics(Struct, frozen=True):
    """The counters since the reader was made; `reads` and `data_bytes` count second reads too."""

    reads: int
    data_bytes: int
    device_reads: int
    bounced_bytes: int
    footers_read: int
    headers_read: int
    mismatches: int


class _Mismatch(Exception):
    """This read of the device was not good; the message says why."""


class ReadPlace(NamedTuple):
    """Where a segment can be read: a BlockDevice, of this node or of another one."""

    device: BlockDevice
    remote: bool = False


Places = Callable[[SegmentInBays, int], Sequence[ReadPlace]]  # of a segment that is needed up to some byte; the best first


def in_no_pool(_info: SegmentInBays, _end: int) -> Sequence[ReadPlace]:
    """Returns no place: the Places of a reader that reaches no pool."""
    return ()


class SegmentReader:
    """The reader over the devices of this node, and over mirrors anywhere.

    `locate(segment)` returns the segment's row, on the thread that reads; it may raise an Error.  `locate_again` returns it as it is now,
    where what was known has led nowhere.  `mirrors(info, end)` returns where the mirrors of a segment in bays are.  A device that is not
    in `devices` is waited for, but `device_wait_ms` at most from the first read that missed it on: another node may just have added it.
    """

    def __init__(
        self,
        devices: Mapping[int, BlockDevice],
        locate: Callable[[int], SegmentInfo],
        checksums: ChecksumCache | None = None,
        buffers: BufferPool | None = None,
        mirrors: Places = in_no_pool,
        locate_again: Callable[[int], SegmentInfo] | None = None,
        device_wait_ms: int = 0,
    ) -> None:
        self._devices = devices
        self._mirrors = mirrors
        self._locate_again = locate_again or locate
        self._locate = locate
        self._device_wait_ns = device_wait_ms * NS_PER_MS
        self._device_deadlines_ns: dict[int, int] = {}  # by device that was missed
        self.checksums = checksums or ChecksumCache()
        self._buffers = buffers or BufferPool(BOUNCE_BUFFERS)
        assert self._buffers.buffer_bytes >= BOUNCE_BYTES
        self._footers_lost: set[tuple[int, int, str]] = set()  # (segment, incarnation, where) of damaged ones: warned once, headers serve
        self._footer_locks: dict[int, threading.Lock] = {}  # by device; bays: _FOOTER_LOCKS of them.  Readers of one stream come at once
        self._counts_lock = threading.Lock()
        self._counts = dict.fromkeys(ReaderStatistics.__struct_fields__, 0)

    def read(self, extent: Extent, volume: int, ino: int, skip: int, length: int, into: memoryview) -> None:
        """Reads bytes [skip, skip + length) of `extent` into the first `length` bytes of `into`.  Any thread; blocks for the I/O.

        `volume` and `ino` only name the file in messages: frames may be shared.  Raises Corrupt (wrong bytes after a second read, or a
        segment that has been used again, or freed), FormatTooNew for a codec this build does not know, Unavailable without the device,
        OSError; where no mirror of a segment can be reached, these after MIRRORS_WAIT_MS_MAX.  Raises MustWait on a thread that may not
        wait.
        """
        assert 0 <= skip <= skip + length <= extent.length and length <= len(into)
        if not length:
            return
        if not extent.segment and not extent.incarnation:
            raise Corrupt(f"volume {volume} inode {ino} offset {extent.file_offset + skip}: these bytes are lost (fsck recorded it)")
        info = self._locate(extent.segment)
        deadline_ns = time.monotonic_ns() + MIRRORS_WAIT_MS_MAX * NS_PER_MS
        while True:
            if info.incarnation != extent.incarnation:
                raise Corrupt(f"segment {extent.segment} is in incarnation {info.incarnation}, the extent names {extent.incarnation}")
            try:
                places = self._places(info, extent)
                return self._look_at(places, info, extent, start=extent.skip + skip, into=into[:length], file=(volume, ino))
            except (OSError, Unavailable) as err:
                failure = err
            lacking = isinstance(failure, Unavailable) and not bays_of(info)
            if not bays_of(info):
                deadline_ns = self._device_deadline_ns(info.device) if lacking else 0
            over = time.monotonic_ns() >= deadline_ns
            if over and not lacking:
                raise failure
            if not may_wait():
                raise MustWait
            if not over:
                time.sleep(MIRRORS_LOOK_MS / 1_000)
            before = info
            moved = isinstance(failure, Unavailable) or failure.errno in (errno.ESTALE, errno.ENODEV)  # else it is there, and away
            info = (self._locate_again if moved else self._locate)(extent.segment)
            if lacking and info.state == SEGMENT_FREE:  # collection, of a drain perhaps, has moved what this old layout still names
                raise Corrupt(f"segment {extent.segment} is free, and the extent names it")
            if over and (info.device, info.incarnation) == (before.device, before.incarnation):
                raise failure

    def _device_deadline_ns(self, device: int) -> int:
        """Returns until when a device is waited for that is not here.  One that stays away costs this once and is an error then."""
        return self._device_deadlines_ns.setdefault(device, time.monotonic_ns() + self._device_wait_ns)

    def _places(self, info: SegmentInfo, extent: Extent) -> Sequence[ReadPlace]:
        """Returns where to look, one place after the other.  Raises Unavailable."""
        if isinstance(info, SegmentInBays) and info.bays:
            found = self._mirrors(info, extent.frame_offset + extent.header_bytes + extent.skip + extent.length)
            if not found:
                raise Unavailable(f"segment {info.segment} is in bays of devices that nobody serves now")
            return found if len(found) > 1 else (found[0], found[0])
        device = self._devices.get(info.device)
        if device is None:
            raise Unavailable(f"segment {info.segment} is on device {info.device}, which this node does not have")
        return (ReadPlace(device), ReadPlace(device))

    def _look_at(
        self, places: Sequence[ReadPlace], info: SegmentInfo, extent: Extent, *, start: int, into: memoryview, file: tuple[int, int]
    ) -> None:
        where = f"volume {file[0]} inode {file[1]} offset {extent.file_offset + start - extent.skip}"
        several, failure, wrong = places[0] != places[-1], None, _Mismatch()
        for place in places:
            if place.remote and not may_wait():
                raise MustWait
            try:
                return self._look(place.device, info, extent, start, into)
            except _Mismatch as why:
                wrong = why
                self._count(mismatches=1)
                log.warning("%s is not as it was written on %s: %s", where, place.device.path, why)
                self.checksums.forget(extent.segment, extent.incarnation, extent.sequence)
            except OSError as err:
                if not several:
                    raise
                failure = err
                log.warning("%s is read elsewhere: %s", where, err)
        if failure is not None:  # the mirror that could not be asked may have it
            raise failure
        if sum(bay.role == BAY_MIRROR for bay in bays_of(info)) > (len(places) if several else 1):  # so may one that nobody serves
            raise Unavailable(f"{where}: {wrong}; other mirrors of the segment are served by nobody now")
        raise Corrupt(f"{where}: {wrong}")

    def statistics(self) -> ReaderStatistics:
        with self._counts_lock:
            return ReaderStatistics(**self._counts)

    # --- one look ------------------------------------------------------------------------------------------------------------

    def _look(self, device: BlockDevice, info: SegmentInfo, extent: Extent, start: int, into: memoryview) -> None:
        place = extent.frame_offset + extent.header_bytes  # of the frame's first byte, in the segment
        end = start + len(into)
        if extent.header_bytes > BLOCK_BYTES or place + end > info.bytes:
            raise _Mismatch(f"segment {info.segment}: the extent is not inside")
        first = start - start % BLOCK_BYTES
        checks = self._known(device, info, extent)
        cold = checks is None and (extent.header_bytes < BLOCK_BYTES or first == 0)
        if checks is None and not cold:
            checks = self._read_header(device, info, extent)
        # a cold read fetches from the header on
        begin = extent.frame_offset if cold else place + first
        begin -= begin % BLOCK_BYTES
        buffer = self._buffers.take()
        try:
            fetched = _Fetch(start, into, place + first - begin, buffer, device.logical_block_bytes)
            got = device.preadv(fetched.parts, info.byte_offset + begin)
            self._count(
                reads=1, data_bytes=len(into), device_reads=1, bounced_bytes=fetched.bounced_bytes, headers_read=1 if checks is None else 0
            )
            if checks is None:
                header = extent.frame_offset - begin
                checks = self._take_header(buffer[header : min(got, header + extent.header_bytes)], extent)
            _check_frame(checks, extent, end)
            if begin + got < place + min(fetched.last, checks.stored_bytes):
                raise _Mismatch(f"segment {info.segment}: short read, the device ends here")
            fetched.verify(checks)
            fetched.copy_out()
        finally:
            self._buffers.give_back(buffer)

    def _known(self, device: BlockDevice, info: SegmentInfo, extent: Extent) -> FrameChecks | None:
        """Returns the checks from the caches, or from the footer if the segment has one and it is not in the cache yet; else None."""
        checks = self.checksums.frame(extent.segment, extent.incarnation, extent.sequence)
        if checks is not None and checks.frame_offset == extent.frame_offset:
            return checks
        table = self._table(info)
        if table is None and info.state == SEGMENT_SEALED and 0 < info.footer_bytes <= FOOTER_READ_BYTES_MAX:
            with self._footer_locks.setdefault(info.device or -1 - info.segment % _FOOTER_LOCKS, threading.Lock()):
                table = self._table(info) or self._read_footer(device, info)
        return table.find(extent.frame_offset) if table is not None else None

    def _table(self, info: SegmentInfo) -> ChecksumTable | None:
        """Returns the cached footer of a segment, unless it is of a writer before the last one."""
        table = self.checksums.table(info.segment, info.incarnation)
        return None if table is not None and table.data_end < info.footer_offset else table

    def _read_footer(self, device: BlockDevice, info: SegmentInfo) -> ChecksumTable | None:
        key = (info.segment, info.incarnation, device.path)  # another mirror has another one
        if key in self._footers_lost:
            return None
        buffer = aligned_buffer(align_up(info.footer_bytes, BLOCK_BYTES))
        self._count(device_reads=1, footers_read=1)
        try:
            got = device.pread_into(buffer, info.byte_offset + info.footer_offset)
            table = unpack_footer(buffer[:got], info.segment, info.incarnation)
        except Corrupt as err:
            log.warning("a footer is damaged; frames are read by their headers: %s", err)
            self._footers_lost.add(key)
            return None
        self.checksums.remember_table(table)
        return table

    def _read_header(self, device: BlockDevice, info: SegmentInfo, extent: Extent) -> FrameChecks:
        """Reads the header of a large frame that is read from its middle; the header is a block of its own."""
        with self._buffers.borrow() as buffer:
            self._count(device_reads=1, headers_read=1)
            got = device.pread_into(buffer[: extent.header_bytes], info.byte_offset + extent.frame_offset)
            return self._take_header(buffer[: min(got, extent.header_bytes)], extent)

    def _take_header(self, raw: memoryview, extent: Extent) -> FrameChecks:
        try:
            frame = unpack_header(raw)
        except Corrupt as err:
            raise _Mismatch(f"segment {extent.segment}, frame at {extent.frame_offset}: {err}") from None
        checks = checks_of(frame, extent.frame_offset)
        self.checksums.remember_frame(checks)  # under its own identity; the caller checks that it is the one wanted
        return checks

    def _count(self, **counts: int) -> None:
        totals = self._counts
        with self._counts_lock:
            for name, count in counts.items():
                totals[name] += count


class _Fetch:
    """The places where the bytes of one read land: `parts` for preadv, and which of them hold blocks [first, last) of the frame.

    `prefix` bytes precede block `first` on the device (a header, or the rest of a device block).
    """

    __slots__ = ("_into", "_middle", "_start", "_views", "bounced_bytes", "first", "last", "parts")

    def __init__(self, start: int, into: memoryview, prefix: int, buffer: memoryview, unit: int) -> None:
        end = start + len(into)
        self._start, self._into = start, into
        self.first = first = start - start % BLOCK_BYTES
        self.last = align_up(end, BLOCK_BYTES)
        low, high = align_up(start, BLOCK_BYTES), end - end % BLOCK_BYTES
        middle = into[low - start : high - start] if low < high and prefix % unit == 0 else None
        self._middle = middle if middle is not None and is_aligned(middle, unit) else None
        if middle is not None and self._middle is not None:
            lead = buffer[: prefix + low - first]
            tail = buffer[len(lead) : len(lead) + self.last - high]
            self.parts = [part for part in (lead, middle, tail) if len(part)]
            self._views = [(first, lead[prefix:]), (low, middle), (high, tail)]
        else:
            self.parts = [buffer[: align_up(prefix + self.last - first, BLOCK_BYTES)]]
            self._views = [(first, buffer[prefix : prefix + self.last - first])]
        self.bounced_bytes = sum(len(view) for _, view in self._views if view is not self._middle)

    def verify(self, checks: FrameChecks) -> None:
        """Raises _Mismatch unless every block fetched has its checksum."""
        seed = seed_of(checks.segment, checks.incarnation, checks.sequence)
        for position, whole in self._views:
            view = whole[: max(0, checks.stored_bytes - position)]
            block = position // BLOCK_BYTES
            bad = first_mismatch(view, checks.checksums[block : block + block_count(len(view))], seed)
            if bad >= 0:
                raise _Mismatch(
                    f"segment {checks.segment} incarnation {checks.incarnation} frame {checks.sequence} at {checks.frame_offset}: "
                    f"checksum mismatch in block {block + bad}"
                )

    def copy_out(self) -> None:
        """Copies the bounced bytes to where they were wanted."""
        end = self._start + len(self._into)
        for position, view in self._views:
            low, high = max(self._start, position), min(end, position + len(view))
            if low < high and view is not self._middle:
                self._into[low - self._start : high - self._start] = view[low - position : high - position]


def _check_frame(checks: FrameChecks, extent: Extent, end: int) -> None:
    """Raises _Mismatch unless this is the frame the extent names and it has bytes up to `end`."""
    found = (checks.segment, checks.incarnation, checks.sequence, checks.header_bytes)
    if found != (extent.segment, extent.incarnation, extent.sequence, extent.header_bytes) or end > checks.logical_bytes:
        raise _Mismatch(f"segment {extent.segment}, frame at {extent.frame_offset}: found {found} where {extent} should be")
    if checks.codec != CODEC_NONE or checks.key_id:
        raise FormatTooNew(f"frame has codec {checks.codec} and key {checks.key_id}, which this build does not know; upgrade this node")
