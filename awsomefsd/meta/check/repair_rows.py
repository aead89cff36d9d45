"""The first step of a repair: rows that do not decode, and keys that no build writes.

A row that does not decode is worth no more than one that is missing, so it goes; the later steps make it again from rows that hold the same
(a dentry from its cookie, an extent from its reverse row and its frame, an index from what it indexes).  Here are the kinds
for which that needs more: the cluster's row (a copy is noted beside the rows), devices (their superblocks), volumes (the name row), trims
(what they hid cannot be told from what they did not) and access ACLs (whose mask was the group's permission bits).
"""

from __future__ import annotations

import stat
import struct
import uuid
from typing import Any

from awsomefsd.base.rule_levels import POOLS
from awsomefsd.base.types import ROOT_INO
from awsomefsd.meta.api import acl
from awsomefsd.meta.check.repair_txn import RepairTxn
from awsomefsd.meta.machine.device_numbers import last_number
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.row_codecs import CODEC_OF, OWN_KEY

_POOL_KINDS = (keys.BAY, keys.NEED, keys.STRIPE, keys.POOL, keys.WALK, keys.STORE, keys.STORE_SECRET)  # and of stores
_MARKERS = (keys.HELD, keys.LOCKER, keys.PINNER, keys.LEASER, keys.ORPHAN)
_LOSSES = {  # kinds whose loss a user may notice, in words
    keys.RESULT: "the answer of a request is gone: if that request is sent again, it is executed again",
    keys.READER: "a reader of the change stream is lost: it has to resynchronise",
    keys.XATTR: "an extended attribute is lost",
    keys.LOCKS: "the locks of a file are gone",
    keys.DEVICE: "the row of a device is lost",
    keys.DEVICE_ERA: "a device is refused, as if the cluster had been rebuilt from it elsewhere: `awsomefsd device recover` rebuilds it",
    keys.CSI_VOLUME: "an orchestrator's record of a volume is lost: the volume stays, and the orchestrator has to be told of it by hand",
    keys.CLAIM: "the record that a node uses a volume is lost",
    keys.SESSION: "a session is gone: what its mount has not flushed cannot be committed",
}


def repair_rows(repairs: RepairTxn) -> None:
    _cluster(repairs)
    _misplaced(repairs)
    _volumes(repairs)
    _devices(repairs)
    numbers = {row.volume for row in repairs.volumes()}
    pools = repairs.cluster().level >= POOLS
    bad: list[tuple[bytes, str]] = []
    for key, raw in repairs.overlay.scan(b"", b"\xff" * 8):
        if not _possible(key) or (not pools and keys.kind_of(key)[2] in _POOL_KINDS):
            bad.append((key, "no row has such a key"))
            continue
        _, volume, kind = keys.kind_of(key)
        if volume and volume not in numbers:
            bad.append((key, f"volume {volume} does not exist"))
        elif repairs.decode(raw, CODEC_OF[kind]) is None:
            bad.append((key, ""))
    for key, why in bad:
        if why:
            repairs.overlay.delete(key)
            repairs.note(f"row {key.hex()}", f"removed: {why}", loss=why.startswith("volume"))
        else:
            _undecodable(repairs, key)


def _possible(key: bytes) -> bool:
    if len(key) < keys.PREFIX_BYTES:
        return False
    shard, volume, kind = keys.kind_of(key)
    if shard != keys.SHARD or kind not in CODEC_OF or (kind in keys.VOLUME_KINDS) != bool(volume):
        return False
    try:
        if kind in (keys.LOCKER, keys.PINNER, keys.LEASER):
            keys.session_inode_of(key)
        elif kind == keys.REVERSE:
            keys.reverse_of(key)
        elif kind == keys.REAP:
            keys.reap_of(key)
        elif kind in (keys.VOLNAME, keys.READER, keys.CSI_NAME, keys.CSI_VOLUME, keys.CHECKPOINT, keys.DEVICE_ERA):
            key[keys.PREFIX_BYTES :].decode()
        elif kind in keys.VOLUME_KINDS and len(key) < keys.NAME_AT:
            return False
    except (struct.error, UnicodeDecodeError):
        return False
    return True


def _undecodable(repairs: RepairTxn, key: bytes) -> None:
    _, volume, kind = keys.kind_of(key)
    where = f"{CODEC_OF[kind].what} {key.hex()}"
    if kind in _MARKERS:
        repairs.overlay.put(key, rows.MARK)
        repairs.note(where, "written again: the key has everything")
    elif kind == keys.LEASE:
        changes = repairs.cluster().applied_index + 1  # not a number that any mount knows
        repairs.put(key, rows.LeaseRow(changes=changes), rows.LEASE)
        repairs.note(where, "written again: nobody holds the write lease")
    elif kind == keys.REAP:
        _reap(repairs, key, where)
    elif kind in (keys.CLUSTER, keys.MEMBERSHIP):
        return  # stays as what remains
    else:
        repairs.overlay.delete(key)
        repairs.note(where, "does not decode: " + _LOSSES.get(kind, "removed, to be made again from what is known"), loss=kind in _LOSSES)
        if kind == keys.INODE:
            repairs.damaged_inodes.add((volume, keys.first_u64(key)))
        elif kind == keys.XATTR and key[keys.NAME_AT :] == acl.ACCESS:
            _without_acl(repairs, volume, keys.first_u64(key))


def _without_acl(repairs: RepairTxn, volume: int, ino: int) -> None:
    """Takes the group's permission bits away: they were the mask of an ACL that is lost, and might give more than it did."""
    row: rows.InodeRow | None = repairs.get(keys.inode(volume, ino), rows.INODE)
    if row is not None:
        row.mode &= ~0o070
        repairs.put(keys.inode(volume, ino), row, rows.INODE)
        repairs.note(f"volume {volume} inode {ino}", f"its ACL is lost, so its group has no rights any more: mode {row.mode:o}", loss=True)


def _reap(repairs: RepairTxn, key: bytes, where: str) -> None:
    kind, volume, ino, index = keys.reap_of(key)
    if kind != keys.REAP_TRIM:
        repairs.put(key, rows.ReapRow(), rows.REAP)
        repairs.note(where, "written again: it begins again")
        return
    repairs.overlay.delete(key)
    lose_unknown(repairs, volume, ino, index)


def lose_unknown(repairs: RepairTxn, volume: int, ino: int, index: int) -> None:
    """Makes the extents of an inode that were committed up to entry `index` lost: the trim that hid some of them is gone."""
    span = keys.extents_range(volume, ino)
    for key, row in repairs.scan(span, rows.EXTENT):
        if row.index <= index and row.segment:
            repairs.put(key, lost(row.length, row.index), rows.EXTENT)
    repairs.note(f"volume {volume} inode {ino}", "what a truncation had cut off is not known any more: its older bytes are lost", loss=True)


def lost(length: int, index: int) -> rows.ExtentRow:
    return rows.ExtentRow(length, 0, 0, 0, 0, 0, 0, index, lost=True)


# --- rows of which there is one each ------------------------------------------------------------------------------------------
def _cluster(repairs: RepairTxn) -> None:
    if repairs.get(keys.cluster(), rows.CLUSTER) is not None or not repairs.hints.cluster_copy:
        return
    copy = repairs.decode(repairs.hints.cluster_copy, rows.CLUSTER)
    if copy is not None:
        repairs.save_cluster(copy)
        repairs.note("cluster", "its row is taken from the copy of the last commit")


def _misplaced(repairs: RepairTxn) -> None:
    """Puts rows in the place that they name themselves.  What has its own place is right, and a second one that names this goes.

    All are taken out first: two may have changed places, and then neither is in the other's way.
    """
    for kind, own_key in OWN_KEY.items():
        codec = CODEC_OF[kind]
        misplaced = [(key, own_key(row), row) for key, row in repairs.scan(keys.kind_range(0, kind), codec) if own_key(row) != key]
        for key, _, _ in misplaced:
            repairs.overlay.delete(key)
        for key, place, row in misplaced:
            free = repairs.get(place, codec) is None
            if free:
                repairs.put(place, row, codec)
            where = f"{codec.what} {key.hex()}"
            repairs.note(where, f"moved to its own place, {place.hex()}" if free else f"removed: its own place, {place.hex()}, has a row")


def _volumes(repairs: RepairTxn) -> None:
    """Makes the rows of volumes again that have a root or a name and no row."""
    names = {row.volume: key[keys.PREFIX_BYTES :].decode(errors="replace") for key, row in _names(repairs)}
    known = {row.volume for row in repairs.volumes()}
    damaged = {int.from_bytes(key[keys.PREFIX_BYTES :], "big") for key, _ in repairs.overlay.scan(*keys.kind_range(0, keys.VOLUME))} - known
    wanted = sorted(damaged | set(names))
    seen = known | set(wanted)
    at = keys.volume_range(1)[0]
    while (found := next(iter(repairs.overlay.scan(at, b"\xff" * 8)), None)) is not None:  # one scan a volume
        key = found[0]
        volume = keys.kind_of(key)[1] if len(key) >= keys.PREFIX_BYTES else 0
        if volume and volume not in seen and repairs.get(keys.inode(volume, ROOT_INO), rows.INODE) is not None:
            wanted.append(volume)
        seen.add(volume)
        at = keys.volume_range(volume)[1] if volume else key + b"\0"
    for number in wanted:
        if number in known or not number:
            continue
        row = _volume(repairs, number, names.get(number, f"recovered-{number}"))
        repairs.put(keys.volume(number), row, rows.VOLUME)
        repairs.note(f"volume {number}", f"made again as {row.name}: its quotas and its uuid are lost", loss=True)


def _names(repairs: RepairTxn) -> list[tuple[bytes, Any]]:
    return repairs.scan(keys.kind_range(0, keys.VOLNAME), rows.VOLNAME)


def _volume(repairs: RepairTxn, number: int, name: str) -> rows.VolumeRow:
    root: rows.InodeRow | None = repairs.get(keys.inode(number, ROOT_INO), rows.INODE)
    made = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{repairs.cluster().uuid} {number}"))
    row = rows.VolumeRow(number, made, name, 0, 0)
    if root is not None and stat.S_ISDIR(root.mode):
        row.stamp, row.site = root.stamp, root.site
    row.exclusives = repairs.cluster().next_session  # more often than any mount knows
    queued = repairs.overlay.get(keys.reap(keys.REAP_VOLUME, number, 0, 0))
    row.deleted = queued is not None
    return row


def _devices(repairs: RepairTxn) -> None:
    """Makes the row of a device again, if exactly one row is missing and exactly one superblock has none."""
    cluster = repairs.cluster()
    known = {row.device: row for row in repairs.devices()}
    missing = [number for number in range(1, cluster.next_device) if number not in known]
    unclaimed = [facts for facts in repairs.hints.devices if facts.uuid not in {row.uuid for row in known.values()}]
    if len(missing) != 1 or len(unclaimed) != 1:
        return
    number, facts = missing[0], unclaimed[0]
    before = [last_number(row) for row in known.values() if row.device < number]
    row = rows.DeviceRow(
        number, facts.uuid, facts.bytes, facts.segment_bytes, facts.segments, facts.first_segment_offset, False,
        max(before, default=1), 0,
    )  # fmt: skip
    repairs.put(keys.device(number), row, rows.DEVICE)
    repairs.note(f"device {number}", "made again from the superblock of the device")
