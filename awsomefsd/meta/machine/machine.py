"""The state machine: one entry of the log in, one reply out; a pure function of state and entry.

Order inside an entry: acknowledged results go; a request whose result is held is answered with it and changes nothing; the rule of the
command runs (a rule checks everything before its first change, so a refusal changes nothing); segments that became wholly dead are freed;
the reply is kept.  A refusal is the reply Failed, never an exception; Corrupt and FormatTooNew come out as they are, and stop the node.

Refusals by a fence, those with `retry` and NotKept are not kept as results: they changed nothing, and the same request must be able to
succeed later (under a new session, after a pause).  Of the replies to Apply only some are kept (records.is_kept).

Hot rows and results are written back by flush(), which the driver calls before the store commits; a new machine over the same transaction
goes on exactly where this one was.  An entry at or below `applied_index` is a replay and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import FormatTooNew, FsError
from awsomefsd.base.limits import NAME_BYTES_MAX
from awsomefsd.base.types import HOST_UNIQUE, NAMES_DELEGATED, Lock
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Done, Failed, Reply
from awsomefsd.meta.machine import (
    allocation,
    attributes,
    bays,
    checkpoint_segments,
    commits,
    copy_range,
    csi_volumes,
    devices,
    doubt,
    inode_grants,
    locks,
    members,
    mounts,
    names_elsewhere,
    nodes,
    pools,
    quota,
    reaping,
    records,
    relocation,
    repair,
    segments,
    sessions,
    snapshots,
    stores,
    stream_readers,
    volumes,
    write_through,
)
from awsomefsd.meta.machine import (
    write_leases as leases,
)
from awsomefsd.meta.machine.ledger import LEADER
from awsomefsd.meta.raft.types import MembershipAt
from awsomefsd.meta.state import history, invariants, keys, rows
from awsomefsd.meta.state.lookups import EpochEnded, NotKept, RetryLater
from awsomefsd.meta.state.rows_cache import State
from awsomefsd.meta.state.txn import Txn

_RULES: dict[type[c.Command], Callable[[State, c.Entry, Any], Reply]] = {
    c.Init: volumes.init,
    c.AddDevice: segments.add_device,
    c.GrowDevice: devices.grow,
    c.DrainDevice: devices.drain,
    c.RemoveDevice: devices.remove,
    c.SetDeviceEra: devices.set_era,
    c.SetAbsent: devices.set_absent,
    c.CreateVolume: volumes.create,
    c.SetVolume: volumes.set_volume,
    c.SetNames: volumes.set_names,
    c.DeleteVolume: csi_volumes.delete_volume,
    c.OpenSession: sessions.open_session,
    c.OpenShared: sessions.open_session,
    c.OpenSnapshot: sessions.open_session,
    c.EndSession: sessions.end_session,
    c.ClearQuarantine: segments.clear_quarantine,
    c.LeaseSegments: segments.lease,
    c.KeepSegments: checkpoint_segments.keep,
    c.DropSegments: checkpoint_segments.drop,
    c.Recover: checkpoint_segments.recover,
    c.KeepForCheckpoint: checkpoint_segments.keep_for,
    c.AdoptSegments: checkpoint_segments.adopt,
    c.CheckpointDone: checkpoint_segments.done,
    c.ReturnSegments: checkpoint_segments.give_back,
    c.Reserve: quota.reserve,
    **records.RULES,
    c.Apply: records.apply,
    c.GrantInodes: inode_grants.grant,
    c.SetAtimes: attributes.set_atimes,
    c.Commit: commits.commit,
    c.WriteData: write_through.write_data,
    c.Reap: reaping.reap,
    c.Draw: allocation.draw,
    c.CopyRange: copy_range.copy_range,
    c.OpenCollector: sessions.open_collector,
    c.Relocate: relocation.relocate,
    c.AcquireLease: locks.acquire_lease,
    c.ReleaseLease: leases.release,
    c.RegisterReader: stream_readers.register,
    c.AdvanceReader: stream_readers.advance,
    c.RemoveReader: stream_readers.remove,
    c.NoOp: members.noop,
    c.ChangeMembership: members.change,
    c.RepairRows: repair.repair_rows,
    c.AddNode: nodes.add,
    c.DescribeNode: nodes.describe_node,
    c.SetNodeState: nodes.set_state,
    c.PutToken: nodes.put_token,
    c.RevokeToken: nodes.revoke_token,
    c.PutCa: nodes.put_ca,
    c.DropCa: nodes.drop_ca,
    c.SetCarries: nodes.set_carries,
    c.RaiseLevel: nodes.raise_level,
    c.AddPoolDevice: pools.add_device,
    c.AttachDevice: pools.attach,
    c.SetDeviceState: pools.set_state,
    c.SetSegmentServer: pools.set_server,
    c.SetRedundancy: pools.set_redundancy,
    c.NeedSegments: pools.need_segments,
    c.SetPool: pools.set_pool,
    c.SetMaintenance: pools.set_maintenance,
    c.DrainPoolDevices: devices.drain_of_pool,
    c.LeaseBays: pools.lease,
    c.PlanMirror: bays.plan_mirror,
    c.MirrorMade: bays.mirror_made,
    c.DropBays: bays.drop_bays,
    c.BaysTrimmed: bays.trimmed,
    c.BaysWrong: bays.wrong,
    c.BaysSeen: doubt.seen,
    c.CreateSnapshots: snapshots.create,
    c.DeleteSnapshot: snapshots.delete,
    c.AddStore: stores.add,
    c.StoreReady: stores.ready,
    c.SetStore: stores.change,
    c.BeginEra: stores.begin_era,
    c.DetachStore: stores.detach,
    c.MakeCsiVolume: csi_volumes.make,
    c.SetCsiVolume: csi_volumes.change,
    c.DropCsiVolume: csi_volumes.drop,
    c.ClaimVolume: csi_volumes.claim,
    c.EndClaims: csi_volumes.end_claims,
}


class Machine:
    """The deterministic state machine over one transaction.

    `level` is the highest level of a command that this node takes (base/levels.py).
    One thread at a time may call it; it reads no clock and waits for nothing.
    """

    __slots__ = ("_level", "state")

    def __init__(self, txn: Txn, level: int = c.COMMAND_VERSION) -> None:
        self.state = State(txn, LEADER)
        self._level = level

    @property
    def applied_index(self) -> int:
        return self.state.cluster.applied_index

    @property
    def last_stamp(self) -> int:
        """The newest hybrid time in the state.  A proposer's clock must not fall behind it."""
        return self.state.cluster.last_stamp

    @property
    def cluster_uuid(self) -> str:
        """The uuid of the cluster; "" before Init."""
        return self.state.cluster.uuid

    @property
    def level(self) -> int:
        """The level at which the cluster acts; this machine may know a higher one."""
        return min(self.state.cluster.level, self._level)

    @property
    def level_known(self) -> int:
        """The highest level at which this machine can act."""
        return self._level

    @property
    def site(self) -> int:
        return self.state.cluster.site

    def apply(self, entry: c.Entry) -> Reply:
        """Applies one entry and returns its reply; Failed is a refusal: its rule has changed nothing.

        Raises FormatTooNew for an entry that this build does not know, for every entry of a cluster that acts at a level above this
        build's, since its rules are others, and where this build may only read the rows; Corrupt for a row that does not decode.  Each
        stops the node.
        """
        state = self.state
        cluster = state.cluster
        mount, unique = entry.mount, entry.unique
        if entry.index <= cluster.applied_index:
            return state.results.get(mount, unique) or Done()
        if entry.version > self._level or cluster.level > self._level or entry.shard:
            known = f"the cluster acts at level {cluster.level}, this build knows {self._level}; upgrade this node"
            raise FormatTooNew(f"entry {entry.index}: version {entry.version}, shard {entry.shard}; {known}")
        if not state.writable:
            raise FormatTooNew(f"the rows have features {cluster.ro_compat:#x}; this build may only read them; upgrade this node")
        state.evict()
        if entry.acks:
            state.results.acknowledge(mount, entry.acks)
        reply = state.results.get(mount, unique) if unique != HOST_UNIQUE else None
        if reply is None:
            reply = self._run(entry)
        cluster.applied_index = entry.index
        if entry.stamp > cluster.last_stamp:
            cluster.last_stamp = entry.stamp
        return reply

    def _run(self, entry: c.Entry) -> Reply:
        state = self.state
        state.tombstones_written = 0
        keep = True
        try:
            mounts.refuse_unknown(state, entry)
            names_elsewhere.check(state, entry)
            reply = _RULES[type(entry.command)](state, entry, entry.command)
        except FsError as err:
            keep = not isinstance(err, (EpochEnded, RetryLater, NotKept))
            reply = Failed(err.errno, str(err.args[0]), err.retry_helps)
        if type(entry.command) is c.Apply:
            keep = records.is_kept(entry.command, reply)
        if state.maybe_dead:
            segments.free_dead(state, entry.index)
        if invariants.ASSERTED:
            segments.assert_devices(state)
        if keep and entry.unique != HOST_UNIQUE and mounts.keeps_results(state, entry):
            state.results.put(entry.mount, entry.unique, reply)
        return reply

    def flush(self) -> None:
        """Writes back what is only in memory.  Call it before the store commits."""
        self.state.flush()

    # --- what the service asks ------------------------------------------------------------------------------------------
    def stored_result(self, mount: int, unique: int) -> Reply | None:
        return self.state.results.get(mount, unique) if unique != HOST_UNIQUE else None

    def results_held(self, mount: int) -> int:
        return self.state.results.count(mount)

    @property
    def results_total(self) -> int:
        return self.state.results.total

    def copy_refusal(self, command: c.CopyRange) -> Failed | None:
        """Returns why a copy must not be proposed now; None if it may be."""
        self.state.evict()
        return copy_range.refusal(self.state, command)

    def choose_bays(self, session: int, command: c.LeaseBays, draw: Callable[[int], int]) -> list[list[int]]:
        """Returns the devices for each segment that a session asks for; fewer where there is no room for more."""
        self.state.evict()
        return pools.choose(self.state, session, command, draw)

    def reap_pending(self) -> bool:
        return reaping.pending(self.state)

    def conflicting_locks(self, session: int, command: c.SetLock) -> list[Lock]:
        return locks.conflicting(self.state, session, command)

    def live_sessions(self) -> dict[int, int]:
        """Returns session -> epoch of the live sessions."""
        return {row.session: row.epoch for row in sessions.every(self.state) if not row.ended}

    def mount_of(self, session: int) -> int:
        """Returns the mount of a session; 0 if there is none."""
        row = self.state.session(session)
        return 0 if row is None else row.mount

    def sharing_sessions(self) -> dict[int, tuple[int, int]]:
        """Returns session -> (volume, mount) of the live sessions that share their volume and cache under leases."""
        caching = (row for row in sessions.every(self.state) if row.shared and (row.caches or not row.uncached) and not row.ended)
        return {row.session: (row.volume, row.mount) for row in caching}

    def serving(self) -> list[tuple[int, int, str]]:
        """Returns (session, volume, name of its node) of the live sessions that may change a volume."""
        named = {row.node: row.name for row in nodes.every(self.state)}
        found = (row for row in sessions.every(self.state) if row.volume and not row.ended and not row.snapshot)
        return [(row.session, row.volume, named.get(row.node) or row.node) for row in found]

    def reserving_sessions(self, volume: int, but: int) -> list[int]:
        """Returns the live sessions of a volume (0: of all) that have reserved space, without the session `but`."""
        found = (row for row in sessions.every(self.state) if row.reserved_bytes and not row.ended and row.session != but)
        return [row.session for row in found if volume in (0, row.volume)]

    def write_leases(self, after: bytes, count: int) -> tuple[list[tuple[tuple[int, int], tuple[int, int]]], bytes]:
        """Returns up to `count` of ((volume, ino), (session, lease epoch)), and the `after` of the next ones; b"": begin, and the end."""
        return leases.some(self.state, after, count)

    def write_lease(self, volume: int, ino: int) -> tuple[int, int]:
        """Returns (session, epoch) of the write lease of an inode; session 0: there is none."""
        row = leases.of_inode(self.state, volume, ino)
        return row.session, row.epoch

    def changes_by_others(self, volume: int, ino: int, mount: int, known: int) -> tuple[int, bool]:
        """Returns LeaseRow.changes of an inode, and True if another mount than `mount` made it more than `known`."""
        return leases.changes_since(self.state, volume, ino, mount, known)

    def may_hold_names(self, volume: int, ino: int) -> bool:
        """Returns True if a mount may have decided names or attributes of the inode: all may, or its holder began when all might.

        A mount goes on as it began, and was granted inode numbers then.
        """
        row = self.state.volume(volume)
        if row is not None and row.names == NAMES_DELEGATED:
            return True
        session = self.state.session(leases.of_inode(self.state, volume, ino).session)
        return session is not None and inode_grants.log_of(self.state, session.mount, volume) is not None

    def child(self, volume: int, parent: int, name: bytes) -> int:
        """Returns the inode of a name; 0 if there is none.  A directory's own parent has the name b".."."""
        if len(name) > NAME_BYTES_MAX:
            return 0
        if name == b"..":
            directory = self.state.inode(volume, parent)
            return 0 if directory is None else directory.parent
        row = history.dentry(self.state, volume, parent, name)
        return 0 if row is None else row.ino

    def reader_cursors(self) -> dict[str, int]:
        """Returns reader -> cursor in the change stream.  The log is kept from the smallest on."""
        return stream_readers.cursors(self.state)

    def membership(self) -> MembershipAt | None:
        """Returns the membership; None if no entry has brought one: this is the first node, or one that has joined nothing so far."""
        return members.newest(self.state)

    def node_rows(self) -> list[rows.NodeRow]:
        """Returns the rows of all nodes, and of removed ones for as long as they are remembered."""
        return nodes.every(self.state)

    def device_rows(self) -> list[rows.DeviceRow]:
        """Returns the rows of all devices, without those that were removed."""
        return self.state.devices()

    def serving_nodes(self) -> set[str]:
        """Returns the nodes that have a live session."""
        return {row.node for row in sessions.every(self.state) if not row.ended}

    def session_node(self, session: int) -> str | None:
        """Returns the node of a session; None for a session that is not known (any more)."""
        row = self.state.session(session)
        return None if row is None else row.node

    def was_opened(self, session: int) -> bool:
        """Returns False for a number that no session has had yet: the next ones to be opened get it."""
        return session < self.state.cluster.next_session

    def mount_node(self, mount: int) -> str | None:
        """Returns the node where the mount of that number had a session; None if there never was one."""
        row: rows.MountRow | None = self.state.read(keys.mount(mount), rows.MOUNT)
        return None if row is None else row.node

    def results_of_others(self, mount: int, unique: int) -> list[int]:
        """Returns the ids of results of a node's earlier daemons, given an id of the present one."""
        return self.state.results.of_others(mount, unique)

    def take_unlocked(self) -> set[tuple[int, int]]:
        """Returns and empties the set of (volume, ino) whose locks shrank: their waiters may try again."""
        taken, self.state.unlocked = self.state.unlocked, set()
        return taken
