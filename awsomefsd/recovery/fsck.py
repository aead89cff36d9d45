"""fsck of a stopped node: it brings the store up to the journal's end, checks it, and repairs it if asked.

The repair goes through the log as entries (meta/check/repair.py), so a replay gives the same rows.  There is one exception: where the
journal cannot be replayed because an entry meets a damaged row, no entry can be appended before it; then the rows of the store are mended
as of its last commit, in one transaction, and the replay goes on from there.  Both are for a node that carries the metadata alone: a voter
of several is made again from the others instead.

Everything that reads the store runs in a child process: LMDB has no checksums on its pages, and a flipped pointer may end one.  A store
whose structure is damaged is set aside and replayed from the journal, if that still reaches back to the first entry; the old one is kept.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from awsomefsd.base import clock
from awsomefsd.base.errors import Corrupt, Error, FormatTooNew, FsError, Refused
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import BLOCK_BYTES
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.identified import open_identified
from awsomefsd.io.device.superblock import copies_agree, read_superblock
from awsomefsd.io.segment.frame import unpack_header
from awsomefsd.meta.api.commands import Entry, RepairRows
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.check import repair
from awsomefsd.meta.check.repair_txn import DeviceFacts, FrameFacts, Hints
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.replica import CLUSTER_NOTE, Replica
from awsomefsd.meta.replica.store import DIGEST_KEY, MapFull, Store
from awsomefsd.meta.state import keys
from awsomefsd.node.devices import devices

PASSES_MAX = 3


class FsckReport(Struct):
    """The result.  `faults`: of the state as it was found; `remaining`: as it is left (or, with `dry_run`, as a repair would leave it)."""

    faults: list[dict[str, str]] = []
    remaining: list[dict[str, str]] = []
    actions: list[dict[str, Any]] = []
    volumes: int = 0
    files: int = 0
    devices: int = 0


class Fsck:
    """One examination.

    `voters`: several nodes carry the metadata, so nothing is replayed, and the constructor raises Refused for a repair.
    """

    def __init__(self, state_dir: Path, identity: Node, *, replay: bool, repair: bool, dry_run: bool, voters: bool) -> None:
        if repair and voters:
            raise Refused(
                f"this node is one of several voters: stop its daemon, remove {state_dir}/meta and start the daemon; "
                "it copies the metadata from the others"
            )
        self.state_dir = state_dir
        self.identity = identity
        self.directory = state_dir / "meta"
        self.replay = replay and not voters
        self.repair = repair and not dry_run
        self.planning = repair or dry_run
        self.report = FsckReport()
        self.hints = Hints(time.time_ns())

    def run(self) -> FsckReport:
        """Examines the state in a child process, twice at most: a damaged structure is set aside in between.  Blocks.

        Raises Refused with the words of an error that a user can act on.
        """
        for attempt in range(2):
            done = isolated(self._examine)
            if isinstance(done, FsckReport):
                done.faults[:0], done.remaining[:0] = self.report.faults, []
                done.actions[:0] = self.report.actions
                return done
            self._fault("store-structure", "state store", done)
            if attempt or not self.repair or not self._set_aside():
                break
        self.report.remaining = self.report.faults
        return self.report

    def _fault(self, kind: str, where: str, what: str) -> None:
        self.report.faults.append({"kind": kind, "where": where, "what": what})

    def _did(self, where: str, what: str, *, loss: bool = False) -> None:
        self.report.actions.append({"where": where, "what": what, "loss": loss})

    # --- the store -----------------------------------------------------------------------------------------------------------------
    def _open(self) -> Replica:
        return Replica.open_single(self.directory, self.identity.cluster, self.identity.node, Machine)

    def _examine(self) -> FsckReport:
        self._devices()
        for count in range(PASSES_MAX if self.repair else 1):
            blocked = self._replay() if self.replay else ""
            planned = self._plan()
            if not count:
                self._take_up(planned, blocked)
            left = planned.remaining if self.planning else planned.found
            self.report.remaining = [_told(fault) for fault in left]
            if not self.repair or not (planned.deletes or planned.puts):
                break
            self._write(planned, below=bool(blocked))
        if self.replay and self.repair and (blocked := self._replay()):
            self.report.remaining.append({"kind": "replay", "where": "journal", "what": blocked})
        left_by_every_repair = ("device",) if self.repair else ("device", "replay")  # a repair has just tried the journal again
        self.report.remaining += [fault for fault in self.report.faults if fault["kind"] in left_by_every_repair]
        return self.report

    def _replay(self) -> str:
        """Replays the journal; returns the reason if it cannot be replayed, "" otherwise."""
        try:
            replica = self._open()
        except (Corrupt, AssertionError, KeyError, TypeError, AttributeError) as err:  # a row that is not what an entry needs
            return f"{type(err).__name__}: {err}" if not isinstance(err, Corrupt) else str(err)
        try:
            replica.commit()
        finally:
            replica.close()
        return ""

    def _plan(self) -> repair.Plan:
        store = Store.open(self.directory / "store", readonly=True)
        try:
            self.hints.cluster_copy = store.note(CLUSTER_NOTE)
            return repair.plan(store, self.hints)
        finally:
            store.close()

    def _take_up(self, planned: repair.Plan, blocked: str) -> None:
        self.report.faults += [_told(fault) for fault in planned.found]
        if blocked and not planned.found:
            self._fault("replay", "journal", blocked)
        if self.planning:
            self.report.actions += [msgspec.structs.asdict(action) for action in planned.actions]
        store = Store.open(self.directory / "store", readonly=True)
        try:
            span = keys.kind_range(0, keys.VOLUME)
            numbers = [int.from_bytes(key[keys.PREFIX_BYTES :], "big") for key, _ in store.scan(*span)]
            self.report.volumes = len(numbers)
            self.report.files = sum(1 for number in numbers for _ in store.scan(*keys.kind_range(number, keys.INODE)))
        finally:
            store.close()

    def _write(self, planned: repair.Plan, *, below: bool) -> None:
        if below:
            write_below(self.directory / "store", planned)
            self._did("state store", "repaired as of its last commit; the journal could not be replayed over it")
            return
        replica = self._open()
        try:
            for command in repair.commands(planned):
                _propose(replica, command, self.identity.site)
            replica.commit()
        finally:
            replica.close()

    def _set_aside(self) -> bool:
        """Sets a damaged structure aside.

        Returns True if the journal holds everything from the first entry on, and has made a new store.
        """
        store, aside = self.directory / "store", self.directory / f"store.damaged.{time.time_ns()}"
        os.rename(store, aside)
        try:
            replica = Replica.rebuild_single(self.directory, self.identity.cluster, self.identity.node, Machine)
            replica.commit()
            replica.close()
        except (Error, OSError) as err:
            if store.exists():
                os.rename(store, self.directory / f"store.unfinished.{time.time_ns()}")
            os.rename(aside, store)
            self._fault("store-structure", "state store", f"cannot be rebuilt from the journal: {err}; `awsomefsd device recover --help`")
            return False
        self._did("state store", f"rebuilt from the journal; the damaged one is {aside}")
        return True

    # --- devices -------------------------------------------------------------------------------------------------------------------
    def _devices(self) -> None:
        paths = DeviceTable(self.state_dir).paths()
        for uuid, era in (self._known_devices() or dict.fromkeys(paths)).items():
            where = paths.get(uuid, "")
            try:
                if not where:
                    raise Error("this node has no path for it; add it with `awsomefsd device add PATH`")
                found = devices.check(where, self.identity.cluster, uuid, era)
                facts = DeviceFacts(uuid, found.device_bytes, found.segment_bytes, found.segments, found.first_segment_offset)
                if found.generation == 1:  # one that has grown has several runs of segment numbers, which its superblock does not hold
                    self.hints.devices.append(facts)
                self._copies(where, uuid, era)
            except (Error, OSError) as err:
                self._fault("device", f"device {where or uuid}", str(err))
            self.report.devices += 1
        self.hints.frame = lambda uuid, at: frame_at(paths.get(uuid, ""), uuid, at)

    def _known_devices(self) -> dict[str, int | None]:
        """Returns UUID → era of the devices in the state; an era that cannot be read is None.  Empty if a row of a device is damaged."""
        from awsomefsd.meta.state import rows

        store = Store.open(self.directory / "store", readonly=True)
        try:
            found: dict[str, int | None] = {}
            for _, raw in store.scan(*keys.kind_range(0, keys.DEVICE)):
                try:
                    row: rows.DeviceRow = rows.DEVICE.loads(raw)
                    if not row.removed:
                        found[row.uuid] = self._era_of(store, row.uuid)
                except (Corrupt, FormatTooNew):
                    return {}  # then all that have a path here
            return found
        finally:
            store.close()

    def _era_of(self, store: Store, uuid: str) -> int | None:
        from awsomefsd.meta.state import rows

        raw = store.get(keys.device_era(uuid))
        try:
            return 0 if raw is None else rows.DEVICE_ERA.loads(raw).era
        except (Corrupt, FormatTooNew):
            return None

    def _copies(self, path: str, uuid: str, era: int | None) -> None:
        with open_identified(path, self.identity.cluster, uuid, era, read_only=not self.repair) as device:
            if copies_agree(device):
                return
            self._fault("superblock", f"device {path}", "one of the two superblocks is damaged")
            if self.planning:
                self._did(f"device {path}", "the damaged superblock was rewritten from the other one")
            if self.repair:
                read_superblock(device, self.identity.cluster, repair=True)


def write_below(directory: Path, planned: repair.Plan) -> None:
    """Writes a repair into a store, below its log, in one transaction: a crash leaves all of it or nothing.

    The map of the store grows until it has the room.  LMDB writes pages out early, so the memory has a bound.
    """
    changes: dict[bytes, bytes | None] = {**dict.fromkeys(planned.deletes), **dict(planned.puts)}
    store = Store.open(directory, snapshot=True)
    try:
        while True:
            try:
                store.write(changes, {DIGEST_KEY: None})
                return
            except MapFull:
                store.grow()
    finally:
        store.close()


def _told(fault: Any) -> dict[str, str]:
    return {"kind": fault.kind, "where": fault.where, "what": fault.detail}


def _propose(replica: Replica, command: RepairRows, site: int) -> None:
    stamp = replica.machine.last_stamp + 1
    entry = Entry(0, 0, command.since, 0, site, stamp, clock.wall_ns(), 0, HOST_UNIQUE, 0, 0, [], command)
    replica.propose([entry])
    for _, reply in replica.ready():
        if isinstance(reply, Failed):
            raise FsError(reply.errno, reply.detail)


def frame_at(path: str, uuid: str, offset: int) -> FrameFacts | None:
    """Returns the header of the frame at a byte offset of device `uuid`.

    None if there is no valid one, and if the device cannot be read or is not at `path`.
    """
    try:
        with open_identified(path, "", uuid, None, read_only=True) as device:
            begin = offset - offset % BLOCK_BYTES
            buffer = aligned_buffer(2 * BLOCK_BYTES)
            got = device.pread_into(buffer, begin)
            frame = unpack_header(buffer[offset - begin : got])
    except (Error, OSError):
        return None
    return FrameFacts(
        frame.volume, frame.ino, frame.file_offset, frame.segment, frame.incarnation, frame.sequence, frame.logical_bytes,
        frame.header_bytes,
    )  # fmt: skip


def isolated(work: Callable[[], FsckReport]) -> FsckReport | str:
    """Runs `work` in a child process; returns its report, or why there is none.  Blocks.

    Raises Refused for the errors that a user can act on: Refused, FormatTooNew, OSError of the child.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        os.close(reader)
        status = 1
        try:
            with os.fdopen(writer, "wb") as out:
                out.write(_answer(work))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        raw = file.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return f"reading it ended the process by {signal.Signals(os.WTERMSIG(status)).name}: its pages are damaged"
    answer = json.loads(raw or b"{}")
    if "refused" in answer:
        raise Refused(answer["refused"])
    if "broken" in answer or "report" not in answer:
        return str(answer.get("broken", "the examination ended without an answer"))
    return msgspec.convert(answer["report"], FsckReport)


def _answer(work: Callable[[], FsckReport]) -> bytes:
    try:
        return json.dumps({"report": msgspec.to_builtins(work())}).encode()
    except (Refused, FormatTooNew, OSError) as err:
        return json.dumps({"refused": str(err)}).encode()
    except Exception as err:  # LMDB's own errors too: after any of them the structure cannot be walked
        return json.dumps({"broken": f"{type(err).__name__}: {err}"}).encode()
