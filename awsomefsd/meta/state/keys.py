"""The keys of the state store are big-endian throughout, so that rows that are read together are one range.

All keys start with ``shard u16 | volume u32 | type u8``; rows of the cluster have volume 0.  Values are sealed rows (rows.py).

Cluster (volume 0)::

    01 cluster                                                                  ClusterRow    counters, totals, applied index, features
    02 device      device u32                                                   DeviceRow
    03 segment     segment u64                                                  SegmentRow    absent: never leased yet, free
    04 free        device u32 | index u32                                       FreeRow       freed segments; those never leased have none
    05 volume      volume u32                                                   VolumeRow
    06 volname     name                                                         VolumeNameRow
    07 session     session u64                                                  SessionRow    live, or ended with segments in quarantine
    08 held        session u64 | segment u64                                    MarkerRow     leased to it or quarantined because of it
    09 mount       mount u64                                                    MountRow      who served it last
    0a result      mount u64 | unique u64                                       ResultRow     until acknowledged
    0b reader      name                                                         ReaderRow     of the change stream
    0c tombstone   index u64 | number u32                                       TombstoneRow  only while a reader is registered
    0d locker      session u64 | volume u32 | ino u64                           MarkerRow     where a session has locks
    0e pinner      session u64 | volume u32 | ino u64                           MarkerRow     which orphans a session has open
    0f reverse     segment u64 | frame offset u64 | volume u32 | ino u64 | file offset u64   ReverseRow   who uses a place
    10 shared      segment u64 | frame offset u64                               SharedRow     who shares the bytes of a frame
    11 node        node                                                         NodeRow       removed ones stay for a while
    12 token       id                                                           TokenRow
    13 ca          id                                                           CaRow         with its key: no dump shows it
    14 bay         device u32 | index u32                                       BayRow        of a pool; absent: free
    15 need        priority u8 | segment u64                                    NeedRow       what a segment lacks
    16 stripe      stripe u64                                                   StripeRow
    17 pool        pool u32                                                     PoolRow
    18 leaser      session u64 | volume u32 | ino u64                           MarkerRow     where a session has write leases
    19 csivolume   id                                                           CsiVolumeRow  what an orchestrator asked for
    1a csiname     name                                                         CsiNameRow    as the orchestrator calls it
    1b claim       volume u32 | node | 0 | path                                 ClaimRow      which node uses it
    1c store       store u64                                                    StoreRow      of objects
    a0 checkpoint  node                                                         CheckpointRow what it keeps for checkpoints
    a6 begun       device u32 | index u32                                       MarkerRow     sealed; what its writer left may be leased
    a8 walk        index u64                                                    WalkRow       over segments or bays, begun by entry `index`
    a7 oplog       mount u64                                                    OpLogRow      its records that are applied, inode numbers
    ac storesecret store u64                                                    StoreSecretRow  no dump shows it
    1f reap        kind u8 | volume u32 | ino u64 | index u64                   ReapRow       what Reap entries still have to free
    40 snapshot    volume u32 | number u32                                      SnapshotRow   live ones
    41 snapname    volume u32 | name                                            SnapshotNameRow  its number

A volume::

    20 inode       ino u64                                                      InodeRow
    21 dentry      parent u64 | name                                            DentryRow
    22 cookie      parent u64 | cookie u64                                      CookieRow     readdir is one range of these
    23 extent      ino u64 | file offset u64                                    ExtentRow
    24 inline      ino u64                                                      InlineRow
    25 xattr       ino u64 | name                                               XattrRow
    26 locks       ino u64                                                      LocksRow      all locks of an inode
    27 orphan      ino u64 | session u64                                        MarkerRow     unlinked, still open there
    2c lease       ino u64                                                      LeaseRow      who writes; only of volumes that were shared
    30 to 35       the key of 20 to 25 | after a name: 0 | until u32            as 20 to 25   a value that a snapshot sees (chapters.py)
    36 kept        until u32 | chapter u32 | type u8 | the rest of the key      MarkerRow     what lies on a shelf
    37 shelf       until u32 | chapter u32                                      ShelfRow

The reverse row of an extent in 33 has `until` u32 behind its key.
"""

from __future__ import annotations

import struct

SHARD = 0  # one shard so far; the field is there so that more need no new format

(
    CLUSTER, DEVICE, SEGMENT, FREE, VOLUME, VOLNAME, SESSION, HELD, MOUNT, RESULT, READER, TOMBSTONE, LOCKER, PINNER, REVERSE,
    SHARED,
) = range(1, 17)  # fmt: skip
NODE, TOKEN, CA = 0x11, 0x12, 0x13
BAY, NEED, STRIPE, POOL = range(0x14, 0x18)
SNAPSHOT, SNAPNAME = 0x40, 0x41
MEMBERSHIP = 0x1E
LEASER = 0x18
CSI_VOLUME, CSI_NAME, CLAIM = 0x19, 0x1A, 0x1B
STORE = 0x1C
REAP = 0x1F
INODE, DENTRY, COOKIE, EXTENT, INLINE, XATTR, LOCKS, ORPHAN = range(0x20, 0x28)
LEASE = 0x2C
VERSIONED = range(INODE, XATTR + 1)
HISTORY = 0x10  # from a versioned kind to that of its kept values
KEPT, SHELF = 0x36, 0x37
HISTORY_KINDS = frozenset({*(kind + HISTORY for kind in VERSIONED), KEPT, SHELF})  # of a volume that has or had snapshots
VOLUME_KINDS = frozenset({*VERSIONED, LOCKS, ORPHAN, LEASE})  # of a volume, which a store of this build may have
CHECKPOINT, DEVICE_ERA, BEGUN, OPLOG, WALK = 0xA0, 0xA5, 0xA6, 0xA7, 0xA8  # of the cluster, like all above LEASE
STORE_SECRET = 0xAC

# in this order: a volume's rows go when nothing points into it; what its deleted snapshots alone saw goes with them, or later
REAP_INODE, REAP_TRIM, REAP_SESSION, REAP_VOLUME, REAP_SNAPSHOT = 1, 2, 3, 4, 5

U64_MAX = (1 << 64) - 1

_PREFIX = struct.Struct(">HIB")
_ONE = struct.Struct(">HIBQ")
_TWO = struct.Struct(">HIBQQ")
_U32 = struct.Struct(">HIBI")
_U32_U32 = struct.Struct(">HIBII")
_SESSION_INODE = struct.Struct(">HIBQIQ")
_REVERSE = struct.Struct(">HIBQQIQQ")
_KEPT_REVERSE = struct.Struct(">HIBQQIQQI")
_REAP = struct.Struct(">HIBBIQQ")
_NUMBERED = struct.Struct(">HIBQI")
_NEED = struct.Struct(">HIBBQ")
_KEPT = struct.Struct(">HIBIIB")

PREFIX_BYTES = _PREFIX.size
_KIND_AT = PREFIX_BYTES - 1
_NAMED = frozenset({DENTRY, XATTR})  # kinds whose keys end in a name, which has no zero byte
NAME_AT = _ONE.size  # where a name starts in a dentry or xattr key

Range = tuple[bytes, bytes]


def kind_range(volume: int, kind: int) -> Range:
    """Returns the range of all rows of a type."""
    return _PREFIX.pack(SHARD, volume, kind), _PREFIX.pack(SHARD, volume, kind + 1)


def volume_range(volume: int) -> Range:
    """Returns the range of all rows in a volume."""
    return _PREFIX.pack(SHARD, volume, 0), _PREFIX.pack(SHARD, volume, 0xFF)


def cluster() -> bytes:
    return _PREFIX.pack(SHARD, 0, CLUSTER)


def membership() -> bytes:
    return _PREFIX.pack(SHARD, 0, MEMBERSHIP)


def node(uuid: str) -> bytes:
    return _PREFIX.pack(SHARD, 0, NODE) + uuid.encode()


def checkpoint(uuid: str) -> bytes:
    return _PREFIX.pack(SHARD, 0, CHECKPOINT) + uuid.encode()


def device_era(uuid: str) -> bytes:
    return _PREFIX.pack(SHARD, 0, DEVICE_ERA) + uuid.encode()


def token(identity: str) -> bytes:
    return _PREFIX.pack(SHARD, 0, TOKEN) + identity.encode()


def ca(identity: str) -> bytes:
    return _PREFIX.pack(SHARD, 0, CA) + identity.encode()


def device(number: int) -> bytes:
    return _U32.pack(SHARD, 0, DEVICE, number)


def segment(number: int) -> bytes:
    return _ONE.pack(SHARD, 0, SEGMENT, number)


def free(device_number: int, index: int) -> bytes:
    return _U32_U32.pack(SHARD, 0, FREE, device_number, index)


def free_range(device_number: int) -> Range:
    return _U32.pack(SHARD, 0, FREE, device_number), _U32.pack(SHARD, 0, FREE, device_number + 1)


def begun(device_number: int, index: int) -> bytes:
    return _U32_U32.pack(SHARD, 0, BEGUN, device_number, index)


def begun_range(device_number: int) -> Range:
    return _U32.pack(SHARD, 0, BEGUN, device_number), _U32.pack(SHARD, 0, BEGUN, device_number + 1)


def bay(device_number: int, index: int) -> bytes:
    return _U32_U32.pack(SHARD, 0, BAY, device_number, index)


def bays_range(device_number: int, first: int = 0) -> Range:
    """Returns the range of a device's bays from the index `first` on."""
    return bay(device_number, first), _U32.pack(SHARD, 0, BAY, device_number + 1)


def bay_place(key: bytes) -> tuple[int, int]:
    """Returns (device, index) of a bay."""
    return int.from_bytes(key[-8:-4], "big"), int.from_bytes(key[-4:], "big")


def need(priority: int, segment_number: int) -> bytes:
    return _NEED.pack(SHARD, 0, NEED, priority, segment_number)


def need_of(key: bytes) -> tuple[int, int]:
    """Returns (priority, segment) of a need."""
    priority, segment_number = _NEED.unpack(key)[3:]
    return priority, segment_number


def stripe(number: int) -> bytes:
    return _ONE.pack(SHARD, 0, STRIPE, number)


def pool(number: int) -> bytes:
    return _U32.pack(SHARD, 0, POOL, number)


def walk(index: int) -> bytes:
    return _ONE.pack(SHARD, 0, WALK, index)


def store(number: int) -> bytes:
    return _ONE.pack(SHARD, 0, STORE, number)


def store_secret(number: int) -> bytes:
    return _ONE.pack(SHARD, 0, STORE_SECRET, number)


def volume(number: int) -> bytes:
    return _U32.pack(SHARD, 0, VOLUME, number)


def volname(name: str) -> bytes:
    return _PREFIX.pack(SHARD, 0, VOLNAME) + name.encode()


def session(number: int) -> bytes:
    return _ONE.pack(SHARD, 0, SESSION, number)


def held(session_number: int, segment_number: int) -> bytes:
    return _TWO.pack(SHARD, 0, HELD, session_number, segment_number)


def held_range(session_number: int) -> Range:
    return _ONE.pack(SHARD, 0, HELD, session_number), _ONE.pack(SHARD, 0, HELD, session_number + 1)


def mount(number: int) -> bytes:
    return _ONE.pack(SHARD, 0, MOUNT, number)


def op_log(mount_number: int) -> bytes:
    return _ONE.pack(SHARD, 0, OPLOG, mount_number)


def result(mount_number: int, unique: int) -> bytes:
    return _TWO.pack(SHARD, 0, RESULT, mount_number, unique)


def reader(name: str) -> bytes:
    return _PREFIX.pack(SHARD, 0, READER) + name.encode()


def tombstone(index: int, number: int) -> bytes:
    return _NUMBERED.pack(SHARD, 0, TOMBSTONE, index, number)


def locker(session_number: int, volume_number: int, ino: int) -> bytes:
    return _SESSION_INODE.pack(SHARD, 0, LOCKER, session_number, volume_number, ino)


def locker_range(session_number: int) -> Range:
    return _ONE.pack(SHARD, 0, LOCKER, session_number), _ONE.pack(SHARD, 0, LOCKER, session_number + 1)


def pinner(session_number: int, volume_number: int, ino: int) -> bytes:
    return _SESSION_INODE.pack(SHARD, 0, PINNER, session_number, volume_number, ino)


def pinner_range(session_number: int) -> Range:
    return _ONE.pack(SHARD, 0, PINNER, session_number), _ONE.pack(SHARD, 0, PINNER, session_number + 1)


def leaser(session_number: int, volume_number: int, ino: int) -> bytes:
    return _SESSION_INODE.pack(SHARD, 0, LEASER, session_number, volume_number, ino)


def leaser_range(session_number: int) -> Range:
    return _ONE.pack(SHARD, 0, LEASER, session_number), _ONE.pack(SHARD, 0, LEASER, session_number + 1)


def session_rest_ranges(session_number: int) -> tuple[Range, ...]:
    """Returns the ranges of what Reap removes of a session that has ended: markers of locks, write leases and pins."""
    return locker_range(session_number), leaser_range(session_number), pinner_range(session_number)


def lease(volume_number: int, ino: int) -> bytes:
    return _ONE.pack(SHARD, volume_number, LEASE, ino)


def csi_volume(id: str) -> bytes:
    return _PREFIX.pack(SHARD, 0, CSI_VOLUME) + id.encode()


def csi_name(name: str) -> bytes:
    return _PREFIX.pack(SHARD, 0, CSI_NAME) + name.encode()


def claim(volume_number: int, node: str, path: str) -> bytes:
    return _U32.pack(SHARD, 0, CLAIM, volume_number) + node.encode() + b"\0" + path.encode()


def claims_range(volume_number: int) -> Range:
    low = _U32.pack(SHARD, 0, CLAIM, volume_number)
    return low, low + b"\xff" * 4


def session_inode_of(key: bytes) -> tuple[int, int, int]:
    """Returns (session, volume, ino) of a locker, pinner or leaser key."""
    return _SESSION_INODE.unpack(key)[3:]


def reverse(segment_number: int, frame_offset: int, volume_number: int, ino: int, file_offset: int) -> bytes:
    return _REVERSE.pack(SHARD, 0, REVERSE, segment_number, frame_offset, volume_number, ino, file_offset)


def reverse_until(key: bytes, until: int) -> bytes:
    """Returns the reverse row of an extent that is kept until a chapter, by the one that it has in the head; `until` 0: that one."""
    return key + until.to_bytes(4, "big") if until else key


def reverse_range(segment_number: int) -> Range:
    return _ONE.pack(SHARD, 0, REVERSE, segment_number), _ONE.pack(SHARD, 0, REVERSE, segment_number + 1)


def reverse_of(key: bytes) -> tuple[int, int, int, int, int, int]:
    """Returns (segment, frame offset, volume, ino, file offset, until) of a reverse key; until 0: of the head."""
    if len(key) == _REVERSE.size:
        segment_number, frame_offset, volume_number, ino, file_offset = _REVERSE.unpack(key)[3:]
        return segment_number, frame_offset, volume_number, ino, file_offset, 0
    return _KEPT_REVERSE.unpack(key)[3:]


def shared(segment_number: int, frame_offset: int) -> bytes:
    return _TWO.pack(SHARD, 0, SHARED, segment_number, frame_offset)


def reap(kind: int, volume_number: int, ino: int, index: int) -> bytes:
    return _REAP.pack(SHARD, 0, REAP, kind, volume_number, ino, index)


def trims_range(volume_number: int, ino: int) -> Range:
    return reap(REAP_TRIM, volume_number, ino, 0), reap(REAP_TRIM, volume_number, ino, U64_MAX)


def reap_of(key: bytes) -> tuple[int, int, int, int]:
    """Returns (kind, volume, ino, index) of a reap key."""
    return _REAP.unpack(key)[3:]


def inode(volume_number: int, ino: int) -> bytes:
    return _ONE.pack(SHARD, volume_number, INODE, ino)


def dentry(volume_number: int, parent: int, name: bytes) -> bytes:
    return _ONE.pack(SHARD, volume_number, DENTRY, parent) + name


def cookie(volume_number: int, parent: int, number: int) -> bytes:
    return _TWO.pack(SHARD, volume_number, COOKIE, parent, number)


def cookies_after(volume_number: int, parent: int, after: int) -> Range:
    """Returns the range of a directory's entries behind a readdir offset."""
    return cookie(volume_number, parent, min(after + 1, U64_MAX)), _ONE.pack(SHARD, volume_number, COOKIE, parent + 1)


def extent(volume_number: int, ino: int, file_offset: int) -> bytes:
    return _TWO.pack(SHARD, volume_number, EXTENT, ino, file_offset)


def extents_range(volume_number: int, ino: int) -> Range:
    return _ONE.pack(SHARD, volume_number, EXTENT, ino), _ONE.pack(SHARD, volume_number, EXTENT, ino + 1)


def inline(volume_number: int, ino: int) -> bytes:
    return _ONE.pack(SHARD, volume_number, INLINE, ino)


def xattr(volume_number: int, ino: int, name: bytes) -> bytes:
    return _ONE.pack(SHARD, volume_number, XATTR, ino) + name


def xattrs_range(volume_number: int, ino: int) -> Range:
    return _ONE.pack(SHARD, volume_number, XATTR, ino), _ONE.pack(SHARD, volume_number, XATTR, ino + 1)


def locks(volume_number: int, ino: int) -> bytes:
    return _ONE.pack(SHARD, volume_number, LOCKS, ino)


def orphan(volume_number: int, ino: int, session_number: int) -> bytes:
    return _TWO.pack(SHARD, volume_number, ORPHAN, ino, session_number)


def orphans_range(volume_number: int, ino: int) -> Range:
    return _ONE.pack(SHARD, volume_number, ORPHAN, ino), _ONE.pack(SHARD, volume_number, ORPHAN, ino + 1)


def history(key: bytes, until: int) -> bytes:
    """Returns where the value that a versioned row had until a chapter is kept.  Keys in history are in the order of those of the head."""
    kind = key[_KIND_AT]
    end = b"\0" if kind in _NAMED else b""
    return key[:_KIND_AT] + bytes((kind + HISTORY,)) + key[PREFIX_BYTES:] + end + until.to_bytes(4, "big")


def history_of(key: bytes) -> tuple[bytes, int]:
    """Returns (key of the head, until) of a key in history."""
    kind = key[_KIND_AT] - HISTORY
    return key[:_KIND_AT] + bytes((kind,)) + key[PREFIX_BYTES : -5 if kind in _NAMED else -4], int.from_bytes(key[-4:], "big")


def kept(key: bytes, until: int, chapter: int) -> bytes:
    """Returns the marker of a kept value, by the key that it has in the head."""
    shard, volume, kind = _PREFIX.unpack_from(key)
    return _KEPT.pack(shard, volume, KEPT, until, chapter, kind) + key[PREFIX_BYTES:]


def kept_of(key: bytes) -> tuple[int, int, bytes]:
    """Returns (until, chapter, key of the head) of a marker."""
    shard, volume, _, until, chapter, kind = _KEPT.unpack_from(key)
    return until, chapter, _PREFIX.pack(shard, volume, kind) + key[_KEPT.size :]


def kept_range(volume_number: int, until: int, chapter: int) -> Range:
    """Returns the range of the markers on one shelf."""
    low = _U32_U32.pack(SHARD, volume_number, KEPT, until, chapter)
    return low, low + b"\xff"


def shelf(volume_number: int, until: int, chapter: int) -> bytes:
    return _U32_U32.pack(SHARD, volume_number, SHELF, until, chapter)


def shelf_of(key: bytes) -> tuple[int, int]:
    """Returns (until, chapter) of a shelf."""
    return int.from_bytes(key[-8:-4], "big"), int.from_bytes(key[-4:], "big")


def snapshot(volume_number: int, number: int) -> bytes:
    return _U32_U32.pack(SHARD, 0, SNAPSHOT, volume_number, number)


def snapname(volume_number: int, name: str) -> bytes:
    return _U32.pack(SHARD, 0, SNAPNAME, volume_number) + name.encode()


def snapnames_range(volume_number: int) -> Range:
    return snapname(volume_number, ""), snapname(volume_number + 1, "")


def snapshots_range(volume_number: int) -> Range:
    return snapshot(volume_number, 0), _U32.pack(SHARD, 0, SNAPSHOT, volume_number + 1)


def kind_of(key: bytes) -> tuple[int, int, int]:
    """Returns (shard, volume, type) of any key."""
    return _PREFIX.unpack_from(key)


def first_u32(key: bytes) -> int:
    """Returns the number of 32 bits after the prefix: a snapshot's volume."""
    return int.from_bytes(key[PREFIX_BYTES : PREFIX_BYTES + 4], "big")


def first_u64(key: bytes) -> int:
    """Returns the number after the prefix: ino, parent, session or mount."""
    return int.from_bytes(key[PREFIX_BYTES : PREFIX_BYTES + 8], "big")


def begun_place(key: bytes) -> tuple[int, int]:
    """Returns (device, index) of a segment that was begun."""
    return int.from_bytes(key[-8:-4], "big"), int.from_bytes(key[-4:], "big")


def last_u32(key: bytes) -> int:
    """Returns the last number of a key that ends in one of 32 bits: a snapshot's."""
    return int.from_bytes(key[-4:], "big")


def last_u64(key: bytes) -> int:
    """Returns the last number of a key: file offset, cookie, unique, session."""
    return int.from_bytes(key[-8:], "big")
