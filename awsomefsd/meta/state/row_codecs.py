"""The codec of each kind of row, for those who read all rows (fsck, scrub)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base.codec import Sealed
from awsomefsd.meta.state import keys, rows

CODEC_OF: dict[int, Sealed] = {
    keys.CLUSTER: rows.CLUSTER,
    keys.DEVICE: rows.DEVICE,
    keys.SEGMENT: rows.SEGMENT,
    keys.FREE: rows.FREE,
    keys.VOLUME: rows.VOLUME,
    keys.VOLNAME: rows.VOLNAME,
    keys.SESSION: rows.SESSION,
    keys.HELD: rows.MARKER,
    keys.MOUNT: rows.MOUNT,
    keys.RESULT: rows.RESULT,
    keys.READER: rows.READER,
    keys.TOMBSTONE: rows.TOMBSTONE,
    keys.LOCKER: rows.MARKER,
    keys.PINNER: rows.MARKER,
    keys.REVERSE: rows.REVERSE,
    keys.SHARED: rows.SHARED,
    keys.NODE: rows.NODE,
    keys.TOKEN: rows.TOKEN,
    keys.CA: rows.CA,
    keys.LEASER: rows.MARKER,
    keys.MEMBERSHIP: rows.MEMBERSHIP,
    keys.CHECKPOINT: rows.CHECKPOINT,
    keys.DEVICE_ERA: rows.DEVICE_ERA,
    keys.BEGUN: rows.MARKER,
    keys.OPLOG: rows.OPLOG,
    keys.BAY: rows.BAY,
    keys.NEED: rows.NEED,
    keys.STRIPE: rows.STRIPE,
    keys.POOL: rows.POOL,
    keys.WALK: rows.WALK,
    keys.STORE: rows.STORE,
    keys.STORE_SECRET: rows.STORE_SECRET,
    keys.REAP: rows.REAP,
    keys.CSI_VOLUME: rows.CSI_VOLUME,
    keys.CSI_NAME: rows.CSI_NAME,
    keys.CLAIM: rows.CLAIM,
    keys.INODE: rows.INODE,
    keys.DENTRY: rows.DENTRY,
    keys.COOKIE: rows.COOKIE,
    keys.EXTENT: rows.EXTENT,
    keys.INLINE: rows.INLINE,
    keys.XATTR: rows.XATTR,
    keys.LOCKS: rows.LOCKS,
    keys.ORPHAN: rows.MARKER,
    keys.LEASE: rows.LEASE,
    keys.SNAPSHOT: rows.SNAPSHOT,
    keys.SNAPNAME: rows.SNAPNAME,
    keys.KEPT: rows.MARKER,
    keys.SHELF: rows.SHELF,
}
CODEC_OF |= {kind + keys.HISTORY: CODEC_OF[kind] for kind in keys.VERSIONED}

# Where a row that says itself which one it is has to stand: the checksum of a row covers its value, and not its key.
OWN_KEY: dict[int, Callable[[Any], bytes]] = {
    keys.DEVICE: lambda row: keys.device(row.device),
    keys.SEGMENT: lambda row: keys.segment(row.segment),
    keys.VOLUME: lambda row: keys.volume(row.volume),
    keys.SESSION: lambda row: keys.session(row.session),
    keys.TOKEN: lambda row: keys.token(row.id),
    keys.CA: lambda row: keys.ca(row.id),
    keys.DEVICE_ERA: lambda row: keys.device_era(row.uuid),
    keys.STORE: lambda row: keys.store(row.store),
    keys.STORE_SECRET: lambda row: keys.store_secret(row.store),
}

SECRET_KINDS = frozenset({keys.TOKEN, keys.CA, keys.STORE_SECRET})  # rows that no dump, stream or log shows
