"""The closed, versioned set of log commands, and the entry that carries one.

Apply is a pure function of (state, entry): whoever proposes a command stamps time, ids and choices into it.  A command may be added.  The
tag and the fields of a command that was ever written stay; fields may be appended with a default.  tests/golden keeps an encoding of each.
Each module of this package has the commands of one subject.
"""

from __future__ import annotations

from typing import Union

import msgspec
from msgspec import Struct

from awsomefsd.meta.api.commands.attributes import (
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_KILL_SETGID,
    SET_KILL_SUIDGID,
    SET_MODE,
    SET_MTIME,
    SET_SIZE,
    SET_UID,
    XATTR_CREATE,
    XATTR_REPLACE,
    RemoveXattr,
    SetAtimes,
    SetAttr,
    SetXattr,
)
from awsomefsd.meta.api.commands.base import Command
from awsomefsd.meta.api.commands.change_stream import AdvanceReader, RegisterReader, RemoveReader
from awsomefsd.meta.api.commands.checkpoints import (
    AdoptSegments,
    CheckpointDone,
    DropSegments,
    KeepForCheckpoint,
    KeepSegments,
    Recover,
    ReturnSegments,
)
from awsomefsd.meta.api.commands.cluster import ChangeMembership, Init, NoOp, RepairRows
from awsomefsd.meta.api.commands.collection import OpenCollector, Relocate, Relocation
from awsomefsd.meta.api.commands.csi import ClaimVolume, DropCsiVolume, EndClaims, MakeCsiVolume, SetCsiVolume
from awsomefsd.meta.api.commands.data import (
    FALLOC_KEEP_SIZE,
    FALLOC_MODES,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    Commit,
    CopyRange,
    Draw,
    Fallocate,
    InodeCommit,
    Reap,
    WriteData,
)
from awsomefsd.meta.api.commands.devices import AddDevice, DrainDevice, GrowDevice, RemoveDevice, SetAbsent, SetDeviceEra
from awsomefsd.meta.api.commands.leases import AcquireLease, ReleaseLease
from awsomefsd.meta.api.commands.locks import SetLock
from awsomefsd.meta.api.commands.names import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Create,
    Link,
    ReleaseOrphan,
    Rename,
    Rmdir,
    Tmpfile,
    Unlink,
)
from awsomefsd.meta.api.commands.nodes import (
    AddNode,
    DescribeNode,
    DropCa,
    NodeCommand,
    PutCa,
    PutToken,
    RaiseLevel,
    RevokeToken,
    SetCarries,
    SetNodeState,
)
from awsomefsd.meta.api.commands.pools import (
    AddPoolDevice,
    AttachDevice,
    BaysSeen,
    BaysTrimmed,
    BaysWrong,
    DrainPoolDevices,
    DropBays,
    LeaseBays,
    MirrorMade,
    NeedSegments,
    PlanMirror,
    SetDeviceState,
    SetMaintenance,
    SetPool,
    SetRedundancy,
    SetSegmentServer,
)
from awsomefsd.meta.api.commands.records import Apply, DecidedRecord, DelegatedCommand, GrantInodes, record_decode, record_encode
from awsomefsd.meta.api.commands.segments import ClearQuarantine, LeaseSegments, Reserve
from awsomefsd.meta.api.commands.sessions import EndSession, OpenSession, OpenShared
from awsomefsd.meta.api.commands.snapshots import CreateSnapshots, DeleteSnapshot, NewSnapshot, OpenSnapshot
from awsomefsd.meta.api.commands.stores import AddStore, BeginEra, DetachStore, SetStore, StoreReady
from awsomefsd.meta.api.commands.volumes import UNDECIDED, CreateVolume, DeleteVolume, SetNames, SetVolume

__all__ = [
    "COMMAND_VERSION",
    "FALLOC_KEEP_SIZE",
    "FALLOC_MODES",
    "FALLOC_PUNCH_HOLE",
    "FALLOC_ZERO_RANGE",
    "RAFT_COMMANDS",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "SET_ATIME",
    "SET_CTIME",
    "SET_GID",
    "SET_KILL_SETGID",
    "SET_KILL_SUIDGID",
    "SET_MODE",
    "SET_MTIME",
    "SET_SIZE",
    "SET_UID",
    "UNDECIDED",
    "UNPROPOSED_COMMANDS",
    "XATTR_CREATE",
    "XATTR_REPLACE",
    "AcquireLease",
    "AddDevice",
    "AddNode",
    "AddPoolDevice",
    "AddStore",
    "AdoptSegments",
    "AdvanceReader",
    "AnyCommand",
    "Apply",
    "AttachDevice",
    "BaysSeen",
    "BaysTrimmed",
    "BaysWrong",
    "BeginEra",
    "ChangeMembership",
    "CheckpointDone",
    "ClaimVolume",
    "ClearQuarantine",
    "Command",
    "Commit",
    "CopyRange",
    "Create",
    "CreateSnapshots",
    "CreateVolume",
    "DecidedRecord",
    "DelegatedCommand",
    "DeleteSnapshot",
    "DeleteVolume",
    "DescribeNode",
    "DetachStore",
    "DrainDevice",
    "DrainPoolDevices",
    "Draw",
    "DropBays",
    "DropCa",
    "DropCsiVolume",
    "DropSegments",
    "EndClaims",
    "EndSession",
    "Entry",
    "Fallocate",
    "GrantInodes",
    "GrowDevice",
    "Init",
    "InodeCommit",
    "KeepForCheckpoint",
    "KeepSegments",
    "LeaseBays",
    "LeaseSegments",
    "Link",
    "MakeCsiVolume",
    "MirrorMade",
    "NeedSegments",
    "NewSnapshot",
    "NoOp",
    "OpenCollector",
    "OpenSession",
    "OpenShared",
    "OpenSnapshot",
    "PlanMirror",
    "PutCa",
    "PutToken",
    "RaiseLevel",
    "Reap",
    "Recover",
    "RegisterReader",
    "ReleaseLease",
    "ReleaseOrphan",
    "Relocate",
    "Relocation",
    "RemoveDevice",
    "RemoveReader",
    "RemoveXattr",
    "Rename",
    "RepairRows",
    "Reserve",
    "ReturnSegments",
    "RevokeToken",
    "Rmdir",
    "SetAbsent",
    "SetAtimes",
    "SetAttr",
    "SetCarries",
    "SetCsiVolume",
    "SetDeviceEra",
    "SetDeviceState",
    "SetLock",
    "SetMaintenance",
    "SetNames",
    "SetNodeState",
    "SetPool",
    "SetRedundancy",
    "SetSegmentServer",
    "SetStore",
    "SetVolume",
    "SetXattr",
    "StoreReady",
    "Tmpfile",
    "Unlink",
    "WriteData",
    "entry_decode",
    "entry_encode",
    "record_decode",
    "record_encode",
]  # fmt: skip


COMMAND_VERSION = 4  # the highest level of a command that a cluster takes; levels.LEVEL is the same.  Those above it are unfinished

RAFT_COMMANDS = frozenset({NoOp, ChangeMembership})  # no client proposes them

UNPROPOSED_COMMANDS = RAFT_COMMANDS | {RepairRows}  # nobody proposes these to a running service

AnyCommand = Union[
    Init, AddDevice, CreateVolume, SetVolume, DeleteVolume, OpenSession, EndSession, ClearQuarantine, LeaseSegments, Reserve,
    Create, Link, Unlink, Rmdir, Rename, SetAttr, SetXattr, RemoveXattr, ReleaseOrphan, Commit, Reap, SetLock,
    Tmpfile, SetAtimes, Fallocate, CopyRange, Draw, OpenCollector, Relocate,
    RegisterReader, AdvanceReader, RemoveReader, NoOp, ChangeMembership, AcquireLease, ReleaseLease, RepairRows,
    KeepSegments, DropSegments, Recover, NodeCommand,
    MakeCsiVolume, SetCsiVolume, DropCsiVolume, ClaimVolume, EndClaims, GrowDevice, DrainDevice, RemoveDevice, SetAbsent,
    OpenShared, WriteData, KeepForCheckpoint, AdoptSegments, CheckpointDone, ReturnSegments, SetDeviceEra,
    Apply, GrantInodes, SetNames,
    AddPoolDevice, AttachDevice, LeaseBays, PlanMirror, MirrorMade, DropBays, BaysTrimmed, SetDeviceState, NeedSegments, SetRedundancy,
    SetSegmentServer, SetPool, BaysWrong, AddStore, StoreReady, SetStore, DetachStore, SetMaintenance,
    CreateSnapshots, DeleteSnapshot, OpenSnapshot, DrainPoolDevices, BaysSeen,
    BeginEra,
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
