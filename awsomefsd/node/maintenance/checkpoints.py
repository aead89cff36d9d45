"""Checkpoints of state and journal on a device, so that local disks can be lost: when one is made, and how far it reaches.

One thread of the daemon makes them while its node leads the metadata, alone or as the leader of several voters, beside the path of commits.
It asks for entries like any reader of the change stream.  Only a request for segments on a full device ever waits for it
(meta/replica/checkpoint_progress.py).  When it begins, and when the tail has become heavy or full, it makes a new checkpoint: a copy of the
store, written while the old area's tail grows on.  The old area is given up only when the new area's tail has caught up, and that is known
(checkpoint_places.py).  Otherwise the thread appends a batch of entries every CHECKPOINT_TAIL_MS, and sleeps while there are none.  So what
was fsynced longer ago than that, plus the time of a write, is on the device; `status` says how far behind it is ("checkpoint_lag_ms").

A large copy takes long.  What is committed meanwhile goes to the new area too, between the pieces of the copy, so the journal need not keep
it: it keeps what came since the last batch, whatever the size of the store.

Space for the next checkpoint is kept when one is done, so a full device can still make it.  If it cannot (the state has outgrown what was
kept), or writing fails CHECKPOINT_FAILURES_MAX times in a row, checkpoints are *suspended*: freed segments are leased again without
waiting, since a device that refuses writes for ever would be worse; `status` is degraded and says that the device may not bring everything
back.

A node that leads no more writes nothing more; what it wrote still counts until the next leader's first checkpoint is complete.  A voter
that stands by keeps room for two checkpoints of its own, so that it has it on a full device when the leader dies.

An flock on the device while it carries checkpoints keeps `device recover` from one that is in use on this machine.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from awsomefsd.base.clock import wall_ns
from awsomefsd.base.errors import Error, FsError, Unavailable
from awsomefsd.base.failpoints import hit
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import (
    CHECKPOINT_BATCH_BYTES_MAX,
    CHECKPOINT_BYTES_PER_S_MAX,
    CHECKPOINT_FAILURES_MAX,
    CHECKPOINT_RECORD_BYTES_MAX,
    CHECKPOINT_RETRY_MS,
    CHECKPOINT_SEGMENTS_MIN,
    CHECKPOINT_STAND_BY_MS,
    CHECKPOINT_TAIL_BYTES,
    CHECKPOINT_TAIL_MS,
    CHECKPOINT_TAIL_SHARE,
    MIB,
    NS_PER_MS,
)
from awsomefsd.base.types import DeviceInfo, SegmentInfo
from awsomefsd.io.collect.checkpoint_area import AreaWriter
from awsomefsd.io.collect.checkpoint_format import SEVERAL, VERSION, AreaHeader
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.identified import open_identified, require_identity
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.commands import entry_decode
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.checkpoint_progress import OFF, UNKNOWN, CheckpointProgress
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.state.redaction import Eraser, erasures
from awsomefsd.meta.voter.ports import RAFT_NOTE, unpack_note
from awsomefsd.node.maintenance.checkpoint_places import PlacesAlone, PlacesOfNode, places_of

logger = logging.getLogger(__name__)
Call = Callable[[Any], Any]
_TAIL_SHARE_OF_DEVICE = 128  # the tail's room is at most one part in so many of the device
STANDS_BY = "off: another node leads"


class Gap(Error):
    """The journal has dropped entries that the tail does not have: a new checkpoint is needed."""


class Stopping(Error):
    """The daemon ends, or this node leads no more."""


class Current:
    """An area whose tail grows: it has the log up to entry `last`, of term `term`."""

    def __init__(self, writer: AreaWriter, last: int, term: int) -> None:
        self.writer = writer
        self.last = last
        self.term = term
        self.tail_bytes = 0


def examine(store_directory: Path) -> tuple[int, int, dict[bytes, bytes]]:
    """Returns the index of the entry that a copy of a store ends with, its term, and what is to be erased (meta/state/redaction.py).

    The term is 0 for the store of one voter alone.
    """
    store = Store.open(store_directory, readonly=True)
    try:
        return Machine(store).applied_index, unpack_note(store.note(RAFT_NOTE)).term, erasures(store)
    finally:
        store.close()


@contextmanager
def carrying(path: str, cluster: str = "", uuid: str = "", era: int | None = None) -> Iterator[Device]:
    """Opens the device, locked against a second user on this machine, until the end of the context.

    With `uuid` the device must be that one; without it the caller reads the superblock.  Raises Refused, OSError, as `open_identified`.
    """
    with open_identified(path, cluster, uuid, era) if uuid else Device.open(path) as device:
        device.lock()
        yield device


class Checkpointer:
    """The checkpoints of this node.  `start`, `stop`, `growing` and `figures` are for others; everything else runs on its own thread.

    `leads` and `alone` say whether this node decides the metadata now, and whether it is the only voter.
    """

    def __init__(
        self,
        state_dir: Path,
        node: Node,
        call: Call,
        copy_store: Callable[[Path], None],
        index: CheckpointProgress,
        paths: Callable[[], dict[str, str]],
        *,
        leads: Callable[[], bool] = lambda: True,
        alone: Callable[[], bool] = lambda: True,
    ) -> None:
        self._scratch = state_dir / "meta" / "checkpoint"
        self._node = node
        self._call = call
        self._copy_store = copy_store
        self._index = index
        self._paths = paths
        self._leads, self._alone = leads, alone
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._growing = False
        self._thread = threading.Thread(target=self._main, name="checkpoints", daemon=True)
        self._places: PlacesAlone | None = None
        self._current: Current | None = None
        self._new: Current | None = None  # the one that is being written
        self._look: Callable[[], object] = lambda: None  # raises if the device was recovered elsewhere meanwhile
        self._look_ns = 0  # while another node leads: when this one looks again at what it keeps
        self._without_room: set[int] = set()
        self._caught_up_ns = time.monotonic_ns()
        self.state = "starting"
        self.failures = 0  # in a row
        self._written = self._bytes = self._snapshot_index = self._errors = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after a last batch of the tail, and waits for it."""
        self._stop.set()
        self._index.wake()
        if self._thread.ident is not None:
            self._thread.join()
        self.state = "off: the daemon ends"

    def growing(self) -> None:
        """One voter alone is about to become the first of several: nothing is written before it is.  Blocks until that is so."""
        self._growing = True
        self._idle.clear()
        self._index.wake()
        while self._thread.is_alive() and not self._idle.wait(CHECKPOINT_TAIL_MS / 1_000):
            self._index.wake()

    def figures(self, applied: int) -> dict[str, int | float | str]:
        """Returns the figures for status and metrics; `applied` is the last applied entry, from which the lag is counted.  Any thread."""
        durable = max(self._index.durable, 0)  # OFF is below
        lag = max(applied - durable, 0)
        places = self._places
        return {
            "checkpoint": self.state,
            "checkpoint_index": self._snapshot_index,
            "checkpoint_durable": durable,
            "checkpoint_lag_entries": lag,
            "checkpoint_lag_ms": (time.monotonic_ns() - max(self._caught_up_ns, self._index.rested_ns)) // NS_PER_MS if lag else 0,
            "checkpoint_segments": places.protected() if places is not None else 0,
            "checkpoint_bytes": self._bytes,
            "checkpoints_written": self._written,
            "checkpoint_errors": self._errors,
        }

    # --- the thread -------------------------------------------------------------------------------------------------------------
    def _main(self) -> None:
        while not self._stop.is_set():
            try:
                self._serve()
                self.failures = 0
            except Exception as err:  # a bug must neither end checkpoints nor stay silent
                if not isinstance(err, (Error, OSError)):
                    logger.exception("a checkpoint failed")
                if self._may_write():
                    self._failed(err)
                self._stop.wait(CHECKPOINT_RETRY_MS / 1_000)
            finally:
                self._current = self._new = None
                self._index.holding = False
        self._idle.set()

    def _may_write(self) -> bool:
        return not self._stop.is_set() and self._leads() and not (self._growing and self._alone())

    def _failed(self, err: Exception) -> None:
        """Gives up the area that was being written, which is not written again; an older one stays valid as it is."""
        self.failures += 1
        self._errors += 1
        if self.failures >= CHECKPOINT_FAILURES_MAX and not isinstance(err, Unavailable):
            if not self.state.startswith("suspended"):
                logger.error("checkpoints are suspended: %s", err)
            self._index.durable = OFF
            self.state = f"suspended: {err}"[:200]
        elif self.failures == 1:
            logger.warning("a checkpoint failed; it is tried again: %s", err)

    def _serve(self) -> None:
        """Makes checkpoints on one device until something fails or this node leads no more."""
        if not self._may_write():
            self._stand_by()
            return
        self._look_ns = 0
        level = int(self._call(m.GetStatus()).figures["level"])
        places = self._places = places_of(self._call, self._node.cluster, self._node.node, level=level, alone=self._alone())
        if places is not None:
            places.without_room = self._without_room
        chosen = places.choose(self._paths()) if places is not None else None
        if places is None or chosen is None:
            self._off(places)
            return
        info, path = chosen
        with carrying(path, self._node.cluster, info.uuid, info.era) as device:
            self._look = partial(require_identity, device, self._node.cluster, info.uuid, info.era)
            held = places.take_up(device, info)
            if self._index.durable == UNKNOWN:
                self._index.durable = held
            try:
                self._new_checkpoint(device, info, places)
                places.clear_others(info)
                self._carry_on(device, info, places, level)
            except Stopping:
                pass
            if self._current is not None and self._leads():
                self._tail(info, places)

    def _carry_on(self, device: Device, info: DeviceInfo, places: PlacesAlone, level: int) -> None:
        """Appends to the tail, and makes a new checkpoint when it is due, until another place or nobody is to write."""
        while self._may_write() and self._stays(info, places, level):
            self._index.wanted.wait(CHECKPOINT_TAIL_MS / 1_000)
            self._index.wanted.clear()
            seen = self._index.applied
            self._look()
            if not self._tail(info, places) or self._heavy(info):
                self._new_checkpoint(device, info, places)
            self.failures = 0
            self._index.rest(seen, self._may_write)

    def _stand_by(self) -> None:
        """Another node leads, or will in a moment: this one keeps room for when it leads, and gives back what is more."""
        self._idle.set()
        self.state, self._caught_up_ns = STANDS_BY, time.monotonic_ns()
        if not self._alone():
            self._index.durable = UNKNOWN  # whoever leads decides; what holds when this node leads again is seen then
        if time.monotonic_ns() >= self._look_ns and not self._stop.is_set() and not self._alone():
            places = places_of(self._call, self._node.cluster, self._node.node, level=int(self._figures()["level"]), alone=False)
            if isinstance(places, PlacesOfNode) and places.stand_by(self._paths()):
                self._look_ns = time.monotonic_ns() + CHECKPOINT_STAND_BY_MS * NS_PER_MS
        self._stop.wait(CHECKPOINT_RETRY_MS / 1_000)

    def _figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = self._call(m.GetStatus()).figures
        return figures

    def _off(self, places: PlacesAlone | None) -> None:
        self._index.durable = OFF
        if places is None:
            self.state = "off: the cluster is below level 3 (awsomefsd upgrade status)"
        elif places.any_kept():
            self.state = "suspended: the device with the checkpoints is not found"
        else:
            self.state = f"off: no device has {CHECKPOINT_SEGMENTS_MIN} segments"
        self._stop.wait(CHECKPOINT_RETRY_MS / 1_000)

    def _stays(self, info: DeviceInfo, places: PlacesAlone, level: int) -> bool:
        """False: the next checkpoint goes to another device, or is kept in another way."""
        chosen = places.choose(self._paths())
        if chosen is not None and chosen[0].device != info.device:
            return False
        return isinstance(places, PlacesOfNode) or int(self._figures()["level"]) == level

    # --- a checkpoint -------------------------------------------------------------------------------------------------------------
    def _heavy(self, info: DeviceInfo) -> bool:
        """The tail has become so long that a new copy costs less than to carry it on."""
        current = self._current
        assert current is not None
        least = _tail_bytes(info)
        return current.tail_bytes > max(least, current.writer.complete_bytes // CHECKPOINT_TAIL_SHARE)

    def _new_checkpoint(self, device: Device, info: DeviceInfo, places: PlacesAlone) -> None:
        # The copy may be older than the tail: the journal keeps what the store may not have, until the new area has it too.
        self._index.hold, self._index.holding = self._index.stored, True
        figures = self._figures()
        before = self._index.hold = max(self._index.hold, int(figures["first_index"]) - 1)
        places.number += 1
        header = new_header(
            self._node, info.uuid, places.number, int(figures["term"]), before, version=places.version, several=not self._alone()
        )
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(mode=0o700, parents=True)
        try:
            copy = self._scratch / "data.mdb"
            new = Current(AreaWriter(device, places.free(info)[:1] or places.keep(info, 1, needed=True), header), before, header.term)
            self._new = new
            hit("checkpoint.copy.before")
            self._copy(copy, info, places)
            hit("checkpoint.copy.after")
            applied, term, erased = examine(self._scratch)
            if not new.writer.takes_early_tail:
                self._index.hold = applied
            self._make_room(new.writer, info, places, copy.stat().st_size)
            for _ in write_copy(new.writer, copy, erased, lambda: self._more(new.writer, info, places)):
                self._between_pieces(info, places)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        new.writer.complete(applied, term or header.term, wall_ns())
        hit("checkpoint.switch.before")
        self._switch(new, applied, info, places)
        hit("checkpoint.switch.after")
        self._written += 1
        self._bytes, self._snapshot_index = new.writer.complete_bytes, applied
        self._trim_kept(info, places, new.writer)

    def _copy(self, copy: Path, info: DeviceInfo, places: PlacesAlone) -> None:
        """Copies the store on a thread of its own: the tails go on meanwhile."""
        failed: list[BaseException] = []
        done = threading.Event()

        def make() -> None:
            try:
                self._copy_store(copy)
            except BaseException as err:
                failed.append(err)
            finally:
                done.set()
                self._index.wanted.set()

        maker = threading.Thread(target=make, name="checkpoint-copy", daemon=True)
        maker.start()
        try:
            while not done.is_set():
                self._index.wanted.wait(CHECKPOINT_TAIL_MS / 1_000)
                if not done.is_set():
                    self._index.wanted.clear()
                    self._tails(info, places)
        finally:
            maker.join()
        if failed:
            raise failed[0]

    def _switch(self, new: Current, applied: int, info: DeviceInfo, places: PlacesAlone) -> None:
        """Appends to the new area until its tail has every entry.  Both tails grow until it is known that the new area counts."""
        new.last = max(new.last, applied)
        while not self._advance(new, info, places):
            self._more(new.writer, info, places)  # much was committed since the store's last commit
        places.done(info, [one.segment for one in new.writer.segments], new.term, new.last)
        self._current, self._new = new, None
        self._index.durable = max(self._index.durable, new.last, 1)
        self._caught_up_ns = time.monotonic_ns()
        self.state = "ok"

    def _between_pieces(self, info: DeviceInfo, places: PlacesAlone) -> None:
        """Waits as long as the pace demands.  The tails go on meanwhile."""
        if self._stop.wait(CHECKPOINT_RECORD_BYTES_MAX * 4 / CHECKPOINT_BYTES_PER_S_MAX) or not self._may_write():
            raise Stopping("this node leads no more, or the daemon ends")
        if self._index.wanted.is_set() or time.monotonic_ns() - self._caught_up_ns > CHECKPOINT_TAIL_MS * NS_PER_MS:
            self._index.wanted.clear()
            self._tails(info, places)

    def _make_room(self, writer: AreaWriter, info: DeviceInfo, places: PlacesAlone, copy_bytes: int) -> None:
        """Gives the area segments for a copy of so many bytes and its tail, as far as there are any."""
        wanted = -(-(copy_bytes // 2 + _tail_bytes(info)) // (info.segment_bytes - MIB // 16)) - len(writer.segments)
        if wanted > 0:
            free = self._unused(writer, info, places)
            if len(free) < wanted:
                free += places.keep(info, wanted - len(free), needed=False)
            writer.extend(free[:wanted])

    def _unused(self, writer: AreaWriter, info: DeviceInfo, places: PlacesAlone) -> list[SegmentInfo]:
        used = {own.segment for own in writer.segments}
        if self._new is not None:
            used |= {own.segment for own in self._new.writer.segments}
        return [own for own in places.free(info) if own.segment not in used]

    def _more(self, writer: AreaWriter, info: DeviceInfo, places: PlacesAlone) -> None:
        """Extends the area, because copy or tail turned out larger than expected."""
        writer.extend(self._unused(writer, info, places)[:1] or places.keep(info, 1, needed=True))

    def _trim_kept(self, info: DeviceInfo, places: PlacesAlone, writer: AreaWriter) -> None:
        """Keeps as many segments as this checkpoint took for the next one; gives the rest back after the state has shrunk."""
        spare, wanted = places.free(info), len(writer.segments)
        if len(spare) < wanted:
            places.keep(info, wanted - len(spare), needed=False)
        elif len(spare) > 2 * wanted:
            places.drop([own.segment for own in spare[2 * wanted :]])

    # --- the tail -----------------------------------------------------------------------------------------------------------------
    def _tail(self, info: DeviceInfo, places: PlacesAlone) -> bool:
        """Makes all entries there are durable in the area that counts; returns False if it is full.  Raises Gap."""
        current = self._current
        assert current is not None
        asked_ns = time.monotonic_ns()
        if not self._advance(current, info, places):
            return False
        self._caught_up_ns = asked_ns
        if self._new is None:
            self._index.hold = current.last
        return True

    def _tails(self, info: DeviceInfo, places: PlacesAlone) -> None:
        """As `_tail`, while a new area is written: what it has as well need not stay in the journal."""
        new = self._new
        assert new is not None
        self._look()
        if self._current is not None and not self._tail(info, places):
            self._current = None  # it is full; the new area has the entries, and counts soon
        if new.writer.takes_early_tail:
            while not self._advance(new, info, places):
                self._more(new.writer, info, places)
            self._index.hold = new.last

    def _advance(self, area: Current, info: DeviceInfo, places: PlacesAlone) -> bool:
        """Appends all entries there are to an area; returns False if it is full.  Raises Gap."""
        while True:
            entries = self._entries_after(area.last)
            if not entries:
                return True
            term = entry_decode(entries[-1]).term
            try:
                area.tail_bytes += area.writer.append(entries, area.last + 1, term, wall_ns())
            except FsError:
                return False
            area.last += len(entries)
            area.term = term
            if area is self._current:
                self._index.durable = max(self._index.durable, area.last, 1)

    def _entries_after(self, after: int) -> list[bytes]:
        """Returns the entries after an index, as many as fit into one batch."""
        found: list[bytes] = []
        size = 0
        while size < CHECKPOINT_BATCH_BYTES_MAX:
            page = self._call(m.Follow(after + len(found), 512, 0))
            if not found and after + 1 < page.first_kept:
                raise Gap(f"entries after {after} were asked for, the journal begins with {page.first_kept}")
            if not page.entries:
                break
            found += page.entries
            size += sum(map(len, page.entries))
        return found


def _tail_bytes(info: DeviceInfo) -> int:
    """Returns the room that an area on this device has for its tail at least."""
    return min(CHECKPOINT_TAIL_BYTES, info.segments * info.segment_bytes // _TAIL_SHARE_OF_DEVICE)


def new_header(node: Node, device: str, number: int, term: int, index: int, *, version: int = VERSION, several: bool = False) -> AreaHeader:
    ids = [uuid.UUID(text).bytes for text in (node.cluster, device, node.node)]
    flags = SEVERAL if several else 0
    return AreaHeader(ids[0], ids[1], ids[2], os.urandom(16), 0, 0, 0, number, term, index, wall_ns(), version, 0, flags)


def write_copy(writer: AreaWriter, copy: Path, erased: dict[bytes, bytes], more: Callable[[], None]) -> Iterator[None]:
    """Writes a copy of a store into the area, without its secrets (`erased`), and yields after each piece.

    `more` extends the area when little room is left.
    """
    eraser = Eraser(erased)
    with copy.open("rb") as file:
        while read := file.read(4 * CHECKPOINT_RECORD_BYTES_MAX):
            _add(writer, eraser.feed(read), more)
            yield
    _add(writer, eraser.rest(), more)


def _add(writer: AreaWriter, piece: bytes, more: Callable[[], None]) -> None:
    while writer.room_bytes < len(piece) + MIB // 2:
        more()
    if piece:
        writer.add(piece)
