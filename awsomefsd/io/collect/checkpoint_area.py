"""Checkpoints in segments of a device: writing an area, and finding and reading areas without any state.

Writer.  An AreaWriter gets segments that no valid checkpoint needs; pieces fill one segment after another to its last block; `complete`
flushes what was written, then writes the final record and flushes again.  From then on the area is a checkpoint, and `append` adds a batch
of entries and flushes: when it returns, a node that is rebuilt from the device has them.  Crash windows: before the second flush of
`complete` the area counts for nothing, and the one before it is untouched; in `append`, a batch is there whole or not at all (END is on its
last piece, and a walk stops at the first bad record).  What was made durable ends at a physical block of the device, so that the next batch
touches none that a power cut could tear: the stream before it is filled up with empty blocks of deflate, which any inflate passes over.
After an error the writer is not used again: a block is never written twice in an
area, since a failed write may yet land.

Reader.  `scan_device` reads the first block of every segment; the caller takes the checkpoint with the highest rank (`checkpoints_of`).  It
is restored through a file, so memory is bounded by one piece.
"""

from __future__ import annotations

import errno
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from msgspec import Struct
from xxhash import xxh3_128

from awsomefsd.base.errors import Corrupt, FormatTooNew, FsError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import BLOCK_BYTES, CHECKPOINT_RECORD_BYTES_MAX
from awsomefsd.base.types import SegmentInfo
from awsomefsd.io.collect import checkpoint_format as form
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.device.superblock import Superblock
from awsomefsd.io.segment.frame import unpack_header

_LEVEL = 1  # of zlib: a store shrinks to about a third, at some 100 MB/s
_PIECE = CHECKPOINT_RECORD_BYTES_MAX
_EMPTY_BLOCK = b"\0\0\0\xff\xff"  # of deflate, not compressed, at a byte; it stands for no bytes


class _Squeeze(Protocol):
    """The object of zlib.compressobj."""

    def flush(self, mode: int = ..., /) -> bytes: ...


class Area(Struct):
    """A valid checkpoint as it was found: from (term, index) of the copy on, with the tail up to (term, last)."""

    header: form.AreaHeader
    offsets: list[int]  # of its segments, on the device
    segments: list[int]
    index: int  # of the copy
    copy_term: int
    term: int  # of the last entry
    last: int
    time_ns: int  # when the last record was written

    @property
    def rank(self) -> tuple[int, int, int]:
        return (self.term, self.last, self.header.number)


class AreaWriter:
    """The writer of one area.

    One thread uses it; every method but `extend` blocks for the device, and raises OSError and FsError(ENOSPC).
    """

    def __init__(self, device: BlockDevice, segments: list[SegmentInfo], header: form.AreaHeader) -> None:
        """`header` has the fields of the area; segment, incarnation and place are filled in."""
        self._device = device
        self._header = header
        self.segments = list(segments)
        self._place = -1
        self._end = 0  # offset in the segment begun
        self._sequence = 0
        self._digest = xxh3_128()
        self._raw = self._stored = 0
        self._squeeze = zlib.compressobj(_LEVEL)
        self._waiting = bytearray()
        self.complete_bytes = 0

    # --- room -------------------------------------------------------------------------------------------------------------------
    @property
    def room_bytes(self) -> int:
        """The bytes that are left for records, headers included."""
        rest = self.segments[self._place].bytes - self._end if self._place >= 0 else 0
        return rest + sum(info.bytes - BLOCK_BYTES for info in self.segments[self._place + 1 :])

    def extend(self, segments: list[SegmentInfo]) -> None:
        self.segments += segments

    def _put(self, kind: int, flags: int, payload: bytes, first: int = 0, last: int = 0, term: int = 0, time_ns: int = 0) -> None:
        if self._place < 0 or self._end == self.segments[self._place].bytes:
            self._next_segment()
        record = form.CheckpointRecord(kind, flags, self._sequence, first, last, term, time_ns, payload)
        raw = form.pack_record(self._header.area, record)
        info = self.segments[self._place]
        assert self._end + len(raw) <= info.bytes, "a record is cut to fit its segment"
        self._write(raw, info.byte_offset + self._end)
        self._end += len(raw)
        self._sequence += 1

    def _next_segment(self) -> None:
        if self._place + 1 == len(self.segments):
            raise FsError(errno.ENOSPC, "the segments of this checkpoint are full")
        self._place += 1
        info, h = self.segments[self._place], self._header
        header = form.AreaHeader(
            h.cluster, h.device, h.node, h.area, info.segment, info.incarnation, self._place, h.number, h.term, h.index, h.created_ns,
            h.version, info.bytes, h.flags,
        )  # fmt: skip
        self._write(form.pack_area(header), info.byte_offset)
        self._end = BLOCK_BYTES

    def _write(self, raw: bytes, offset: int) -> None:
        buffer = aligned_buffer(len(raw))
        buffer[:] = raw
        self._device.pwritev([buffer], offset)

    def _fit(self) -> int:
        """Returns the payload bytes that the next record can have."""
        return self._fit_at(self._place, self._end)

    def _fit_at(self, place: int, end: int) -> int:
        rest = self.segments[place].bytes - end if place >= 0 else 0
        return min(_PIECE, (rest or self.segments[0].bytes - BLOCK_BYTES) - form.RECORD_HEADER_BYTES)

    def _laid(self, lengths: Iterable[int]) -> tuple[int, int]:
        """Returns where streams of so many bytes will end in their segment, and how many bytes the first one leaves of its last block.

        Raises FsError(ENOSPC) if they do not fit.
        """
        place, end, left_over = self._place, self._end, -1
        for length in lengths:
            rest = length
            while rest:
                if place < 0 or end == self.segments[place].bytes:
                    place, end = place + 1, BLOCK_BYTES
                    if place == len(self.segments):
                        raise FsError(errno.ENOSPC, "the segments of this checkpoint are full")
                count = min(self._fit_at(place, end), rest)
                rest -= count
                used, taken = form.RECORD_HEADER_BYTES + count, form.record_blocks(count) * BLOCK_BYTES
                end += taken
            left_over = taken - used if left_over < 0 else left_over
        return end, left_over

    def _filled_up(self, begun: bytes, squeeze: _Squeeze, *behind: int) -> bytes:
        """Returns the stream that was begun, to its end; with what comes `behind`, it will end at a physical block.

        Raises FsError(ENOSPC) if they do not fit.
        """
        start, end = begun + squeeze.flush(zlib.Z_SYNC_FLUSH), squeeze.flush()
        filling = 0
        while True:
            reached, left_over = self._laid([len(start) + filling + len(end), *behind])
            gap = -reached % self._device.physical_block_bytes
            if not gap:
                return start + _EMPTY_BLOCK * (filling // len(_EMPTY_BLOCK)) + end
            filling += (gap + left_over) // len(_EMPTY_BLOCK) * len(_EMPTY_BLOCK)

    # --- the copy ---------------------------------------------------------------------------------------------------------------
    def add(self, raw: bytes) -> None:
        """Adds the next bytes of the copy."""
        self._digest.update(raw)
        self._raw += len(raw)
        self._emit(self._squeeze.compress(raw), least=_PIECE)

    def _emit(self, stored: bytes, least: int) -> None:
        self._waiting += stored
        while len(self._waiting) >= max(least, 1):
            count = min(self._fit(), len(self._waiting))
            self._put(form.SNAPSHOT, 0, bytes(self._waiting[:count]))
            del self._waiting[:count]
            self._stored += count

    def complete(self, index: int, term: int, time_ns: int) -> None:
        """Ends the copy, which reaches to entry `index`; the area is a checkpoint when this returns."""
        complete_bytes = len(form.pack_complete(0, 0, self._digest.digest()))
        begun, self._waiting = bytes(self._waiting), bytearray()
        self._emit(self._filled_up(begun, self._squeeze, complete_bytes), least=1)
        hit("checkpoint.flush.before")
        self._device.flush()
        hit("checkpoint.flush.after")
        payload = form.pack_complete(self._raw, self._stored, self._digest.digest())
        self._put(form.COMPLETE, form.END, payload, last=index, term=term, time_ns=time_ns)
        hit("checkpoint.final.before")
        self._device.flush()
        hit("checkpoint.final.after")
        self.complete_bytes = self._stored

    # --- the tail ---------------------------------------------------------------------------------------------------------------
    @property
    def takes_early_tail(self) -> bool:
        """True: batches may be appended before `complete`."""
        return self._header.version > form.WITHOUT_EARLY_TAIL

    def append(self, entries: list[bytes], first: int, term: int, time_ns: int) -> int:
        """Writes entries from `first` on; returns the bytes written.  After `complete` they are durable when this returns.

        Raises FsError(ENOSPC), with nothing written, if there is no room.
        """
        assert self.complete_bytes or self.takes_early_tail, "a reader of this version takes an early tail for damage"
        squeeze = zlib.compressobj(_LEVEL)
        packed = memoryview(self._filled_up(squeeze.compress(form.pack_entries(entries)), squeeze))
        before = self.room_bytes
        pieces = len(packed) // (_PIECE // 2) + 2 + len(self.segments)  # each segment's end may cut one more
        if before < len(packed) + pieces * BLOCK_BYTES:
            raise FsError(errno.ENOSPC, "the segments of this checkpoint are full")
        last = first + len(entries) - 1
        while packed:
            count = min(self._fit(), len(packed))
            self._put(form.TAIL, form.END if count == len(packed) else 0, bytes(packed[:count]), first, last, term, time_ns)
            packed = packed[count:]
        if self.complete_bytes:
            hit("checkpoint.tail.before")
            self._device.flush()
            hit("checkpoint.tail.after")
        return before - self.room_bytes


# --- reading ----------------------------------------------------------------------------------------------------------------------
class FoundCheckpoints(Struct):
    """The areas that a scan of every segment's start found: area id → headers with the offsets of their segments.

    Also the newest incarnation of any frame or area, the newest term, and the offsets that could not be read.
    """

    areas: dict[bytes, list[tuple[form.AreaHeader, int]]]
    incarnation_seen: int = 0
    term_seen: int = 0
    unreadable: list[int] = []


def scan_device(device: BlockDevice, superblock: Superblock) -> FoundCheckpoints:
    """Scans all segments of a device, without any state.  Blocks for the device; raises FormatTooNew."""
    first, step = superblock.first_segment_offset, superblock.segment_bytes
    offsets = range(first, first + superblock.segments * step, step)
    return scan_segments(device, offsets, uuid.UUID(superblock.cluster_uuid).bytes)


def scan_segments(device: BlockDevice, offsets: Iterable[int], cluster: bytes) -> FoundCheckpoints:
    """Scans the segments at these byte offsets; only reads.  A segment that cannot be read counts as one that holds nothing."""
    found = FoundCheckpoints({})
    buffer = aligned_buffer(BLOCK_BYTES)
    for offset in offsets:
        try:
            if device.pread_into(buffer, offset) < BLOCK_BYTES:
                continue
        except OSError:
            found.unreadable.append(offset)
            continue
        header = form.unpack_area(buffer)
        if header is None:
            found.incarnation_seen = max(found.incarnation_seen, _incarnation_of(buffer))
        elif header.cluster == cluster:
            found.areas.setdefault(header.area, []).append((header, offset))
            found.incarnation_seen = max(found.incarnation_seen, header.incarnation)
            found.term_seen = max(found.term_seen, header.term)
    return found


def _incarnation_of(block: memoryview) -> int:
    try:
        return unpack_header(block).incarnation
    except (Corrupt, FormatTooNew):
        return 0


class _At(NamedTuple):
    """Where a record begins: the part of the area, the offset in it, and the record's sequence."""

    part: int = 0
    offset: int = BLOCK_BYTES
    sequence: int = 0


class AreaReader:
    """The walk over the records of one area.  One thread uses it."""

    def __init__(self, device: BlockDevice, headers: list[tuple[form.AreaHeader, int]]) -> None:
        self._device = device
        ordered = sorted(headers, key=lambda pair: pair[0].place)
        self._parts = []
        for place, (header, offset) in enumerate(ordered):
            if header.place != place:
                break  # a part is missing: what is behind it is not reached
            self._parts.append((header, offset))
        self._header = ordered[0][0]
        self._window = aligned_buffer(form.record_blocks(_PIECE) * BLOCK_BYTES)

    def records(self) -> Iterator[form.CheckpointRecord]:
        """Yields the records in order; ends at the first that is not whole or cannot be read."""
        return (record for record, _ in self._records(_At()))

    def _records(self, at: _At) -> Iterator[tuple[form.CheckpointRecord, _At]]:
        """Yields the records from `at` on, each with where it begins."""
        part, offset, sequence = at
        while part < len(self._parts):
            header, start = self._parts[part]
            if offset >= header.segment_bytes:
                part, offset = part + 1, BLOCK_BYTES
                continue
            view = self._window[: min(len(self._window), header.segment_bytes - offset)]
            try:
                read = self._device.pread_into(view, start + offset)
            except OSError:
                return
            record = form.unpack_record(header.area, view[:read], sequence)
            if record is None:
                return
            yield record, _At(part, offset, sequence)
            offset += form.record_blocks(len(record.payload)) * BLOCK_BYTES
            sequence += 1

    def read(self) -> Area | None:
        """Returns the checkpoint, if it is one: complete, its copy with the right hash, and how far the tail reaches; else None."""
        copied = self._walk(lambda _raw: None)
        if copied is None:
            return None
        area, tails = copied
        for _ in self._tail(area, tails):
            pass
        return area

    def _tail(self, area: Area, tails: list[_At]) -> Iterator[list[bytes]]:
        """Yields the batches that go on behind the copy, as far as they are whole and without a gap; each moves the end of `area` first.

        `tails`: where runs of batches begin.  A batch may begin with entries that came before.
        """
        for begin in tails:
            pieces = bytearray()
            for record, _ in self._records(begin):
                if record.kind != form.TAIL:
                    break
                if record.first > area.last + 1:
                    return
                pieces += record.payload
                if record.flags & form.END:
                    entries = _batch(pieces, record)
                    if entries is None:
                        return
                    pieces.clear()
                    if record.last > area.last:
                        area.last, area.term, area.time_ns = record.last, record.term, record.time_ns
                        yield entries

    def _walk(self, take: Callable[[bytes], object]) -> tuple[Area, list[_At]] | None:
        """Gives the copy to `take` in pieces; returns the area as of COMPLETE, and where runs of batches begin, or None if there is no
        checkpoint.
        """
        digest, stored, raw, expand = xxh3_128(), 0, 0, zlib.decompressobj()
        tails: list[_At] = []
        in_tail = False
        for record, at in self._records(_At()):
            if record.kind == form.TAIL and self._header.version > form.WITHOUT_EARLY_TAIL:
                if not in_tail:
                    tails.append(at)
                in_tail = True
                continue
            in_tail = False
            if record.kind == form.SNAPSHOT:
                try:
                    piece = expand.decompress(record.payload)
                except zlib.error:
                    return None
                take(piece)
                digest.update(piece)
                stored += len(record.payload)
                raw += len(piece)
            elif record.kind == form.COMPLETE:
                if form.unpack_complete(record.payload) != (raw, stored, digest.digest()):
                    return None
                offsets, segments = [offset for _, offset in self._parts], [header.segment for header, _ in self._parts]
                r = record
                behind = _At(at.part, at.offset + form.record_blocks(len(r.payload)) * BLOCK_BYTES, at.sequence + 1)
                return Area(self._header, offsets, segments, r.last, r.term, r.term, r.last, r.time_ns), [*tails, behind]
            else:
                return None
        return None

    def restore(self, file: BinaryIO) -> Iterator[list[bytes]]:
        """Writes the copy into `file`, then yields the batches of entries behind it.

        Raises Corrupt if it is no checkpoint (any more), OSError.
        """
        copied = self._walk(file.write)
        if copied is None:
            raise Corrupt("the checkpoint cannot be read again")
        yield from self._tail(*copied)


def _batch(pieces: bytearray, record: form.CheckpointRecord) -> list[bytes] | None:
    """Returns the entries of a batch that `record` ends; None if they are not what it says."""
    try:
        entries = form.unpack_entries(zlib.decompress(pieces))
    except (zlib.error, Corrupt):
        return None
    return entries if len(entries) == record.last - record.first + 1 else None


def checkpoints_of(device: BlockDevice, found: FoundCheckpoints) -> list[Area]:
    """Returns the valid checkpoints, best first.  Reads each of them wholly."""
    areas = [area for headers in found.areas.values() if (area := AreaReader(device, headers).read()) is not None]
    return sorted(areas, key=lambda area: area.rank, reverse=True)
