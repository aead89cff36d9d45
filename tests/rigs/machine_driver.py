"""Drives a machine in tests: makes entries, keeps the clock, speaks for a session."""

from __future__ import annotations

from typing import Any

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import Extent, SegmentInfo, SegmentProgress
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from tests.rigs.memory_txn import MemTxn

MIB = 1 << 20
SEGMENT_BYTES = 4 * MIB
SAFE = 1 << 60  # every session has passed every entry
START_NS = 1_700_000_000_000_000_000
HEADER = 64


class Drive:
    """A cluster with one device; `apply` proposes as the host unless a session is open and used.

    `level`: at which the cluster acts, so which rules it goes by (base/levels.py).
    """

    def __init__(self, segments: int = 64, txn: MemTxn | None = None, *, device: bool = True, level: int = LEVEL) -> None:
        self.txn = txn or MemTxn()
        self.known = max(level, LEVEL)
        self.machine = Machine(self.txn, self.known)
        self.index = 0
        self.now = START_NS
        self.session = self.epoch = self.mount = self.unique = 0
        self.volume = 0
        self.frames: dict[int, int] = {}  # segment -> where its next frame starts
        self.sequence = 0
        self.entries: list[c.Entry] = []
        self.replies: list[m.Reply] = []
        if txn is None:
            self.ok(c.Init("c-uuid", 1, level))
        if txn is None and device:
            self.ok(c.AddDevice("d-uuid", SEGMENT_BYTES * segments + MIB, SEGMENT_BYTES, segments, MIB))

    def entry(self, command: Any, *, unique: int = 0, acks: list[int] | None = None, **fields: Any) -> c.Entry:
        self.index += 1
        self.now += 1_000
        given = {"mount": self.mount, "session": self.session, "epoch": self.epoch, "time_ns": self.now} | fields
        return c.Entry(
            self.index,
            1,
            command.since,
            0,
            1,
            self.index << 16,
            given["time_ns"],
            given["mount"],
            unique,
            given["session"],
            given["epoch"],
            acks or [],
            command,
        )

    def apply(self, command: Any, **fields: Any) -> Any:
        entry = self.entry(command, **fields)
        reply = self.machine.apply(entry)
        self.entries.append(entry)
        self.replies.append(reply)
        return reply

    def ok(self, command: Any, **fields: Any) -> Any:
        reply = self.apply(command, **fields)
        assert not isinstance(reply, m.Failed), f"{command}: {reply}"
        return reply

    def errno(self, command: Any, **fields: Any) -> int:
        """The errno of a refusal, after which the state is what it was."""
        self.machine.flush()
        before = dict(self.txn.rows)
        reply = self.apply(command, **fields)
        assert isinstance(reply, m.Failed), f"{command}: {reply}"
        self.machine.flush()
        assert changed_keys(before, self.txn.rows) == [], "a refusal changed rows"
        return reply.errno

    def ask(self, body: Any) -> Any:
        reply = answer(self.machine, body)
        assert not isinstance(reply, m.Failed), f"{body}: {reply}"
        return reply

    def ask_errno(self, body: Any) -> int:
        reply = answer(self.machine, body)
        assert isinstance(reply, m.Failed), f"{body}: {reply}"
        return reply.errno

    def reload(self) -> None:
        self.machine.flush()
        self.machine = Machine(self.txn, self.known)

    # --- the usual beginnings -------------------------------------------------------------------------------------------
    def make_volume(self, name: str = "vol", **fields: Any) -> int:
        number: int = self.ok(c.CreateVolume(name, f"uuid-{name}", **fields)).number
        self.volume = number
        return number

    def open(self, mount: int = 7, worker: int = 1, **fields: Any) -> m.SessionOpened:
        given = {"volume": self.volume, "node": "n1", "boot_id": "b1"} | fields
        command = c.OpenSession(mount, given.pop("volume"), given.pop("node"), given.pop("boot_id"), worker, **given)
        opened: m.SessionOpened = self.ok(command, session=0, epoch=0, mount=mount)
        self.session, self.epoch, self.mount = opened.session, opened.epoch, mount
        return opened

    def create(self, name: bytes, parent: int = 1, mode: int = 0o100644, **fields: Any) -> int:
        ino: int = self.ok(c.Create(self.volume, parent, name, mode, 1000, 1000, **fields)).attr.ino
        return ino

    def mkdir(self, name: bytes, parent: int = 1) -> int:
        return self.create(name, parent, 0o040755)

    def lease(self, count: int = 1, safe_index: int = 1 << 60) -> list[SegmentInfo]:
        leased: list[SegmentInfo] = self.ok(c.LeaseSegments(count, safe_index)).segments
        self.frames.update((info.segment, 0) for info in leased)
        return leased

    def frame(self, segment: SegmentInfo, offset: int, length: int) -> Extent:
        """An extent in a new frame at the end of a leased segment."""
        self.sequence += 1
        start = self.frames[segment.segment]
        self.frames[segment.segment] = start + HEADER + length
        return Extent(offset, length, segment.segment, segment.incarnation, self.sequence, start, HEADER, 0)

    def progress(self, segment: SegmentInfo, sealed: bool = False) -> SegmentProgress:
        return SegmentProgress(segment.segment, segment.incarnation, self.frames[segment.segment], sealed)

    def commit(self, segment: SegmentInfo | None, *inodes: c.InodeCommit, consumed: int = 0, sealed: bool = False) -> c.Commit:
        steps = [] if segment is None else [self.progress(segment, sealed)]
        return c.Commit(self.volume, list(inodes), consumed, steps)

    def write(self, segment: SegmentInfo, ino: int, offset: int, length: int, **fields: Any) -> m.Committed:
        """One write, committed at once."""
        extent = self.frame(segment, offset, length)
        step = c.InodeCommit(ino, fields.pop("log", 1), self.sequence, offset + length, self.now, [extent])
        committed: m.Committed = self.ok(self.commit(segment, step, **fields))
        assert committed.errnos == [0]
        return committed


def changed_keys(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> list[bytes]:
    """Keys whose rows differ, but for the row that counts entries."""
    cluster = b"\0\0\0\0\0\0\1"
    return [key for key in before.keys() | after.keys() if key != cluster and before.get(key) != after.get(key)]


def sound(drive: Drive) -> None:
    """Fails unless the rows contradict each other nowhere."""
    drive.machine.flush()
    assert check(drive.txn) == []
