"""The writer of segments: pieces of files become frames in leased segments, durable when `write` returns.

Order of durable effects: plan (no I/O) → frames → footers of segments that got full → flush of every device concerned → only now the plan
becomes the state of the segments, and extents are handed out.  A crash anywhere before that leaves bytes that nothing names.

After a failed write or flush the content of the device is unknown, and a block must not be written twice.  So every segment the attempt
touched is abandoned: it ends at the length that an earlier flush had made durable, without a footer.  All pieces are then written once
more, to other segments.  If that fails too, the error is raised; the caller still has the data.  While a device goes on failing, each call
first probes it in the unused part of the abandoned segment, so that a bad hour does not eat one segment a second.

Segments belong to a session.  `abandon`, called from any thread when the session was replaced, ends the use of all of them without a
report: the machine has sealed them already.  A write that was under way then raises Fenced instead of naming a place in them.
`await_drained` returns when none is under way: every transfer has returned to this process, so nothing can land in them any more.

Zero copy: the memory of a large frame is handed to the device as it is, if it is aligned; what is small or unaligned is copied into a
staging buffer, once.  A checksum is computed once, over the memory that is written.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Container, Mapping
from typing import Protocol

from msgspec import Struct

from awsomefsd.base.clock import wall_ns
from awsomefsd.base.errors import Fenced, FsError, Unavailable
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import BLOCK_BYTES, PHYSICAL_BLOCK_BYTES_MAX, SEGMENTS_LEASED_AHEAD
from awsomefsd.base.types import Extent, SegmentInBays, SegmentInfo, SegmentProgress, bays_of
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.checksum import seed_of
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.segment.block_stream import BlockStream, gather_checksums, slice_views
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.footer import FrameChecks, checks_of, footer_bytes, pack_footer
from awsomefsd.io.segment.frame import Frame, align_up, pack_header
from awsomefsd.io.segment.packing import FramePlace, PackingPlan, Room, plan, sequence_before, space_needed
from awsomefsd.io.segment.seen_leases import seen

__all__ = ["Piece", "SegmentWriter", "Written", "space_needed"]

ATTEMPTS_MAX = 2

log = logging.getLogger("awsomefsd.writer")


class Piece(Struct):
    """Bytes of a file, in as many buffers as they happen to lie in."""

    volume: int
    ino: int
    file_offset: int
    data: list[memoryview]

    @property
    def length(self) -> int:
        return sum(map(len, self.data))


class Written(Struct):
    """The outcome of a write.  `extents[i]` are those of `pieces[i]`, in order; `progress` goes into the same Commit.

    `consumed_bytes` is at most `space_needed` of all pieces, and what larger physical blocks leave unused (packing.py).
    """

    extents: list[list[Extent]]
    progress: list[SegmentProgress]
    consumed_bytes: int
    generation: int = 0  # of the leases; for `report_again`


class WriterStatistics(Struct, frozen=True):
    """The counters since the writer was made."""

    batches: int
    frames: int
    data_bytes: int
    copied_bytes: int
    flushes: int
    failures: int
    segments_abandoned: int


class OpenedBays(BlockDevice, Protocol):
    """The bays of a leased segment, as its writer has opened them: a BlockDevice whose offsets are in the segment (io/pool/fanout.py)."""

    @property
    def ended(self) -> bool:
        """True: the segment takes no further batch."""

    def begin(self, end: int, *, footer: bool = False) -> None:
        """Begins a batch: all bytes up to `end` follow, in order, and the next flush is of them.  `footer`: nothing comes after it."""

    def durable(self) -> list[tuple[int, int, int]]:
        """Returns what a report says of the bays: (device, index, bytes)."""

    def settled(self, *, wait: bool = False) -> bool:
        """Returns True if no mirror owes an answer, so that none becomes more durable; with `wait` when that is so."""

    def leave(self) -> None:
        """Ends the right to append.  Does not wait."""


class LeasedBays(Protocol):
    """The bays of the segments that a writer's lease has brought (io/pool/bay_leases.py)."""

    def opened(self, info: SegmentInBays) -> OpenedBays | None:
        """Returns, once, the bays of a segment that was leased just now; None if they cannot be opened, and it is to be given back."""

    def waiting(self) -> list[SegmentInBays]:
        """Returns segments that are leased, and whose bays could not be opened yet.  Any thread; does not wait."""

    def drop(self, segments: Container[int]) -> list[SegmentInBays]:
        """Returns those of these segments that wait, and keeps them no more.  Does not wait."""


class _NoBays:
    def opened(self, info: SegmentInBays) -> OpenedBays | None:
        return None

    def waiting(self) -> list[SegmentInBays]:
        return []

    def drop(self, segments: Container[int]) -> list[SegmentInBays]:
        return []


class _Segment:
    """A leased segment as its writer knows it.  `room` is its durable state."""

    __slots__ = ("bays", "footer", "frames", "generation", "info", "room")

    def __init__(self, info: SegmentInfo, generation: int, device: BlockDevice | None = None, bays: OpenedBays | None = None) -> None:
        self.info = info
        self.generation = generation
        self.bays = bays
        medium = bays or device
        physical = medium.physical_block_bytes if medium is not None else BLOCK_BYTES
        align = min(align_up(physical, BLOCK_BYTES), PHYSICAL_BLOCK_BYTES_MAX)
        self.footer = (info.footer_offset, info.footer_bytes)  # of another writer that has begun the segment, until this one seals it
        end = align_up(max(info.committed_bytes, sum(self.footer)), align)
        self.room = Room(info.bytes, end, sequence_before(end), align=align)
        self.frames: list[FrameChecks] = []

    def progress(self, *, sealed: bool) -> SegmentProgress:
        durable = self.bays.durable() if self.bays is not None else []
        footer = (0, 0) if self.bays is not None and not sealed else self.footer  # it is told of when the segment ends
        return SegmentProgress(self.info.segment, self.info.incarnation, self.room.end, sealed, *footer, durable)

    @property
    def devices(self) -> set[int]:
        """The numbers of the devices that it is on."""
        return _devices_of(self.info)

    @property
    def ended(self) -> bool:
        """True: no further batch goes here, full or not."""
        return self.bays is not None and self.bays.ended

    def settled(self, *, wait: bool = False) -> bool:
        """Returns True if no mirror of it gets on any more; waits for those that owe an answer if asked to."""
        return self.bays is None or self.bays.settled(wait=wait)

    def begin(self, after: Room) -> None:
        """Tells the bays up to where the next batch goes."""
        if self.bays is not None:
            self.bays.begin(after.end + (footer_bytes(after.entries_bytes) if after.full else 0), footer=after.full)

    def leave(self) -> None:
        if self.bays is not None:
            self.bays.leave()


def _devices_of(info: SegmentInfo) -> set[int]:
    return {bay.device for bay in bays_of(info)} or {info.device}


class SegmentWriter:
    """The writer on devices of the cluster, as SegmentWrites says.  Thread-safe; writes are one after the other.

    `lease(count)` returns up to `count` segments, at least one, or raises an Error; it is called on the thread that writes.  A single one
    may have been begun and sealed by another writer, and is filled from its footer on.  `bays` has those of segments in a pool.
    """

    def __init__(
        self,
        devices: Mapping[int, BlockDevice],
        lease: Callable[[int], list[SegmentInfo]],
        checksums: ChecksumCache | None = None,
        now_ns: Callable[[], int] = wall_ns,
        bays: LeasedBays = _NoBays(),
    ) -> None:
        self._devices = devices
        self._lease = lease
        self._bays = bays
        self._checksums = checksums
        self._now_ns = now_ns
        self._stream = BlockStream()
        self._leased: deque[_Segment] = deque()  # the first is the one begun
        self._ending: list[_Segment] = []  # full or ended; a mirror that is behind has not answered for all of it
        self._unreported: list[SegmentProgress] = []  # of segments that ended in an attempt that failed
        self._returned: deque[tuple[int, list[SegmentProgress]]] = deque()  # (generation, of a refused Commit): any thread puts them here
        self._in_doubt: list[SegmentProgress] = []  # leased while the session was replaced: to the old one, or to the new one
        self._suspect: _Segment | None = None  # of the device that failed last, until it was seen to write again
        self._probe_floor = self._probe_offset = 0
        self._using = threading.Lock()
        self._generation = 0  # counts `abandon`
        self._rested = self._tries = self._tries_rested = 0  # batches and tries at the last `rest`; batches that were tried
        self._cleared = 0  # the generation whose predecessors' segments were dropped
        self._batches = self._frames = self._data_bytes = self._flushes = self._failures = self._abandoned = 0

    def write(self, pieces: list[Piece]) -> Written:
        """Writes all pieces durably.  Blocks for the lease and the devices.

        Raises OSError, Fenced, or an Error of the lease; nothing has changed then that the caller has to know.
        """
        with self._using:
            return self._write(pieces)

    def _write(self, pieces: list[Piece]) -> Written:
        self._tries += 1
        self._drop_abandoned()
        if self._suspect is not None:
            self._probe(self._suspect)
        lengths, offsets = [piece.length for piece in pieces], [piece.file_offset for piece in pieces]
        for attempt in range(1, ATTEMPTS_MAX + 1):
            planned = plan(lengths, self._next_room, offsets)
            used = [self._leased[slot] for slot in range(len(planned.rooms))]
            try:
                frames = self._write_plan(pieces, planned, used)
            except OSError as err:
                self._abandon(used, planned, err)
                if attempt == ATTEMPTS_MAX:
                    raise
            else:
                if self._cleared != self._generation:
                    self._drop_abandoned()
                    self._end([segment for segment in used if segment in self._leased])  # leased to the new session already
                    raise Fenced("the session was replaced while its segments were written")
                return self._accept(pieces, planned, used, frames)
        raise AssertionError("the last attempt returns or raises")

    def abandon(self) -> None:
        """Gives up all leased segments, because their session has ended: none is written or reported again.

        Any thread; returns at once.
        """
        self._generation += 1

    def await_drained(self) -> None:
        """Returns when nothing that was begun before the last `abandon` is on its way to a device."""
        with self._using:
            self._drop_abandoned()

    def report_again(self, written: Written) -> None:
        """Takes back the progress of a refused Commit: its ended segments go into the next one.  Any thread; does not wait for a write."""
        ended = [step for step in written.progress if step.sealed]
        if ended and written.generation == self._generation:
            self._returned.append((written.generation, ended))

    def _take_ended(self) -> list[SegmentProgress]:
        """Returns what is still to be reported, once: a step that is named again is refused, and the Commit that names it with it."""
        while self._returned:
            generation, ended = self._returned.popleft()
            if generation == self._cleared:
                self._unreported += ended
        ended, self._unreported = self._unreported, []
        return ended

    def _drop_abandoned(self) -> None:
        if self._cleared == self._generation:
            return
        self._cleared = self._generation
        for segment in [one for one in self._leased if one.generation != self._cleared]:
            self._leased.remove(segment)
            segment.leave()
        for segment in [one for one in self._ending if one.generation != self._cleared]:
            self._ending.remove(segment)
            segment.leave()
        self._drop_waiting()
        self._unreported.clear()
        self._suspect = None
        self._stream.reset()

    def seal_all(self) -> list[SegmentProgress]:
        """Ends all leased segments, with footers; returns the progress for a last Commit.

        Never raises: without a footer, headers serve.
        """
        hit("segment.seal.before")
        with self._using:
            return self._seal_all() + self._drop_waiting()

    def _seal_all(self) -> list[SegmentProgress]:
        self._drop_abandoned()
        self._settle_suspect()
        done = self._take_settled(wait=True)
        ending = list(self._leased)
        self._leased.clear()
        done += self._sealed(ending)
        return self._take_ended() + done

    def _take_settled(self, devices: set[int] | None = None, *, wait: bool = False) -> list[SegmentProgress]:
        """Returns the reports that end segments of which no mirror gets on any more; with `wait` of all, or of those on the devices."""
        done = [one for one in self._ending if one.settled(wait=wait and (devices is None or bool(one.devices & devices)))]
        self._ending = [one for one in self._ending if one not in done]
        return [self._left(one) for one in done]

    def _drop_waiting(self, devices: set[int] | None = None) -> list[SegmentProgress]:
        """Returns the reports that give back what is leased and could not be opened: all of it, or what is on these devices."""
        waiting = {info.segment for info in self._bays.waiting() if devices is None or _devices_of(info) & devices}
        return [_Segment(info, self._cleared).progress(sealed=True) for info in self._bays.drop(waiting)]

    def rest(self) -> Written:
        """Ends all leased segments if nothing was written since the last call, so that others fill them; returns no extents.

        Keeps them while a device that has failed is waited for, and those whose bays could not be opened while it is tried to write.
        """
        with self._using:
            idle, self._rested = self._batches == self._rested, self._batches
            untried, self._tries_rested = self._tries == self._tries_rested, self._tries
            progress = self._seal_all() if idle and self._suspect is None else []
            progress += self._drop_waiting() if untried else []
            return Written([], progress, 0, self._cleared)

    def _sealed(self, ending: list[_Segment]) -> list[SegmentProgress]:
        footers: list[tuple[int, int]] = []
        try:
            for segment in ending:
                footers.append(self._write_last_footer(segment) if segment.frames else segment.footer)
            self._flush([segment for segment in ending if segment.frames])
            for segment, footer in zip(ending, footers, strict=True):
                segment.footer = footer
        except OSError as err:
            log.warning("segments are sealed without footers, because writing these failed: %s", err)
        self._stream.reset()
        for segment in ending:
            segment.settled(wait=True)
        return [self._left(segment) for segment in ending]

    @staticmethod
    def _left(segment: _Segment) -> SegmentProgress:
        """Returns the report that ends a segment; nothing is appended to it any more."""
        segment.leave()
        return segment.progress(sealed=True)

    def devices_in_use(self) -> set[int]:
        """Returns the numbers of the devices on which segments are leased, and of one that has failed.  Does not wait for a write."""
        suspect = self._suspect
        segments = [*self._leased, *self._ending, *([suspect] if suspect is not None else [])]
        used = {number for segment in segments for number in segment.devices}
        return used.union(*map(_devices_of, self._bays.waiting()))

    def owes_report(self) -> bool:
        """Says whether segments have ended that are still to be reported.  Does not wait for a write."""
        return bool(self._unreported or self._returned or self._in_doubt)

    def leave(self, devices: set[int], absent: Container[int] = ()) -> Written:
        """Seals the segments that are leased on these devices; returns the progress for a commit, and no extents.

        Leaves out a footer that cannot be written, and writes nothing to `absent` devices.
        """
        with self._using:
            self._drop_abandoned()
            ended: list[SegmentProgress] = []
            if self._suspect is not None and self._suspect.info.device in absent:
                self._settle_suspect()
                ended.append(self._unreported.pop())
            ended += self._drop_waiting(devices) + self._take_settled(devices, wait=True)
            ending = [segment for segment in self._leased if segment.devices & devices]
            self._leased = deque(segment for segment in self._leased if segment not in ending)
            away = [segment for segment in ending if any(number in absent for number in segment.devices)]
            ended += [self._left(segment) for segment in away]
            ended += self._sealed([segment for segment in ending if segment not in away])
            return Written([], ended, 0, self._cleared)

    def take_in_doubt(self) -> list[SegmentProgress]:
        """Returns segments that are to be given back, each in an entry of its own: the session may not hold them (ESTALE then).

        They were leased while the session was replaced; they are empty, and nobody uses them.  Does not wait for a write.
        """
        doubtful, self._in_doubt = self._in_doubt, []
        return doubtful

    def statistics(self) -> WriterStatistics:
        return WriterStatistics(
            self._batches, self._frames, self._data_bytes, self._stream.copied_bytes, self._flushes, self._failures, self._abandoned
        )

    # --- one attempt -------------------------------------------------------------------------------------------------------

    def _next_room(self, slot: int) -> Room:
        while len(self._leased) <= slot:
            generation = self._generation  # read before: segments of a lease in flight may belong to the session that is just ending
            leased = self._lease(SEGMENTS_LEASED_AHEAD if slot else 1)  # ahead only by a batch that fills one
            if not leased:
                raise FsError(errno.ENOSPC, "no segment could be leased")
            if generation != self._generation:  # nobody says to which session they were leased, so neither uses them
                self._in_doubt += [_Segment(info, generation).progress(sealed=True) for info in leased] + self._drop_waiting()
                raise Fenced("the session was replaced while segments were leased")
            taken = [self._take_leased(info, generation) for info in leased]
            if not any(taken):
                if bays_of(leased[0]):
                    raise Unavailable("no bay of the new segments can be reached now")
                raise Unavailable(f"new segments lie on device {leased[0].device}, which this node does not have; add it here")
        return self._leased[slot].room

    def _take_leased(self, info: SegmentInfo, generation: int) -> bool:
        """Takes a new segment up; returns False for one that cannot be written here, which is given back with the next Commit."""
        bays = self._bays.opened(info) if isinstance(info, SegmentInBays) else None
        device = None if isinstance(info, SegmentInBays) else seen(self._devices, info.device)
        segment = _Segment(info, generation, device, bays)
        if bays is None and device is None:
            self._unreported.append(segment.progress(sealed=True))
            return False
        self._leased.append(segment)
        return True

    def _medium(self, segment: _Segment) -> BlockDevice:
        """Where a leased segment is written.  Raises OSError(ENODEV) for a device that was there and is gone: it failed, as any may."""
        if segment.bays is not None:
            return segment.bays
        device = seen(self._devices, segment.info.device)
        if device is None:
            raise OSError(errno.ENODEV, f"device {segment.info.device} is gone")
        return device

    def _write_plan(self, pieces: list[Piece], planned: PackingPlan, used: list[_Segment]) -> list[list[FrameChecks]]:
        """Writes frames and footers, and flushes; returns the new frames of each segment used."""
        written: list[list[FrameChecks]] = [[] for _ in used]
        time_ns = self._now_ns()
        slot = -1
        for placement in planned.placements:
            if placement.slot != slot:
                if slot >= 0:
                    self._end_segment(used[slot], planned.rooms[slot], written[slot])
                for passed in range(slot + 1, placement.slot):  # segments that were full already
                    used[passed].begin(planned.rooms[passed])
                    self._end_segment(used[passed], planned.rooms[passed], written[passed])
                slot = placement.slot
                used[slot].begin(planned.rooms[slot])
                self._stream.begin(self._medium(used[slot]), used[slot].info.byte_offset, used[slot].room.end)
            written[slot].append(self._write_frame(pieces[placement.piece], placement, used[slot].info, time_ns))
        if slot >= 0:
            self._end_segment(used[slot], planned.rooms[slot], written[slot])
        self._flush(used)
        return written

    def _write_frame(self, piece: Piece, placement: FramePlace, info: SegmentInfo, time_ns: int) -> FrameChecks:
        stream = self._stream
        stream.pad_to(placement.frame_offset)
        header = stream.staged(placement.header_bytes, placement.length)
        views = slice_views(piece.data, placement.start, placement.start + placement.length)
        seed = seed_of(info.segment, info.incarnation, placement.sequence)
        checksums = gather_checksums(stream.add(views, placement.length), seed)
        frame = Frame(
            piece.volume, piece.ino, piece.file_offset + placement.start, info.segment, info.incarnation, placement.sequence,
            placement.length, placement.length, placement.header_bytes, time_ns, checksums,
        )  # fmt: skip
        pack_header(frame, header)
        stream.emit_if_large()
        return checks_of(frame, placement.frame_offset)

    def _end_segment(self, segment: _Segment, after: Room, frames: list[FrameChecks]) -> None:
        """Ends the batch in a segment, all of whose frames are in; a full segment gets its footer."""
        if frames:
            self._stream.finish()
        if after.full:
            segment.footer = self._write_footer(segment, after, segment.frames + frames)

    def _write_last_footer(self, segment: _Segment) -> tuple[int, int]:
        """Writes the footer of a segment that ends before it is full."""
        room = segment.room.copy()
        room.full = True
        segment.begin(room)
        return self._write_footer(segment, room, segment.frames)

    def _write_footer(self, segment: _Segment, room: Room, frames: list[FrameChecks]) -> tuple[int, int]:
        size = footer_bytes(room.entries_bytes)
        buffer = aligned_buffer(size)
        raw = pack_footer(segment.info.segment, segment.info.incarnation, room.end, frames)
        assert len(raw) == size and room.end % BLOCK_BYTES == 0 and room.end + size <= segment.info.bytes
        buffer[:] = raw
        hit("segment.footer.before")
        self._medium(segment).pwritev([buffer], segment.info.byte_offset + room.end)
        hit("segment.footer.after")
        return room.end, size

    def _flush(self, segments: list[_Segment]) -> None:
        media = {id(medium): medium for medium in map(self._medium, segments)}
        for medium in media.values():
            self._flushes += 1
            hit("device.flush.before")
            medium.flush()
            hit("device.flush.after")

    def _accept(self, pieces: list[Piece], planned: PackingPlan, used: list[_Segment], frames: list[list[FrameChecks]]) -> Written:
        """Makes the plan, which has become durable, the state of the segments."""
        self._settle_suspect()
        progress = self._take_ended()
        for segment, room, new in zip(used, planned.rooms, frames, strict=True):
            segment.room = room
            segment.frames += new
            if room.full or segment.ended:
                self._leased.remove(segment)
                self._ending.append(segment)
            for checks in new if self._checksums is not None else ():
                assert self._checksums is not None
                self._checksums.remember_frame(checks)
        progress += self._take_settled()
        progress += [segment.progress(sealed=False) for segment in used if segment in self._leased or segment in self._ending]
        extents: list[list[Extent]] = [[] for _ in pieces]
        for placement in planned.placements:
            info = used[placement.slot].info
            piece = pieces[placement.piece]
            extents[placement.piece].append(
                Extent(
                    piece.file_offset + placement.start, placement.length, info.segment, info.incarnation, placement.sequence,
                    placement.frame_offset, placement.header_bytes, 0,
                )
            )  # fmt: skip
            self._data_bytes += placement.length
        self._batches += 1
        self._frames += len(planned.placements)
        return Written(extents, progress, planned.consumed_bytes, self._cleared)

    # --- failure -----------------------------------------------------------------------------------------------------------

    def _abandon(self, used: list[_Segment], planned: PackingPlan, error: OSError) -> None:
        """Ends the segments of a failed attempt, which are not written again; the last one stays to probe its device with."""
        log.warning("writing failed; %d segments are abandoned: %s", len(used), error)
        self._failures += 1
        self._stream.reset()
        self._settle_suspect()
        self._abandoned += len(used)
        if used[-1].bays is not None:  # others judge its devices, and none is probed
            self._end(used)
            return
        self._end(used[:-1])
        self._suspect = used[-1]
        self._suspect.footer = (0, 0)
        self._leased.remove(self._suspect)
        # probes go from the segment's end down to where the failed attempt may have written (the last segment of a plan is never full)
        self._probe_floor, self._probe_offset = planned.rooms[-1].end, self._suspect.info.bytes

    def _end(self, segments: list[_Segment]) -> None:
        """Ends segments at their durable length; the next Commit reports them."""
        for segment in segments:
            segment.footer = (0, 0)
            self._leased.remove(segment)
            self._unreported.append(self._left(segment))

    def _settle_suspect(self) -> None:
        if self._suspect is not None:
            self._unreported.append(self._suspect.progress(sealed=True))
            self._suspect = None

    def _probe(self, suspect: _Segment) -> None:
        """Writes one block at the end of the abandoned segment, each time another one.  Raises OSError while the device still fails."""
        self._probe_offset -= suspect.room.align
        if self._probe_offset >= self._probe_floor:
            device = self._medium(suspect)
            device.pwritev([aligned_buffer(BLOCK_BYTES)], suspect.info.byte_offset + self._probe_offset)
            device.flush()
        self._settle_suspect()
