"""The requests that workers and the daemon send to the metadata service, and its answers.  docs/PROTOCOL.md is the page for people.

A request travels as ``RequestEnvelope(call, body)``, an answer as ``Answer(call, reply)``.  The client chooses `call`; it is unique on its
connection.  Each module of this package has the requests and replies of one subject.
"""

from __future__ import annotations

from typing import Union

from msgspec import Struct

from awsomefsd.meta.api.messages.attributes import Blob, GetAttr, GetStatFs, GetXattr, ListXattr, Names, StatFsReply
from awsomefsd.meta.api.messages.change_stream import Changes, Follow
from awsomefsd.meta.api.messages.collection import CollectorOpened, GetFilePieces, GetPieces, GetSparse, Pieces, Relocated, Sparse
from awsomefsd.meta.api.messages.connection import (
    PROTOCOL_OLDEST,
    PROTOCOL_VERSION,
    Done,
    Failed,
    GetStatus,
    Hello,
    NotLeader,
    Propose,
    Status,
    Welcome,
)
from awsomefsd.meta.api.messages.csi import Claimed, Claims, CsiVolumes, GetClaims, GetCsiVolumes
from awsomefsd.meta.api.messages.data import Committed, GetLayout, GetOrphans, Inodes, Layout, Ranged
from awsomefsd.meta.api.messages.devices import Bays, BaysLeased, GetBays, GetQuarantine, GetSightings, Quarantine, ReportDevices, Sightings
from awsomefsd.meta.api.messages.leases import (
    AnswerRecall,
    AwaitRecalls,
    Contested,
    ExtendRecall,
    GetInherited,
    GetLease,
    Leased,
    Recalls,
    ReleaseLeases,
    ReportLeases,
    ReturnLeases,
)
from awsomefsd.meta.api.messages.locks import Cancel, GetLocks, Locked, Locks, TestLock, WaitLock
from awsomefsd.meta.api.messages.members import ChangeMembers, GetMembers, Members, TransferLead
from awsomefsd.meta.api.messages.names import Entries, Found, GetParent, Lookup, ReadDir, ReadLink, Removed, Renamed
from awsomefsd.meta.api.messages.nodes import Cas, GetNode, ListCas, ListNodes, ListTokens, NodeOrders, NodeReport, Nodes, Tokens
from awsomefsd.meta.api.messages.pools import (
    CountNeeds,
    GetNeeds,
    GetPool,
    GetPoolVolumes,
    GetStaleBays,
    NeedsCounted,
    NeedsFound,
    Pool,
    PoolVolumes,
    ReportCensus,
    StaleBays,
)
from awsomefsd.meta.api.messages.records import Applied, InodesGranted, SessionGoesOn
from awsomefsd.meta.api.messages.rows import FoundRows, GetRows
from awsomefsd.meta.api.messages.scrub import GetLiveSegments, GetNames, LiveSegments, NamePage
from awsomefsd.meta.api.messages.segments import (
    Checkpoints,
    GetCheckpoints,
    GetOwnSegments,
    GetSegments,
    NodeCheckpoint,
    Reserved,
    Segments,
    SegmentsLeased,
)
from awsomefsd.meta.api.messages.sessions import (
    AwaitSpaceRecall,
    GetReports,
    GetSessions,
    Renew,
    Report,
    Reports,
    SessionOpened,
    Sessions,
)
from awsomefsd.meta.api.messages.snapshots import AnswerFlush, FlushAsked, FlushVolumes, ListSnapshots, Snapshots
from awsomefsd.meta.api.messages.stores import GetStoreSecret, ListStores, Stores, VeiledSecret
from awsomefsd.meta.api.messages.volumes import Devices, GetDevices, GetVolumes, Made, Volumes

__all__ = [
    "PROTOCOL_OLDEST",
    "PROTOCOL_VERSION",
    "Answer",
    "AnswerRecall",
    "Applied",
    "AwaitRecalls",
    "AwaitSpaceRecall",
    "BaysLeased",
    "Blob",
    "Body",
    "Cancel",
    "Changes",
    "Checkpoints",
    "Committed",
    "Contested",
    "Devices",
    "Done",
    "Entries",
    "ExtendRecall",
    "Failed",
    "Follow",
    "Found",
    "FoundRows",
    "GetAttr",
    "GetCheckpoints",
    "GetDevices",
    "GetInherited",
    "GetLayout",
    "GetLease",
    "GetLocks",
    "GetOrphans",
    "GetOwnSegments",
    "GetParent",
    "GetReports",
    "GetRows",
    "GetSegments",
    "GetSessions",
    "GetStatFs",
    "GetStatus",
    "GetVolumes",
    "GetXattr",
    "Hello",
    "Inodes",
    "InodesGranted",
    "Layout",
    "Leased",
    "ListXattr",
    "Locked",
    "Locks",
    "Lookup",
    "Made",
    "Names",
    "NodeCheckpoint",
    "NotLeader",
    "Propose",
    "Ranged",
    "ReadDir",
    "ReadLink",
    "Recalls",
    "ReleaseLeases",
    "Removed",
    "Renamed",
    "Renew",
    "Reply",
    "Report",
    "ReportLeases",
    "Reports",
    "RequestEnvelope",
    "Reserved",
    "ReturnLeases",
    "Segments",
    "SegmentsLeased",
    "SessionGoesOn",
    "SessionOpened",
    "Sessions",
    "StatFsReply",
    "Status",
    "TestLock",
    "Volumes",
    "WaitLock",
    "Welcome",
]  # fmt: skip


Body = Union[
    Hello, Propose, Lookup, GetAttr, ReadDir, ReadLink, GetXattr, ListXattr, GetLayout, GetStatFs, GetSegments, GetDevices,
    GetVolumes, GetLocks, TestLock, Renew, WaitLock, Cancel, Follow, GetStatus, GetParent, GetSessions, Report,
    GetReports, GetLease, ReportLeases, AwaitRecalls, AnswerRecall, ExtendRecall, ReleaseLeases, GetSparse, GetPieces,
    GetFilePieces, GetOwnSegments, GetLiveSegments, GetNames, ListNodes, ListTokens, NodeReport, ListCas, GetNode,
    GetMembers, ChangeMembers, TransferLead,
    GetFilePieces, GetOwnSegments, GetLiveSegments, GetNames, GetCsiVolumes, GetClaims, ReportDevices, GetSightings, GetQuarantine,
    GetOrphans, GetInherited, ReturnLeases, AwaitSpaceRecall, GetCheckpoints, GetRows, GetBays,
    GetPool, GetNeeds, GetStaleBays, ListStores, GetStoreSecret,
    GetPoolVolumes, CountNeeds, ReportCensus, ListSnapshots, FlushVolumes, AnswerFlush,
]  # fmt: skip


class RequestEnvelope(Struct, array_like=True, gc=False):
    call: int
    body: Body


Reply = Union[
    Done, Failed, Welcome, Found, Removed, Renamed, Committed, SessionOpened, SegmentsLeased, Reserved, Entries, Blob, Names, Layout,
    StatFsReply, Segments, Devices, Volumes, Locks, Locked, Changes, Status, Made, Sessions, Reports,
    NotLeader, Ranged, Leased, Recalls, CollectorOpened, Relocated, Sparse, Pieces, LiveSegments, NamePage,
    Nodes, Tokens, NodeOrders, Cas, Members,
    Claimed, CsiVolumes, Claims, Sightings, Quarantine,
    Inodes, Contested, Checkpoints, FoundRows,
    Applied, InodesGranted, SessionGoesOn, Bays, BaysLeased, Pool, NeedsFound, StaleBays,
    Stores, VeiledSecret, PoolVolumes, NeedsCounted, Snapshots, FlushAsked,
]  # fmt: skip


class Answer(Struct, array_like=True, gc=False):
    call: int
    reply: Reply
