"""Collection copies the live bytes of sparse segments elsewhere, so that these become free.

Order of durable effects: read and verify → write frames into segments of the collector's own session → device flush (SegmentWriter) →
Relocate in the log, extent by extent by compare-and-swap → the entry frees what has become wholly dead.  A crash anywhere before the entry
leaves copies that nothing names, in a segment that the next OpenCollector seals, and frees if nothing lives in it.  There is no state but
the metadata: the next collector reads the segments again.

Readers are not told.  A worker's cached layout names the old place, whose bytes stay until the segment has been leased again; then the
identity does not fit, and the reader asks for the layout again (LOOKS_MAX in vfs/ops/reading.py) as for any layout that is old.

A block whose checksum is wrong is never copied as good: its extent stays where it is, with an event, and its segment is left alone until
the daemon is started again.  Small neighbours in the same file of what is copied are copied too, wherever they lie, so that a file that was
overwritten at random becomes large frames again; not while space is low, and not more bytes than the sparse segments have alive.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from awsomefsd.base.errors import Corrupt, Error, FsError, Unavailable
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import BLOCK_BYTES, EXTENTS_PER_COMMIT_MAX, FRAME_BYTES_MAX, MIB, NS_PER_MS, SESSION_RENEW_MS
from awsomefsd.base.types import HOST_UNIQUE, DeviceInfo, Extent, SegmentInfo, SegmentProgress
from awsomefsd.io.collect.candidates import Ask, Candidates
from awsomefsd.io.collect.collect_plan import Copy, alone, in_parts, lay_together, relocations
from awsomefsd.io.collect.collected_pool import NOT_NOW, CollectedPool, PoolPlaces, volume_of
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.segment.frame import align_up
from awsomefsd.io.segment.locations import segment_now
from awsomefsd.io.segment.reader import SegmentReader, in_no_pool
from awsomefsd.io.segment.seen_leases import SeenLeases
from awsomefsd.io.segment.writer import Piece, SegmentWriter
from awsomefsd.meta.api.commands import EndSession, LeaseBays, LeaseSegments, OpenCollector, Relocate, Relocation
from awsomefsd.meta.api.messages import BaysLeased, Propose, Renew
from awsomefsd.meta.api.messages.collection import GetFilePieces, LivePiece, ask_again

CHUNK_BYTES = 8 * MIB  # of one write, flush and entry
CHUNK_COPIES = EXTENTS_PER_COMMIT_MAX  # of one write and flush; their moves may take several entries
LEASE_NAP_S, LEASE_ATTEMPTS = 0.25, 30  # together more than two renewals of every session
MERGE_BELOW_BYTES = 64 << 10  # neighbours smaller than this are pulled along
SEEN_ALL = (1 << 62) - 1  # the collector remembers nothing from one entry to the next but what compare-and-swap checks

if TYPE_CHECKING:
    from awsomefsd.io.collect.collected_pool import AccessPool

log = logging.getLogger("awsomefsd.collect")


class Stopped(Error):
    """Collection is to end; nothing is half done."""


class Elsewhere(Error):
    """Another node collects, so this one does not."""


class Collector:
    """The collector of a node: `candidates` finds work, `round` does some of it, `rest` ends it for now.

    One thread calls; every method but `may_write_under` blocks for the service or a device, and raises Error.  `pace(bytes)` is called
    after each chunk, and may raise Stopped.  `access_pool` makes the way to the bays of pools when it is first used; without it segments
    there are left alone.
    """

    def __init__(
        self,
        ask: Ask,
        devices: Mapping[int, BlockDevice],
        node: str,
        boot_id: str,
        now_ns: Callable[[], int],
        pace: Callable[[int], None] = lambda copied: None,
        collects: Callable[[DeviceInfo], bool] = lambda info: True,
        nap: Callable[[float], object] = time.sleep,
        access_pool: AccessPool | None = None,
    ) -> None:
        self._ask = ask
        self._devices = devices
        self._node = node
        self._boot_id = boot_id
        self._now_ns = now_ns
        self._pace = pace
        self._nap = nap
        self._session = self._epoch = 0
        self._like = 0  # the copies go to devices of the same kind as this one
        self._volume = 0  # they go to bays, as this volume wants it; 0: not to a pool
        self._kind = ""  # of what is copied
        self.sessions: set[int] = set()  # all that were opened here
        self._renew_ns = 0
        self._infos: dict[int, SegmentInfo] = {}
        places = PoolPlaces() if access_pool is not None else None
        self.candidates = Candidates(ask, devices, collects, places, self._keep_alive)
        self.figures = self.candidates.figures
        self._pool: CollectedPool | None = None
        if access_pool is not None:
            self._pool = CollectedPool(access_pool, lambda: (self._session, self._epoch), self._lease_bays)
        mirrors = self._pool.mirrors if self._pool is not None else in_no_pool
        self._reader = SegmentReader(devices, self._locate, mirrors=mirrors, locate_again=self._locate_again)
        self._device_writer = SegmentWriter(devices, SeenLeases(devices, self._lease).lease)
        self._arena = aligned_buffer(CHUNK_BYTES + FRAME_BYTES_MAX + CHUNK_COPIES * BLOCK_BYTES)

    # --- a round ------------------------------------------------------------------------------------------------------------
    def round(self, chosen: list[SegmentInfo], *, merge: bool) -> None:
        """Copies the live bytes of these segments.

        Raises Stopped, Elsewhere, another Error or OSError; bytes moved until then stay moved.
        """
        if self._kind != self.candidates.kind_of(chosen[0]):
            self.rest()  # the open segment is on a device of another kind
        self._kind = self.candidates.kind_of(chosen[0])
        self._like, self._volume = chosen[0].device, volume_of(chosen[0])
        self._open()
        try:
            for pieces in self.candidates.parts(chosen):
                self._infos = {info.segment: info for info in chosen}
                budget = sum(one.extent.length for one in pieces)
                pulled = self._neighbours(pieces, budget) if merge else []
                self.figures.merged_bytes += sum(one.extent.length for one in pulled)
                for chunk in _chunks(lay_together([*pieces, *pulled])):
                    self._copy(chunk)
        except Stopped:
            raise
        except (Error, OSError):
            self._leave()
            raise
        self.figures.rounds += 1
        self.figures.segments += len(chosen)

    def rest(self) -> None:
        """Seals the open segment and ends the session, so that the segment can be collected itself if it stays nearly empty."""
        if not self._session:
            return
        try:
            hit("collect.seal.before")
            progress = self._writer.seal_all()
            if progress:
                self._propose(Relocate([], progress))
            hit("collect.seal.after")
        finally:
            self._leave()

    def _neighbours(self, pieces: list[LivePiece], budget: int) -> list[LivePiece]:
        known = {(one.volume, one.ino, one.extent.file_offset) for one in pieces}
        small = [one for one in pieces if not one.shared and one.extent.length < MERGE_BELOW_BYTES]
        found: list[LivePiece] = []
        for volume, ino, window in dict.fromkeys((one.volume, one.ino, one.extent.file_offset // FRAME_BYTES_MAX) for one in small):
            if budget <= 0:
                break
            self._keep_alive()
            reply = self._ask(GetFilePieces(volume, ino, window * FRAME_BYTES_MAX, (window + 1) * FRAME_BYTES_MAX, EXTENTS_PER_COMMIT_MAX))
            for one in reply.pieces:
                offset = one.extent.file_offset
                if one.shared or one.extent.length >= MERGE_BELOW_BYTES or offset // FRAME_BYTES_MAX != window:
                    continue
                if (volume, ino, offset) not in known:
                    found.append(one)
                    budget -= one.extent.length
        return found

    # --- copying ------------------------------------------------------------------------------------------------------------
    def _copy(self, chunk: list[Copy]) -> None:
        self._keep_alive()
        pieces: list[Piece] = []
        copies: list[Copy] = []
        at = 0
        for copy in chunk:
            for whole, place in self._readable(copy, at):
                copies.append(whole)
                pieces.append(Piece(whole.volume, whole.ino, whole.file_offset, [self._arena[place : place + whole.length]]))
            at = align_up(at + copy.length, BLOCK_BYTES)
        if not pieces:
            return
        hit("collect.write.before")
        written = self._writer.write(pieces)
        hit("collect.write.after")
        moves = [move for copy, extents in zip(copies, written.extents, strict=True) for move in relocations(copy, extents)]
        copied = sum(copy.length for copy in copies)
        self.figures.copied_bytes += copied
        self._relocate(moves, written.progress)
        self._pace(copied)

    def _relocate(self, moves: list[Relocation], progress: list[SegmentProgress]) -> None:
        """Proposes the moves in as many entries as they take; only the last one seals."""
        parts = list(in_parts(moves, EXTENTS_PER_COMMIT_MAX, lambda move: len(move.places)))
        for number, part in enumerate(parts, 1):
            open_steps = [SegmentProgress(one.segment, one.incarnation, one.committed_bytes) for one in progress]
            hit("collect.relocate.before")
            reply = self._propose(Relocate(part, progress if number == len(parts) else open_steps))
            hit("collect.relocate.after")
            self.figures.moved_bytes += reply.moved_bytes
            self.figures.skipped_bytes += reply.skipped_bytes

    def _readable(self, copy: Copy, at: int) -> Iterator[tuple[Copy, int]]:
        """Yields the copy and where its bytes are in the arena, from `at` on; or those of its pieces that can be read."""
        if self._read(copy, at):
            yield copy, at
        elif len(copy.sources) > 1:
            for one in alone(copy):
                if self._read(one, at):
                    yield one, at
                at += one.length

    def _read(self, copy: Copy, at: int) -> bool:
        for source in copy.sources:
            try:
                self._read_source(copy, source, self._arena[at : at + source.length])
            except NOT_NOW as err:  # this says nothing of the bytes
                raise Unavailable(f"segment {source.segment} cannot be read now: {err}") from err
            except (Corrupt, OSError) as err:
                if len(copy.sources) == 1 and self._still_there(copy):
                    self._leave_alone(copy, source, err)
                return False
            at += source.length
        return True

    def _read_source(self, copy: Copy, source: Extent, into: memoryview) -> None:
        """Reads a source, again with a fresh row if its segment may have been freed and leased since that was asked for."""
        try:
            self._reader.read(source, copy.volume, copy.ino, 0, source.length, into)
        except Corrupt:
            known = self._infos.pop(source.segment, None)
            if known is None or known.incarnation == source.incarnation:
                raise
            self._reader.read(source, copy.volume, copy.ino, 0, source.length, into)

    def _still_there(self, copy: Copy) -> bool:
        """Returns True if an owner still names these bytes; a piece that was overwritten and freed meanwhile is no damage."""
        return any(one.extent == now.extent for one, _ in copy.owners for now in self._ask(ask_again(one, 2)).pieces)

    def _leave_alone(self, copy: Copy, source: Extent, err: Exception) -> None:
        self.figures.corrupt_pieces += 1
        self.candidates.left_alone.add((source.segment, source.incarnation))
        log.error(
            "wrong bytes on the device; they are not moved: volume=%d ino=%d offset=%d length=%d %s",
            copy.volume, copy.ino, source.file_offset, source.length, err,
        )  # fmt: skip

    # --- the session --------------------------------------------------------------------------------------------------------
    def _open(self) -> None:
        if self._session:
            self._keep_alive()
            return
        try:
            opened = self._ask(Propose(HOST_UNIQUE, 0, 0, [], OpenCollector(self._node, self._boot_id)))
        except FsError as err:
            if err.errno == errno.EBUSY:
                raise Elsewhere(str(err)) from err
            raise
        self._session, self._epoch = opened.session, opened.epoch
        self.sessions.add(opened.session)
        self._renew_ns = 0
        self._keep_alive()

    def _leave(self) -> None:
        """Ends the session clean: none of our writes is under way.

        If the service does not hear it, the session expires, and a proof ends its quarantine.
        """
        session, self._session = self._session, 0
        self._give_up()
        if session:
            with contextlib.suppress(Error):
                self._ask(Propose(HOST_UNIQUE, 0, 0, [], EndSession(session, self._epoch, True)))

    def _give_up(self) -> None:
        self._device_writer.abandon()
        if self._pool is not None:
            self._pool.give_up()

    def _keep_alive(self) -> None:
        """Renews the session when it is due.

        Raises FsError(ESTALE) for one that has expired and is forgotten; the next try opens another one.
        """
        if not self._session or self._now_ns() < self._renew_ns:
            return
        try:
            self._ask(Renew(self._session, self._epoch, SEEN_ALL))
        except FsError as err:
            if err.errno == errno.ESTALE:
                self._session = 0
                self._give_up()
            raise
        self._renew_ns = self._now_ns() + SESSION_RENEW_MS * NS_PER_MS

    def may_write_under(self, session: int) -> bool:
        """Returns True if a write under this session may be under way; False for one that was left or has expired.  Any thread.

        The thread that writes is the one that notices the end of its session, so no write is under way then.
        """
        return session == self._session

    def _propose(self, command: Any) -> Any:
        return self._ask(Propose(HOST_UNIQUE, self._session, self._epoch, [], command))

    def _lease(self, count: int, avoid: list[int]) -> list[SegmentInfo]:
        """Leases one segment: collection works where hardly any is left."""
        leased: list[SegmentInfo] = self._leased(LeaseSegments(1, 0, self._like, avoid=avoid)).segments
        return leased

    def _lease_bays(self, count: int, avoid: list[int]) -> BaysLeased:
        leased: BaysLeased = self._leased(LeaseBays(1, 0, avoid, volume=self._volume))
        return leased

    def _leased(self, command: LeaseSegments | LeaseBays) -> Any:
        """A segment just freed can be leased when all sessions have renewed."""
        for attempt in range(LEASE_ATTEMPTS):
            try:
                return self._propose(command)
            except Unavailable:
                if attempt == LEASE_ATTEMPTS - 1:
                    raise
            self._nap(LEASE_NAP_S)
            self._renew_ns = 0
            self._keep_alive()
        raise AssertionError("the last attempt returns or raises")

    def _locate(self, segment: int) -> SegmentInfo:
        info = self._infos.get(segment)
        if info is None:
            info = self._infos[segment] = replace(segment_now(self._ask, segment))
        return info

    def _locate_again(self, segment: int) -> SegmentInfo:
        self._infos.pop(segment, None)
        return self._locate(segment)

    @property
    def _writer(self) -> SegmentWriter:
        """The writer of the present kind.  Only one has segments: what the other had was sealed when the kind changed."""
        if not self._volume:
            return self._device_writer
        assert self._pool is not None
        return self._pool.writer

    def close(self) -> None:
        """Ends the connections to segment servers, after `rest`."""
        if self._pool is not None:
            self._pool.close()


def _chunks(copies: list[Copy]) -> Iterator[list[Copy]]:
    chunk: list[Copy] = []
    length = 0
    for copy in copies:
        if chunk and (length + copy.length > CHUNK_BYTES or len(chunk) >= CHUNK_COPIES):
            yield chunk
            chunk, length = [], 0
        chunk.append(copy)
        length += copy.length
    if chunk:
        yield chunk
