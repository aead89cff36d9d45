"""Segments that the metadata keeps for itself (state METADATA): checkpoints of state and journal are written there
(io/collect/checkpoint_area.py).

They belong to no session: their `held` rows are those of session 0.  The segments themselves say which of them hold what, so that it can be
found without any state; these rows only keep others from using them.  They are never taken from space that is promised to
writers, and never more than one in KEPT_SHARE of a device.

From level 3 on a segment that is kept is one node's (CheckpointRow): its checkpoints are written there and no others, and its daemon alone
gives it back, when none of its writes is under way.  So a node that was cut off and does not know that another one leads cannot write into
a segment that serves something else since.  `done` says which checkpoint is complete; the newest one's segments cannot be given back, so a
new leader knows what the device holds without reading it.  A segment that was kept before level 3 is no node's, and nobody writes there;
`adopt` gives it to one.

`recover` is the first entry after a state was rebuilt from a device alone.  Everything that the lost end of the log may have handed out
must never be handed out again: incarnations of segments, sessions, epochs and inode numbers all jump.  Its proposer guarantees that no
process from before still writes; so every session ends, and no quarantine is left.  Registered readers of the change stream go: their
cursors may lie behind the end of this log, in a future that did not happen.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import NUMBERS_JUMP
from awsomefsd.base.types import SEGMENT_METADATA, SEGMENT_SEALED, SegmentInfo, is_node_mount
from awsomefsd.meta.api.commands import (
    AdoptSegments,
    CheckpointDone,
    DropSegments,
    Entry,
    KeepForCheckpoint,
    KeepSegments,
    Recover,
    ReturnSegments,
)
from awsomefsd.meta.api.messages import Done, NodeCheckpoint, Reply, SegmentsLeased
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.machine import doubt, locality, nodes, sessions, stores
from awsomefsd.meta.machine.quota import device_bytes_available
from awsomefsd.meta.machine.segments import describe, lowest_free, release_quarantine, take
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import NotKept, RetryLater
from awsomefsd.meta.state.rows_cache import State

KEPT_SHARE = 8  # at most one in so many segments of a device
INODES_JUMP = 1 << 24
_NODE_BYTES_MAX = 64


def kept(state: State) -> list[rows.SegmentRow]:
    """Returns the rows of all segments that the metadata keeps."""
    found = []
    for key in state.keys_in(keys.held_range(0)):
        row = state.segment(keys.last_u64(key))
        assert row is not None and row.state == SEGMENT_METADATA, "a segment held by session 0 is the metadata's"
        found.append(row)
    return found


def every(state: State) -> list[rows.CheckpointRow]:
    """Returns what each node keeps; [] below level 3."""
    return [rows.CHECKPOINT.loads(raw) for _, raw in state.txn.scan(*keys.kind_range(0, keys.CHECKPOINT))]


def newest(of: list[rows.CheckpointRow]) -> rows.CheckpointRow | None:
    """Returns the row with the newest checkpoint that is complete; None if there is none."""
    return max((row for row in of if row.area), key=lambda row: (row.term, row.index, row.number), default=None)


def told(row: rows.CheckpointRow) -> NodeCheckpoint:
    return NodeCheckpoint(row.node, row.segments, row.area, row.device, row.number, row.term, row.index)


def _save(state: State, row: rows.CheckpointRow) -> None:
    if row.segments:
        state.write(keys.checkpoint(row.node), row, rows.CHECKPOINT)
    else:
        state.drop(keys.checkpoint(row.node))


def _row_of(state: State, node: str) -> rows.CheckpointRow:
    found: rows.CheckpointRow | None = state.read(keys.checkpoint(node), rows.CHECKPOINT)
    return rows.CheckpointRow(node, []) if found is None else found


def _check_node(state: State, node: str) -> None:
    """A node without a row is one of a cluster that has none: it never had a certificate."""
    row = nodes.find(state, node)
    if not node or len(node.encode()) > _NODE_BYTES_MAX or (row is not None and row.state == "removed"):
        raise FsError(errno.EINVAL, f"{node or 'nobody'} is no node of this cluster")


def _check_daemon(entry: Entry) -> None:
    if entry.session or (entry.mount and not is_node_mount(entry.mount)):
        raise FsError(errno.EPERM, "the metadata's own segments are the daemon's business")


def keep(state: State, entry: Entry, command: KeepSegments) -> Reply:
    """Takes free segments of a device for the metadata.  Answered by SegmentsLeased."""
    return SegmentsLeased(_keep(state, entry, command))


def keep_for(state: State, entry: Entry, command: KeepForCheckpoint) -> Reply:
    """As `keep`, for the checkpoints of one node."""
    _check_node(state, command.node)
    leased = _keep(state, entry, command)
    row = _row_of(state, command.node)
    row.segments = row.segments + [info.segment for info in leased]
    _save(state, row)
    return SegmentsLeased(leased)


def adopt(state: State, entry: Entry, command: AdoptSegments) -> Reply:
    """Makes the segments that are no node's those of one."""
    _check_daemon(entry)
    _check_node(state, command.node)
    owned = {number for row in every(state) for number in row.segments}
    row = _row_of(state, command.node)
    row.segments = row.segments + [one.segment for one in kept(state) if one.segment not in owned]
    _save(state, row)
    return Done()


def done(state: State, entry: Entry, command: CheckpointDone) -> Reply:
    """Notes a node's newest checkpoint.  It must be newer than what is known: the segments of the one before are not protected any more."""
    _check_daemon(entry)
    row, best = _row_of(state, command.node), newest(every(state))
    if not command.segments or not set(command.segments) <= set(row.segments):
        raise FsError(errno.EINVAL, f"a checkpoint of node {command.node} lies in segments that it keeps")
    at = (command.term, command.index, command.number)
    if best is not None and at <= (best.term, best.index, best.number):
        raise FsError(errno.ESTALE, f"there is a newer checkpoint, of node {best.node}, up to entry {best.index}")
    row.area, row.device = command.segments, command.device
    row.number, row.term, row.index = command.number, command.term, command.index
    _save(state, row)
    return Done()


def _keep(state: State, entry: Entry, command: KeepSegments | KeepForCheckpoint) -> list[SegmentInfo]:
    _check_daemon(entry)
    if command.count <= 0 or not 0 < command.device < state.cluster.next_device:
        raise FsError(errno.EINVAL, "no such device, or no segments asked for")
    device = state.device(command.device)
    if device.draining or device.removed or device.absent:
        raise NotKept(errno.EBUSY, f"device {command.device} takes nothing new")
    kept_there = sum(row.device == command.device for row in kept(state))
    if (kept_there + command.count) * KEPT_SHARE > device.segments:
        raise NotKept(errno.EDQUOT, f"the metadata keeps {kept_there} of {device.segments} segments of device {command.device}")
    if command.count * usable_bytes(device.segment_bytes) > device_bytes_available(state, 0, locality.of_device(device)):
        raise NotKept(errno.ENOSPC, "what is free is promised to writers")
    chosen = lowest_free(state, [device], command.count, command.safe_index)
    if len(chosen) < command.count:
        raise RetryLater(errno.EAGAIN, "too few segments are free and safe to use again")
    leased = []
    for row in chosen:
        row = take(state, row, SEGMENT_METADATA, 0, 0)
        leased.append(describe(state, row))
    return leased


def drop(state: State, entry: Entry, command: DropSegments) -> Reply:
    """Gives segments of the metadata back."""
    return _drop(state, entry, command.segments)


def give_back(state: State, entry: Entry, command: ReturnSegments) -> Reply:
    """As `drop`, of a node's own segments."""
    if not set(command.segments) <= set(_row_of(state, command.node).segments):
        raise FsError(errno.EINVAL, f"node {command.node} does not keep these segments")
    return _drop(state, entry, command.segments)


def _drop(state: State, entry: Entry, segments: list[int]) -> Reply:
    _check_daemon(entry)
    found = []
    for number in dict.fromkeys(segments):
        row = state.segment(number)
        if row is None or row.state != SEGMENT_METADATA:
            raise FsError(errno.EINVAL, f"segment {number} is not the metadata's")
        found.append(row)
    owners = every(state)
    best = newest(owners)
    if best is not None and set(best.area) & set(segments):
        raise FsError(errno.EBUSY, "the newest checkpoint lies there")
    for owner in owners:
        if dropped := set(owner.segments) & set(segments):
            owner.segments = [number for number in owner.segments if number not in dropped]
            owner.area = [] if dropped & set(owner.area) else owner.area
            _save(state, owner)
    for row in found:
        state.txn.delete(keys.held(0, row.segment))
        row.state = SEGMENT_SEALED
        state.save_segment(row)
        state.maybe_dead.add(row.segment)  # nothing lives in it: freed at the end of this entry
    return Done()


def recover(state: State, entry: Entry, command: Recover) -> Reply:
    """Begins a cluster again from a copy of its state: all sessions end, and all counters jump."""
    _check_daemon(entry)
    if not command.proof:
        raise FsError(errno.EINVAL, "a recovery needs the proof that nobody from before still writes")
    cluster = state.cluster
    for row in list(sessions.every(state)):
        if not row.ended:
            sessions.end(state, entry, row, exited=True)
        release_quarantine(state, row.session)
    for key in state.keys_in(keys.kind_range(0, keys.MOUNT)):
        state.results.forget(keys.last_u64(key))
        state.txn.delete(key)
    for key in state.keys_in(keys.kind_range(0, keys.READER)):
        state.txn.delete(key)
        cluster.readers -= 1
    for key in state.keys_in(keys.kind_range(0, keys.BEGUN)):  # in the time that is lost somebody may have filled them
        state.txn.delete(key)
    newest = max(command.incarnation_seen, cluster.incarnation_base)
    cluster.incarnation_base = (newest // NUMBERS_JUMP + 1) * NUMBERS_JUMP
    cluster.next_session = (cluster.next_session // NUMBERS_JUMP + 1) * NUMBERS_JUMP
    cluster.next_epoch = (cluster.next_epoch // NUMBERS_JUMP + 1) * NUMBERS_JUMP
    for number in range(1, cluster.next_volume):
        volume = state.volume(number)
        if volume is not None:
            volume.next_ino += INODES_JUMP
            state.save_volume(volume)
    stores.recovered(state, entry)
    for owner in every(state):
        state.drop(keys.checkpoint(owner.node))
    if command.node and state.acts_at(KeepForCheckpoint.since):  # nobody from before still writes
        _save(state, rows.CheckpointRow(command.node, [row.segment for row in kept(state)]))
    doubt.begin(state)
    if command.node:
        locality.move_all(state, command.node)
        nodes.remove_others(state, entry, command.node)
    return Done()
