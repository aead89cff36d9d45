"""The rows are the values of the state store.  keys.py says under which key each is.

A row is a sealed msgpack array (codec.Sealed): checksum, schema byte, fields in order.  A field may be appended with a default; a field
that was ever written stays.  tests/golden/rows.txt keeps one encoding of each.  Inodes and dentries carry (stamp, site) of their last
change, for replication between sites.  `chapter` of inodes, names, extents, inline bytes and extended attributes: when the value was
written (chapters.py); 0, which is not encoded, before its volume had chapters.
"""

from __future__ import annotations

from typing import Any

from crc32c import crc32c
from msgspec import Struct, structs

from awsomefsd.base.codec import Sealed, encode, pack_seal, seal
from awsomefsd.base.types import FIRST_COOKIE, Lock, Redundancy, SegmentBay, StoreOptions
from awsomefsd.meta.api.messages import Reply
from awsomefsd.meta.raft.membership import Membership


class Row(Struct, array_like=True, gc=False):
    pass


class ClusterRow(Row):
    """One row: identity, counters that never go back, totals over all devices, and how far the log is applied."""

    uuid: str = ""
    site: int = 0
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0
    applied_index: int = 0
    last_stamp: int = 0
    next_session: int = 1
    next_epoch: int = 1
    next_volume: int = 1
    next_device: int = 1
    next_segment: int = 1
    volumes: int = 0
    sessions: int = 0  # live ones
    readers: int = 0
    reaps: int = 0  # rows in the reap queue
    total_bytes: int = 0  # usable bytes of all segments
    free_bytes: int = 0  # of those, in free segments
    reserved_bytes: int = 0  # promised to sessions
    segment_bytes_max: int = 0
    allocated_bytes: int = 0  # of unwritten extents: device space is kept for them
    incarnation_base: int = 0  # every new incarnation of a segment is above it
    level: int = 1  # commands above it are refused (base/levels.py)


class DeviceRow(Row):
    """A device.  `first_segment` numbers its segments; those with an index from `unused_from` on were never leased and have no rows."""

    device: int
    uuid: str
    bytes: int
    segment_bytes: int
    segments: int
    first_segment_offset: int
    shared: bool
    first_segment: int
    segments_free: int
    unused_from: int = 0
    home: str = ""  # the node it is in, unless it is shared (meta/machine/locality.py)
    draining: bool = False  # nothing is leased there any more (meta/machine/devices.py)
    removed: bool = False  # has no segments, and is in no list
    grown: list[tuple[int, int]] = []  # further runs of segment numbers (meta/machine/device_numbers.py)
    absent: bool = False  # no node sees it now (meta/machine/devices.py)
    pool: int = 0  # its segments are bays of that pool (meta/machine/bays.py); 0: it is in none
    device_class: str = ""
    host: str = ""  # what it fails together with: the label `host` of the node that attached it, or that node
    lost: bool = False  # somebody, or the time that it was absent, says that its bays are gone; they count again when it attaches
    generation: int = 0  # of the superblock, raised at each attach
    server: str = ""  # the node that has attached it; "": none since it was added
    stale: int = 0  # bays that hold nothing that counts, and are not free before they were trimmed
    doubted: int = 0  # bays below this may hold something else than their rows say (meta/machine/doubt.py)


class DeviceEraRow(Row):
    """The era in the superblock of a device, by UUID; a device without a row has 0.  A row of its own: rows of devices keep their bytes at
    every level."""

    uuid: str
    era: int


class SegmentRow(Row):
    """A segment.  `session`, `worker`: the lessee, or the one whose writes may still land while it is quarantined; 0 otherwise."""

    segment: int
    device: int
    index: int
    state: int
    incarnation: int = 0
    session: int = 0
    worker: int = 0
    committed_bytes: int = 0
    live_bytes: int = 0
    footer_offset: int = 0
    footer_bytes: int = 0
    freed_index: int = 0
    bytes: int = 0  # from here on of a segment in bays of a pool; its device and index are 0
    bays: list[SegmentBay] = []
    want: Redundancy | None = None
    stripe: int = 0
    end: int = 0  # what counts in it: committed bytes, and the footer
    need: int = 0  # 1 + the priority of its NeedRow; 0: it lacks nothing
    volume: int = 0  # whose data is in it: of one volume alone


class BayRow(Row):
    """A bay that is not free.  `segment`: the segment or stripe that it holds bytes of.  `index`: the entry that gave it its role.

    A mirror or copy is named by the row of its segment, a parity by that of its stripe; a stale bay by no row.
    """

    segment: int
    role: int
    index: int


class NeedRow(Row):
    """What a segment lacks.  `reasons`: NEED_ bits.  `tries`: copies that failed since `since_ms`."""

    reasons: int
    since_ms: int
    tries: int = 0


class StripeRow(Row):
    """Segments whose bytes protect each other.  `members`: (segment, device, index, end).  `parities`: (device, index)."""

    data: int
    parities_wanted: int
    members: list[tuple[int, int, int, int]]
    parities: list[tuple[int, int]]
    length: int
    whole: bool = False


class PoolRow(Row):
    """A pool.  `maintenance`: (host, wall time until which its devices are not lost)."""

    pool: int
    segment_bytes: int
    reserve_percent: int = 4
    heal_bytes_per_s: int = 64 << 20
    lost_after_ms: int = 600_000
    maintenance: list[tuple[str, int]] = []


class WalkRow(Row):
    """A change of many rows, some of them an entry.  `device`, `volume`: what it is about.  `position`: how far it has come."""

    reason: int
    device: int
    volume: int
    position: int = 0


class FreeRow(Row):
    segment: int
    freed_index: int


class VolumeRow(Row):
    """A volume.  `holder`: the session that holds it whole.  `last_mount`: the mount that held it last (for `changed_by_others`)."""

    volume: int
    uuid: str
    name: str
    quota_bytes: int
    quota_inodes: int
    used_bytes: int = 0
    used_inodes: int = 0
    reserved_bytes: int = 0
    holder: int = 0
    last_mount: int = 0
    next_ino: int = 2
    deleted: bool = False
    lineage_parent: int = 0
    lineage_snapshot: int = 0
    stamp: int = 0
    site: int = 0
    sharers: int = 0  # live sessions that share it
    leased: bool = False  # was shared once: there may be LeaseRows
    exclusives: int = 0  # how often a session that holds it whole was opened
    home: str = ""  # where its data may lie (meta/machine/locality.py)
    names: int = 0  # how durable names are when they are answered: an index of NAMES_WORDS
    granted_inodes: int = 0  # numbers that mounts have for records, and that count against the quota (meta/machine/inode_grants.py)
    want: Redundancy | None = None  # of a volume whose home is a pool
    chapter: int = 0  # the present one, which is the number of the next snapshot (chapters.py); 0: it never had one
    newest: int = 0  # its newest live snapshot; 0: it has none


class VolumeNameRow(Row):
    volume: int


class SessionRow(Row):
    """A session.  Rows with `ended` stay while segments are quarantined because of them, or while Reap still ends their pins."""

    session: int
    epoch: int
    mount: int
    volume: int
    node: str
    boot_id: str
    worker: int
    reserved_bytes: int = 0
    ended: bool = False
    segments_leased: int = 0
    shared: bool = False
    ended_ms: int = 0  # wall time
    uncached: bool = False  # OpenShared: the session does not report what it has open
    caches: bool = False  # OpenShared with leases
    snapshot: int = 0  # that it reads, and no more; 0: it serves the volume itself


class MountRow(Row):
    session: int  # its newest; 0: it was unmounted
    volume: int
    node: str
    boot_id: str
    exclusives: int = 0  # VolumeRow.exclusives when its session was opened


class OpLogRow(Row):
    """What a mount has decided itself: `applied` is the newest record of the op log `log` that is applied (0: none).

    `session`: under which session that log was first used.  `numbers`: (first, end) of the inode numbers that it was granted and has not
    used, ascending; `reserved`: how many of them the quota of `volume` counts as used.
    `round`: how many records of the log were refused.
    """

    volume: int
    log: int = 0
    session: int = 0
    applied: int = 0
    numbers: list[tuple[int, int]] = []
    reserved: int = 0
    round: int = 0


class ResultRow(Row):
    reply: Reply


class ReaderRow(Row):
    cursor: int


class MembershipRow(Row):
    """The members of the Raft group as of the entry `index`; a state snapshot brings it along."""

    index: int
    membership: Membership


class CheckpointRow(Row):
    """The segments that one node keeps for its checkpoints.  `area`: those of the newest that is complete, in order; [] if there is none.

    `device` to `index` say which that is.
    """

    node: str
    segments: list[int]
    area: list[int] = []
    device: int = 0
    number: int = 0
    term: int = 0
    index: int = 0


TOMB_DENTRY, TOMB_INODE, TOMB_VOLUME = 1, 2, 3


class TombstoneRow(Row):
    """A removal, for readers of the change stream.  For a dentry `ino` is the parent."""

    kind: int
    volume: int
    ino: int
    name: bytes
    stamp: int
    site: int


class MarkerRow(Row):
    """A row without fields: its key has all there is."""


class ReverseRow(Row):
    incarnation: int


class ReapRow(Row):
    """A piece of work for Reap.  `start`: file offset (of a trim) up to which nothing is left to free; 0 otherwise.

    `end`: of a trim, 0 for the end of the file.  `chapter`: when it was decided; what it frees is kept as of then.
    """

    start: int = 0
    end: int = 0
    chapter: int = 0


class SharedRow(Row):
    """The shared bytes of one frame: runs (start, end, count), disjoint and ascending; `count` extents marked `shared` hold these bytes."""

    incarnation: int
    runs: list[tuple[int, int, int]]


class InodeRow(Row):
    """An inode.  `entries`, `next_cookie`, `parent` are a directory's.

    `extents`, `stored_bytes` count what is in the extent map, hidden or not.  `log`, `sequence`: the newest record of which dirty log is
    committed; `cuts`: (sequence, size) of truncations that overtook older records, both ascending; `times_sequence`: records up to it
    change no times any more.  `mtime_explicit`: utimensat(2) set it, so the next write may move it back.  `trims`: ranges cut by a
    truncation or a hole that Reap has not freed yet.  `allocated_bytes`: of unwritten extents.  `linkable`: made without a name, and may
    get one.  `consistency`: the value of the attribute of that name (base/consistency.py).
    """

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    stored_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    stamp: int
    site: int
    inline: bool = False
    mtime_explicit: bool = False
    extents: int = 0
    xattrs: int = 0
    xattr_bytes: int = 0
    trims: int = 0
    parent: int = 0
    entries: int = 0
    next_cookie: int = FIRST_COOKIE
    target: bytes = b""
    log: int = 0
    sequence: int = 0
    times_sequence: int = 0
    cuts: list[tuple[int, int]] = []
    linkable: bool = False
    allocated_bytes: int = 0
    consistency: int = 0
    chapter: int = 0


class DentryRow(Row):
    ino: int
    kind: int
    cookie: int
    stamp: int
    site: int
    chapter: int = 0


class CookieRow(Row):
    ino: int
    kind: int
    name: bytes
    chapter: int = 0


class ExtentRow(Row):
    """An extent: types.Extent without its file offset (in the key); `index` is the entry that committed it.

    Segment 0 is an unwritten extent: it reads as zeros, has no place, and space is kept for it.  `shared`: others may hold the same bytes
    of the frame, and its SharedRow counts them; bytes of an extent without the mark have one holder.  `lost` (segment 0): there were bytes
    here that are not known any more, and reading is EIO until they are overwritten or cut; counted like an unwritten extent.
    """

    length: int
    segment: int
    incarnation: int
    sequence: int
    frame_offset: int
    header_bytes: int
    skip: int
    index: int
    shared: bool = False
    lost: bool = False
    chapter: int = 0


class InlineRow(Row):
    """The bytes of a small file.  It may be shorter than the file: the rest reads as zeros."""

    data: bytes
    chapter: int = 0


class XattrRow(Row):
    value: bytes
    chapter: int = 0


class SnapshotRow(Row):
    """A live snapshot.  `index`: the entry that made it.  `word`: an index of SNAPSHOT_WORDS.  From `used_bytes` on: of the volume then."""

    index: int
    time_ns: int
    name: str = ""
    uuid: str = ""
    stamp: int = 0
    word: int = 0
    used_bytes: int = 0
    used_inodes: int = 0
    next_ino: int = 0
    quota_bytes: int = 0
    quota_inodes: int = 0


class SnapshotNameRow(Row):
    snapshot: int


class ShelfRow(Row):
    """What clearing a shelf frees: kept rows (chapters.py), and bytes of extents and small files in them."""

    rows: int
    bytes: int


class LocksRow(Row):
    locks: list[Lock]


class LeaseRow(Row):
    """The write lease and the changes of an inode.  `session` holds the lease (0: none does) under `epoch`.

    `changes` counts changes, and `mount` made the last `run` of them.  Those under one write lease (`lease`: its epoch, of the last change)
    count once: no other mount learned of one in between.
    """

    session: int = 0
    epoch: int = 0
    changes: int = 1
    mount: int = 0
    run: int = 1
    lease: int = 0


class NodeRow(Row):
    """A node.  `key`: SHA-256 of the public key of its certificates.  `carries`: it shall carry the metadata."""

    node: str
    name: str
    role: str
    state: str
    control: str
    metadata: str
    labels: dict[str, str]
    joined_ms: int
    version: str
    level: int
    carries: bool
    changed_ms: int
    key: bytes
    segments: str = ""  # address of its segment server


class TokenRow(Row):
    """A token.  `verifier`: hash of the secret ("join"), or keys derived from it ("founding").  `uses_left` -1: no bound."""

    id: str
    kind: str
    role: str
    verifier: bytes
    expires_ms: int
    uses_left: int
    created_ms: int
    revoked: bool

    def __repr__(self) -> str:
        return f"TokenRow({self.id!r}, {self.kind!r}, {self.role!r}, …)"


class CaRow(Row):
    """A certificate authority.  `state`: "active" signs, "trusted" is believed only."""

    id: str
    certificate: str
    key: str
    state: str
    created_ms: int

    def __repr__(self) -> str:
        return f"CaRow({self.id!r}, {self.state!r}, …)"


class StoreRow(Row):
    """A store of objects; types.StoreInfo says what its fields are."""

    store: int
    name: str
    url: str
    state: int
    era: str
    era_number: int
    created_ns: int
    changed: int
    options: StoreOptions
    before: str = ""  # from here on of one that has outlived a recovery
    era_ns: int = 0
    recovered: int = 0


class StoreSecretRow(Row):
    """Credentials and keys of a store, veiled (tier/store_secret.py)."""

    store: int
    secret: bytes

    def __repr__(self) -> str:
        return f"StoreSecretRow({self.store}, …)"


class CsiVolumeRow(Row):
    """A volume that an orchestrator asked for.  `own`: the volume was made for it alone; else it is the directory `path` of a volume."""

    id: str
    name: str
    volume: int
    path: str
    own: bool
    capacity: int
    block: bool
    settings: list[tuple[str, str]] = []


class CsiNameRow(Row):
    id: str


class ClaimRow(Row):
    """The claim of a node that uses a volume or a directory of it.

    `attached`: the orchestrator has attached it, and only it ends that.  `fenced`: a session of that boot on the volume has expired since,
    and none was opened after it.
    """

    volume: int
    path: str
    node: str
    boot_id: str
    epoch: int
    exclusive: bool = False
    attached: bool = False
    fenced: bool = False


class _SealedShort(Sealed):
    """The codec of a row whose last fields came with a level: where they say nothing (0, False), the row is encoded as before there were
    those fields.  Below that level builds without them vote beside this one, and the bytes of all voters are compared.

    `since`: the first field of each level, in order.  All fields of a level are left out, or none.
    """

    __slots__ = ("_ends",)

    def __init__(self, type_: type[Row], *since: str) -> None:
        super().__init__(type_)
        self._ends = [type_.__struct_fields__.index(name) for name in reversed(since)]
        assert self._ends == sorted(self._ends, reverse=True), "later levels have later fields"

    def dumps(self, value: Row) -> bytes:
        fields = structs.astuple(value)
        kept = len(fields)
        for end in self._ends:
            if any(fields[end:kept]):
                break
            kept = end
        return super().dumps(value) if kept == len(fields) else seal(self.schema, encode(fields[:kept]))


class _SealedVersioned(Sealed):
    """The codec of a versioned row, the last field of which is `chapter`.  Where that is 0 it is left out, as before there were chapters: a
    store without snapshots keeps its bytes.
    """

    __slots__ = ("_head", "_head_bytes")

    def __init__(self, type_: type[Row]) -> None:
        super().__init__(type_)
        count = len(type_.__struct_fields__) - 1
        assert type_.__struct_fields__[-1] == "chapter" and count != 15, "with it, the head of the array would be longer"
        self._head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
        self._head_bytes = len(self._head)

    def dumps(self, value: Any) -> bytes:
        body = encode(value)
        if not value.chapter:
            body = self._head + body[self._head_bytes : -1]
        return pack_seal(crc32c(body, self._seed), self.schema) + body


CLUSTER = Sealed(ClusterRow)
DEVICE = _SealedShort(DeviceRow, "absent", "pool")
SEGMENT = _SealedShort(SegmentRow, "bytes")
BAY = Sealed(BayRow)
NEED = Sealed(NeedRow)
STRIPE = Sealed(StripeRow)
POOL = Sealed(PoolRow)
WALK = Sealed(WalkRow)
FREE = Sealed(FreeRow)
VOLUME = _SealedShort(VolumeRow, "names", "want", "chapter")
VOLNAME = Sealed(VolumeNameRow)
SESSION = _SealedShort(SessionRow, "snapshot")
MOUNT = Sealed(MountRow)
OPLOG = Sealed(OpLogRow)
RESULT = Sealed(ResultRow)
READER = Sealed(ReaderRow)
MEMBERSHIP = Sealed(MembershipRow)
CHECKPOINT = Sealed(CheckpointRow)
DEVICE_ERA = Sealed(DeviceEraRow)
TOMBSTONE = Sealed(TombstoneRow)
MARKER = Sealed(MarkerRow)
REVERSE = Sealed(ReverseRow)
REAP = _SealedShort(ReapRow, "chapter")
SHARED = Sealed(SharedRow)
INODE = _SealedVersioned(InodeRow)
DENTRY = _SealedVersioned(DentryRow)
COOKIE = _SealedVersioned(CookieRow)
EXTENT = _SealedVersioned(ExtentRow)
INLINE = _SealedVersioned(InlineRow)
XATTR = _SealedVersioned(XattrRow)
SNAPSHOT = Sealed(SnapshotRow)
SNAPNAME = Sealed(SnapshotNameRow)
SHELF = Sealed(ShelfRow)
LOCKS = Sealed(LocksRow)
LEASE = Sealed(LeaseRow)
NODE = _SealedShort(NodeRow, "segments")
TOKEN = Sealed(TokenRow)
CA = Sealed(CaRow)
STORE = _SealedShort(StoreRow, "before")
STORE_SECRET = Sealed(StoreSecretRow)
CSI_VOLUME = Sealed(CsiVolumeRow)
CSI_NAME = Sealed(CsiNameRow)
CLAIM = Sealed(ClaimRow)

MARK = MARKER.dumps(MarkerRow())  # the one value of every marker
