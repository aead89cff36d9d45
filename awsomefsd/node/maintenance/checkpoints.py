"""Checkpoints of state and journal on a device, so that this node's disk can be lost: when one is made, and how far it reaches.

One thread of the daemon makes them, beside the path of commits.  It asks for entries like any reader of the change stream.  Only a request
for segments on a full device ever waits for it (meta/replica/checkpoint_progress.py).  At its start, when the area is full, and when it is
an hour old, it makes a new checkpoint: a copy of the store, written while the old area's tail grows on.  The old area is given up only when
the new area's tail has caught up.  Otherwise the thread appends a batch of entries every CHECKPOINT_TAIL_MS.  So what was fsynced longer
ago than that, plus the time of a write, is on the device; `status` says how far behind it is ("checkpoint_lag_ms").

The device that carries it is the one with segments kept already, else the first with CHECKPOINT_SEGMENTS_MIN segments.  Space for the next
checkpoint is kept when one is done, so a full device can still make it.  If it cannot (the state has outgrown what was kept), or writing
fails CHECKPOINT_FAILURES_MAX times in a row, checkpoints are *suspended*: freed segments are leased again without waiting, since a device
that refuses writes for ever would be worse; `status` is degraded and says that the device may not bring everything back.

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
from pathlib import Path
from typing import Any

from awsomefsd.base.clock import wall_ns
from awsomefsd.base.errors import Error, FsError, Unavailable
from awsomefsd.base.failpoints import hit
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import (
    CHECKPOINT_AGE_MS,
    CHECKPOINT_BATCH_BYTES_MAX,
    CHECKPOINT_BYTES_PER_S_MAX,
    CHECKPOINT_FAILURES_MAX,
    CHECKPOINT_RECORD_BYTES_MAX,
    CHECKPOINT_RETRY_MS,
    CHECKPOINT_SEGMENTS_MIN,
    CHECKPOINT_TAIL_BYTES,
    CHECKPOINT_TAIL_MS,
    MIB,
    NS_PER_MS,
)
from awsomefsd.base.types import HOST_UNIQUE, DeviceInfo, SegmentInfo
from awsomefsd.io.collect.checkpoint_area import Area, AreaWriter, checkpoints_of, scan_segments
from awsomefsd.io.collect.checkpoint_format import AreaHeader
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.identified import open_identified
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.commands import AnyCommand, DropSegments, KeepSegments
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.checkpoint_progress import OFF, UNKNOWN, CheckpointProgress
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.state.redaction import Eraser, erasures

logger = logging.getLogger(__name__)
Call = Callable[[Any], Any]
_TAIL_SHARE = 128  # the tail's room is at most one part in so many of the device


class Gap(Error):
    """The journal has dropped entries that the tail does not have: a new checkpoint is needed."""


class Stopping(Error):
    """The daemon ends."""


class Current:
    """The area whose tail grows."""

    def __init__(self, writer: AreaWriter, last: int, term: int) -> None:
        self.writer = writer
        self.last = last
        self.term = term
        self.began_ns = time.monotonic_ns()
        self.tail_bytes = 0


def examine(store_directory: Path) -> tuple[int, dict[bytes, bytes]]:
    """Returns the index of the entry that a copy of a store ends with, and what is to be erased in it (meta/state/redaction.py)."""
    store = Store.open(store_directory, readonly=True)
    try:
        return Machine(store).applied_index, erasures(store)
    finally:
        store.close()


@contextmanager
def carrying(path: str, cluster: str = "", uuid: str = "") -> Iterator[Device]:
    """Opens the device, locked against a second user on this machine, until the end of the context.

    With `uuid` the device must be that one; without it the caller reads the superblock.  Raises Refused, OSError, as `open_identified`.
    """
    with open_identified(path, cluster, uuid) if uuid else Device.open(path) as device:
        device.lock()
        yield device


class Checkpointer:
    """The checkpoints of this node.  `start`, `stop` and `figures` are for others; everything else runs on its own thread."""

    def __init__(
        self,
        state_dir: Path,
        node: Node,
        call: Call,
        copy_store: Callable[[Path], None],
        index: CheckpointProgress,
        paths: Callable[[], dict[str, str]],
    ) -> None:
        self._scratch = state_dir / "meta" / "checkpoint"
        self._node = node
        self._call = call
        self._copy_store = copy_store
        self._index = index
        self._paths = paths
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="checkpoints", daemon=True)
        self._current: Current | None = None
        self._copying = False
        self._kept_areas: set[int] = set()  # segments of the newest valid area
        self._number = 0
        self._caught_up_ns = time.monotonic_ns()
        self.state = "starting"
        self.failures = 0  # in a row
        self._written = self._bytes = self._snapshot_index = self._errors = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after a last batch of the tail, and waits for it."""
        self._stop.set()
        self._index.wanted.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.state = "off: several nodes carry the metadata, or the daemon ends"

    def figures(self, applied: int) -> dict[str, int | float | str]:
        """Returns the figures for status and metrics; `applied` is the last applied entry, from which the lag is counted.  Any thread."""
        durable = max(self._index.durable, 0)  # OFF is below
        lag = max(applied - durable, 0)
        return {
            "checkpoint": self.state,
            "checkpoint_index": self._snapshot_index,
            "checkpoint_durable": durable,
            "checkpoint_lag_entries": lag,
            "checkpoint_lag_ms": (time.monotonic_ns() - self._caught_up_ns) // NS_PER_MS if lag else 0,
            "checkpoint_segments": len(self._kept_areas),
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
            except Stopping:
                break
            except (Error, OSError) as err:
                if self._stop.is_set():
                    break
                self._failed(err)
                self._stop.wait(CHECKPOINT_RETRY_MS / 1_000)
        self._current = None

    def _failed(self, err: Exception) -> None:
        """Gives up the area that was being written, which is not written again; an older one stays valid as it is."""
        self._current = None
        self._copying = self._index.holding = False
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
        """Makes checkpoints on one device until something fails."""
        own = {info.device for info in self._own()}
        chosen = self._choose(own)
        if chosen is None:
            self._off(own)
            return
        info, path = chosen
        with carrying(path, self._node.cluster, info.uuid) as device:
            self._take_up(device, info)
            self._new_checkpoint(device, info)
            self._clear_others(info)
            while not self._stop.is_set() and not self._moves(info):
                self._index.wanted.wait(CHECKPOINT_TAIL_MS / 1_000)
                self._index.wanted.clear()
                if not self._tail() or self._old():
                    self._new_checkpoint(device, info)
                self.failures = 0

    def _off(self, own: set[int]) -> None:
        self._index.durable = OFF
        missing = "the device with the checkpoints is not found" if own else f"no device has {CHECKPOINT_SEGMENTS_MIN} segments"
        self.state = f"{'suspended' if own else 'off'}: {missing}"
        self._stop.wait(CHECKPOINT_RETRY_MS / 1_000)

    def _own(self) -> list[SegmentInfo]:
        return list(self._call(m.GetOwnSegments()).segments)

    def _propose(self, command: AnyCommand) -> Any:
        return self._call(m.Propose(HOST_UNIQUE, 0, 0, [], command))

    def _choose(self, own: set[int]) -> tuple[DeviceInfo, str] | None:
        """Returns the device that has them, unless it is being drained and another one can take them."""
        paths = self._paths()
        here = [info for info in self._call(m.GetDevices()).devices if info.uuid in paths]
        having = [info for info in here if info.device in own]
        fitting = [info for info in here if info.segments >= CHECKPOINT_SEGMENTS_MIN and not info.draining]
        stays = [info for info in having if not info.draining]
        chosen = stays or (fitting if having or not own else []) or having
        return (chosen[0], paths[chosen[0].uuid]) if chosen else None

    def _moves(self, info: DeviceInfo) -> bool:
        chosen = self._choose({own.device for own in self._own()})
        return chosen is not None and chosen[0].device != info.device

    def _clear_others(self, info: DeviceInfo) -> None:
        """Gives back what other devices have kept: there is a checkpoint on this one, so it is not needed any more."""
        others = [own.segment for own in self._own() if own.device != info.device]
        if others:
            self._propose(DropSegments(others))

    def _take_up(self, device: Device, info: DeviceInfo) -> None:
        """Finds what is on the device before anything is written: a checkpoint of an earlier daemon, or of another leader, still counts.

        The newest area is not overwritten, nor what cannot be read now.  This is done each time, since the device may come late, when freed
        segments are leased again without it already (OFF).
        """
        segments = {own.byte_offset: own.segment for own in self._own() if own.device == info.device}
        found = scan_segments(device, segments, self._cluster)
        areas: list[Area] = checkpoints_of(device, found)
        self._number = max((header.number for headers in found.areas.values() for header, _ in headers), default=self._number)
        if areas or found.unreadable:
            self._kept_areas = {*(areas[0].segments if areas else ()), *(segments[offset] for offset in found.unreadable)}
        if self._index.durable == UNKNOWN:
            self._index.durable = areas[0].last if areas else OFF

    @property
    def _cluster(self) -> bytes:
        return uuid.UUID(self._node.cluster).bytes

    # --- a checkpoint -------------------------------------------------------------------------------------------------------------
    def _old(self) -> bool:
        current = self._current
        return current is not None and current.tail_bytes > 0 and time.monotonic_ns() - current.began_ns > CHECKPOINT_AGE_MS * NS_PER_MS

    def _new_checkpoint(self, device: Device, info: DeviceInfo) -> None:
        figures = self._call(m.GetStatus()).figures
        self._copying = True  # the copy may be older than the tail: the journal keeps all that it has, until the copy's index is known
        self._index.hold, self._index.holding = int(figures["first_index"]) - 1, True
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(mode=0o700)
        try:
            copy = self._scratch / "data.mdb"
            hit("checkpoint.copy.before")
            self._copy_store(copy)
            hit("checkpoint.copy.after")
            (applied, erased), term = examine(self._scratch), int(figures["term"])
            self._index.hold = applied
            self._number += 1
            header = new_header(self._node, info.uuid, self._number, term, applied)
            writer = AreaWriter(device, self._segments_for(info, copy.stat().st_size), header)
            for _ in write_copy(writer, copy, erased, lambda: self._more(writer, info)):
                self._between_pieces()
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        writer.complete(applied, term, wall_ns())
        self._copying = False
        hit("checkpoint.switch.before")
        self._switch(Current(writer, applied, term), info)
        hit("checkpoint.switch.after")
        self._written += 1
        self._bytes, self._snapshot_index = writer.complete_bytes, applied
        self._trim_kept(info, writer)

    def _switch(self, new: Current, info: DeviceInfo) -> None:
        """Appends to the new area until its tail has every entry; the old area stays untouched meanwhile."""
        self._current = new
        while not self._tail():
            self._more(new.writer, info)  # much was committed since the store's last commit
        self._kept_areas = {info.segment for info in new.writer.segments}
        self.state = "ok"

    def _between_pieces(self) -> None:
        if self._stop.wait(CHECKPOINT_RECORD_BYTES_MAX * 4 / CHECKPOINT_BYTES_PER_S_MAX):
            raise Stopping("the daemon ends")
        if self._current is not None and (
            self._index.wanted.is_set() or time.monotonic_ns() - self._caught_up_ns > CHECKPOINT_TAIL_MS * NS_PER_MS
        ):
            self._index.wanted.clear()
            self._tail()

    def _free_ones(self, info: DeviceInfo) -> list[SegmentInfo]:
        return [own for own in self._own() if own.device == info.device and own.segment not in self._kept_areas]

    def _segments_for(self, info: DeviceInfo, copy_bytes: int) -> list[SegmentInfo]:
        """Returns kept segments that no valid checkpoint needs, and more of them if they are too few and there is room."""
        tail_bytes = min(CHECKPOINT_TAIL_BYTES, info.segments * info.segment_bytes // _TAIL_SHARE)
        wanted = -(-(copy_bytes // 2 + tail_bytes) // (info.segment_bytes - MIB // 16))
        free = self._free_ones(info)
        if len(free) < wanted:
            free += self._keep(info, wanted - len(free), needed=not free)
        return free[:wanted]

    def _keep(self, info: DeviceInfo, count: int, *, needed: bool) -> list[SegmentInfo]:
        try:
            return list(self._propose(KeepSegments(info.device, count)).segments)
        except Error:
            if needed:
                raise
            return []

    def _more(self, writer: AreaWriter, info: DeviceInfo) -> None:
        """Extends the area, because the copy turned out larger than expected."""
        used = {own.segment for own in writer.segments}
        spare = [own for own in self._free_ones(info) if own.segment not in used][:1]
        writer.extend(spare or self._keep(info, 1, needed=True))

    def _trim_kept(self, info: DeviceInfo, writer: AreaWriter) -> None:
        """Keeps as many segments as this checkpoint took for the next one; gives the rest back after the state has shrunk."""
        spare, wanted = self._free_ones(info), len(writer.segments)
        if len(spare) < wanted:
            self._keep(info, wanted - len(spare), needed=False)
        elif len(spare) > 2 * wanted:
            self._propose(DropSegments([own.segment for own in spare[2 * wanted :]]))

    # --- the tail -----------------------------------------------------------------------------------------------------------------
    def _tail(self) -> bool:
        """Makes all entries there are durable in the area; returns False if it is full.  Raises Gap."""
        current = self._current
        assert current is not None
        while True:
            asked_ns = time.monotonic_ns()
            entries = self._entries_after(current.last)
            if not entries:
                self._caught_up_ns = asked_ns
                self._index.durable = max(current.last, 1)
                if not self._copying:
                    self._index.hold = current.last
                return True
            try:
                current.tail_bytes += current.writer.append(entries, current.last + 1, current.term, wall_ns())
            except FsError:
                return False
            current.last += len(entries)
            self._index.durable = max(self._index.durable, current.last)

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


def new_header(node: Node, device: str, number: int, term: int, index: int) -> AreaHeader:
    ids = [uuid.UUID(text).bytes for text in (node.cluster, device, node.node)]
    return AreaHeader(ids[0], ids[1], ids[2], os.urandom(16), 0, 0, 0, number, term, index, wall_ns())


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
