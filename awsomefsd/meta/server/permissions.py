"""Says who may ask what: one table of all requests and commands, and the judgement of one request of another node.  Pure.

A request over the metadata port carries the identity that its connection's certificate proved, and is judged here before anything is done
with it, by the role that the cluster's row of the node says (the certificate must say the same).  Requests over the unix socket, which only
root of this machine can open, and those of this process are not judged.

MEMBER   whoever is in the cluster
NODE     role "node": it changes the cluster (volumes, devices, nodes, tokens), or sees all of it
OWN      the request names a session, and it belongs to the asking node; one that nobody knows any more is for the machine to refuse.
         A number that is still to be given is nobody's: the request may wait, and the session be another node's then.
         Without a session (0) a rule takes the asker for the daemon of the leader itself, which leases and fences do not bind
SELF     the command names the asking node itself as the one it is about
OPEN     SELF, and the session is for the mount whose connection this is
NOBODY   not over the network: entries that only the log itself, the leader, its daemon, fsck or a recovery make

A mount's number belongs to the node that opened a session with it: its results and its place in the order of connections are no other
node's.  A node's own number (types.node_mount) is its own from the start.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from awsomefsd.base.errors import WAS_REMOVED
from awsomefsd.base.types import is_node_mount, node_mount
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.collection import GetFilePieces, GetPieces, GetSparse
from awsomefsd.meta.api.messages.csi import GetClaims, GetCsiVolumes
from awsomefsd.meta.api.messages.devices import GetBays, GetQuarantine, GetSightings, ReportDevices
from awsomefsd.meta.api.messages.members import ChangeMembers, GetMembers, TransferLead
from awsomefsd.meta.api.messages.nodes import GetNode, ListCas, ListNodes, ListTokens, NodeReport
from awsomefsd.meta.api.messages.pools import CountNeeds, GetNeeds, GetPool, GetPoolVolumes, GetStaleBays, ReportCensus
from awsomefsd.meta.api.messages.scrub import GetLiveSegments, GetNames
from awsomefsd.meta.api.messages.snapshots import AnswerFlush, FlushVolumes, ListSnapshots
from awsomefsd.meta.api.messages.stores import GetStoreSecret, ListStores


class May(enum.Enum):
    MEMBER = enum.auto()
    NODE = enum.auto()
    OWN = enum.auto()
    OWN_OR_NODE = enum.auto()
    SELF = enum.auto()
    OPEN = enum.auto()
    NODE_SELF = enum.auto()
    SELF_OR_NODE = enum.auto()
    NOBODY = enum.auto()


REQUESTS: dict[type, May] = {
    m.Hello: May.MEMBER,  # and the mount's own
    m.Propose: May.MEMBER,  # then COMMANDS
    m.WaitLock: May.OWN,
    m.Lookup: May.MEMBER,
    m.GetAttr: May.MEMBER,
    m.ReadDir: May.MEMBER,
    m.ReadLink: May.MEMBER,
    m.GetXattr: May.MEMBER,
    m.ListXattr: May.MEMBER,
    m.GetLayout: May.MEMBER,
    m.GetStatFs: May.MEMBER,
    m.GetSegments: May.MEMBER,
    m.GetDevices: May.MEMBER,
    m.GetVolumes: May.MEMBER,
    m.GetParent: May.MEMBER,
    m.TestLock: May.MEMBER,
    m.GetSessions: May.MEMBER,
    m.GetStatus: May.MEMBER,
    m.Report: May.MEMBER,
    m.GetReports: May.MEMBER,
    m.Cancel: May.MEMBER,  # of a wait of the connection's mount
    GetNames: May.MEMBER,  # a worker names the file with wrong bytes
    m.GetLocks: May.OWN,
    m.GetOrphans: May.OWN,
    m.GetRows: May.OWN,
    m.GetInherited: May.OWN,
    m.Renew: May.OWN,
    m.AwaitSpaceRecall: May.OWN,
    m.GetLease: May.OWN,
    m.ReportLeases: May.OWN,
    m.AwaitRecalls: May.OWN,
    m.AnswerRecall: May.OWN,
    m.ExtendRecall: May.OWN,
    m.ReleaseLeases: May.OWN,
    m.ReturnLeases: May.OWN,
    m.Follow: May.NODE,
    m.GetOwnSegments: May.NODE,
    m.GetCheckpoints: May.NODE,
    GetCsiVolumes: May.MEMBER,  # every node stages what others made
    GetClaims: May.MEMBER,
    GetSparse: May.NODE,
    GetPieces: May.NODE,
    GetFilePieces: May.NODE,
    GetLiveSegments: May.NODE,
    ListNodes: May.NODE,
    GetNode: May.NODE,
    ListTokens: May.NODE,
    ListCas: May.NODE,
    GetMembers: May.NODE,
    ChangeMembers: May.NOBODY,  # the manager asks the service of its own process
    TransferLead: May.NOBODY,
    NodeReport: May.SELF,
    ReportDevices: May.SELF,
    GetSightings: May.NODE,
    GetQuarantine: May.NODE,
    GetBays: May.NODE,
    GetPool: May.NODE,
    GetNeeds: May.NODE,
    GetStaleBays: May.NODE,
    ListStores: May.NODE,
    FlushVolumes: May.NODE,
    AnswerFlush: May.OWN,
    ListSnapshots: May.MEMBER,  # who mounts one finds it by its name
    GetStoreSecret: May.NODE,
    GetPoolVolumes: May.NODE,
    CountNeeds: May.NODE,
    ReportCensus: May.NODE_SELF,
}

COMMANDS: dict[type, May] = {
    **dict.fromkeys(
        (
            c.LeaseSegments, c.Reserve, c.Create, c.Link, c.Unlink, c.Rmdir, c.Rename, c.SetAttr, c.SetXattr, c.RemoveXattr,
            c.ReleaseOrphan, c.Commit, c.WriteData, c.SetLock, c.Tmpfile, c.SetAtimes, c.Fallocate, c.CopyRange, c.Draw,
            c.AcquireLease, c.ReleaseLease, c.Apply, c.GrantInodes, c.LeaseBays,
        ),
        May.OWN,
    ),
    c.OpenSession: May.OPEN,
    c.OpenShared: May.OPEN,
    c.OpenSnapshot: May.OPEN,
    c.EndSession: May.OWN_OR_NODE,
    c.ClearQuarantine: May.OWN_OR_NODE,
    c.OpenCollector: May.NODE_SELF,
    c.KeepForCheckpoint: May.NODE_SELF,
    c.CheckpointDone: May.NODE_SELF,
    c.ReturnSegments: May.NODE_SELF,
    c.AttachDevice: May.NODE_SELF,
    c.BaysTrimmed: May.NODE_SELF,
    c.BaysWrong: May.NODE_SELF,
    c.BaysSeen: May.NODE_SELF,
    c.SetSegmentServer: May.NODE_SELF,
    c.DescribeNode: May.SELF,
    c.ClaimVolume: May.SELF_OR_NODE,  # the driver of a node attaches for others
    c.EndClaims: May.SELF_OR_NODE,
    **dict.fromkeys(
        (
            c.AddDevice, c.CreateVolume, c.SetVolume, c.SetNames, c.DeleteVolume, c.Relocate, c.RegisterReader, c.AdvanceReader,
            c.RemoveReader,
            c.AddNode, c.SetNodeState, c.PutToken, c.RevokeToken, c.PutCa, c.DropCa, c.RaiseLevel,
            c.MakeCsiVolume, c.SetCsiVolume, c.DropCsiVolume, c.GrowDevice, c.DrainDevice, c.RemoveDevice,
            c.SetDeviceEra, c.AddPoolDevice, c.SetRedundancy, c.SetPool, c.AddStore, c.StoreReady, c.SetStore, c.DetachStore,
            c.SetMaintenance, c.CreateSnapshots, c.DeleteSnapshot, c.DrainPoolDevices,
            c.BeginEra,
        ),
        May.NODE,
    ),
    **dict.fromkeys(
        (
            c.Reap, c.NoOp, c.ChangeMembership, c.RepairRows, c.SetCarries, c.SetAbsent,
            c.PlanMirror, c.MirrorMade, c.DropBays, c.SetDeviceState, c.NeedSegments,  # the daemon of the leader
            c.Init, c.Recover, c.KeepSegments, c.DropSegments, c.AdoptSegments,  # the daemon of the leader; a recovery on a stopped node
        ),
        May.NOBODY,
    ),
}  # fmt: skip


class AskingNode(NamedTuple):
    """A member of the cluster; `owns` says whether a session is this node's (also one that nobody knows any more).

    `mount`: of the connection; 0 for a client without a mount.
    """

    node: str
    role: str
    owns: Callable[[int], bool]
    mount: int


def why_not(asker: AskingNode, body: m.Body) -> str:
    """Returns why this request is refused; "" if it is not."""
    if type(body) is not m.Propose:
        may = REQUESTS.get(type(body), May.NOBODY)
        return _why_not(asker, may, body, [getattr(body, "session", 0)])
    command = body.command
    may = COMMANDS.get(type(command), May.NOBODY)
    sessions = [body.session] if may is May.OWN else [getattr(command, "session", 0)]
    if may is not May.OWN and body.session:
        sessions.append(body.session)
    return _why_not(asker, may, command, sessions)


def _why_not(asker: AskingNode, may: May, asked: object, sessions: Iterable[int]) -> str:
    what, about = type(asked).__name__, getattr(asked, "node", "")
    if may is May.NOBODY:
        return f"{what} is not for clients"
    if may in (May.NODE, May.NODE_SELF) and asker.role != "node":
        return f"{_not_a_node(asker)} and may not do this ({what}); run the command on a machine with the role node"
    if may in (May.SELF, May.OPEN, May.NODE_SELF) and about != asker.node:
        return f"{what} is for a node itself; node {asker.node} asked it for {about or 'nobody'}"
    if may is May.OPEN and (not asker.mount or getattr(asked, "mount", 0) != asker.mount):
        return f"{what} is for the mount of the connection; mount {asker.mount:x} asked it for another, or is none"
    if may is May.SELF_OR_NODE and about != asker.node and asker.role != "node":
        return f"{_not_a_node(asker)} and may not do this for other nodes ({what}); run the command on a machine with the role node"
    if may is May.OWN or (may is May.OWN_OR_NODE and asker.role != "node"):
        for session in sessions:
            if not session:
                return f"{what} needs a session; node {asker.node} named none"
            if not asker.owns(session):
                return f"session {session} is another node's than {asker.node}'s"
    return ""


def _not_a_node(asker: AskingNode) -> str:
    return f"node {asker.node} is a {asker.role or 'stranger'} of this cluster"


# --- standing -----------------------------------------------------------------------------------------------------------------------
class Standing(NamedTuple):
    role: str
    removed: bool


def standings(rows: Iterable[Any]) -> dict[str, Standing]:
    """Returns the standing of each node, by UUID.  `rows`: rows.NodeRow."""
    return {row.node: Standing(row.role, row.state == "removed") for row in rows}


def why_no_member(node: str, role: str, standing: Standing | None) -> str:
    """Returns why the node of a verified certificate may not talk to the cluster; "" if it may."""
    if standing is None:
        return f"node {node} is not a member of this cluster"
    if standing.removed:
        return f"node {node} {WAS_REMOVED} this cluster; join with a new identity (an empty state directory)"
    if standing.role != role:
        return f"the certificate of node {node} is for the role {role or '(none)'}, the cluster knows it as {standing.role}"
    return ""


def why_no_mount(node: str, mount: int, owner: str | None) -> str:
    """Returns why a node may not use that mount's number; "" if it may.

    `owner`: the node whose session the number has had, None for a number that was never used.
    """
    if is_node_mount(mount):
        return "" if mount == node_mount(node) else f"number {mount:x} is another node's than {node}'s"
    return "" if owner in (None, node) else f"mount {mount:x} is on another node than {node}"
