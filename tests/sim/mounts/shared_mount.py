"""A mount that shares its volume: caches under read leases, data held back under write leases, recalls; production LeaseClient.

Data of half the files goes to the device that all see (device.py), into segments of this worker and session.

What a successor inherits (the keeper's shared memory) is here too: data held back with the epoch of its lease, and what the mount is
changing.  What the program asked for and nobody has answered yet is asked again by successors and new sessions.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import LEASE_NONE, LEASE_WRITE, Extent, SegmentProgress
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Contested, Leased
from awsomefsd.meta.client.lease_protocol import LeaseClient
from awsomefsd.meta.client.leases import AdoptedLease
from tests.sim.mounts.device import Segments
from tests.sim.world import MS, SECOND

ASK_AGAIN_NS = 50 * MS
FLUSH_NS = 3 * SECOND
EVICT_NS = 2 * SECOND
STEP_NS = 60 * MS  # between the two phases of an eviction
Done = Callable[[], None]
Placed = Callable[["Extent | None", "SegmentProgress | None"], None]


@dataclass
class HeldBack:
    """The newest data of a file, acknowledged to a program and not committed."""

    value: bytes
    sequence: int
    session: int
    epoch: int
    known: int  # changes of the file that were known with the lease
    life: int = 0  # of the mount, whose worker took it
    flushing: bool = False
    waiting: list[Done] = field(default_factory=list)

    def resume(self) -> None:
        """Once: data that was given up with its session may have been committed before, and that answer comes later."""
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done()


class Sharing:
    def __init__(self, mount: Any) -> None:
        self.mount, self.world, self.judge = mount, mount.world, mount.host.checks.leases
        self.volume = mount.host.volume
        self.dirty: dict[int, HeldBack] = {}
        self.aside: dict[int, HeldBack] = {}  # data of ended sessions: whether it goes on is asked under the next one
        self.changing: list[list[int]] = []
        self.writing: set[int] = set()  # files with a write of a program under way: they are in order
        self._known: dict[int, int] = {}
        self._sequence = 0
        self._evictions = self.world.dice(f"evictions/{mount.host.name}/{mount.host.boots}")
        self._wanting: dict[int, tuple[int, int, Done]] = {}
        self._wants = 0
        self._contested: dict[int, int] = {}
        self._placing: dict[int, Placed] = {}
        self._placings = 0
        self._segments: Segments | None = None

    # --- the worker's life --------------------------------------------------------------------------------------------------------
    def start_worker(self) -> None:
        mount = self.mount
        life = mount.life
        self.cache: dict[int, tuple[int, Any]] = {}  # inode → stamp, what was answered
        self._segments = None
        self.judge.device.drain(mount)
        for number in sorted(self._placing):
            self._not_placed(number)

        def submit(body: Any, resume: Any) -> None:
            if mount.life == life:
                mount.submit(body, resume)

        def left_ns() -> int:
            left: int = mount.lease.left_ns(mount.host.clock.boot_ns())
            return left

        self.client = LeaseClient(submit, self._on_recall, left_ns, mount.lease.doubt, lambda ino, answer: answer(None))
        self.holder = self.client.holder
        for inos in self.changing:
            self.holder.change(inos)
        self._evict_later()

    def begin(self, session: int, epoch: int) -> None:
        """A session was opened.  Data of another one is lost to it, and what is on its way of that must be refused."""
        self.cache.clear()
        for ino, held in sorted(self.dirty.items()):
            if held.session != session:
                self._put_aside(ino)
                if not held.flushing:
                    self.mount.propose(self._commit(ino, held), self._refused, final=True)
        self.client.begin(session, epoch, {ino: AdoptedLease(held.epoch, held.known) for ino, held in sorted(self.dirty.items())})
        self.world.count("write leases adopted", len(self.dirty))
        for ino in sorted(self.dirty):
            self._flush_later(ino)
        for ino, held in sorted(self.aside.items()):
            self._go_on(ino, held)
        for number in sorted(self._wanting):
            self._want(number)

    def _refused(self, reply: Any, error: BaseException | None) -> None:
        lease_ended = error is None and reply.errnos == [errno.ENOLCK]
        if not lease_ended and (not isinstance(error, FsError) or error.errno != errno.ESTALE):
            raise self.world.broken(f"{self.mount.host.name}: a commit of an ended session's lease is answered {reply} {error!r}")
        self.world.count("commits under ended leases refused")

    def lost(self) -> None:
        """The session has ended, as far as this mount can know."""
        self.client.begin(0, 0, {})
        self.cache.clear()

    def _put_aside(self, ino: int) -> None:
        """Data whose session has ended: others may see the file without it."""
        held = self.aside[ino] = self.dirty.pop(ino)
        self.judge.dropped(ino, self.mount, held.sequence)
        self.world.count("held back while a session ended")
        held.resume()

    def _go_on(self, ino: int, held: HeldBack) -> None:
        """As vfs/session/lease_recovery.py: held back under the new session if nobody else has changed the file, else a conflict."""
        mount, session = self.mount, self.mount.session
        if not mount.up or not session or self.aside.get(ino) is not held:
            return  # asked with the next session

        def asked(reply: Any, error: BaseException | None) -> None:
            if mount.session != session or self.aside.get(ino) is not held:
                return
            if error is not None and (not isinstance(error, FsError) or error.errno != errno.ESTALE):
                raise self.world.broken(f"{mount.host.name}: a lease on {ino} for data of an ended session is answered {error!r}")
            epoch = self.holder.may_buffer(ino)
            if not isinstance(reply, Leased) or (not reply.changed_by_others and not epoch):
                self.world.after(ASK_AGAIN_NS, self._go_on, ino, held, owner=mount)
                return
            del self.aside[ino]
            if reply.changed_by_others:
                self.world.count("conflicts of data held back")
                return
            self.world.count("held back on under a new session")
            self._hold_back(ino, HeldBack(held.value, held.sequence, session, epoch, reply.changes, mount.life))

        self.client.ask(self.volume, ino, LEASE_WRITE, held.known, asked)

    def died(self) -> None:
        for ino, held in sorted(self.dirty.items()):
            self.judge.dropped(ino, self.mount, held.sequence)

    # --- leases -------------------------------------------------------------------------------------------------------------------
    def want(self, ino: int, mode: int, resume: Done) -> None:
        """Ask for a lease until something was granted, or the inode is contested; look at `holder.mode` and `contested` then."""
        self._wants += 1
        self._wanting[self._wants] = (ino, mode, resume)
        self._want(self._wants)

    def contested(self, ino: int) -> bool:
        """No lease is to be had for a while."""
        return self._contested.get(ino, -1) > self.world.now_ns

    def _want(self, number: int) -> None:
        mount = self.mount
        if not mount.up or not mount.session or number not in self._wanting:
            return  # asked with the next session
        ino, mode, resume = self._wanting[number]
        known, session = self._known.get(ino, 0), mount.session

        def asked(reply: Any, error: BaseException | None) -> None:
            if number not in self._wanting:
                return
            if error is not None and (not isinstance(error, FsError) or error.errno != errno.ESTALE):
                raise self.world.broken(f"{mount.host.name}: a lease on {ino} is answered {error!r}")
            if isinstance(reply, Contested):
                self.world.count("leases refused as contested")
                del self._wanting[number]
                self._contested[ino] = self.world.now_ns + reply.pause_ms * MS
                resume()
                return
            if reply is None:
                self.world.count("grants that came too late" if error is None else "leases refused with their session")
                if mount.session == session:
                    self.world.after(ASK_AGAIN_NS, self._want, number, owner=mount)
                return
            del self._wanting[number]
            self._known[ino] = reply.changes
            self.judge.granted(mount, ino, reply, known)
            resume()

        self.client.ask(self.volume, ino, mode, known, asked)

    def _on_recall(self, ino: int, mode: int, done: Done) -> None:
        self.world.count("recalls handled")
        if mode == LEASE_NONE:
            self.cache.pop(ino, None)
        life = self.mount.life
        self.flush(ino, lambda: done() if self.mount.life == life else None)

    def _evict_later(self) -> None:
        self.world.after(self._evictions.expovariate(1) * EVICT_NS, self._evict, self.mount.life, owner=self.mount)

    def _evict(self, life: int) -> None:
        """As client/lease_cache.py: the oldest read leases are chosen, what is cached under them goes, then they are given up.

        Between the two programs go on: some have written by then.
        """
        if self.mount.life != life:
            return
        self._evict_later()
        inos = self.holder.oldest_reads(2) if self.mount.session else []
        if not inos:
            return
        self.holder.leave(inos)
        session = self.mount.session

        def release() -> None:
            if self.mount.life == life and self.mount.session == session:
                self.world.count("leases evicted", len(inos))
                self.world.count("evictions that a write lease overtook", sum(self.holder.mode(ino) == LEASE_WRITE for ino in inos))
                self.client.release(inos)

        for ino in inos:
            self.cache.pop(ino, None)
        self.world.after(self._evictions.expovariate(1) * STEP_NS, release, owner=self.mount)

    def release(self, ino: int) -> None:
        if ino not in self.dirty and ino not in self.writing and self.mount.up and self.holder.mode(ino):
            self.cache.pop(ino, None)
            self.client.release([ino])
            self.world.count("leases released")

    def lower(self, ino: int) -> None:
        """Read on under a write lease that is not needed, unless it is being asked for."""
        asked = any(wanted == ino for wanted, _, _ in self._wanting.values())
        if ino not in self.dirty and ino not in self.writing and self.mount.up and self.holder.mode(ino) == LEASE_WRITE and not asked:
            self.holder.pause([ino])
            self.client.lower([ino], [ino])
            self.world.count("write leases lowered")

    # --- bytes on the device --------------------------------------------------------------------------------------------------------
    def place(self, value: bytes, sequence: int, then: Placed) -> None:
        """Write it to a segment of this worker and session.  `then` gets its place; nothing if the worker or the session ended before."""
        self._placings += 1
        self._placing[self._placings] = then
        self._place(self._placings, value, sequence)

    def _not_placed(self, number: int) -> None:
        if number in self._placing:
            then = self._placing.pop(number)
            self.world.after(MS, then, None, None)

    def _place(self, number: int, value: bytes, sequence: int) -> None:
        mount = self.mount
        if number not in self._placing:
            return
        if not mount.up or not mount.session:
            self._not_placed(number)
            return
        if self._segments is None or self._segments.session != mount.session:
            self._segments = Segments(self.judge.device, mount)
        segments, life = self._segments, mount.life
        if segments.ready:
            segments.place(value, sequence, lambda extent, progress: self._placing.pop(number)(extent, progress))
            return

        def leased(reply: Any, error: BaseException | None) -> None:
            if mount.life != life or self._segments is not segments:
                self._not_placed(number)
                return
            if error is None:
                segments.leased(reply.segments)
            elif not isinstance(error, FsError) or error.errno not in (errno.ESTALE, errno.ENOSPC, errno.EAGAIN):
                raise self.world.broken(f"{mount.host.name}: no segment is leased: {error!r}")
            self.world.after(0 if error is None else ASK_AGAIN_NS, self._place, number, value, sequence, owner=mount)

        mount.propose(c.LeaseSegments(1, 0), leased, final=True)

    # --- data ---------------------------------------------------------------------------------------------------------------------
    def next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def buffer(self, ino: int, value: bytes, epoch: int) -> None:
        """A program's write, acknowledged."""
        before = self.dirty.get(ino)
        held = HeldBack(value, self.next_sequence(), self.mount.session, epoch, self.holder.known(ino), self.mount.life)
        if before is not None:
            held.waiting, before.waiting = before.waiting, []
        self._hold_back(ino, held)

    def _hold_back(self, ino: int, held: HeldBack) -> None:
        self.dirty[ino] = held
        self.cache.pop(ino, None)
        self.holder.touch(ino)
        self.judge.buffered(self.mount, ino, held.value, held.sequence, held.epoch)
        self._flush_later(ino)

    def _flush_later(self, ino: int) -> None:
        self.world.after(self.mount.dice.expovariate(1) * FLUSH_NS, self.flush, ino, lambda: None, owner=self.mount)

    def _commit(self, ino: int, held: HeldBack, extent: Extent | None = None, progress: SegmentProgress | None = None) -> c.Commit:
        return commit(self.volume, ino, self.mount.number, held.sequence, held.value, held.epoch, extent, progress)

    def flush(self, ino: int, done: Done) -> None:
        """`done` when nothing of the file is held back."""
        held = self.dirty.get(ino)
        if held is None:
            done()
            return
        held.waiting.append(done)
        if held.flushing:
            return
        held.flushing = True
        if not on_device(ino):
            self._propose(ino, held, None, None)
            return

        def placed(extent: Extent | None, progress: SegmentProgress | None) -> None:
            if extent is not None:
                self._propose(ino, held, extent, progress)  # also if it was given up meanwhile: then it must be refused
                return
            held.flushing = False
            if self.dirty.get(ino) is held:
                self.flush(ino, lambda: None)

        self.place(held.value, held.sequence, placed)

    def _propose(self, ino: int, held: HeldBack, extent: Extent | None, progress: SegmentProgress | None) -> None:
        def committed(reply: Any, error: BaseException | None) -> None:
            mine = self.dirty.get(ino) is held
            if error is not None or reply.errnos == [errno.ENOLCK]:
                self._refused(reply, error)
                if mine:
                    self._again(ino, held)
                return
            if reply.errnos != [0]:
                raise self.world.broken(f"{self.mount.host.name}: commit of inode {ino}: {reply}")
            if mine:
                del self.dirty[ino]
            held.resume()
            if not mine and ino in self.dirty:  # more was held back meanwhile
                self.flush(ino, lambda: None)

        self.mount.propose(self._commit(ino, held, extent, progress), committed, final=True)

    def _again(self, ino: int, held: HeldBack) -> None:
        """A commit was refused: its segment was a dead worker's, or the session has ended."""
        if on_device(ino) and held.session not in self.judge.device.ended:
            held.flushing = False
            self.world.after(ASK_AGAIN_NS, self.flush, ino, lambda: None, owner=self.mount)
            return
        self.judge.may_refuse(self.mount, held.session)
        self._put_aside(ino)

    def change(self, inos: list[int]) -> None:
        self.changing.append(inos)
        if self.mount.up:
            self.holder.change(inos)
        for ino in inos:
            self.cache.pop(ino, None)

    def changed(self, inos: list[int]) -> None:
        self.changing.remove(inos)
        if self.mount.up:
            self.holder.changed(inos)


def on_device(ino: int) -> bool:
    """Where the data of a file goes: to segments, or inline into the state."""
    return bool(ino % 2)


def commit(
    volume: int,
    ino: int,
    log: int,
    sequence: int,
    value: bytes,
    lease: int,
    extent: Extent | None = None,
    progress: SegmentProgress | None = None,
) -> c.Commit:
    extents, inline = ([], [(0, value)]) if extent is None else ([extent], [])
    return c.Commit(
        volume, [c.InodeCommit(ino, log, sequence, len(value), 0, extents, inline, lease)], 0, [] if progress is None else [progress]
    )
