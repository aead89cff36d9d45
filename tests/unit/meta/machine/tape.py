"""A tape: entries of the log, the reply to each, and the digest of the state behind it.

`record` makes one from the story below, which has every command that a level knows, done and refused.  The recording is what counts, not
the story: test_golden_tape.py plays it, entry by entry, as it was recorded.
"""

from __future__ import annotations

import typing
from typing import Any

from awsomefsd.base.codec import encode
from awsomefsd.base.types import LOCK_END_MAX, LOCK_FLOCK, LOCK_POSIX, Extent
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.locks import F_RDLCK, F_UNLCK, F_WRLCK
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.state.digest import digest_of, pack_digest
from tests.rigs.machine_driver import SEGMENT_BYTES, Drive
from tests.rigs.memory_txn import MemTxn
from tests.unit.meta.test_golden_encodings import COMMANDS

MIB = 1 << 20
HOST = {"session": 0, "epoch": 0, "mount": 0}
SAFE = 1 << 60
IDS = [f"0190c1a2-0000-4000-8000-00000000000{number}" for number in range(4)]
_KEYS = [bytes([number]) * 32 for number in range(1, 4)]  # SHA-256 of public keys


def known(level: int) -> set[type[c.Command]]:
    """Returns the commands that a cluster of that level takes."""
    return {command for command in typing.get_args(c.AnyCommand) if command.since <= level}


def digest(txn: MemTxn) -> str:
    return pack_digest(digest_of(txn.rows.items())).hex()


class Recorder(Drive):
    """Writes down what it applies, as lines "entry reply digest" in hex."""

    def __init__(self, level: int) -> None:
        super().__init__(txn=MemTxn())
        self.level = level
        self.lines: list[str] = []
        self.device = 0  # the one with 64 segments

    def entry(self, command: Any, **fields: Any) -> c.Entry:
        entry = super().entry(command, **fields)
        entry.version = self.level
        return entry

    def apply(self, command: Any, **fields: Any) -> Any:
        reply = super().apply(command, **fields)
        self.machine.flush()
        entry = c.entry_encode(self.entries[-1])
        self.lines.append(f"{entry.hex()} {encode(reply).hex()} {digest(self.txn)}\n")
        return reply

    def host(self, *commands: c.Command) -> None:
        """Commands of a daemon, each done."""
        for command in commands:
            if type(command) in known(self.level):
                self.ok(command, **HOST)

    def tried(self, **fields: Any) -> None:
        """One command of each kind, whose names and numbers mean something here only by chance; most are refused."""
        for command in COMMANDS:
            if type(command) in known(self.level) and not isinstance(command, (c.RepairRows, c.ChangeMembership)):
                self.apply(command, **fields)


def record(level: int) -> str:
    """Returns the lines of a tape of that level."""
    drive = Recorder(level)
    drive.apply(c.CreateVolume("too-early", "uuid"))
    drive.ok(c.Init("c-uuid", 1, level))
    drive.tried(**HOST)
    _cluster(drive)
    volume = drive.make_volume("story", quota_bytes=1 << 30, quota_inodes=1000)
    drive.open(mount=7)
    drive.tried()
    _names(drive)
    _data(drive)
    _ends(drive)
    _collection(drive)
    _sharing(drive, volume)
    _claims(drive)
    _records(drive)
    _checkpoints(drive)
    _devices(drive)
    drive.tried(**HOST)
    _last(drive)
    return "".join(drive.lines)


def _cluster(drive: Recorder) -> None:
    """Devices, nodes, tokens, authorities, readers, the membership."""
    drive.device = drive.ok(c.AddDevice("d-uuid", 64 * SEGMENT_BYTES + MIB, SEGMENT_BYTES, 64, MIB, True), **HOST).number
    drive.apply(c.AddDevice("d-uuid", 64 * SEGMENT_BYTES + MIB, SEGMENT_BYTES, 64, MIB, True), **HOST)
    drive.host(
        c.PutToken("t", "join", "node", b"verifier", 1 << 60, 2),
        c.AddNode("n1", "one", "node", _KEYS[0], "t", "h:1", "h:2", {"zone": "a"}, "1", drive.level),
        c.AddNode("n2", "two", "client", _KEYS[1], level=drive.level),
        c.DescribeNode("n1", "first", "h:3", "h:4", {"zone": "b"}, "2", drive.level),
        c.SetCarries("n1", True),
        c.SetNodeState("n1", "cordoned"),
        c.SetNodeState("n1", "active"),
        c.RevokeToken("t"),
        c.PutCa("a", "A.", "key-a", "active"),
        c.PutCa("b", "B.", "key-b", "trusted"),
        c.PutCa("b", "", "", "active"),
        c.DropCa("a"),
        c.RegisterReader("follower", 1),
        c.AdvanceReader("follower", 3),
        c.RegisterReader("other", 2),
        c.RemoveReader("other"),
        c.NoOp(),
        c.ChangeMembership(Membership([Member("n1", "j", True, "h:4")])),
    )
    drive.apply(c.ChangeMembership(Membership([Member("n1", "j", True, "h:4")])), unique=9)
    drive.apply(c.AddNode("n3", "three", "node", _KEYS[2], "t"), **HOST)
    for refused in (
        c.DropCa("b"),
        c.PutCa("c", "C.", "key-c", "odd"),
        c.PutToken("", "join", "node", b"", 0, 0),
        c.RevokeToken("nothing"),
        c.RegisterReader("", 1),
        c.RemoveReader("nobody"),
        c.RaiseLevel(99),
    ):
        drive.apply(refused, **HOST)
    drive.apply(c.AdvanceReader("nobody", 3), **HOST)


def _names(drive: Recorder) -> None:
    """Directories, files, links, attributes, in a volume that one session holds; requests that come twice."""
    volume = drive.volume
    top = drive.mkdir(b"d")
    other = drive.create(b"o", top, 0o041777)
    ino = drive.create(b"f", top)
    drive.ok(c.Create(volume, top, b"l", 0o120777, 1, 2, target=b"f"))
    drive.apply(c.Create(volume, top, b"f", 0o100644, 1, 2))
    drive.apply(c.Create(volume, top, b"twice", 0o100644, 1, 2), unique=5)
    drive.apply(c.Create(volume, top, b"twice", 0o100644, 1, 2), unique=5)
    drive.apply(c.Create(volume, top, b"twice", 0o100644, 1, 2), unique=6, acks=[5])
    drive.ok(c.Link(volume, ino, other, b"hard"))
    drive.apply(c.Link(volume, top, other, b"hard-directory"))
    unnamed = drive.ok(c.Tmpfile(volume, top, 0o600, 1, 2)).attr.ino
    drive.ok(c.Link(volume, unnamed, top, b"named"))
    drive.ok(c.Rename(volume, top, b"f", other, b"g"))
    drive.ok(c.Rename(volume, top, b"named", other, b"g", 2))
    drive.apply(c.Rename(volume, 1, b"d", other, b"loop"))
    drive.apply(c.Rename(volume, top, b"l", other, b"g", 1))
    drive.apply(c.Rmdir(volume, top, b"o"))
    drive.apply(c.Unlink(volume, top, b"o"))
    drive.ok(c.SetAttr(volume, ino, 0x7, 0o4755, 3, 4))
    drive.ok(c.SetAtimes(volume, [(ino, 5), (1 << 40, 6)]))
    drive.ok(c.SetXattr(volume, ino, b"user.a", b"value"))
    drive.apply(c.SetXattr(volume, ino, b"user.a", b"value", 1))
    drive.ok(c.SetXattr(volume, ino, b"user.b", b"v" * 300))
    drive.ok(c.RemoveXattr(volume, ino, b"user.a"))
    drive.apply(c.RemoveXattr(volume, ino, b"user.a"))
    lock = c.SetLock(volume, ino, LOCK_POSIX, 1, 100, F_WRLCK, 0, 99)
    drive.ok(lock)
    drive.apply(c.SetLock(volume, ino, LOCK_POSIX, 2, 101, F_RDLCK, 50, LOCK_END_MAX))
    drive.ok(c.SetLock(volume, ino, LOCK_POSIX, 1, 100, F_UNLCK, 10, 19))
    drive.ok(c.SetLock(volume, ino, LOCK_FLOCK, 3, 102, F_RDLCK, 0, 0))
    drive.ok(c.Unlink(volume, other, b"hard", pinned=True))
    drive.ok(c.Unlink(volume, top, b"twice"))
    drive.mkdir(b"e")
    drive.ok(c.Rmdir(volume, 1, b"e"))


def _data(drive: Recorder) -> None:
    """What is written, copied, freed, and reaped."""
    volume = drive.volume
    drive.ok(c.Reserve(volume, 8 * MIB, MIB))
    drive.apply(c.Reserve(volume, 1 << 50, 1 << 50))
    segment, second = drive.lease(2)
    small, ino, copy = drive.create(b"small"), drive.create(b"data"), drive.create(b"copy")
    drive.ok(c.Commit(volume, [c.InodeCommit(small, 1, 1, 4, drive.now, [], [(0, b"tiny")])], 0, []))
    drive.write(segment, ino, 0, 40_000, consumed=40_000)
    drive.write(segment, ino, 100_000, 9_000)
    drive.apply(c.Commit(volume, [c.InodeCommit(ino, 1, 9, 1, 1, [Extent(0, 10, segment.segment, 99, 1, 0, 64, 0)])], 0, []))
    drive.ok(c.CopyRange(volume, ino, 1_000, copy, 0, 20_000))
    drive.apply(c.CopyRange(volume, ino, 0, ino, 10, 20))
    drive.ok(c.Fallocate(volume, ino, 0, 0, 200_000))
    drive.ok(c.Fallocate(volume, ino, 3, 10_000, 10_000))
    drive.ok(c.Fallocate(volume, ino, 16, 30_000, 10_000))
    drive.apply(c.Fallocate(volume, ino, 0x80, 0, 1))
    drive.apply(c.Draw(volume, ino, 60_000, 4_096, 4_096))
    if drive.level >= c.WriteData.since:
        frame = drive.frame(segment, 0, 500)
        drive.apply(c.WriteData(volume, ino, 0, 500, False, True, [frame], 500, [drive.progress(segment)]))
        drive.apply(c.WriteData(volume, small, 0, 3, True, False, [], 0, [], b"abc"))
    drive.ok(c.SetAttr(volume, ino, 0x8, size=5_000))
    drive.ok(drive.commit(segment, sealed=True))
    drive.ok(drive.commit(second))
    drive.ok(c.Unlink(volume, 1, b"copy", pinned=True))
    drive.ok(c.ReleaseOrphan(volume, [copy]))
    drive.apply(c.ReleaseOrphan(volume, [copy]))
    drive.ok(c.SetVolume(volume, 1 << 29, 5_000, "renamed"), **HOST)
    drive.apply(c.DeleteVolume(volume), **HOST)
    drive.ok(c.Reap(3), **HOST)
    drive.ok(c.Reap(1024), **HOST)


def _ends(drive: Recorder) -> None:
    """A successor, an expired session with its quarantine, a new boot; entries of sessions that have ended."""
    volume = drive.volume
    drive.open(mount=7, worker=2)
    drive.apply(c.OpenSession(7, volume, "n1", "b1", 2, False), **(HOST | {"mount": 7}))
    drive.apply(c.OpenSession(8, volume, "n2", "b1", 1, False), **(HOST | {"mount": 8}))
    drive.lease()
    ended = drive.session
    drive.apply(c.EndSession(ended, 0, False), **HOST)
    drive.ok(c.EndSession(ended, drive.epoch, False, True), **HOST)
    drive.apply(c.Create(volume, 1, b"late", 0o100644, 1, 1), unique=77)
    drive.apply(c.ClearQuarantine(ended, ""), **HOST)
    drive.ok(c.ClearQuarantine(ended, "proof"), **HOST)
    drive.open(mount=7, worker=3)
    drive.lease()
    drive.open(mount=9, worker=1, boot_id="b2")
    drive.ok(c.EndSession(drive.session, drive.epoch, True), **HOST)


def _collection(drive: Recorder) -> None:
    """A collector moves what lives."""
    drive.open(mount=7, worker=4)
    (segment,) = drive.lease()
    ino = drive.create(b"moved")
    drive.write(segment, ino, 0, 9_000)
    drive.ok(drive.commit(segment, sealed=True))
    extent = drive.ask(m.GetLayout(drive.volume, ino, 0, 1 << 40)).extents[0]
    opened = drive.ok(c.OpenCollector("node", "b1"), **HOST)
    fields = {"session": opened.session, "epoch": opened.epoch, "mount": 0}
    (new,) = drive.ok(c.LeaseSegments(1, SAFE), **fields).segments
    drive.frames[new.segment] = 0
    copy = drive.frame(new, 0, 9_000)
    move = c.Relocation(drive.volume, ino, extent, [copy])
    drive.ok(c.Relocate([move], [drive.progress(new)]), **fields)
    drive.ok(c.Relocate([move], []), **fields)
    drive.apply(c.Relocate([move] * 600, []), **fields)
    drive.apply(c.OpenCollector("n2", "b1"), **HOST)
    drive.ok(c.EndSession(drive.session, drive.epoch, True), **HOST)


def _sharing(drive: Recorder, volume: int) -> None:
    """Two mounts of one volume: write leases, locks that are lost, one that caches nothing."""
    one = _share(drive, 11, "n1")
    two = _share(drive, 12, "n2")
    found = drive.ok(c.Create(volume, 1, b"leased", 0o100644, 1, 1, lease=True), **one)
    ino = found.attr.ino
    drive.apply(c.AcquireLease(volume, ino), **two)
    drive.apply(c.SetAttr(volume, ino, 0x8, size=1), **two)
    drive.ok(c.SetLock(volume, ino, LOCK_POSIX, 1, 100, F_WRLCK, 0, 99), **one)
    drive.ok(c.ReleaseLease(volume, ino, found.leased.epoch), **one)
    drive.ok(c.AcquireLease(volume, ino, 1), **two)
    for number in range(40):
        drive.ok(c.Create(volume, 1, b"many-%d" % number, 0o100644, 1, 1, lease=True), **one)
    drive.apply(c.OpenSession(13, volume, "n1", "b1", 1), **(HOST | {"mount": 13}))
    if drive.level >= c.OpenShared.since:
        opened = drive.ok(c.OpenShared(14, volume, "n2", "b1", 1, shared=True), **(HOST | {"mount": 14}))
        fields = {"session": opened.session, "epoch": opened.epoch, "mount": 14}
        small = drive.ok(c.Create(volume, 1, b"through", 0o100644, 1, 1), **fields).attr.ino
        drive.apply(c.WriteData(volume, small, 0, 3, True, False, [], 0, [], b"abc"), **fields)
        drive.apply(c.WriteData(volume, ino, 0, 3, True, False, [], 0, [], b"abc"), **fields)
    drive.ok(c.EndSession(one["session"], one["epoch"], False), **HOST)
    drive.apply(c.AcquireLease(volume, ino), **two)
    drive.ok(c.SetLock(volume, ino, LOCK_POSIX, 1, 100, F_WRLCK, 0, 99), **two)
    drive.ok(c.Reap(1024), **HOST)
    one = _share(drive, 11, "n1", worker=2)
    drive.apply(c.AcquireLease(volume, ino, 1), **one)
    drive.ok(c.SetNodeState("n2", "removed"), **HOST)


def _share(drive: Recorder, mount: int, node: str, worker: int = 1) -> dict[str, int]:
    opened = drive.open(mount, worker, node=node, shared=True)
    return {"session": opened.session, "epoch": opened.epoch, "mount": mount}


def _claims(drive: Recorder) -> None:
    """Volumes of Kubernetes."""
    if drive.level < c.MakeCsiVolume.since:
        return
    made = drive.ok(c.MakeCsiVolume(IDS[0], "pvc-0", 1 << 20, False, [("a", "b")]), **HOST)
    drive.host(c.SetCsiVolume(IDS[0], capacity=1 << 21))
    drive.apply(c.MakeCsiVolume(IDS[1], "pvc-0", 1 << 30, False, []), **HOST)
    volume = getattr(made, "volume", 0) or getattr(made, "number", 0) or drive.machine.state.cluster.next_volume - 1
    drive.host(c.ClaimVolume(volume, "", "n1", "b1", True))
    drive.apply(c.ClaimVolume(volume, "", "n3", "b1", True), **HOST)
    drive.apply(c.DropCsiVolume(IDS[0], True), **HOST)
    drive.apply(c.EndClaims("n1", volume, "", ""), **HOST)
    drive.host(c.EndClaims("n1", volume, "", "proof"), c.DropCsiVolume(IDS[0], True), c.Reap(1024))


def _records(drive: Recorder) -> None:
    """A mount that decides by itself: batches that are done, come twice, leave a gap, and end at a refusal."""
    if drive.level < c.Apply.since:
        return
    volume = drive.ok(c.CreateVolume("records", "records-uuid", 1 << 30, 1000), **HOST).number
    opened = drive.ok(c.OpenSession(21, volume, "n1", "b1", 1), **(HOST | {"mount": 21}))
    own = {"session": opened.session, "epoch": opened.epoch, "mount": 21}
    first = drive.ok(c.GrantInodes(volume, 50), **own).first
    now, log = drive.now, 1 << 63
    made = [
        c.DecidedRecord(1, 1, now, c.Create(volume, 1, b"d", 0o040755, 1, 1), 0, [0], 7, first),
        c.DecidedRecord(3, 2, now + 1, c.Create(volume, first, b"f", 0o100644, 1, 1), 0, [0], 0, first + 2),
        c.DecidedRecord(4, 3, now + 2, c.Rename(volume, first, b"f", 1, b"g"), 0, [first + 2, 0]),
        c.DecidedRecord(9, 4, now + 3, c.SetAttr(volume, first + 2, c.SET_MODE, 0o600)),
        c.DecidedRecord(10, 5, now + 4, c.Rmdir(volume, 1, b"d"), 0, [first]),
    ]
    step = c.InodeCommit(first + 2, log, 5, 3, now, [], [(0, b"abc")])
    batch = c.Apply(volume, log, 0, 1, made, [step], [], 3)
    for _ in range(2):
        drive.ok(batch, unique=5, **own)
    drive.ok(batch, unique=6, acks=[5], **own)
    drive.apply(c.Apply(volume, log, 10, 0, [], [step], [], 3), **own)
    drive.ok(c.Apply(volume, log, 99, 0, [], [], [], 0), **own)
    gone = c.DecidedRecord(12, 6, now + 5, c.Unlink(volume, 1, b"none"), 0, [0])
    drive.ok(c.Apply(volume, log, 10, 12, [gone], [], [], 3), **own)
    drive.apply(c.Apply(volume, 0, 10, 12, [gone], [], [], 3), **own)
    drive.apply(c.GrantInodes(volume, 5_000), **own)
    drive.ok(c.SetNames(volume, 1), **HOST)
    drive.apply(c.SetNames(volume, 2), **HOST)
    drive.ok(c.OpenSession(21, volume, "n1", "b1", 2), **(HOST | {"mount": 21}))
    drive.ok(c.EndSession(opened.session, opened.epoch, True), **HOST)


def _checkpoints(drive: Recorder) -> None:
    """Segments that the metadata keeps."""
    device = drive.device
    kept = [info.segment for info in drive.ok(c.KeepSegments(device, 2, SAFE), **HOST).segments]
    drive.apply(c.KeepSegments(device, 60, SAFE), **HOST)
    drive.host(c.DropSegments(kept[:1]))
    drive.apply(c.DropSegments(kept[:1]), **HOST)
    if drive.level >= c.KeepForCheckpoint.since:
        own = [info.segment for info in drive.ok(c.KeepForCheckpoint(device, 2, "n1", SAFE), **HOST).segments]
        drive.host(c.AdoptSegments("n1"), c.CheckpointDone("n1", device, own, 1, 1, 5))
        drive.apply(c.CheckpointDone("n1", device, own, 1, 1, 5), **HOST)
        drive.apply(c.ReturnSegments("n1", own), **HOST)
        drive.host(c.ReturnSegments("n1", kept[1:]))
        drive.apply(c.AdoptSegments("nobody"), **HOST)


def _devices(drive: Recorder) -> None:
    """A device that grows, and one that is taken out."""
    drive.host(c.AddDevice("e-uuid", 4 * SEGMENT_BYTES + MIB, SEGMENT_BYTES, 4, MIB, True))
    number = drive.machine.state.cluster.next_device - 1
    drive.host(c.GrowDevice(number, 8 * SEGMENT_BYTES + MIB, 8), c.DrainDevice(number, True), c.RemoveDevice(number, 100))
    if drive.level >= c.RemoveDevice.since:
        drive.apply(c.RemoveDevice(drive.device, 1), **HOST)
    if drive.level >= c.SetDeviceEra.since:
        drive.host(c.SetDeviceEra("e-uuid", 7))
        drive.apply(c.SetDeviceEra("e-uuid", 6), **HOST)
        drive.host(c.SetAbsent(drive.device, True), c.SetAbsent(drive.device, False))
        drive.apply(c.SetAbsent(99, True), **HOST)


def _last(drive: Recorder) -> None:
    """What nothing comes after."""
    drive.host(c.CreateVolume("gone", "gone-uuid"))
    drive.host(c.DeleteVolume(drive.machine.state.cluster.next_volume - 1, True), c.Reap(1024))
    drive.apply(c.RaiseLevel(drive.level + 1), **HOST)
    drive.host(c.RaiseLevel(drive.level))
    drive.host(c.Recover(1 << 33, "nobody writes"))
    drive.apply(c.RepairRows([b"x"], []), mount=7, session=0, epoch=0)
    drive.host(c.RepairRows([], []))
