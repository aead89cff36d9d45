"""Values that more than one package uses.  Times are nanoseconds since 1970 (may be negative); units stand in the names."""

from __future__ import annotations

from msgspec import Struct

from awsomefsd.base.limits import NUMBERS_JUMP

ROOT_INO = 1
BACKGROUND_BIT = 1 << 62  # set in the `unique` of requests that no FUSE request stands behind
TRUNCATE_BIT = 1 << 60  # set in the id of the second entry of a request: a CREATE that found its file truncates it
RESEND_BIT = 1 << 63  # the kernel sets it in resent requests; never part of an id
HOST_UNIQUE = 0  # requests without an id (the leader's own, tools): not deduplicated
NODE_UNIQUE_BITS = 24  # of the ids of a daemon's requests count them, those above are drawn when the daemon starts
NODE_MOUNT_BIT = 1 << 63  # set in the number under which a node's daemon asks; the numbers of mounts are smaller


def node_mount(node: str) -> int:
    """Returns the mount number that a node's daemon uses in its own requests; 0 for a text that is no UUID."""
    try:
        return NODE_MOUNT_BIT | int(node.replace("-", ""), 16) & (NODE_MOUNT_BIT - 1)
    except ValueError:
        return 0


def is_behind_recovery(session: int, before: int) -> bool:
    """Returns True if the cluster went on from a copy between two sessions of a mount (decision 456).  `before`: 0 for none."""
    return before != 0 and session // NUMBERS_JUMP != before // NUMBERS_JUMP


def is_node_mount(mount: int) -> bool:
    """Returns True for the mount number of a node's daemon."""
    return mount >= NODE_MOUNT_BIT


class Attr(Struct, array_like=True, gc=False):
    """The attributes that stat(2) shows, and what the worker needs to serve the file.  `stored_bytes` counts extents and inline data."""

    ino: int
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
    inline: bool = False  # the data (maybe none) is in the inode's inline row, not in extents
    xattrs: int = 0  # number of extended attributes; 0 answers getxattr without asking
    consistency: int = 0  # asked for by an extended attribute (consistency.py)


class Extent(Struct, array_like=True, gc=False):
    """A piece of a file: `length` bytes at `file_offset`, stored in one frame of one segment.

    Identity is (segment, incarnation, sequence): a reader compares it with the frame it finds, so a lost write or a reused place cannot
    pass for data.  `frame_offset` is where the frame's header starts in the segment; the bytes start `header_bytes + skip` after it
    (codec 0), `skip` being the offset inside the frame's logical bytes.
    """

    file_offset: int
    length: int
    segment: int
    incarnation: int
    sequence: int
    frame_offset: int
    header_bytes: int
    skip: int


class SegmentInfo(Struct, array_like=True, gc=False):
    """The place and state of a segment, as readers and writers see it.

    `device` is the small device number, `byte_offset` where the segment starts on it.  `footer_offset` is 0 while there is no footer.
    """

    segment: int
    incarnation: int
    device: int
    byte_offset: int
    bytes: int
    state: int  # a SEGMENT_* constant
    committed_bytes: int
    footer_offset: int = 0
    footer_bytes: int = 0
    live_bytes: int = 0


class SegmentInBays(SegmentInfo, array_like=True, gc=False):
    """A segment in bays of a pool; its device and byte offset are 0.

    A type of its own: answers that builds of before keep as results have the bytes that they had.
    """

    bays: list[SegmentBay] = []
    stripe: int = 0
    volume: int = 0  # all bytes in it are this volume's


def bays_of(info: SegmentInfo) -> list[SegmentBay]:
    """Returns the bays of a segment; [] of one that is on a device of its own."""
    return info.bays if isinstance(info, SegmentInBays) else []


BAY_MIRROR, BAY_COPYING, BAY_PARITY, BAY_STALE = range(1, 5)  # roles of bays (meta/machine/bays.py); a free one has none
SPREAD_HOST, SPREAD_DEVICE = range(2)  # what no two mirrors of a segment have in common
DEVICE_CLASSES = ("nvme", "ssd", "hdd")


class Redundancy(Struct, array_like=True, gc=False, frozen=True):
    """How many losses the data of a volume in a pool is to survive, and what it costs.

    `copies`: mirrors of each segment.  `min_copies`: with so many reached a write is acknowledged where the others fail.  `data`,
    `parities`: of a stripe, 0 where segments are mirrored only.  `quorum`: a majority acknowledges where none fails.
    """

    copies: int
    min_copies: int
    data: int = 0
    parities: int = 0
    spread: int = SPREAD_HOST
    device_class: str = ""  # "": any
    quorum: bool = False


STORE_ADDING, STORE_ACTIVE, STORE_RECOVERED = range(3)
STORE_STATES = ("adding", "active", "recovered")  # in words
KEPT, OF_ROLE, NO_CREDENTIALS = "kept", "role", ""


class StoreOptions(Struct, array_like=True, gc=False, frozen=True):
    """How a store is reached, and what is promised of what is in it.  Nothing of it is secret.

    `credentials`: KEPT by the cluster (meta/state/rows.py, StoreSecretRow), OF_ROLE of each node's machine, NO_CREDENTIALS of a directory.
    `ca`: PEM of authorities that its certificate may be of, beside those of the machine.  `proxy`: "" asks it directly.
    `rpo_ms`: how old what is not there yet may become.  `keep_ms`: for how long what is deleted stays.
    """

    rpo_ms: int
    keep_ms: int
    endpoint: str = ""
    region: str = ""
    credentials: str = NO_CREDENTIALS
    ca: str = ""
    proxy: str = ""
    sealed: bool = False


class StoreInfo(Struct, array_like=True, gc=False):
    """A store as the cluster has it.  `store`: the entry that added it.  `changed`: the entry that changed it last.

    `era`: identity of the cluster's life in it, of which it is number `era_number` (0: not known yet).  `has_secret`: the cluster keeps
    credentials or a key for it.

    STORE_RECOVERED: entry `recovered` took the cluster back behind what it may have put there.  Nothing is put and nothing deleted before
    an era after `before` has begun: `era` "" until one is named, at `era_ns`.
    """

    store: int
    name: str
    url: str
    state: int
    era: str
    era_number: int
    created_ns: int
    changed: int
    options: StoreOptions
    has_secret: bool = False
    before: str = ""
    era_ns: int = 0
    recovered: int = 0


class SegmentBay(Struct, array_like=True, gc=False, frozen=True):
    """A bay of a segment.  `durable`: up to where its bytes are known to be on the device.  `role`: BAY_MIRROR or BAY_COPYING."""

    device: int
    index: int
    durable: int
    role: int


SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_SEALED, SEGMENT_QUARANTINED = range(4)
SEGMENT_METADATA = 4  # kept by the metadata for itself


class SegmentProgress(Struct, array_like=True, gc=False):
    """A report of how far a leased segment is written and durable; `sealed` ends the lease, and then the footer's place counts."""

    segment: int
    incarnation: int
    committed_bytes: int
    sealed: bool = False
    footer_offset: int = 0
    footer_bytes: int = 0
    durable: list[tuple[int, int, int]] = []  # (device, index, bytes) of bays that have answered; others are where they were


class DeviceInfo(Struct, array_like=True, gc=False):
    """A device of the cluster.  `path` is where this node finds it ("" if it does not)."""

    device: int
    uuid: str
    bytes: int
    segment_bytes: int
    segments: int
    segments_free: int
    first_segment_offset: int
    path: str = ""
    shared: bool = False
    home: str = ""  # the node it is in, if it is not shared
    draining: bool = False
    era: int = 0  # of the superblock that belongs to this state (io/device/identified.py)
    absent: bool = False  # no node sees it now
    pool: int = 0  # its segments are bays of that pool, and the segment server of its node alone opens it; 0: it is in none
    device_class: str = ""
    server: str = ""  # the node whose segment server has attached it; "": none yet
    lost: bool = False
    address: str = ""  # where that server is reached by other nodes


NAMES_WORDS = ("durable", "delegated")  # of a volume: a change of a name is in the log when it is answered, or its mount decides it
NAMES_DELEGATED = 1  # of these


class VolumeInfo(Struct, array_like=True, gc=False):
    """A volume.  A quota of 0 means none."""

    volume: int
    uuid: str
    name: str
    quota_bytes: int
    quota_inodes: int
    used_bytes: int
    used_inodes: int
    reserved_bytes: int = 0
    holder: int = 0  # session that holds the volume's lease, 0 if none
    lineage_parent: int = 0  # volume this one was cloned from
    lineage_snapshot: int = 0
    home: str = ""  # the node on whose devices its data is; "" shared devices, "*" not decided yet (meta/machine/locality.py)


SNAPSHOT_WORDS = ("crash", "synced", "flushed")
SNAPSHOT_CRASH, SNAPSHOT_SYNCED, SNAPSHOT_FLUSHED = range(3)


class SnapshotInfo(Struct, array_like=True, gc=False):
    """A snapshot of a volume.  `word`: an index of SNAPSHOT_WORDS, what is in it of what mounts had held back.

    `used_bytes`, `used_inodes`: of the volume then.  `freed_bytes`: what its deletion alone would free.
    """

    volume: int
    snapshot: int
    uuid: str
    name: str
    time_ns: int
    word: int
    used_bytes: int
    used_inodes: int
    freed_bytes: int


def is_pool(home: str) -> bool:
    """Returns whether `home` of a volume is a pool: its data is in bays."""
    return home.startswith("pool ")


class CsiVolumeInfo(Struct, array_like=True, gc=False):
    """A volume that an orchestrator asked for; CsiVolumeRow says what its fields are."""

    id: str
    name: str
    volume: int
    path: str
    own: bool
    capacity: int
    block: bool
    settings: list[tuple[str, str]]


class ClaimInfo(Struct, array_like=True, gc=False):
    """A node that uses a volume or a directory of it."""

    volume: int
    path: str
    node: str
    boot_id: str
    epoch: int
    exclusive: bool
    attached: bool
    fenced: bool = False  # its node is not heard: other nodes may take the volume in spite of it


class SessionInfo(Struct, array_like=True, gc=False):
    """A session that lives, or that has ended and still has segments in quarantine."""

    session: int
    epoch: int
    mount: int
    volume: int
    node: str
    boot_id: str
    worker: int
    reserved_bytes: int
    segments_leased: int
    ended: bool
    quarantined: int = 0  # segments


class StatFs(Struct, array_like=True, gc=False):
    """Figures of statvfs(3) in bytes and inodes, of one volume: the quota where there is one, else the devices.

    `bytes_available` is less than `bytes_free` where the quota leaves more than the devices; -1: an older service did not say it.
    """

    bytes_total: int
    bytes_free: int
    inodes_total: int
    inodes_free: int
    bytes_available: int = -1

    @property
    def bytes_writable(self) -> int:
        """Returns for how many bytes there is room; at least 0."""
        return max(self.bytes_free if self.bytes_available < 0 else self.bytes_available, 0)


FIRST_COOKIE = 16  # smaller ones are "." and ".." and room for more


class Dirent(Struct, array_like=True, gc=False):
    """One directory entry.  `cookie` is its readdir offset (ask for entries after it); it only grows, never reused in a directory."""

    name: bytes
    ino: int
    kind: int  # S_IFMT bits
    cookie: int
    attr: Attr | None = None


LEASE_NONE, LEASE_READ, LEASE_WRITE = range(3)

LOCK_POSIX, LOCK_FLOCK = 0, 1  # OFD locks arrive as LOCK_POSIX with the open file as owner
LOCK_END_MAX = (1 << 63) - 1


class Lock(Struct, array_like=True, gc=False):
    """A byte-range lock; `lock_type` is F_RDLCK 0, F_WRLCK 1 or F_UNLCK 2, `end` is inclusive."""

    kind: int
    owner: int
    pid: int
    lock_type: int
    start: int
    end: int
    session: int = 0
    handle: int = 0  # it was taken with; the end of an open file description ends its locks
