"""The closed, versioned set of log commands, and the entry that carries one.

Apply is a pure function of (state, entry): time, ids and choices are stamped here by whoever proposes.  A command may be added; the tag
and the fields of one that was ever written stay (fields may be appended with a default).  tests/golden keeps an encoding of each.
"""

from __future__ import annotations

from typing import Union

import msgspec
from msgspec import Struct

from awsomefsd.meta.command import Command as Command
from awsomefsd.meta.csi_commands import ClaimVolume as ClaimVolume
from awsomefsd.meta.csi_commands import DropCsiVolume as DropCsiVolume
from awsomefsd.meta.csi_commands import EndClaims as EndClaims
from awsomefsd.meta.csi_commands import MakeCsiVolume as MakeCsiVolume
from awsomefsd.meta.csi_commands import SetCsiVolume as SetCsiVolume
from awsomefsd.meta.device_commands import DrainDevice as DrainDevice
from awsomefsd.meta.device_commands import GrowDevice as GrowDevice
from awsomefsd.meta.device_commands import RemoveDevice as RemoveDevice
from awsomefsd.meta.node_commands import AddNode as AddNode
from awsomefsd.meta.node_commands import DescribeNode as DescribeNode
from awsomefsd.meta.node_commands import DropCa as DropCa
from awsomefsd.meta.node_commands import NodeCommand
from awsomefsd.meta.node_commands import PutCa as PutCa
from awsomefsd.meta.node_commands import PutToken as PutToken
from awsomefsd.meta.node_commands import RaiseLevel as RaiseLevel
from awsomefsd.meta.node_commands import RevokeToken as RevokeToken
from awsomefsd.meta.node_commands import SetCarries as SetCarries
from awsomefsd.meta.node_commands import SetNodeState as SetNodeState
from awsomefsd.meta.own_segment_commands import DropSegments as DropSegments
from awsomefsd.meta.own_segment_commands import KeepSegments as KeepSegments
from awsomefsd.meta.own_segment_commands import Recover as Recover
from awsomefsd.meta.raft_membership import Membership
from awsomefsd.meta.session_commands import OpenSession as OpenSession
from awsomefsd.meta.session_commands import OpenShared as OpenShared
from awsomefsd.meta.session_commands import WriteData as WriteData
from awsomefsd.types import Extent, SegmentProgress

COMMAND_VERSION = 2  # the highest level of a command; levels.LEVEL is the same


class Init(Command, tag=1):
    """First entry of a cluster."""

    cluster_uuid: str
    site: int
    start_level: int = 1  # at which the cluster acts


class AddDevice(Command, tag=2):
    """A formatted device joins the pool; its segments are free."""

    uuid: str
    bytes: int
    segment_bytes: int
    segments: int
    first_segment_offset: int
    shared: bool = False
    home: str = ""


class CreateVolume(Command, tag=3):
    """A volume with an empty root directory (inode 1)."""

    name: str
    uuid: str
    quota_bytes: int = 0
    quota_inodes: int = 0
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


class SetVolume(Command, tag=4):
    """-1 leaves a value, "" leaves the name."""

    volume: int
    quota_bytes: int = -1
    quota_inodes: int = -1
    name: str = ""


class DeleteVolume(Command, tag=5):
    """EBUSY while a session holds it; ENOTEMPTY while it has files and `force` is false.  Contents are reaped by Reap entries."""

    volume: int
    force: bool = False


class EndSession(Command, tag=11):
    """Ends locks, pins, reservation and leases.  `clean`: its segments are sealed; otherwise sealed and quarantined.  `expired`: nobody has
    renewed it, says the leader."""

    session: int
    epoch: int
    clean: bool
    expired: bool = False


class ClearQuarantine(Command, tag=12):
    """Proof that no write of this session's workers can still land (process exited and I/O drained, new boot id, operator)."""

    session: int
    proof: str


class LeaseSegments(Command, tag=13):
    """Up to `count` free segments for the entry's session, freed no later than `safe_index` (every session has passed it).

    `like`: for the session that collects, on devices of the same kind as this one (homes.py); 0 for the session of a volume.
    """

    count: int
    safe_index: int
    like: int = 0


class Reserve(Command, tag=14):
    """Promise `bytes` of device space and quota to the entry's session: ENOSPC or EDQUOT if less than `least` can be had.

    Grants between `least` and `bytes`.  Negative `bytes` gives back.
    """

    volume: int
    bytes: int
    least: int


class Create(Command, tag=20):
    """Make any kind of inode under a name.  `mode` holds the S_IFMT bits; EEXIST names no inode.

    A default ACL of the directory decides the permission bits, else they lose those of `umask` (0 where it was applied already).
    With `open_existing` (O_CREAT without O_EXCL) an existing regular file is returned instead.  `pin` opens it for the entry's session.
    setgid directories: the group is inherited, and the bit too by directories.
    """

    volume: int
    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""  # of a symbolic link
    open_existing: bool = False
    umask: int = 0
    lease: bool = False  # what a session makes that shares its volume and caches begins with its lease: a file to write, a directory read


class Tmpfile(Command, tag=60):
    """A regular file without a name (O_TMPFILE), pinned by the entry's session.  `linkable`: Link may give it its first name."""

    volume: int
    parent: int
    mode: int
    uid: int
    gid: int
    umask: int = 0
    linkable: bool = True
    lease: bool = False  # as in Create


class Link(Command, tag=21):
    """EPERM for a directory, EMLINK at LINKS_MAX, ENOENT for an inode that has lost its last name."""

    volume: int
    ino: int
    parent: int
    name: bytes


class Unlink(Command, tag=22):
    """Remove a non-directory name.  `pinned`: the session has the inode open, so the last link makes an orphan row instead of an end."""

    volume: int
    parent: int
    name: bytes
    pinned: bool = False


class Rmdir(Command, tag=23):
    """`pinned` as in Unlink (an open or current directory)."""

    volume: int
    parent: int
    name: bytes
    pinned: bool = False


RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4


class Rename(Command, tag=24):
    """rename(2) with `flags`; `pinned` speaks of the inode that is replaced, `uid` and `gid` of the whiteout that is left behind."""

    volume: int
    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int = 0
    pinned: bool = False
    uid: int = 0
    gid: int = 0


SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME, SET_KILL_SUIDGID = (1 << bit for bit in range(8))


class SetAttr(Command, tag=25):
    """Change what `mask` names.  A time of None is the entry's time.  SET_KILL_SUIDGID clears setuid, and setgid where group may execute.

    `log`, `sequence`: the dirty log of the mount and its newest record at this moment; commits of records up to it change neither the
    size nor the times any more (a successor that replays cannot resurrect what was truncated).
    """

    volume: int
    ino: int
    mask: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    log: int = 0
    sequence: int = 0


class SetAtimes(Command, tag=61):
    """Reads of a while, gathered by the worker: (inode, time of access).  Inodes that are gone are passed over."""

    volume: int
    atimes: list[tuple[int, int]]


XATTR_CREATE, XATTR_REPLACE = 1, 2


class SetXattr(Command, tag=26):
    """A POSIX ACL changes the mode too, or is only that; `kill_sgid`: the caller may not keep the setgid bit over it."""

    volume: int
    ino: int
    name: bytes
    value: bytes
    flags: int = 0
    kill_sgid: bool = False


class RemoveXattr(Command, tag=27):
    volume: int
    ino: int
    name: bytes


class ReleaseOrphan(Command, tag=28):
    """Last close of an inode without names: its pin by the entry's session ends."""

    volume: int
    inos: list[int]


class InodeCommit(Struct, array_like=True, gc=False):
    """Bytes of one inode become visible.

    Ignored (errno 0) if `sequence` is not newer than what this `log` has committed for the inode or was overtaken by a truncation; ENOENT
    in the reply if the inode is gone.  `extents` are in order, later ones win; they end inline data, so the first ones must cover it.
    `inline` patches (offset, bytes) are for inodes without extents (ESTALE otherwise), result at most INLINE_BYTES_MAX.
    `size` is the file size after these writes if it grew (the machine takes the maximum).
    """

    ino: int
    log: int
    sequence: int
    size: int
    mtime_ns: int
    extents: list[Extent] = []
    inline: list[tuple[int, bytes]] = []
    lease: int = 0  # epoch of the write lease that held these bytes back; 0: none


class Commit(Command, tag=30):
    """Durable bytes become visible; all inodes in one entry.  `consumed_bytes` of the session's reservation are used up."""

    volume: int
    inodes: list[InodeCommit]
    consumed_bytes: int
    segments: list[SegmentProgress]


class Reap(Command, tag=31):
    """Background: free up to REAP_EXTENTS_PER_ENTRY extents of inodes that have no name and no pin, or of deleted volumes."""

    count: int


FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16  # FALLOC_FL_* of linux/falloc.h


class Fallocate(Command, tag=32):
    """fallocate(2): allocate, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE.  Answered by Ranged.

    What is seen (zeros, size, times) happens in this entry, whatever the number of extents.  Allocation may stop before the end: `reached`
    says where, and KEEP_SIZE from there with `goes_on` (do not round down) does the rest.  EAGAIN: the inode has inline data, which has to
    become extents first.  EAGAIN, ENOSPC and EDQUOT change nothing and are not kept as a result.
    """

    volume: int
    ino: int
    mode: int
    offset: int
    length: int
    kill_suidgid: bool = False
    goes_on: bool = False


class CopyRange(Command, tag=33):
    """copy_file_range(2) by reference: the destination's extents name the same places.  Answered by Ranged; may copy less, never nothing.

    EOPNOTSUPP where bytes have to be copied: the source or the destination has inline data, or a frame has too many owners.
    """

    volume: int
    ino: int
    offset: int
    new_ino: int
    new_offset: int
    length: int
    kill_suidgid: bool = False


class Draw(Command, tag=34):
    """A write into allocated space for which nothing can be reserved: the unwritten range becomes a hole, and `bytes` are reserved for it.

    Answered by Reserved.  ENOSPC if not all of the range is unwritten.
    """

    volume: int
    ino: int
    offset: int
    length: int
    bytes: int


class OpenCollector(Command, tag=37):
    """The daemon of a node begins to collect sparse segments: a session without a mount or a volume.  Answered by CollectorOpened.

    Earlier ones of the node end at once, without quarantine: a node has one daemon, and it asks only while none of its writes is under
    way.  EBUSY while another node's lives.
    """

    node: str
    boot_id: str


class Relocation(Struct, array_like=True, gc=False):
    """One extent, as it is if nobody changed it meanwhile, and where copies of its bytes lie: `places` cover it exactly, in order."""

    volume: int
    ino: int
    extent: Extent
    places: list[Extent]


class Relocate(Command, tag=38):
    """Collection: extents name copies of their bytes.  Each by compare-and-swap: what was overwritten, cut or freed meanwhile is skipped.

    Refused as a whole, like Commit, if a place is not in a segment of the collector's session, or not durable.  Answered by Relocated.
    """

    moves: list[Relocation]
    segments: list[SegmentProgress]


class SetLock(Command, tag=40):
    """Grant, convert or (lock_type F_UNLCK 2) release a range for the entry's session; EAGAIN if another owner is in the way."""

    volume: int
    ino: int
    kind: int
    owner: int
    pid: int
    lock_type: int
    start: int
    end: int
    handle: int = 0


class AcquireLease(Command, tag=80):
    """The write lease of a regular file for the entry's session, which shares the volume.  Holding it already is no error.

    `known`: LeaseRow.changes as the mount knew it (0: it did not); the answer says whether others have changed the data since.
    """

    volume: int
    ino: int
    known: int = 0


class ReleaseLease(Command, tag=81):
    """The write lease with that epoch ends, if the entry's session still holds it."""

    volume: int
    ino: int
    lease: int


class RegisterReader(Command, tag=50):
    """A named reader of the change stream; the log is kept from its cursor on.  Idempotent (keeps an existing cursor)."""

    name: str
    cursor: int


class AdvanceReader(Command, tag=51):
    name: str
    cursor: int


class RemoveReader(Command, tag=52):
    name: str


class NoOp(Command, tag=70):
    """First entry of every leader: with it, all that came before is committed."""


class ChangeMembership(Command, tag=71):
    """The members from this entry on (in force when it is appended, not when it is applied).  Proposed by Raft itself only."""

    membership: Membership


class RepairRows(Command, tag=95):
    """Rows as fsck wants them: what has to go, and what has to be there.  Proposed by fsck on a stopped node only.

    Values and keys as they are in the store, so that it mends what this machine cannot read itself; applied index and stamp stay.
    """

    deletes: list[bytes]
    puts: list[tuple[bytes, bytes]]


RAFT_COMMANDS = frozenset({NoOp, ChangeMembership})  # no client proposes them
UNPROPOSED_COMMANDS = RAFT_COMMANDS | {RepairRows}  # nobody proposes these to a running service

AnyCommand = Union[
    Init, AddDevice, CreateVolume, SetVolume, DeleteVolume, OpenSession, EndSession, ClearQuarantine, LeaseSegments, Reserve,
    Create, Link, Unlink, Rmdir, Rename, SetAttr, SetXattr, RemoveXattr, ReleaseOrphan, Commit, Reap, SetLock,
    Tmpfile, SetAtimes, Fallocate, CopyRange, Draw, OpenCollector, Relocate,
    RegisterReader, AdvanceReader, RemoveReader, NoOp, ChangeMembership, AcquireLease, ReleaseLease, RepairRows,
    KeepSegments, DropSegments, Recover, NodeCommand,
    MakeCsiVolume, SetCsiVolume, DropCsiVolume, ClaimVolume, EndClaims, GrowDevice, DrainDevice, RemoveDevice,
    OpenShared, WriteData,
]  # fmt: skip


class Entry(Struct, array_like=True, gc=False):
    """One entry of the log.  (mount, unique) is the request id; `acks` are ids of the same mount whose results are not needed any more."""

    index: int
    term: int
    version: int
    shard: int
    site: int
    stamp: int  # hybrid logical time, see clock.HybridClock
    time_ns: int  # wall time the operation gets as ctime, mtime
    mount: int
    unique: int
    session: int
    epoch: int
    acks: list[int]
    command: AnyCommand


entry_encode = msgspec.msgpack.Encoder().encode
entry_decode = msgspec.msgpack.Decoder(Entry).decode
