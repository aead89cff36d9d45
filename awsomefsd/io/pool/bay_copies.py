"""Copies of sealed segments into bays of this server: the destination pulls, checks every frame, and takes a bad one from the next source.

What is written is exactly what some source has, byte by byte: where every source is wrong, the first one's bytes are copied and the place
is named, so that a later read meets wrong bytes there, and says so, and nothing is invented.

An order may come late, and more than once.  Before the first byte the leader is asked, under the bay's lock, whether the bay is being
copied to, for this segment, by the entry that the order names, up to the same end.  The same order again joins what is
under way, and is told again what became of it; where that found places wrong in every source, and the order has another one, it begins
anew.  Another order for the same bay ends the copy that it finds.  Everything is written through
the gate, so a bay that was given to somebody else meanwhile takes no more bytes of a copy.

An order names its sources, and a node of the cluster may say anything.  So of a source only its node counts: where that node's segment
server is reached is what the leader's rows say, and no other address is dialled.

What fails leaves nothing that counts: the bay stays one that is being copied to, and the same order begins again from the start.  A source
that cannot be reached is left out for the rest of the copy; without any source, or where no source can read a place, the copy fails.  So it
does where a place is wrong in all sources but one that is away: that one may have it, and may be given up for this copy.
"""

from __future__ import annotations

import errno
import itertools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from xxhash import xxh3_128

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.limits import BLOCK_BYTES, NS_PER_MS, SEGMENT_COPIES_MAX, SEGMENT_COPY_ANSWER_MS
from awsomefsd.base.tls import TlsNow
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.pool.bay_findings import Findings
from awsomefsd.io.pool.bay_walk import TILE_BYTES_MAX, BayExtent, BayWalk, Tile, read_footer
from awsomefsd.io.pool.device_bays import DeviceBays
from awsomefsd.io.pool.gate import Bay, Gate
from awsomefsd.io.pool.remote_device import RemoteDevice
from awsomefsd.io.pool.remote_errors import BayLost, NotServed, ServerAway
from awsomefsd.io.pool.remote_server import RemoteServer
from awsomefsd.io.pool.server_state import CopyState
from awsomefsd.io.segment.footer import ChecksumTable
from awsomefsd.io.transport.messages import Copied, CopyOrder, CopySource
from awsomefsd.meta.client.endpoints import endpoint_of, split

log = logging.getLogger(__name__)
_WINDOW_BYTES = 2 * TILE_BYTES_MAX  # read at once
_ENDED_KEPT = 64  # copies that have ended, for orders that are repeated


class CopySources:
    """The sources of one copy, the best first.  One thread."""

    def __init__(self, bays: Sequence[BlockDevice]) -> None:
        self._bays = bays
        self._away: dict[int, OSError] = {}  # those that are not asked any more

    def __len__(self) -> int:
        return len(self._bays)

    @property
    def some_are_away(self) -> bool:
        """True: a source is not asked any more."""
        return bool(self._away)

    def read(self, first: int, offset: int, into: memoryview) -> int:
        """Fills `into` from a source, `first` before the others; returns which it was.  Raises OSError if none can give it."""
        error: OSError | None = None
        for number in sorted(range(len(self._bays)), key=lambda one: one != first):
            why = self.read_from(number, offset, into)
            if why is None:
                return number
            error = error or why
        assert error is not None
        raise OSError(error.errno, f"no source has the bytes at {offset}: {error.strerror}")

    def read_from(self, number: int, offset: int, into: memoryview) -> OSError | None:
        """Fills `into` from this source; returns why it cannot, None if it can."""
        bay = self._bays[number]
        if number in self._away:
            return self._away[number]
        try:
            if bay.pread_into(into, offset) == len(into):
                return None
            return OSError(errno.EIO, f"{bay.path} ends before {offset + len(into)}")
        except (ServerAway, BayLost, NotServed) as err:
            self._away[number] = err
            return err
        except OSError as err:
            return err


class BayCopy:
    """One copy.  `append(body, offset)` writes whole blocks at the end so far; `pause(bytes)` waits as the order's pace says."""

    def __init__(
        self, extent: BayExtent, sources: CopySources, append: Callable[[memoryview, int], None], pause: Callable[[int], None]
    ) -> None:
        self.extent, self._sources, self._append, self._pause = extent, sources, append, pause
        self._digest = xxh3_128()
        self.findings = Findings()
        self.done = self.mended = self.frames = 0

    def run(self) -> bytes:
        """Copies all of it, which is not durable yet; returns the digest.  Raises what sources and `append` raise."""
        footer, table = self._read_footer()
        self._walk(BayWalk(self.extent, table))
        if len(footer):
            self._write(footer)
        assert self.done == self.extent.end
        return self._digest.digest()

    def _read_footer(self) -> tuple[memoryview, ChecksumTable | None]:
        """Returns the bytes of the footer from a source in which it is good, or else from the first, and its table."""
        extent = self.extent
        raw = aligned_buffer(extent.end - extent.footer) if extent.footer and extent.end > extent.footer else memoryview(b"")
        wrong = ""
        for number in range(len(self._sources) if len(raw) else 0):
            for at in range(0, len(raw), TILE_BYTES_MAX):
                self._sources.read(number, extent.footer + at, raw[at : at + TILE_BYTES_MAX])
            table, why = read_footer(extent, lambda offset, length: raw[offset - extent.footer : offset - extent.footer + length])
            if not why:
                self.mended += bool(wrong)
                return raw, table
            wrong = wrong or why
        if wrong:
            self.findings.add(extent.footer, wrong)
        return raw, None

    def _walk(self, walk: BayWalk) -> None:
        buffer, spare = aligned_buffer(_WINDOW_BYTES + BLOCK_BYTES), memoryview(bytearray(TILE_BYTES_MAX))
        base = filled = 0  # the buffer has bytes [base, filled) of the bay
        source = 0
        while wanted := walk.wanted():
            if walk.position + walk.needed(buffer[walk.position - base : filled - base]) > filled:
                next_base = walk.position // BLOCK_BYTES * BLOCK_BYTES
                self._write(buffer[: next_base - base])
                rest = walk.position - next_base  # of a block whose frames are not all checked
                buffer[:rest] = bytes(buffer[next_base - base : next_base - base + rest])
                length = min(_WINDOW_BYTES, self.extent.data_end - walk.position)
                source = self._sources.read(0, walk.position, buffer[rest : rest + length])
                base, filled = next_base, walk.position + length
            view = buffer[walk.position - base : filled - base]
            tile = walk.judge(view)
            if tile.wrong:
                tile = self._from_another(walk, tile, view, spare[: min(wanted, len(view))], source)
            walk.step(tile)
        self._write(buffer[: walk.position - base])
        self.frames = walk.frames

    def _from_another(self, walk: BayWalk, bad: Tile, view: memoryview, spare: memoryview, source: int) -> Tile:
        """Puts the tile as another source has it, if it is good there, in the place of a bad one.

        Raises OSError where only a source that is away may have it right.
        """
        for number in range(len(self._sources)):
            if number == source:
                continue
            if self._sources.read_from(number, walk.position, spare) is not None:
                continue
            tile = walk.judge(spare)
            if not tile.wrong:
                view[: tile.length] = spare[: tile.length]
                self.mended += 1
                return tile
        if self._sources.some_are_away:
            raise OSError(errno.EIO, f"wrong at {walk.position} in every source that can be asked ({bad.wrong}), and another one is away")
        self.findings.add(walk.position, bad.wrong)
        return bad

    def _write(self, body: memoryview) -> None:
        for at in range(0, len(body), TILE_BYTES_MAX):
            part = body[at : at + TILE_BYTES_MAX]
            self._append(part, self.done)
            self._digest.update(part)
            self.done += len(part)
            self._pause(len(part))


class _Job:
    """A copy that was ordered: in a thread of its own until it ends."""

    def __init__(self, key: tuple[object, ...], number: int, given: frozenset[CopySource]) -> None:
        self.key, self.number, self._given = key, number, given
        self.copy: BayCopy | None = None
        self.sources: _Sources | None = None
        self.stop = threading.Event()
        self.ended = False
        self.error: FsError | None = None
        self.digest = b""

    def may_have_more_from(self, given: Iterable[CopySource]) -> bool:
        """Returns whether it has ended with wrong bytes, without a source that is among these."""
        return self.ended and self.copy is not None and self.copy.findings.count > 0 and not self._given.issuperset(given)

    def end(self) -> None:
        self.stop.set()
        if self.sources is not None:
            self.sources.close()


class BayCopies:
    """The copies into the bays of one server.  Thread-safe.  `node`: of the server; `changed`: the lock of its gate.

    `address_of` returns where the leader's rows say that the segment server of a node is ("": nowhere).
    """

    def __init__(self, node: str, tls: TlsNow, gate: Gate, changed: threading.Condition, address_of: Callable[[str], str]) -> None:
        self._node, self._tls, self._gate, self._changed, self._address_of = node, tls, gate, changed, address_of
        self._lock = threading.Condition()  # of what follows
        self._jobs: OrderedDict[Bay, _Job] = OrderedDict()
        self._running: set[int] = set()  # numbers of jobs
        self._numbers = itertools.count(2)
        self._stopped = False
        self.made = self.failed = self.mended = 0

    def order(self, device: DeviceBays, bay: Bay, extent: BayExtent, order: CopyOrder, check: Callable[[], None]) -> tuple[int, Copied]:
        """Begins a copy, or joins it; returns how many bytes are copied, and what became of it so far.  Blocks SEGMENT_COPY_ANSWER_MS.

        `check` raises unless the log says that the bay is being copied to by this order; it is called under the bay's lock.
        Raises FsError where the copy cannot be, or was not, made.
        """
        key = (extent, order.planned)
        with device.lock_of(bay.index):
            with self._lock:
                job = self._jobs.get(bay)
                joins = job is not None and job.key == key and job.error is None and not job.may_have_more_from(order.sources)
            if not joins:
                check()
                job = self._begin(device, bay, extent, order, key)
        assert job is not None
        return self._await(job)

    def _begin(self, device: DeviceBays, bay: Bay, extent: BayExtent, order: CopyOrder, key: tuple[object, ...]) -> _Job:
        with self._lock:
            if self._stopped:
                raise FsError(errno.ESTALE, "the segment server is ending")
            before = self._jobs.get(bay)
            if before is not None:
                before.stop.set()
            if len(self._running) >= SEGMENT_COPIES_MAX:
                raise FsError(errno.EBUSY, f"{len(self._running)} copies are under way here already")
            if not device.enter():
                raise FsError(errno.ENODEV, f"device {bay.device} is not attached here any more")
            self._jobs.pop(bay, None)
            job = self._jobs[bay] = _Job(key, -next(self._numbers), frozenset(order.sources))
            thread = threading.Thread(target=self._run, args=(job, device, bay, extent, order), name="segments-copy", daemon=True)
            self._running.add(job.number)
            while len(self._jobs) > _ENDED_KEPT and (old := next((one for one, made in self._jobs.items() if made.ended), None)):
                del self._jobs[old]
        with self._changed:
            self._gate.open_copy(bay, extent.segment, extent.incarnation, job.number)
        try:
            thread.start()
        except RuntimeError as err:
            device.leave()
            self._end(job, bay, FsError(errno.EBUSY, f"no thread for this copy: {err}"))
        return job

    def _await(self, job: _Job) -> tuple[int, Copied]:
        with self._lock:
            self._lock.wait_for(lambda: job.ended, SEGMENT_COPY_ANSWER_MS / 1_000)
            if job.error is not None:
                raise job.error
            copy = job.copy
            if copy is None:
                return 0, Copied(False)
            found = copy.findings
            return copy.done, Copied(job.ended, job.digest, copy.frames, copy.mended, found.count, list(found.first))

    def _run(self, job: _Job, device: DeviceBays, bay: Bay, extent: BayExtent, order: CopyOrder) -> None:
        opened = job.sources = _Sources(self._node, self._tls, self._address_of)
        error: FsError | None = FsError(errno.EIO, "the copy ended without a result")
        try:
            bays = [opened.open(source, extent) for source in order.sources]
            pause = Pace(order.pace, job.stop)
            job.copy = BayCopy(extent, CopySources(bays), lambda body, at: self._append(job, device, bay, extent, body, at), pause.wait)
            digest = job.copy.run()
            device.sync(bay.index, extent.segment, extent.incarnation, job.number, extent.end)
            with device.lock_of(bay.index), self._changed:
                self._gate.close(bay, extent.segment, extent.incarnation, job.number)
            job.digest, error = digest, None
        except FsError as err:
            error = err
        except (OSError, Error) as err:
            error = FsError(err.errno or errno.EIO, f"the copy failed: {err}")
        finally:
            opened.close()
            self._end(job, bay, error)
            device.leave()  # last: who waits for the device to be left finds the copy ended

    def _end(self, job: _Job, bay: Bay, error: FsError | None) -> None:
        if error is not None:
            log.warning("a copy into a bay was not made: %s", error, extra={"device": bay.device, "bay": bay.index})
        with self._changed:
            self._gate.lose(job.number)
        with self._lock:
            self.made += error is None
            self.failed += error is not None
            self.mended += job.copy.mended if job.copy is not None else 0
            job.error, job.ended = error, True
            self._running.discard(job.number)
            self._lock.notify_all()

    def _append(self, job: _Job, device: DeviceBays, bay: Bay, extent: BayExtent, body: memoryview, offset: int) -> None:
        if job.stop.is_set():
            raise FsError(errno.ESTALE, "another order for this bay has come, or the server is ending")
        place = device.place_of(bay.index, 0) + offset
        with device.lock_of(bay.index):
            with self._changed:
                self._gate.begin_append(bay, extent.segment, extent.incarnation, job.number, offset, len(body), device.bay_bytes)
            why: OSError | None = None
            try:
                device.write(body, place)
            except OSError as err:
                why = err
            try:
                with self._changed:
                    self._gate.end_append(bay, failed=why is not None)
            except FsError:
                raise why or FsError(errno.ESTALE, "the bay was given to somebody else meanwhile") from None

    def under_way(self, device: int) -> list[CopyState]:
        """Returns the copies into the bays of a device that have begun and not ended."""
        with self._lock:
            jobs = [(bay.index, job.copy) for bay, job in self._jobs.items() if bay.device == device and not job.ended]
        return [CopyState(index, copy.extent.segment, copy.done, copy.extent.end) for index, copy in jobs if copy is not None]

    def figures(self) -> dict[str, int]:
        with self._lock:
            return {
                "segment_copies": len(self._running),
                "segment_copies_made": self.made,
                "segment_copies_failed": self.failed,
                "segment_copies_mended": self.mended,
            }

    def give_up(self, device: int) -> None:
        """Ends the copies into the bays of a device.  Does not wait for them: each has entered the device, and leaves it."""
        with self._lock:
            for bay, job in self._jobs.items():
                if bay.device == device:
                    job.end()

    def stop(self) -> None:
        """Ends all copies, and awaits what is under way."""
        with self._lock:
            self._stopped = True
            for job in self._jobs.values():
                job.end()
            self._lock.wait_for(lambda: not self._running)


class Stop(Protocol):
    """A flag that ends waits."""

    def wait(self, timeout: float, /) -> object: ...


class Pace:
    """Waits so that no more than so many bytes a second pass (0: as many as come), and not once it is told to stop."""

    def __init__(self, bytes_per_s: int, stop: Stop, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._bytes_per_s, self._stop, self._monotonic_ns = bytes_per_s, stop, monotonic_ns
        self._began_ns, self._bytes = monotonic_ns(), 0

    def wait(self, length: int) -> None:
        if not self._bytes_per_s:
            return
        self._bytes += length
        early_ns = self._bytes * 1_000 * NS_PER_MS // self._bytes_per_s - (self._monotonic_ns() - self._began_ns)
        if early_ns > 0:
            self._stop.wait(early_ns / 1e9)


class _Sources:
    """The connections of one copy to the servers of its sources."""

    def __init__(self, node: str, tls: TlsNow, address_of: Callable[[str], str]) -> None:
        self._node, self._tls, self._address_of = node, tls, address_of
        self._servers: dict[str, RemoteServer] = {}

    def open(self, source: CopySource, extent: BayExtent) -> BlockDevice:
        try:
            node, _, _ = split(source.endpoint)
        except OSError as err:
            raise FsError(errno.EINVAL, str(err)) from None
        address = self._address_of(node)
        if not address:
            raise FsError(errno.EINVAL, f"the cluster knows no segment server of node {node}")
        server = self._servers.get(node) or RemoteServer(endpoint_of(node, address), self._node, self._tls)
        self._servers[node] = server
        return RemoteDevice(server, source.device, extent.end).bay(source.index, extent.segment, extent.incarnation)

    def close(self) -> None:
        for server in list(self._servers.values()):
            server.close()
