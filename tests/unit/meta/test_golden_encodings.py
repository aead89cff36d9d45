"""Golden encodings of commands, rows and keys, and a fuzz of their decoders.

A golden line is ``name hex``.  A change of a line that exists is a change of the format of logs and stores that are out there; a new
command, row or appended field adds or lengthens lines.  AWSOMEFSD_UPDATE_GOLDEN=1 writes the files again.
"""

from __future__ import annotations

import os
import random
import typing
from pathlib import Path

import msgspec
import pytest

from awsomefsd.base.codec import Sealed, seal
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.base.limits import OP_RECORD_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from awsomefsd.base.types import (
    BAY_COPYING,
    BAY_MIRROR,
    BAY_PARITY,
    BAY_STALE,
    Attr,
    Extent,
    Lock,
    Redundancy,
    SegmentBay,
    SegmentProgress,
    StoreOptions,
)
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import Examination
from tests.rigs.memory_txn import MemTxn

GOLDEN = Path(__file__).parents[2] / "golden"

EXTENT = Extent(4096, 100, 3, 2, 7, 65536, 64, 5)
PROGRESS = SegmentProgress(3, 2, 70_000, True, 8192, 4096, [(1, 2, 70_000)])
LOCK = Lock(1, 5, 77, 1, 0, 99, 4)
ATTR = Attr(9, 0o100644, 1, 1000, 1001, 0, 10, 10, 1, 2, 3, 4, True, 1, 2)
MEMBERSHIP = Membership([Member("node", "journal", True, "host:1"), Member("next", "other", False)], [Member("node", "lost", True)])

WANT = Redundancy(3, 2, 4, parities=2, spread=1, device_class="ssd", quorum=True)

UUID = "0190c1a2-0000-4000-8000-000000000001"
STORE_OPTIONS = StoreOptions(300_000, 86_400_000, "https://host:1", "mars-1", "kept", "pem", "http://host:2", True)

COMMANDS: list[c.Command] = [
    c.Init("cluster", 1),
    c.AddDevice("device", 1 << 30, 1 << 26, 15, 1 << 20, True),
    c.CreateVolume("vol", "uuid", 1 << 40, 1000, 0o1777, 1, 2, 1),
    c.SetVolume(1, 2, 3, "new"),
    c.DeleteVolume(1, True),
    c.OpenSession(1 << 63, 1, "node", "boot", 2, False, True),
    c.EndSession(1, 2, True, True),
    c.OpenShared(1 << 63, 1, "node", "boot", 2, False, True, [3]),
    c.WriteData(1, 2, 3, 4, True, True, [EXTENT], 9, [PROGRESS], b"x"),
    c.ClearQuarantine(1, "proof"),
    c.LeaseSegments(2, 1 << 33, 3, True, [4]),
    c.Reserve(1, -(1 << 33), 5),
    c.Create(1, 2, b"name\xff", 0o120777, 3, 4, 5, b"target", True, 0o22),
    c.Tmpfile(1, 2, 0o600, 3, 4, 0o22, False),
    c.Link(1, 2, 3, b"name"),
    c.Unlink(1, 2, b"name", True),
    c.Rmdir(1, 2, b"name", True),
    c.Rename(1, 2, b"a", 3, b"b", 2, True, 4, 5),
    c.SetAttr(1, 2, 0xFF, 0o4755, 3, 4, 5, -6, None, 7, 8, 9),
    c.SetAtimes(1, [(2, -3), (4, 15_032_385_535_999_999_999)]),
    c.SetXattr(1, 2, b"user.a", b"\0value", 1, True),
    c.RemoveXattr(1, 2, b"user.a"),
    c.ReleaseOrphan(1, [2, 3]),
    c.Commit(1, [c.InodeCommit(2, 3, 4, 5, 6, [EXTENT]), c.InodeCommit(3, 3, 4, 5, 6, [], [(1, b"x")])], 9, [PROGRESS]),
    c.Reap(1024),
    c.SetLock(1, 2, 0, 1 << 63, 4, 1, 0, (1 << 63) - 1),
    c.Fallocate(1, 2, 17, 1 << 40, 4096, True, True),
    c.CopyRange(1, 2, 3, 4, 5, 1 << 40, True),
    c.Draw(1, 2, 3, 4, 5),
    c.OpenCollector("node", "boot"),
    c.Relocate(
        [c.Relocation(1, 2, Extent(3, 4, 5, 6, 7, 8, 9, 10), [Extent(3, 4, 11, 12, 13, 14, 15, 16)], 17)], [SegmentProgress(11, 12, 13)]
    ),
    c.AcquireLease(1, 2, 3),
    c.ReleaseLease(1, 2, 3),
    c.RegisterReader("reader", 1),
    c.AdvanceReader("reader", 2),
    c.RemoveReader("reader"),
    c.RepairRows([b"gone"], [(b"key", b"value")]),
    c.NoOp(),
    c.ChangeMembership(MEMBERSHIP),
    c.KeepSegments(1, 2, 1 << 33),
    c.DropSegments([2, 3]),
    c.Recover(1 << 33, "proof"),
    c.KeepForCheckpoint(1, 2, "node", 1 << 33),
    c.AdoptSegments("node"),
    c.ReturnSegments("node", [2, 3]),
    c.CheckpointDone("node", 1, [2, 3], 4, 5, 1 << 33),
    c.AddNode("node", "name", "node", b"key", "token", "host:1", "host:2", {"zone": "a"}, "1.2.3", 4),
    c.DescribeNode("node", "name", "host:1", "host:2", {"zone": "a"}, "1.2.3", 4),
    c.SetNodeState("node", "cordoned"),
    c.PutToken("token", "join", "client", b"verifier", 1 << 41, 5),
    c.RevokeToken("token"),
    c.PutCa("ca", "certificate", "key", "active"),
    c.DropCa("ca"),
    c.SetCarries("node", True),
    c.RaiseLevel(2),
    c.MakeCsiVolume(UUID, "pvc", 1 << 40, True, [("a", "b")], 2, "some/path", 3, 4, 0o700, 5, 6, 1),
    c.SetCsiVolume(UUID, 1, 2, 3, [("a", "b")]),
    c.DropCsiVolume(UUID, True),
    c.ClaimVolume(1, "some/path", "node", "boot", True, True),
    c.GrowDevice(1, 1 << 40, 20),
    c.DrainDevice(1, True),
    c.SetAbsent(1, True),
    c.RemoveDevice(1, 4096),
    c.SetDeviceEra("device", 1 << 60),
    c.Apply(
        1, 1 << 63, 3, 5,
        [c.DecidedRecord(5, 6, 7, c.Rmdir(1, 2, b"name"), 4, [8], 1 << 31)],
        [c.InodeCommit(2, 3, 4, 5, 6, [EXTENT])], [PROGRESS], 9, 10,
    ),
    c.GrantInodes(1, 4096, 1 << 40),
    c.SetNames(1, 1),
    c.EndClaims("node", 1, "some/path", "proof", 2, "boot", True),
    c.AddPoolDevice("device", 1 << 30, 1 << 26, 15, 1 << 20, "node", 2, "ssd", 3),
    c.AttachDevice(1, 1 << 33, "node", True),
    c.LeaseBays(2, 1 << 33, [3], [[1, 2], [4, 5]], 6),
    c.PlanMirror(1, 2, 1 << 33, (3, 4)),
    c.MirrorMade(1, 2, 3, 4, 1 << 26, (5, 6)),
    c.DropBays([(1, 2, 3)]),
    c.BaysTrimmed("node", 1, [(2, 3, 4)]),
    c.SetDeviceState(1, 2),
    c.NeedSegments(512),
    c.SetRedundancy(1, WANT, 2),
    c.SetSegmentServer("node", "host:7442"),
    c.SetPool(1, 64 << 20, 600_000, 4),
    c.BaysWrong("node", 1, [(2, 3)]),
    c.SetMaintenance(1, "host", 1 << 41),
    c.DrainPoolDevices(1, [2], [3], [4, 5], [6]),
    c.BaysSeen("node", 1, 2, 130, 3, [(4, 5)]),
    c.AddStore("cold", "s3://bucket/prefix", UUID, STORE_OPTIONS, b"veiled"),
    c.StoreReady(1, 2, 3),
    c.BeginEra(1, 2, UUID),
    c.SetStore(1, 2, STORE_OPTIONS, b"veiled"),
    c.DetachStore(1),
    c.CreateSnapshots("name", [c.NewSnapshot(1, UUID), c.NewSnapshot(2, UUID)], 1),
    c.DeleteSnapshot(1, 2),
    c.OpenSnapshot(1 << 63, 1, "node", "boot", 2, False, False, [3], 4, UUID),
]  # fmt: skip

ROWS: list[tuple[Sealed, rows.Row]] = [
    (rows.CLUSTER, rows.ClusterRow("cluster", 1, 0, 0, 0, *range(5, 23))),
    (
        rows.DEVICE,
        rows.DeviceRow(
            1,
            "device",
            1 << 30,
            1 << 26,
            15,
            1 << 20,
            True,
            1,
            14,
            1,
            "home",
            True,
            True,
            [(15, 100)],
            True,
            1,
            "ssd",
            "host",
            True,
            2,
            "node",
            3,
            4,
        ),
    ),
    (rows.SEGMENT, rows.SegmentRow(*range(1, 14), [SegmentBay(1, 2, 3, BAY_COPYING)], WANT, 14, 15, 1, 16)),
    (rows.BAY, rows.BayRow(1, 2, 3)),
    (rows.NEED, rows.NeedRow(1, since_ms=2, tries=3)),
    (rows.STRIPE, rows.StripeRow(2, parities_wanted=1, members=[(1, 2, 3, 4)], parities=[(5, 6)], length=7, whole=True)),
    (
        rows.POOL,
        rows.PoolRow(1, 1 << 26, reserve_percent=5, heal_bytes_per_s=1 << 20, lost_after_ms=60_000, maintenance=[("host", 1 << 41)]),
    ),
    (rows.WALK, rows.WalkRow(1, 2, 3, 4)),
    (rows.FREE, rows.FreeRow(1, 2)),
    (rows.VOLUME, rows.VolumeRow(1, "uuid", "name", *range(3, 11), False, 12, 13, 14, 15, 16, True, 17, "home", 1, 18, WANT, 19, 20)),
    (rows.VOLNAME, rows.VolumeNameRow(1)),
    (rows.SESSION, rows.SessionRow(1, 2, 3, 4, "node", "boot", 5, 6, True, 7, True, 8, True, True, 9)),
    (rows.MOUNT, rows.MountRow(1, 2, "node", "boot", 3)),
    (rows.OPLOG, rows.OpLogRow(1, 1 << 63, 2, 3, [(5, 7), (9, 10)], 3, 11)),
    (rows.RESULT, rows.ResultRow(m.Found(ATTR, None, True))),
    (rows.READER, rows.ReaderRow(1)),
    (rows.MEMBERSHIP, rows.MembershipRow(1, MEMBERSHIP)),
    (rows.DEVICE_ERA, rows.DeviceEraRow("device", 1 << 60)),
    (rows.CHECKPOINT, rows.CheckpointRow("node", [1, 2], [2], 3, 4, 5, 6)),
    (rows.TOMBSTONE, rows.TombstoneRow(1, 2, 3, b"name", 4, 5)),
    (rows.MARKER, rows.MarkerRow()),
    (rows.REVERSE, rows.ReverseRow(1)),
    (rows.REAP, rows.ReapRow(1, 2, 3)),
    (rows.SHARED, rows.SharedRow(1, [(0, 100, 2), (100, 200, 1)])),
    (rows.INODE, rows.InodeRow(*range(1, 14), True, True, *range(3, 10), b"target", 4, 5, 6, [(7, 8), (9, 10)], True, 11, 2, 12)),
    (rows.DENTRY, rows.DentryRow(1, 0o100000, 16, 4, 5, 6)),
    (rows.COOKIE, rows.CookieRow(1, 0o100000, b"name", 6)),
    (rows.EXTENT, rows.ExtentRow(*range(1, 9), True, True, 10)),
    (rows.INLINE, rows.InlineRow(b"data", 6)),
    (rows.XATTR, rows.XattrRow(b"value", 6)),
    (rows.SNAPSHOT, rows.SnapshotRow(1, 2, "name", UUID, *range(3, 10))),
    (rows.SNAPNAME, rows.SnapshotNameRow(1)),
    (rows.SHELF, rows.ShelfRow(1, 2)),
    (rows.LOCKS, rows.LocksRow([LOCK])),
    (rows.STORE, rows.StoreRow(1, "cold", "s3://bucket/prefix", 1, UUID, 2, 3, 4, STORE_OPTIONS, "before", 5, 6)),
    (rows.STORE_SECRET, rows.StoreSecretRow(1, b"veiled")),
    (rows.CSI_VOLUME, rows.CsiVolumeRow(UUID, "pvc", 1, "path", True, 2, True, [("a", "b")])),
    (rows.CSI_NAME, rows.CsiNameRow(UUID)),
    (rows.CLAIM, rows.ClaimRow(1, "path", "node", "boot", 2, True, True, True)),
    (rows.LEASE, rows.LeaseRow(1, 2, 3, 1 << 63, 4, 5)),
    (rows.NODE, rows.NodeRow("node", "name", "node", "active", "h:1", "h:2", {"zone": "a"}, 1, "1.2.3", 2, True, 3, b"key", "h:3")),
    (rows.TOKEN, rows.TokenRow("token", "join", "node", b"verifier", 1, 2, 3, True)),
    (rows.CA, rows.CaRow("ca", "certificate", "key", "active", 1)),
]

KEYS: dict[str, bytes] = {
    "cluster": keys.cluster(),
    "membership": keys.membership(),
    "checkpoint": keys.checkpoint("node"),
    "begun": keys.begun(1, 2),
    "op_log": keys.op_log(1 << 63),
    "device": keys.device(1),
    "segment": keys.segment(2),
    "free": keys.free(1, 2),
    "volume": keys.volume(3),
    "volname": keys.volname("näme"),
    "session": keys.session(4),
    "held": keys.held(4, 2),
    "mount": keys.mount(1 << 63),
    "result": keys.result(5, 1 << 62),
    "reader": keys.reader("reader"),
    "tombstone": keys.tombstone(6, 7),
    "locker": keys.locker(4, 3, 8),
    "pinner": keys.pinner(4, 3, 8),
    "reverse": keys.reverse(2, 65536, 3, 8, 4096),
    "reap": keys.reap(keys.REAP_TRIM, 3, 8, 9),
    "shared": keys.shared(2, 65536),
    "inode": keys.inode(3, 8),
    "dentry": keys.dentry(3, 1, b"name"),
    "cookie": keys.cookie(3, 1, 16),
    "extent": keys.extent(3, 8, 4096),
    "inline": keys.inline(3, 8),
    "xattr": keys.xattr(3, 8, b"user.a"),
    "locks": keys.locks(3, 8),
    "orphan": keys.orphan(3, 8, 4),
    "leaser": keys.leaser(4, 3, 8),
    "csi_volume": keys.csi_volume(UUID),
    "csi_name": keys.csi_name("pvc-é"),
    "claim": keys.claim(3, "node", "path"),
    "lease": keys.lease(3, 8),
    "kept_inode": keys.history(keys.inode(3, 8), 7),
    "kept_dentry": keys.history(keys.dentry(3, 1, b"name"), 7),
    "kept_cookie": keys.history(keys.cookie(3, 1, 16), 7),
    "kept_extent": keys.history(keys.extent(3, 8, 4096), 7),
    "kept_inline": keys.history(keys.inline(3, 8), 7),
    "kept_xattr": keys.history(keys.xattr(3, 8, b"user.a"), 7),
    "kept": keys.kept(keys.dentry(3, 1, b"name"), 7, 5),
    "shelf": keys.shelf(3, 7, 5),
    "snapshot": keys.snapshot(3, 6),
    "snapname": keys.snapname(3, "näme"),
    "bay": keys.bay(1, 2),
    "need": keys.need(1, 2),
    "stripe": keys.stripe(2),
    "pool": keys.pool(1),
    "walk": keys.walk(6),
    "store": keys.store(1),
    "store_secret": keys.store_secret(1),
    "node": keys.node("node"),
    "token": keys.token("token"),
    "ca": keys.ca("ca"),
}


def entry_of(command: c.Command) -> c.Entry:
    return c.Entry(10, 2, command.since, 0, 1, 123 << 16, -5, 1 << 63, (1 << 62) + 1, 3, 4, [7, 8], command)  # type: ignore[arg-type]


def lines_of(made: dict[str, bytes]) -> str:
    return "".join(f"{name} {raw.hex()}\n" for name, raw in made.items())


def golden(name: str, made: dict[str, bytes]) -> dict[str, bytes]:
    """Compare with the golden file (or rewrite it); returns what the file holds."""
    path = GOLDEN / name
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN") == "1":
        path.write_text(lines_of(made))
    text = path.read_text()
    assert text == lines_of(made), f"{name} differs: is this change of the format meant?"
    return {name: bytes.fromhex(raw) for name, _, raw in (line.partition(" ") for line in text.splitlines())}


def test_commands() -> None:
    made = {type(command).__name__: c.entry_encode(entry_of(command)) for command in COMMANDS}
    held = golden("commands.txt", made)
    assert {type(command) for command in COMMANDS} == set(typing.get_args(c.AnyCommand))
    for command in COMMANDS:
        assert c.entry_decode(held[type(command).__name__]) == entry_of(command)


RECORDS: list[c.DecidedRecord] = [
    c.DecidedRecord(number, (1 << 62) + number, 1_700_000_000_000_000_000, command, number - 1, leads_to, 1 << 31, ino)  # type: ignore[arg-type]
    for number, (command, leads_to, ino) in enumerate(
        (
            (c.Create(1, 2, b"name\xff", 0o120777, 3, 4, 5, b"target", False, 0o22), [0], 1 << 40),
            (c.Tmpfile(1, 2, 0o600, 3, 4, 0o22, False), [], 1 << 40),
            (c.Link(1, 2, 3, b"name"), [0], 0),
            (c.Unlink(1, 2, b"name", True), [7], 0),
            (c.Rmdir(1, 2, b"name", True), [7], 0),
            (c.Rename(1, 2, b"a", 3, b"b", 4, True, 4, 5), [7, 8], 9),
            (c.SetAttr(1, 2, 0xFF, 0o4755, 3, 4, 5, -6, None, 7, 8, 9), [], 0),
            (c.SetXattr(1, 2, b"user.a", b"\0value", 1, True), [], 0),
            (c.RemoveXattr(1, 2, b"user.a"), [], 0),
            (c.ReleaseOrphan(1, [2, 3]), [], 0),
            (c.Fallocate(1, 2, 3, 1 << 40, 4096, True), [], 0),
            (c.SetLock(1, 2, 0, 1 << 63, 4, 1, 0, (1 << 63) - 1), [], 0),
        ),
        1,
    )
]


def test_records() -> None:
    made = {type(record.command).__name__: c.record_encode(record) for record in RECORDS}
    held = golden("records.txt", made)
    assert {type(record.command) for record in RECORDS} == set(typing.get_args(c.DelegatedCommand))
    for record in RECORDS:
        assert c.record_decode(held[type(record.command).__name__]) == record


def test_a_record_of_the_largest_command_has_a_bound() -> None:
    largest = c.SetXattr(1, (1 << 63) - 1, bytes(XATTR_NAME_BYTES_MAX), bytes(XATTR_VALUE_BYTES_MAX), 2, True)
    record = c.DecidedRecord(
        (1 << 63) - 1, (1 << 63) - 1, (1 << 63) - 1, largest, (1 << 63) - 1, [(1 << 63) - 1] * 2, (1 << 32) - 1, (1 << 63) - 1
    )
    assert len(c.record_encode(record)) <= OP_RECORD_BYTES_MAX


def test_damaged_records_raise_only_what_is_documented(seed: int) -> None:
    chance = random.Random(seed)
    for record in RECORDS:
        for _ in range(50):
            try:
                c.record_decode(mutated(chance, c.record_encode(record)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue


def test_rows() -> None:
    held = golden("rows.txt", {codec.what: codec.dumps(row) for codec, row in ROWS})
    assert {codec.what for codec, _ in ROWS} == {kind.__name__ for kind in rows.Row.__subclasses__()}
    for codec, row in ROWS:
        assert codec.loads(held[codec.what]) == row


BEFORE_POOLS: list[tuple[Sealed, rows.Row, str]] = [  # as builds of level 4 write them
    (
        rows.DEVICE,
        rows.DeviceRow(1, "device", 1 << 30, 1 << 26, 15, 1 << 20, True, 1, 14, 1, "home", True, True, [(15, 100)], True),
        "a896e499019f01a6646576696365ce40000000ce040000000fce00100000c3010e01a4686f6d65c3c391920f64c3",
    ),
    (rows.SEGMENT, rows.SegmentRow(*range(1, 13)), "9f213703019c0102030405060708090a0b0c"),
    (
        rows.VOLUME,
        rows.VolumeRow(1, "uuid", "name", *range(3, 11), False, 12, 13, 14, 15, 16, True, 17, "home", 1, 18),
        "acdd773401dc001601a475756964a46e616d65030405060708090ac20c0d0e0f10c311a4686f6d650112",
    ),
    (
        rows.NODE,
        rows.NodeRow("node", "name", "node", "active", "h:1", "h:2", {"zone": "a"}, 1, "1.2.3", 2, True, 3, b"key"),
        "adca6ae6019da46e6f6465a46e616d65a46e6f6465a6616374697665a3683a31a3683a3281a47a6f6e65a16101a5312e322e3302c303c4036b6579",
    ),
]


def test_rows_without_a_pool_keep_their_bytes() -> None:
    """Voters of builds that know no pools compare the digests of these with ours."""
    for codec, row, text in BEFORE_POOLS:
        assert codec.dumps(row).hex() == text
        assert codec.loads(bytes.fromhex(text)) == row
    never_absent = rows.DeviceRow(1, "device", 1 << 30, 1 << 26, 15, 1 << 20, True, 1, 14, 1, "home", True, True, [(15, 100)])
    assert rows.DEVICE.dumps(never_absent)[5:] == bytes.fromhex(BEFORE_POOLS[0][2])[5:-1].replace(b"\x9f\x01", b"\x9e\x01")


BEFORE_CHAPTERS: list[tuple[Sealed, rows.Row, str]] = [  # as builds without snapshots write them
    (
        rows.VOLUME,
        rows.VolumeRow(1, "uuid", "name", *range(3, 11), False, 12, 13, 14, 15, 16, True, 17, "home", 1, 18, WANT),
        "313f979a01dc001701a475756964a46e616d65030405060708090ac20c0d0e0f10c311a4686f6d650112970302040201a3737364c3",
    ),
    (rows.REAP, rows.ReapRow(1, 2), "3b5151d301920102"),
    (
        rows.SESSION,
        rows.SessionRow(1, 2, 3, 4, "node", "boot", 5, 6, True, 7, True, 8, True, True),
        "4e04752b019e01020304a46e6f6465a4626f6f740506c307c308c3c3",
    ),
    (
        rows.INODE,
        rows.InodeRow(*range(1, 14), True, True, *range(3, 10), b"target", 4, 5, 6, [(7, 8), (9, 10)], True, 11, 2),
        "a73faccc01dc001e0102030405060708090a0b0c0dc3c303040506070809c4067461726765740405069292070892090ac30b02",
    ),
    (rows.DENTRY, rows.DentryRow(1, 0o100000, 16, 4, 5), "e3873ab5019501cd8000100405"),
    (rows.COOKIE, rows.CookieRow(1, 0o100000, b"name"), "8dad149f019301cd8000c4046e616d65"),
    (rows.EXTENT, rows.ExtentRow(*range(1, 9), True, True), "b03f9373019a0102030405060708c3c3"),
    (rows.INLINE, rows.InlineRow(b"data"), "db4421620191c40464617461"),
    (rows.XATTR, rows.XattrRow(b"value"), "7bb9fe650191c40576616c7565"),
]


def test_rows_of_volumes_without_chapters_keep_their_bytes() -> None:
    """Stores of before open, and voters of builds of before compare the digests of these with ours."""
    for codec, row, text in BEFORE_CHAPTERS:
        assert codec.dumps(row).hex() == text
        assert codec.loads(bytes.fromhex(text)) == row


def test_rows_of_pools_have_room_for_what_comes_later() -> None:
    """Stripes, needs and the figures of a pool are read by name, before anything in this build writes them."""
    written = {codec.what: codec.loads(codec.dumps(row)) for codec, row in ROWS}
    stripe, pool = written["StripeRow"], written["PoolRow"]
    assert (stripe.data, stripe.parities_wanted, stripe.parities, stripe.members) == (2, 1, [(5, 6)], [(1, 2, 3, 4)])
    assert (pool.reserve_percent, pool.heal_bytes_per_s, pool.lost_after_ms) == (5, 1 << 20, 60_000)
    assert written["NeedRow"].since_ms == 2 and written["SegmentRow"].want.parities == 2
    assert len({BAY_MIRROR, BAY_COPYING, BAY_PARITY, BAY_STALE}) == 4


def test_every_field_of_a_row_is_in_its_golden_line() -> None:
    for _, row in ROWS:
        optional = [field for field in msgspec.structs.fields(row) if field.default is not msgspec.NODEFAULT]
        untouched = {field.name for field in optional if getattr(row, field.name) == field.default}
        assert untouched <= {"compat", "ro_compat", "incompat", "deleted"}, (type(row).__name__, untouched)


def test_keys() -> None:
    golden("keys.txt", KEYS)
    kinds = [keys.kind_of(key)[2] for key in KEYS.values()]
    assert len(set(kinds)) == len(kinds) == 54


def test_keys_read_back() -> None:
    assert keys.reverse_of(KEYS["reverse"]) == (2, 65536, 3, 8, 4096, 0)
    assert keys.reverse_of(keys.reverse_until(KEYS["reverse"], 7)) == (2, 65536, 3, 8, 4096, 7)
    assert keys.reap_of(KEYS["reap"]) == (keys.REAP_TRIM, 3, 8, 9)
    assert keys.session_inode_of(KEYS["locker"]) == (4, 3, 8)
    assert keys.bay_place(KEYS["bay"]) == (1, 2) and keys.need_of(KEYS["need"]) == (1, 2)
    assert (keys.first_u64(KEYS["extent"]), keys.last_u64(KEYS["extent"])) == (8, 4096)
    for name in ("inode", "dentry", "cookie", "extent", "inline", "xattr"):
        assert keys.history_of(KEYS[f"kept_{name}"]) == (KEYS[name], 7)
    assert keys.kept_of(KEYS["kept"]) == (7, 5, KEYS["dentry"]) and keys.shelf_of(KEYS["shelf"]) == (7, 5)
    assert KEYS["dentry"][keys.NAME_AT :] == b"name" and KEYS["xattr"][keys.NAME_AT :] == b"user.a"


def test_ranges_hold_exactly_their_rows() -> None:
    low, high = keys.cookies_after(3, 1, 16)
    assert keys.cookie(3, 1, 16) < low <= keys.cookie(3, 1, 17) < keys.cookie(3, 1, keys.U64_MAX) < high <= keys.cookie(3, 2, 0)
    for span, inside, outside in (
        (keys.extents_range(3, 8), keys.extent(3, 8, keys.U64_MAX), keys.extent(3, 9, 0)),
        (keys.kind_range(3, keys.INODE), keys.inode(3, keys.U64_MAX), keys.dentry(3, 0, b"")),
        (keys.volume_range(3), keys.orphan(3, keys.U64_MAX, keys.U64_MAX), keys.inode(4, 0)),
        (keys.bays_range(1), keys.bay(1, (1 << 32) - 1), keys.bay(2, 0)),
        (keys.held_range(4), keys.held(4, keys.U64_MAX), keys.held(5, 0)),
        (keys.reverse_range(2), keys.reverse(2, 1 << 60, 9, 9, 9), keys.reverse(3, 0, 0, 0, 0)),
        (keys.trims_range(3, 8), keys.reap(keys.REAP_TRIM, 3, 8, 1 << 60), keys.reap(keys.REAP_TRIM, 3, 9, 0)),
        (keys.claims_range(3), keys.claim(3, "\U0010ffff" * 16, "p"), keys.claim(4, "", "")),
        (keys.kept_range(3, 7, 5), keys.kept(keys.xattr(3, keys.U64_MAX, b"\xff" * 255), 7, 5), keys.kept(keys.inode(3, 0), 7, 6)),
        (keys.xattrs_range(3, 8), keys.xattr(3, 8, b"\xff" * 255), keys.xattr(3, 9, b"")),
    ):
        assert span[0] <= inside < span[1] <= outside


# --- fuzz ---------------------------------------------------------------------------------------------------------------
def mutated(chance: random.Random, raw: bytes) -> bytes:
    if chance.random() < 0.2:
        return chance.randbytes(chance.randrange(60))
    out = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out) + 1)
        what = chance.randrange(3)
        if what == 0:
            out[at:at] = chance.randbytes(chance.randrange(5))
        elif what == 1:
            del out[at : at + chance.randrange(5)]
        elif at < len(out):
            out[at] = chance.randrange(256)
    return bytes(out)


@pytest.mark.parametrize(("codec", "row"), ROWS, ids=[codec.what for codec, _ in ROWS])
def test_damaged_rows_raise_only_what_is_documented(codec: Sealed, row: rows.Row, seed: int) -> None:
    chance = random.Random(seed)
    raw = codec.dumps(row)
    for _ in range(150):
        damaged = mutated(chance, raw)
        if damaged == raw:
            continue
        with pytest.raises((Corrupt, FormatTooNew)):
            codec.loads(damaged)


def test_rows_with_a_good_checksum_and_a_bad_body(seed: int) -> None:
    """No disk does that, only a bug of ours; fsck says so and goes on."""
    chance = random.Random(seed)
    for codec, row in ROWS:
        for _ in range(100):
            raw = seal(codec.schema, mutated(chance, msgspec.msgpack.encode(row)))
            exam = Examination(MemTxn())
            decoded = exam.decode(b"key", raw, codec)
            if decoded is None:
                assert [fault.kind for fault in exam.faults] == ["undecodable"]
            else:
                assert type(decoded) is codec.type


def test_text_that_is_no_text_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        rows.CLUSTER.loads(seal(1, b"\x92\xa1\xff\x01"))


def test_damaged_entries_raise_only_what_is_documented(seed: int) -> None:
    chance = random.Random(seed)
    for command in COMMANDS:
        raw = c.entry_encode(entry_of(command))
        for _ in range(200):
            try:
                entry = c.entry_decode(mutated(chance, raw))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # what single_voter.decode turns into Corrupt
                continue
            assert type(entry) is c.Entry
