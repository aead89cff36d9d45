"""fsck of the metadata: a sound state has no fault, and each planted one is found by its name."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.codec import Sealed
from awsomefsd.base.types import (
    BAY_MIRROR,
    FIRST_COOKIE,
    SEGMENT_FREE,
    SEGMENT_METADATA,
    SEGMENT_SEALED,
    Lock,
    Redundancy,
    SegmentBay,
    StoreOptions,
)
from awsomefsd.meta.api import acl
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.check.check import check
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import KINDS
from tests.rigs.machine_driver import Drive

Plant = Callable[["Ground"], None]


class Ground:
    """A state with something of every kind, and the tools to damage it."""

    def __init__(self) -> None:
        self.drive = drive = Drive(segments=16)
        self.volume = drive.make_volume()
        drive.open()
        leased = drive.lease(4)
        self.leased = leased[0].segment
        self.sealed = leased[1].segment
        self.freed = leased[2].segment
        self.file = drive.create(b"file")
        drive.write(leased[0], self.file, 0, 1000)
        drive.write(leased[0], self.file, 2000, 1000)
        drive.write(leased[1], self.file, 4000, 1000, sealed=True)
        dead = drive.create(b"dead")
        drive.write(leased[2], dead, 0, 10, sealed=True)
        drive.ok(c.Unlink(self.volume, 1, b"dead"))
        self.folder = drive.mkdir(b"folder")
        self.inner = drive.mkdir(b"inner", self.folder)
        self.symlink = drive.create(b"link", mode=0o120777, target=b"target")
        self.inline = drive.create(b"inline")
        drive.ok(drive.commit(None, c.InodeCommit(self.inline, 1, 1, 5, drive.now, [], [(0, b"hello")])))
        drive.ok(c.SetXattr(self.volume, self.file, b"user.a", b"value"))
        drive.ok(c.SetLock(self.volume, self.file, 0, 1, 1, 1, 0, 10))
        self.orphan = drive.create(b"orphan")
        drive.ok(c.Unlink(self.volume, 1, b"orphan", True))
        self.copied = drive.create(b"copied")
        drive.ok(c.CopyRange(self.volume, self.file, 100, self.copied, 0, 500))
        drive.ok(c.Fallocate(self.volume, self.file, 1, 10_000, 4096))
        drive.ok(c.Reserve(self.volume, 5000, 5000))
        drive.ok(c.RegisterReader("reader", drive.index))
        drive.machine.flush()
        self.txn = drive.txn
        assert check(self.txn) == []

    def change(self, key: bytes, codec: Sealed, **fields: Any) -> None:
        raw = self.txn.get(key)
        assert raw is not None
        row = codec.loads(raw)
        for name, value in fields.items():
            setattr(row, name, value(getattr(row, name)) if callable(value) else value)
        self.txn.put(key, codec.dumps(row))

    def inode(self, ino: int, **fields: Any) -> None:
        self.change(keys.inode(self.volume, ino), rows.INODE, **fields)

    def segment(self, number: int, **fields: Any) -> None:
        self.change(keys.segment(number), rows.SEGMENT, **fields)

    def extent(self, offset: int, **fields: Any) -> None:
        self.change(keys.extent(self.volume, self.file, offset), rows.EXTENT, **fields)

    def cluster(self, **fields: Any) -> None:
        self.change(keys.cluster(), rows.CLUSTER, **fields)

    def remove(self, key: bytes) -> None:
        assert self.txn.delete(key)

    def move(self, key: bytes, place: bytes) -> None:
        raw = self.txn.get(key)
        assert raw is not None and self.txn.get(place) is None
        self.txn.put(place, raw)
        self.remove(key)

    def dentry(self, parent: int, name: bytes, ino: int, kind: int, cookie: int) -> None:
        self.txn.put(keys.dentry(self.volume, parent, name), rows.DENTRY.dumps(rows.DentryRow(ino, kind, cookie, 0, 0)))
        self.txn.put(keys.cookie(self.volume, parent, cookie), rows.COOKIE.dumps(rows.CookieRow(ino, kind, name)))

    def first_cookie(self) -> bytes:
        return keys.cookie(self.volume, 1, FIRST_COOKIE)

    def acl(self, name: bytes, value: bytes) -> None:
        self.txn.put(keys.xattr(self.volume, self.file, name), rows.XATTR.dumps(rows.XattrRow(value)))

    def locks(self, *locks: Lock) -> None:
        self.txn.put(keys.locks(self.volume, self.file), rows.LOCKS.dumps(rows.LocksRow(list(locks))))


def up(value: int) -> int:
    return value + 1


def corrupt(ground: Ground) -> None:
    key = keys.inode(ground.volume, ground.file)
    ground.txn.put(key, ground.txn.rows[key][:-1] + b"\xff")


def loop(ground: Ground) -> None:
    """folder and inner contain each other, and nothing leads there."""
    ground.remove(keys.dentry(ground.volume, 1, b"folder"))
    ground.dentry(ground.inner, b"folder", ground.folder, stat.S_IFDIR, FIRST_COOKIE)


def end_session(ground: Ground) -> None:
    ground.change(keys.session(1), rows.SESSION, ended=True)


NAMED = [(acl.USER_OBJ, 6, 0), (acl.USER, 7, 5), (acl.GROUP_OBJ, 4, 0), (acl.MASK, 4, 0), (acl.OTHER, 4, 0)]
STORE = rows.StoreRow(1, "cold", "s3://bucket", 0, "era", 0, 1, 1, StoreOptions(300_000, 86_400_000))


def stores(ground: Ground, *found: rows.StoreRow) -> None:
    for row in found:
        ground.txn.put(keys.store(row.store), rows.STORE.dumps(row))


def in_bays(ground: Ground, state: int = SEGMENT_FREE, **fields: Any) -> None:
    """A segment in a bay of device 1, which is in a pool."""
    ground.change(keys.device(1), rows.DEVICE, pool=1, host="h")
    row = rows.SegmentRow(98, 0, 0, state, 1, bytes=1 << 20, bays=[SegmentBay(1, 0, 0, BAY_MIRROR)], **fields)
    ground.txn.put(keys.segment(98), rows.SEGMENT.dumps(row))


IN_POOLS: list[Plant] = [
    lambda g: g.change(keys.device(1), rows.DEVICE, pool=1),
    lambda g: g.change(keys.device(1), rows.DEVICE, pool=2),
    lambda g: in_bays(g),
    lambda g: in_bays(g, want=Redundancy(1, 1), state=SEGMENT_SEALED, committed_bytes=5, end=5),
    lambda g: in_bays(g, want=Redundancy(2, 1), state=SEGMENT_SEALED),
]
_POOL_KINDS = ("bay-counters", "pool-row", "bay-segment", "bay-copies", "need")


def deleted_snapshot(ground: Ground) -> None:
    """One that waits for Reap, and is there."""
    ground.txn.put(keys.reap(keys.REAP_SNAPSHOT, 1, 1, 0), rows.REAP.dumps(rows.ReapRow()))
    ground.txn.put(keys.snapshot(1, 1), rows.SNAPSHOT.dumps(rows.SnapshotRow(1, 1)))


IN_HISTORY: list[tuple[str, Plant]] = [
    ("kept-unseen", lambda g: g.txn.put(keys.history(keys.inode(1, g.file), 5), g.txn.rows[keys.inode(1, g.file)])),
    ("kept-marker", lambda g: g.txn.put(keys.history(keys.inode(1, g.file), 5), g.txn.rows[keys.inode(1, g.file)])),
    ("kept-marker", lambda g: g.txn.put(keys.kept(keys.inode(1, g.file), 5, 0), rows.MARK)),
    ("unknown-key", lambda g: g.txn.put(keys.kind_range(1, keys.KEPT)[0] + b"\1", rows.MARK)),
    ("shelf-count", lambda g: g.txn.put(keys.shelf(1, 5, 0), rows.SHELF.dumps(rows.ShelfRow(1, 0)))),
    ("newest-snapshot", lambda g: g.txn.put(keys.snapshot(1, 1), rows.SNAPSHOT.dumps(rows.SnapshotRow(1, 1)))),
    ("snapshot-name", lambda g: g.txn.put(keys.snapshot(1, 1), rows.SNAPSHOT.dumps(rows.SnapshotRow(1, 1, "a")))),
    ("snapshot-name", lambda g: g.txn.put(keys.snapname(1, "a"), rows.SNAPNAME.dumps(rows.SnapshotNameRow(1)))),
    ("reap-stale", lambda g: deleted_snapshot(g)),
    ("newest-snapshot", lambda g: g.change(keys.volume(1), rows.VOLUME, newest=1)),
    ("unknown-volume", lambda g: g.txn.put(keys.snapshot(99, 1), rows.SNAPSHOT.dumps(rows.SnapshotRow(1, 1)))),
]

PLANTS: list[tuple[str, Plant]] = [
    ("undecodable", corrupt),
    ("undecodable", lambda g: g.txn.put(keys.reader("bad"), b"short")),
    ("undecodable", lambda g: g.txn.put(keys.volume(1), rows.MARK)),
    ("unknown-key", lambda g: g.txn.put(b"\0\0\0\0\0\0\x77", rows.MARK)),
    ("unknown-volume", lambda g: g.txn.put(keys.orphan(9, 1, 1), rows.MARK)),
    ("root-missing", lambda g: g.remove(keys.inode(g.volume, 1))),
    ("dentry-without-inode", lambda g: g.remove(keys.inode(g.volume, g.symlink))),
    ("inode-without-dentry", lambda g: g.remove(keys.dentry(g.volume, 1, b"link"))),
    ("wrong-kind", lambda g: g.inode(g.symlink, mode=0o010644)),
    ("wrong-nlink", lambda g: g.inode(g.file, nlink=up)),
    ("wrong-directory-nlink", lambda g: g.inode(g.folder, nlink=up)),
    ("directory-with-two-names", lambda g: g.dentry(1, b"again", g.folder, stat.S_IFDIR, 90)),
    ("directory-unreachable", loop),
    ("wrong-parent", lambda g: g.inode(g.inner, parent=1)),
    ("wrong-entries", lambda g: g.inode(g.folder, entries=up)),
    ("dentry-without-cookie", lambda g: g.remove(g.first_cookie())),
    ("cookie-without-dentry", lambda g: g.remove(keys.dentry(g.volume, 1, b"file"))),
    ("cookie-without-dentry", lambda g: g.txn.put(keys.cookie(g.volume, 1, 80), rows.COOKIE.dumps(rows.CookieRow(2, 0, b"x")))),
    ("cookie-mismatch", lambda g: g.change(g.first_cookie(), rows.COOKIE, ino=99)),
    ("cookie-counter", lambda g: g.inode(1, next_cookie=FIRST_COOKIE)),
    ("ino-counter", lambda g: g.change(keys.volume(1), rows.VOLUME, next_ino=3)),
    ("symlink-size", lambda g: g.inode(g.symlink, size=up)),
    ("xattr-count", lambda g: g.inode(g.file, xattrs=up)),
    ("xattr-count", lambda g: g.inode(g.file, xattr_bytes=up)),
    ("xattr-count", lambda g: g.inode(g.file, consistency=up)),
    ("xattr-without-inode", lambda g: g.txn.put(keys.xattr(g.volume, 99, b"a"), rows.XATTR.dumps(rows.XattrRow(b"v")))),
    ("acl-invalid", lambda g: g.acl(acl.ACCESS, b"no ACL")),
    ("acl-invalid", lambda g: g.acl(acl.DEFAULT, acl.pack(NAMED))),
    ("acl-mode", lambda g: g.acl(acl.ACCESS, acl.pack(acl.with_mode(NAMED, 0o100)))),
    ("orphan-without-inode", lambda g: g.remove(keys.inode(g.volume, g.orphan))),
    ("orphan-with-name", lambda g: g.inode(g.orphan, nlink=1)),
    ("orphan-of-ended-session", end_session),
    ("orphan-index", lambda g: g.remove(keys.pinner(1, g.volume, g.orphan))),
    ("orphan-index", lambda g: g.remove(keys.orphan(g.volume, g.orphan, 1))),
    ("lock-without-inode", lambda g: g.remove(keys.inode(g.volume, g.file))),
    ("lock-of-ended-session", end_session),
    ("lock-conflict", lambda g: g.locks(Lock(0, 1, 1, 1, 0, 9, 1), Lock(0, 2, 1, 1, 5, 6, 1))),
    ("lock-index", lambda g: g.remove(keys.locker(1, g.volume, g.file))),
    ("lock-index", lambda g: g.remove(keys.locks(g.volume, g.file))),
    ("write-lease", lambda g: g.txn.put(keys.lease(g.volume, 99), rows.LEASE.dumps(rows.LeaseRow()))),
    ("write-lease", lambda g: g.txn.put(keys.lease(g.volume, g.file), rows.LEASE.dumps(rows.LeaseRow(1, 1)))),
    ("write-lease", lambda g: g.txn.put(keys.lease(g.volume, g.file), rows.LEASE.dumps(rows.LeaseRow(99, 1)))),
    ("inline-without-inode", lambda g: g.txn.put(keys.inline(g.volume, 99), rows.INLINE.dumps(rows.InlineRow(b"x")))),
    ("inline-with-extents", lambda g: g.txn.put(keys.inline(g.volume, g.file), rows.INLINE.dumps(rows.InlineRow(b"x")))),
    ("inline-with-extents", lambda g: g.inode(g.file, inline=True)),
    ("inline-bytes", lambda g: g.inode(g.inline, size=2)),
    ("extent-without-inode", lambda g: g.remove(keys.inode(g.volume, g.file))),
    ("extents-overlap", lambda g: g.extent(0, length=2001)),
    ("extent-past-size", lambda g: g.inode(g.file, size=4500)),
    ("extent-in-free-segment", lambda g: g.segment(g.sealed, state=SEGMENT_FREE)),
    ("extent-in-free-segment", lambda g: g.extent(0, segment=999)),
    ("extent-foreign-incarnation", lambda g: g.segment(g.sealed, incarnation=up)),
    ("extent-past-committed", lambda g: g.segment(g.leased, committed_bytes=100)),
    ("extent-count", lambda g: g.inode(g.file, extents=up)),
    ("stored-bytes", lambda g: g.inode(g.file, stored_bytes=up)),
    ("stored-bytes", lambda g: g.remove(keys.inline(g.volume, g.inline))),
    ("extent-without-reverse", lambda g: g.remove(keys.reverse(g.leased, 0, g.volume, g.file, 0))),
    ("reverse-without-extent", lambda g: g.remove(keys.extent(g.volume, g.file, 0))),
    ("reverse-without-extent", lambda g: g.txn.put(keys.reverse(1, 7, 1, 1, 1), rows.REVERSE.dumps(rows.ReverseRow(1)))),
    ("shared-bytes", lambda g: g.remove(keys.shared(g.leased, 0))),
    ("shared-bytes", lambda g: g.change(keys.shared(g.leased, 0), rows.SHARED, runs=[(0, 1000, 2)])),
    ("shared-bytes", lambda g: g.txn.put(keys.shared(g.sealed, 0), rows.SHARED.dumps(rows.SharedRow(1, [(0, 1, 1)])))),
    ("allocated-bytes", lambda g: g.inode(g.file, allocated_bytes=up)),
    ("allocated-bytes", lambda g: g.cluster(allocated_bytes=up)),
    ("trim-count", lambda g: g.inode(g.file, trims=up)),
    ("used-bytes", lambda g: g.change(keys.volume(1), rows.VOLUME, used_bytes=up)),
    ("used-inodes", lambda g: g.change(keys.volume(1), rows.VOLUME, used_inodes=up)),
    ("volume-reserved", lambda g: g.change(keys.volume(1), rows.VOLUME, reserved_bytes=up)),
    ("volume-granted", lambda g: g.change(keys.volume(1), rows.VOLUME, granted_inodes=up)),
    ("op-log", lambda g: g.txn.put(keys.op_log(99), rows.OPLOG.dumps(rows.OpLogRow(1, numbers=[(5, 7), (6, 8)])))),
    ("volume-holder", lambda g: g.change(keys.volume(1), rows.VOLUME, holder=0)),
    ("volume-holder", end_session),
    ("volume-name", lambda g: g.remove(keys.volname("vol"))),
    ("volume-count", lambda g: g.cluster(volumes=up)),
    ("volume-count", lambda g: g.cluster(next_volume=1)),
    ("session-count", lambda g: g.cluster(sessions=up)),
    ("session-counter", lambda g: g.cluster(next_epoch=1)),
    ("session-segments", lambda g: g.change(keys.session(1), rows.SESSION, segments_leased=up)),
    ("cluster-reserved", lambda g: g.cluster(reserved_bytes=up)),
    ("lease-of-ended-session", end_session),
    ("held-index", lambda g: g.remove(keys.held(1, g.leased))),
    ("held-index", lambda g: g.txn.put(keys.held(1, g.sealed), rows.MARK)),
    ("ended-session-idle", lambda g: g.txn.put(keys.session(0), rows.SESSION.dumps(rows.SessionRow(0, 0, 1, 1, "", "", 1, ended=True)))),
    ("segment-live-bytes", lambda g: g.segment(g.sealed, live_bytes=up)),
    ("segment-dead", lambda g: g.segment(g.freed, state=SEGMENT_SEALED)),
    ("segment-device", lambda g: g.segment(g.sealed, index=9)),
    ("segment-bytes", lambda g: g.segment(g.sealed, committed_bytes=1 << 40)),
    ("free-list", lambda g: g.remove(keys.free(1, 2))),
    ("free-list", lambda g: g.segment(g.freed, freed_index=up)),
    ("begun-index", lambda g: g.txn.put(keys.begun(1, 2), rows.MARK)),
    ("misplaced-row", lambda g: g.move(keys.device(1), keys.device(5))),
    ("misplaced-row", lambda g: g.move(keys.segment(g.sealed), keys.segment(g.sealed ^ 0x40))),
    ("misplaced-row", lambda g: g.move(keys.volume(1), keys.volume(3))),
    ("misplaced-row", lambda g: g.move(keys.session(1), keys.session(9))),
    ("misplaced-row", lambda g: g.txn.put(keys.session(9), g.txn.rows[keys.session(1)])),
    ("device-counters", lambda g: g.change(keys.device(1), rows.DEVICE, segments_free=up)),
    ("device-counters", lambda g: g.change(keys.device(1), rows.DEVICE, unused_from=up)),
    ("cluster-bytes", lambda g: g.cluster(free_bytes=up)),
    ("segment-counter", lambda g: g.cluster(next_segment=3)),
    ("device-missing", lambda g: g.remove(keys.device(1))),
    ("metadata-segment", lambda g: g.segment(g.sealed, state=SEGMENT_METADATA)),
    ("checkpoint-segments", lambda g: g.txn.put(keys.checkpoint("a"), rows.CHECKPOINT.dumps(rows.CheckpointRow("a", [g.sealed])))),
    ("checkpoint-segments", lambda g: g.txn.put(keys.checkpoint("a"), rows.CHECKPOINT.dumps(rows.CheckpointRow("b", [])))),
    ("checkpoint-segments", lambda g: g.txn.put(keys.checkpoint("a"), rows.CHECKPOINT.dumps(rows.CheckpointRow("a", [], [g.sealed])))),
    ("csi-volume", lambda g: g.txn.put(keys.csi_volume("i"), rows.CSI_VOLUME.dumps(rows.CsiVolumeRow("i", "n", 99, "", True, 1, False)))),
    ("csi-name", lambda g: g.txn.put(keys.csi_name("n"), rows.CSI_NAME.dumps(rows.CsiNameRow("i")))),
    ("claim", lambda g: g.txn.put(keys.claim(99, "n", ""), rows.CLAIM.dumps(rows.ClaimRow(99, "", "n", "b", 1)))),
    ("reap-count", lambda g: g.cluster(reaps=up)),
    ("reap-stale", lambda g: g.txn.put(keys.reap(keys.REAP_INODE, 1, g.file, 0), rows.REAP.dumps(rows.ReapRow()))),
    ("reap-stale", lambda g: g.txn.put(keys.reap(keys.REAP_TRIM, 1, 99, 1), rows.REAP.dumps(rows.ReapRow()))),
    ("reap-stale", lambda g: g.txn.put(keys.reap(keys.REAP_SESSION, 0, 1, 0), rows.REAP.dumps(rows.ReapRow()))),
    ("reap-missing", lambda g: g.change(keys.volume(1), rows.VOLUME, deleted=True)),
    ("bay-index", lambda g: g.txn.put(keys.bay(1, 2), rows.BAY.dumps(rows.BayRow(99, 1, 1)))),
    ("need", lambda g: g.txn.put(keys.need(1, 2), rows.NEED.dumps(rows.NeedRow(1, 1)))),
    *zip(_POOL_KINDS, IN_POOLS, strict=True),
    ("store", lambda g: stores(g, replace(STORE, state=1))),
    ("store", lambda g: stores(g, replace(STORE, changed=1 << 40))),
    ("store-name", lambda g: stores(g, STORE, replace(STORE, store=2, changed=2, name="other"))),
    ("store-secret", lambda g: g.txn.put(keys.store_secret(1), rows.STORE_SECRET.dumps(rows.StoreSecretRow(1, b"x")))),
    *IN_HISTORY,
    ("reader-count", lambda g: g.remove(keys.reader("reader"))),
    (
        "stale-tombstone",
        lambda g: g.txn.put(keys.tombstone(1 << 40, 0), rows.TOMBSTONE.dumps(rows.TombstoneRow(1, 1, 1, b"", 0, 0))),
    ),
]


@pytest.mark.parametrize(("kind", "plant"), PLANTS, ids=[f"{kind}-{at}" for at, (kind, _) in enumerate(PLANTS)])
def test_planted(kind: str, plant: Plant) -> None:
    ground = Ground()
    plant(ground)
    faults = check(ground.txn)
    assert kind in {fault.kind for fault in faults}, faults
    assert all(fault.where and fault.detail for fault in faults)


def test_every_kind_is_planted() -> None:
    assert {kind for kind, _ in PLANTS} == KINDS


def test_any_damaged_row_is_found(seed: int) -> None:
    """Whatever byte of whatever value flips, the check says so and does not fall over."""
    chance = random.Random(seed)
    ground = Ground()
    sound = dict(ground.txn.rows)
    for key in sorted(sound):
        value = bytearray(sound[key])
        value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
        ground.txn.rows[key] = bytes(value)
        faults = check(ground.txn)
        if keys.kind_of(key)[2] not in (keys.LOCKER, keys.PINNER, keys.HELD, keys.ORPHAN):
            assert "undecodable" in {fault.kind for fault in faults}, (key.hex(), faults)
        else:
            assert faults, key.hex()
        ground.txn.rows[key] = sound[key]
    assert check(ground.txn) == []


NAMED_BY_KEY = (keys.MOUNT, keys.RESULT, keys.TOMBSTONE, keys.READER, keys.NODE, keys.XATTR)  # nothing else says which one it is


def test_any_row_in_the_place_of_another_is_found(seed: int) -> None:
    """Whatever bit of whatever key flips: a row's checksum does not cover it."""
    chance = random.Random(seed)
    ground = Ground()
    sound = dict(ground.txn.rows)
    for key in sorted(sound):
        kind = keys.kind_of(key)[2]
        if kind in NAMED_BY_KEY or (kind == keys.EXTENT and not rows.EXTENT.loads(sound[key]).segment):
            continue
        for at in range(keys.PREFIX_BYTES, len(key)):
            wrong = bytearray(key)
            wrong[at] ^= 1 << chance.randrange(8)
            if bytes(wrong) not in sound:
                ground.move(key, bytes(wrong))
                assert check(ground.txn), (key.hex(), bytes(wrong).hex())
                ground.move(bytes(wrong), key)
    assert check(ground.txn) == []


def test_any_missing_row_does_no_harm_to_the_check() -> None:
    ground = Ground()
    for key in sorted(ground.txn.rows):
        value = ground.txn.rows[key]
        ground.txn.delete(key)
        faults = check(ground.txn)
        if keys.kind_of(key)[2] not in (keys.MOUNT, keys.RESULT, keys.TOMBSTONE):
            assert faults, key.hex()
        ground.txn.put(key, value)
