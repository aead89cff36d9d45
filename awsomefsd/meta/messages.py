"""What workers and the daemon say to the metadata service, and what it answers.  docs/PROTOCOL.md is the page for people.

A request is ``Request(call, body)``, an answer ``Answer(call, reply)``; `call` is chosen by the client and unique on its connection.
"""

from __future__ import annotations

from typing import Union

from msgspec import Struct

from awsomefsd.meta.collection_messages import (
    CollectorOpened,
    GetFilePieces,
    GetPieces,
    GetSparse,
    Pieces,
    Relocated,
    Sparse,
)
from awsomefsd.meta.commands import AnyCommand
from awsomefsd.meta.csi_messages import Claimed, Claims, CsiVolumes, GetClaims, GetCsiVolumes
from awsomefsd.meta.device_messages import GetQuarantine, GetSightings, Quarantine, ReportDevices, Sightings
from awsomefsd.meta.lease_messages import GetInherited as GetInherited
from awsomefsd.meta.lease_messages import ReturnLeases as ReturnLeases
from awsomefsd.meta.member_messages import ChangeMembers, GetMembers, Members, TransferLead
from awsomefsd.meta.message import Message
from awsomefsd.meta.node_messages import Cas, GetNode, ListCas, ListNodes, ListTokens, NodeOrders, NodeReport, Nodes, Tokens
from awsomefsd.meta.scrub_messages import GetLiveSegments, GetNames, LiveSegments, NamePage
from awsomefsd.types import Attr, DeviceInfo, Dirent, Extent, Lock, SegmentInfo, SessionInfo, StatFs, VolumeInfo

PROTOCOL_VERSION = 1
PROTOCOL_OLDEST = 1  # that is still spoken


# --- requests ----------------------------------------------------------------------------------------------------------------
class Hello(Message, tag=1):
    """First on every connection.  Answered by Welcome, or Failed and the connection closed."""

    version: int
    mount: int  # 0: a client without a mount (daemon, tools)
    features: int = 0
    connection: int = 0  # counts this client's connections: nothing more is read from earlier ones of the mount (0: not counted)


class Propose(Message, tag=2):
    """Answered when the command is committed and applied, or at once with the stored result of the same request id."""

    unique: int
    session: int
    epoch: int
    acks: list[int]
    command: AnyCommand


class Lookup(Message, tag=10):
    """Found, or Failed(ENOENT)."""

    volume: int
    parent: int
    name: bytes


class GetAttr(Message, tag=11):
    volume: int
    ino: int


class ReadDir(Message, tag=12):
    """Entries with cookie > `after`, in cookie order, at most `count`; with attributes if `plus`.  "." and ".." are not among them."""

    volume: int
    ino: int
    after: int
    count: int
    plus: bool


class ReadLink(Message, tag=13):
    volume: int
    ino: int


class GetXattr(Message, tag=14):
    """Blob, or Failed(ENODATA)."""

    volume: int
    ino: int
    name: bytes


class ListXattr(Message, tag=15):
    volume: int
    ino: int


class GetLayout(Message, tag=16):
    """Extents that overlap [start, end) in order (holes are gaps), with the segments they name; or the inline data.

    Much fragmented files are told in parts: see Layout.end.
    """

    volume: int
    ino: int
    start: int
    end: int


class GetStatFs(Message, tag=17):
    volume: int


class GetSegments(Message, tag=18):
    segments: list[int]


class GetOwnSegments(Message, tag=72):
    """Those that the metadata keeps for itself.  Answered by Segments."""


class GetDevices(Message, tag=19):
    pass


class GetVolumes(Message, tag=20):
    """All volumes, or the one of that name (Failed(ENOENT))."""

    name: str = ""


class GetLocks(Message, tag=21):
    """All locks of a session, as (ino, lock)."""

    session: int


class TestLock(Message, tag=22):
    """Locked(the first lock in the way, or None), for F_GETLK."""

    volume: int
    ino: int
    lock: Lock


class Renew(Message, tag=23):
    """Keep a session alive.  Failed(ESTALE) if it has ended.  `seen_index`: nothing older than this is used by the session any more."""

    session: int
    epoch: int
    seen_index: int


class WaitLock(Message, tag=24):
    """Like Propose of its SetLock, but answered when it is granted.  Cancel ends it with Failed(EINTR).

    `no_deadlock`: of an open file description, which takes no part in the search for circles (EDEADLK).
    """

    unique: int
    session: int
    epoch: int
    acks: list[int]
    command: AnyCommand
    no_deadlock: bool = False


class Cancel(Message, tag=25):
    """End the WaitLock of that request id; not answered itself."""

    unique: int


class Follow(Message, tag=26):
    """Entries with index > `after`, at most `count`; waits up to `wait_ms` for the first."""

    after: int
    count: int
    wait_ms: int


class GetStatus(Message, tag=27):
    pass


class GetParent(Message, tag=28):
    """Attr of the parent of a directory, for ".."."""

    volume: int
    ino: int


class GetSessions(Message, tag=29):
    pass


class Report(Message, tag=30):
    """A worker's figures, by name; the newest of each mount are kept while its connection lives."""

    figures: dict[str, int]


class GetReports(Message, tag=31):
    pass


class GetLease(Message, tag=50):
    """A lease on an inode (a directory: with all its names) for a session that shares its volume.  Leased, when nothing is in the way,
    or Contested at once.

    `known` as in AcquireLease.
    """

    session: int
    epoch: int
    volume: int
    ino: int
    mode: int  # LEASE_READ or LEASE_WRITE
    known: int = 0


class ReportLeases(Message, tag=51):
    """To a leader of a new term: the read leases that are held.  Nothing older than this term is honoured by the session any more."""

    session: int
    epoch: int
    term: int
    inos: list[int]


class AwaitRecalls(Message, tag=52):
    """Answered by Recalls with all open recalls of the session once there is one with a sequence > `after`."""

    session: int
    epoch: int
    after: int


class AnswerRecall(Message, tag=53):
    """What the recall asked for is done: data held back is committed, caches are dropped.  Nothing older than it is honoured any more."""

    session: int
    epoch: int
    term: int
    sequence: int


class ExtendRecall(Message, tag=54):
    """Still at it: `done` counts what was laundered so far, and only a growing number moves the deadline."""

    session: int
    epoch: int
    term: int
    sequence: int
    done: int


class ReleaseLeases(Message, tag=55):
    """Leases that are not needed any more; not those granted with a sequence > `sequence`, which the session has not seen yet."""

    session: int
    epoch: int
    term: int
    sequence: int
    inos: list[int]


class GetOrphans(Message, tag=135):
    """Inodes(those without a name that stay because the session may have them open)."""

    session: int


Body = Union[
    Hello, Propose, Lookup, GetAttr, ReadDir, ReadLink, GetXattr, ListXattr, GetLayout, GetStatFs, GetSegments, GetDevices,
    GetVolumes, GetLocks, TestLock, Renew, WaitLock, Cancel, Follow, GetStatus, GetParent, GetSessions, Report,
    GetReports, GetLease, ReportLeases, AwaitRecalls, AnswerRecall, ExtendRecall, ReleaseLeases, GetSparse, GetPieces,
    GetFilePieces, GetOwnSegments, GetLiveSegments, GetNames, ListNodes, ListTokens, NodeReport, ListCas, GetNode,
    GetMembers, ChangeMembers, TransferLead,
    GetFilePieces, GetOwnSegments, GetLiveSegments, GetNames, GetCsiVolumes, GetClaims, ReportDevices, GetSightings, GetQuarantine,
    GetOrphans, GetInherited, ReturnLeases,
]  # fmt: skip


class Request(Struct, array_like=True, gc=False):
    call: int
    body: Body


# --- replies ----------------------------------------------------------------------------------------------------------------
class Done(Message, tag=1):
    pass


class Failed(Message, tag=2):
    """`errno` of errno.h; `detail` for people."""

    errno: int
    detail: str = ""
    retry: bool = False


class Welcome(Message, tag=3):
    version: int
    cluster_uuid: str
    term: int


class Leased(Message, tag=40):
    """A grant, number `sequence` of what the leader of `term` told the session.  `epoch`: of a write lease, for commits.

    `changes` as in LeaseRow; `foreign`: it differs from what the session said it knew.
    """

    term: int
    sequence: int
    mode: int
    epoch: int
    changes: int
    foreign: bool


class Found(Message, tag=4):
    """An inode; `parent` where the directory changed with it; `created` for Create; `leased`: with the lease it asked for."""

    attr: Attr
    parent: Attr | None = None
    created: bool = False
    leased: Leased | None = None


class Removed(Message, tag=5):
    """After Unlink and Rmdir: the inode as it is now (nlink 0: gone, or an orphan if it was pinned)."""

    attr: Attr
    parent: Attr


class Renamed(Message, tag=6):
    """`replaced` is the inode that lost the new name (or, with EXCHANGE, the other one), `whiteout` what stands under the old name now."""

    attr: Attr
    replaced: Attr | None
    parent: Attr
    new_parent: Attr
    whiteout: Attr | None = None


class Committed(Message, tag=7):
    """Per InodeCommit, in order: errno and, if 0, the inode's attributes now."""

    errnos: list[int]
    attrs: list[Attr | None]


class SessionOpened(Message, tag=8):
    """`resumed`: the same session as before.  `foreign`: another mount has held the volume since this mount's last session."""

    session: int
    epoch: int
    resumed: bool
    foreign: bool
    ttl_ms: int
    volume: VolumeInfo
    reserved_bytes: int = 0


class SegmentsLeased(Message, tag=9):
    segments: list[SegmentInfo]


class Reserved(Message, tag=10):
    bytes: int


class Entries(Message, tag=11):
    """A page of a directory; `end` if nothing follows."""

    entries: list[Dirent]
    end: bool


class Blob(Message, tag=12):
    data: bytes


class Names(Message, tag=13):
    names: list[bytes]


class Layout(Message, tag=14):
    """`end`: up to where this layout is exact (at most the asked end); ask again from there."""

    size: int
    extents: list[Extent]
    segments: list[SegmentInfo]
    inline: bytes | None = None
    end: int = 0


class StatFsReply(Message, tag=15):
    stat: StatFs


class Segments(Message, tag=16):
    segments: list[SegmentInfo]


class Devices(Message, tag=17):
    devices: list[DeviceInfo]


class Volumes(Message, tag=18):
    volumes: list[VolumeInfo]


class Locks(Message, tag=19):
    locks: list[tuple[int, Lock]]


class Locked(Message, tag=20):
    lock: Lock | None


class Changes(Message, tag=21):
    """Encoded entries in order, `first_kept` the oldest index still in the log, `last` the newest applied."""

    entries: list[bytes]
    first_kept: int
    last: int


class Status(Message, tag=22):
    """Figures by name, for `status` and metrics."""

    figures: dict[str, int | float | str]


class Made(Message, tag=23):
    """The small id of a new volume or device."""

    number: int


class Sessions(Message, tag=24):
    sessions: list[SessionInfo]


class Reports(Message, tag=25):
    """Figures by mount."""

    figures: dict[int, dict[str, int]]


class Ranged(Message, tag=30):
    """After Fallocate and CopyRange: the changed inode, and the file offset that was reached, or the number of bytes copied."""

    attr: Attr
    reached: int


class Recalls(Message, tag=41):
    """(sequence, inode, mode that may stay) of the open recalls, in order."""

    term: int
    recalls: list[tuple[int, int, int]]


class Contested(Message, tag=144):
    """To GetLease: others use it so much that none is granted before `pause_ms` are over, at least.  Ask for everything, write through."""

    pause_ms: int


class NotLeader(Message, tag=50):
    """Ask `node` at `address` (both "" while nobody is known to lead), with the same ids.  Answers any request, Hello too."""

    node: str
    address: str


class Inodes(Message, tag=135):
    inos: list[int]


Reply = Union[
    Done, Failed, Welcome, Found, Removed, Renamed, Committed, SessionOpened, SegmentsLeased, Reserved, Entries, Blob, Names, Layout,
    StatFsReply, Segments, Devices, Volumes, Locks, Locked, Changes, Status, Made, Sessions, Reports,
    NotLeader, Ranged, Leased, Recalls, CollectorOpened, Relocated, Sparse, Pieces, LiveSegments, NamePage,
    Nodes, Tokens, NodeOrders, Cas, Members,
    Claimed, CsiVolumes, Claims, Sightings, Quarantine,
    Inodes, Contested,
]  # fmt: skip


class Answer(Struct, array_like=True, gc=False):
    call: int
    reply: Reply
