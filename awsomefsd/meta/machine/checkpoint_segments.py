"""Segments that the metadata keeps for itself (state METADATA): checkpoints of state and journal are written there
(io/collect/checkpoint_area.py).

They belong to no session: their `held` rows are those of session 0.  The segments themselves say which of them hold what, so that it can be
found without any state; these rows only keep others from using them.  They are never taken from space that is promised to
writers, and never more than one in KEPT_SHARE of a device.

`recover` is the first entry after a state was rebuilt from a device alone.  Everything that the lost end of the log may have handed out
must never be handed out again: incarnations of segments, sessions, epochs and inode numbers all jump.  Its proposer guarantees that no
process from before still writes; so every session ends, and no quarantine is left.  Registered readers of the change stream go: their
cursors may lie behind the end of this log, in a future that did not happen.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import SEGMENT_METADATA, SEGMENT_SEALED, is_node_mount
from awsomefsd.meta.api.commands import DropSegments, Entry, KeepSegments, Recover
from awsomefsd.meta.api.messages import Done, Reply, SegmentsLeased
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.machine import locality, nodes, sessions
from awsomefsd.meta.machine.quota import device_bytes_available
from awsomefsd.meta.machine.segments import describe, lowest_free, release_quarantine, take
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import NotKept, RetryLater
from awsomefsd.meta.state.rows_cache import State

KEPT_SHARE = 8  # at most one in so many segments of a device
NUMBERS_JUMP = 1 << 32  # sessions, epochs, incarnations: more than one lost future hands out
INODES_JUMP = 1 << 24


def kept(state: State) -> list[rows.SegmentRow]:
    """Returns the rows of all segments that the metadata keeps."""
    found = []
    for key in state.keys_in(keys.held_range(0)):
        row = state.segment(keys.last_u64(key))
        assert row is not None and row.state == SEGMENT_METADATA, "a segment held by session 0 is the metadata's"
        found.append(row)
    return found


def _check_daemon(entry: Entry) -> None:
    if entry.session or (entry.mount and not is_node_mount(entry.mount)):
        raise FsError(errno.EPERM, "the metadata's own segments are the daemon's business")


def keep(state: State, entry: Entry, command: KeepSegments) -> Reply:
    """Takes free segments of a device for the metadata.  Answered by SegmentsLeased."""
    _check_daemon(entry)
    if command.count <= 0 or not 0 < command.device < state.cluster.next_device:
        raise FsError(errno.EINVAL, "no such device, or no segments asked for")
    device = state.device(command.device)
    if device.draining or device.removed:
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
    return SegmentsLeased(leased)


def drop(state: State, entry: Entry, command: DropSegments) -> Reply:
    """Gives segments of the metadata back."""
    _check_daemon(entry)
    found = []
    for number in dict.fromkeys(command.segments):
        row = state.segment(number)
        if row is None or row.state != SEGMENT_METADATA:
            raise FsError(errno.EINVAL, f"segment {number} is not the metadata's")
        found.append(row)
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
    newest = max(command.incarnation_seen, cluster.incarnation_base)
    cluster.incarnation_base = (newest // NUMBERS_JUMP + 1) * NUMBERS_JUMP
    cluster.next_session = (cluster.next_session // NUMBERS_JUMP + 1) * NUMBERS_JUMP
    cluster.next_epoch = (cluster.next_epoch // NUMBERS_JUMP + 1) * NUMBERS_JUMP
    for number in range(1, cluster.next_volume):
        volume = state.volume(number)
        if volume is not None:
            volume.next_ino += INODES_JUMP
            state.save_volume(volume)
    if command.node:
        locality.move_all(state, command.node)
        nodes.remove_others(state, entry, command.node)
    return Done()
