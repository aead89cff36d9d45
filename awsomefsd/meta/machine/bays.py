"""Segments in bays of a pool: a segment's bytes are in several bays, on different hosts, and its row says which, and how far each counts.

A bay is free, stale, or named by the row of one segment.  Its BayRow says what it is, and which entry made it that; a free bay has none.

    free -> mirror (LeaseBays) or copying (PlanMirror) -> stale -> free (BaysTrimmed, and nothing else; or it goes with a lost device)

The bays of a segment that is being written never change.  What counts in one is said by entries alone: a mirror is durable as far as a
Commit named it, and nobody is asked for a length.  A session that ends leaves its segments sealed at once: behind what is committed
late writes do no harm, and a bay is given away again only after its server has closed and trimmed it.  So there is no quarantine.

A segment's number is drawn at its lease and never again; its row goes with its last live byte.  segments.py branches here for rows with
bays.  What a segment lacks is a NeedRow, kept by `note_need` in the entry that changes its bays; what a change of a device or of a volume
makes many segments lack follows in a walk (pools.py).
"""

from __future__ import annotations

import errno
from itertools import islice

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import BAYS_PER_ANSWER_MAX
from awsomefsd.base.types import (
    BAY_COPYING,
    BAY_MIRROR,
    BAY_STALE,
    SEGMENT_SEALED,
    SegmentBay,
    SegmentInBays,
    SegmentProgress,
)
from awsomefsd.meta.api.commands import BaysTrimmed, BaysWrong, DropBays, Entry, MirrorMade, PlanMirror
from awsomefsd.meta.api.messages import Done, Made, Reply
from awsomefsd.meta.api.messages.devices import BayInfo, Bays, GetBays
from awsomefsd.meta.state import keys, pools, rows
from awsomefsd.meta.state.lookups import NotKept, RetryLater
from awsomefsd.meta.state.rows_cache import State

BAYS_PER_ENTRY_MAX = 512
BAYS_PER_SEGMENT_MAX = 16
_STAMP_BITS = 16  # of a hybrid stamp, below its milliseconds


def pool_device(state: State, number: int) -> rows.DeviceRow:
    """Returns a device of a pool; raises FsError(ENOENT) if there is no such one."""
    if 0 < number < state.cluster.next_device:
        device = state.device(number)
        if device.pool and not device.removed:
            return device
    raise FsError(errno.ENOENT, f"there is no device {number} in a pool")


# --- what a segment server asks ---------------------------------------------------------------------------------------
def get_bays(state: State, body: GetBays) -> Reply:
    """Answers GetBays: what the bays of a device are by the log now."""
    device = pool_device(state, body.device)
    if not 0 <= body.first < 1 << 32 or body.count <= 0:
        raise FsError(errno.EINVAL, "no bays asked for")
    count = min(body.count, BAYS_PER_ANSWER_MAX)
    end = body.first + count
    span = keys.bays_range(body.device, body.first)
    found = [(keys.bay_place(key)[1], raw) for key, raw in islice(state.txn.scan(*span), count + 1)]
    told = [_told(state, device.device, index, rows.BAY.loads(raw)) for index, raw in found if index < end]
    behind = next((index for index, _ in found if index >= end), -1)
    return Bays(told, device.generation, behind, device.doubted)


def _told(state: State, device: int, index: int, row: rows.BayRow) -> BayInfo:
    info = BayInfo(index, row.role, row.index, row.segment)
    segment = state.segment(row.segment)
    own = named(segment, device, index) if segment is not None else None
    if segment is None or own is None:
        return info
    info.incarnation, info.state, info.session = segment.incarnation, segment.state, segment.session
    info.durable, info.end = own.durable, segment.end
    if (session := state.session(segment.session)) is not None:
        info.epoch, info.node = session.epoch, session.node
    return info


def named(row: rows.SegmentRow, device: int, index: int) -> SegmentBay | None:
    """Returns the bay of a segment at that place; None if it is not the segment's."""
    return next((bay for bay in row.bays if (bay.device, bay.index) == (device, index)), None)


def describe(row: rows.SegmentRow) -> SegmentInBays:
    """Returns a segment in bays as queries show it."""
    return SegmentInBays(
        row.segment, row.incarnation, 0, 0, row.bytes, row.state, row.committed_bytes, row.footer_offset, row.footer_bytes, row.live_bytes,
        row.bays, row.stripe, row.volume,
    )  # fmt: skip


# --- free bays ----------------------------------------------------------------------------------------------------------
def free_indexes(state: State, device: rows.DeviceRow, count: int, safe_index: int) -> list[int]:
    """Returns up to `count` free bays of a device, the lowest first: freed ones that are safe, then ones that were never used."""
    found: list[int] = []
    for key, raw in state.txn.scan(*keys.free_range(device.device)):
        if len(found) == count:
            return found
        if rows.FREE.loads(raw).freed_index <= safe_index:
            found.append(keys.bay_place(key)[1])
    return found + list(range(device.unused_from, min(device.segments, device.unused_from + count - len(found))))


def take(state: State, device: rows.DeviceRow, index: int, segment: int, role: int, entry: Entry) -> SegmentBay:
    """Makes a free bay a segment's, and returns it."""
    if index < device.unused_from:
        state.txn.delete(keys.free(device.device, index))
    else:
        assert index == device.unused_from, "bays that were never used are taken in order"
        device.unused_from += 1
    device.segments_free -= 1
    state.save_device(device)
    state.write(keys.bay(device.device, index), rows.BayRow(segment, role, entry.index), rows.BAY)
    return SegmentBay(device.device, index, 0, role)


def make_stale(state: State, row: rows.SegmentRow, bay: SegmentBay, index: int) -> None:
    """Takes a bay from a segment.  `index`: of this entry."""
    row.bays = [one for one in row.bays if one != bay]
    state.write(keys.bay(bay.device, bay.index), rows.BayRow(row.segment, BAY_STALE, index), rows.BAY)
    device = state.device(bay.device)
    device.stale += 1
    state.save_device(device)


def trimmed(state: State, entry: Entry, command: BaysTrimmed) -> Reply:
    """Frees stale bays, each by compare-and-swap.  Answered by Made(how many)."""
    device = pool_device(state, command.device)
    if device.server != command.node:
        raise FsError(errno.ESTALE, f"device {device.device} is served by node {device.server or 'nobody'}")
    _check_count(len(command.bays))
    freed = 0
    for index, segment, since in command.bays:
        key = keys.bay(device.device, index) if 0 <= index < device.segments else b""
        row: rows.BayRow | None = state.read(key, rows.BAY) if key else None
        if row is not None and (row.role, row.segment, row.index) == (BAY_STALE, segment, since):
            state.txn.delete(key)
            state.write(keys.free(device.device, index), rows.FreeRow(0, entry.index), rows.FREE)
            freed += 1
    device.segments_free += freed
    device.stale -= freed
    state.save_device(device)
    return Made(freed)


def forget_stale(state: State, device: rows.DeviceRow, index: int) -> None:
    """Deletes the row of a bay, if there is one: the device is removed.  The caller saves the device."""
    key = keys.bay(device.device, index)
    row: rows.BayRow | None = state.read(key, rows.BAY)
    if row is not None:
        assert row.role == BAY_STALE, "a device is removed on which something lies"
        state.txn.delete(key)
        device.stale -= 1


def wrong(state: State, entry: Entry, command: BaysWrong) -> Reply:
    """Mirrors that have wrong bytes count no more, but for the last one.  Answered by Made(how many)."""
    device = pool_device(state, command.device)
    if device.server != command.node:
        raise FsError(errno.ESTALE, f"device {device.device} is served by node {device.server or 'nobody'}")
    _check_count(len(command.bays))
    count = 0
    for index, number in command.bays:
        row = state.segment(number) if 0 < number < state.cluster.next_segment else None
        bay = named(row, device.device, index) if row is not None else None
        if row is None or row.state != SEGMENT_SEALED or bay not in pools.complete(row):
            continue
        if not any(one != bay for one in pools.seen(row, state.device)):
            continue
        assert bay is not None
        row.bays = [SegmentBay(one.device, one.index, 0, one.role) if one == bay else one for one in row.bays]
        note_need(state, row)
        count += 1
    return Made(count)


def _check_count(count: int) -> None:
    if not 0 < count <= BAYS_PER_ENTRY_MAX:
        raise FsError(errno.EINVAL, f"one entry changes 1 to {BAYS_PER_ENTRY_MAX} bays")


# --- writing ------------------------------------------------------------------------------------------------------------
def check_progress(row: rows.SegmentRow, step: SegmentProgress) -> None:
    """Raises FsError(EINVAL) unless a report names the segment's own bays, and as many reach what it claims as the policy asks for."""
    places = [(device, index) for device, index, _ in step.durable]
    if len(set(places)) != len(places) or any(named(row, *place) is None for place in places):
        raise FsError(errno.EINVAL, f"segment {row.segment}: the report names bays that are not its own")
    if any(not 0 <= durable <= row.bytes for _, _, durable in step.durable):
        raise FsError(errno.EINVAL, f"segment {row.segment}: a bay does not hold so many bytes")
    assert row.want is not None
    claimed = max(row.committed_bytes, step.committed_bytes, step.footer_offset + step.footer_bytes if step.sealed else 0)
    reached = sum(bay.durable >= claimed for bay in _reached(row, step))
    if reached < row.want.min_copies:
        raise FsError(
            errno.EINVAL, f"segment {row.segment}: {reached} bays are durable up to {claimed}, and {row.want.min_copies} have to be"
        )


def _reached(row: rows.SegmentRow, step: SegmentProgress) -> list[SegmentBay]:
    durable = {(device, index): length for device, index, length in step.durable}
    return [
        SegmentBay(bay.device, bay.index, max(bay.durable, durable.get((bay.device, bay.index), 0)), bay.role) for bay in row.bays
    ]


def advance(row: rows.SegmentRow, step: SegmentProgress) -> None:
    """Counts for each bay what a checked report says of it."""
    row.bays = _reached(row, step)


def sealed(state: State, row: rows.SegmentRow) -> None:
    """Notes where a segment that has just been sealed ends, and what it lacks."""
    row.end = max(row.committed_bytes, row.footer_offset + row.footer_bytes)
    note_need(state, row)


def free_dead(state: State, row: rows.SegmentRow, index: int) -> None:
    """Deletes a segment in which nothing lives; its bays are stale."""
    for bay in list(row.bays):
        make_stale(state, row, bay, index)
    _put_need(state, row, None)
    state.drop(keys.segment(row.segment))


# --- needs --------------------------------------------------------------------------------------------------------------
def note_need(state: State, row: rows.SegmentRow) -> None:
    """Writes what the segment lacks now, and saves its row."""
    _put_need(state, row, pools.lack(row, state.device))
    state.save_segment(row)


def _put_need(state: State, row: rows.SegmentRow, need: pools.Need | None) -> None:
    since, tries = state.cluster.last_stamp >> _STAMP_BITS, 0
    if row.need:
        key = keys.need(row.need - 1, row.segment)
        old: rows.NeedRow | None = state.read(key, rows.NEED)
        if old is not None:
            since, tries = old.since_ms, old.tries
        state.txn.delete(key)
    row.need = 0
    if need is not None:
        priority, reasons = need
        state.write(keys.need(priority, row.segment), rows.NeedRow(reasons, since, tries), rows.NEED)
        row.need = priority + 1


# --- healing ------------------------------------------------------------------------------------------------------------
def _sealed_segment(state: State, number: int) -> rows.SegmentRow:
    """Returns a segment in bays that is sealed: others have no bays that may change."""
    row = state.segment(number) if 0 < number < state.cluster.next_segment else None
    if row is None or not row.bays:
        raise FsError(errno.ESTALE, f"there is no segment {number} in bays")
    if row.state != SEGMENT_SEALED:
        raise FsError(errno.EBUSY, f"segment {number} is being written; its bays do not change before it is sealed")
    return row


def plan_mirror(state: State, entry: Entry, command: PlanMirror) -> Reply:
    """Keeps a bay for a copy of a segment.  Answered by Made(index)."""
    row = _sealed_segment(state, command.segment)
    device = pool_device(state, command.device)
    if not takes_bays(device):
        raise NotKept(errno.EBUSY, f"device {device.device} takes no new data")
    if len(row.bays) >= BAYS_PER_SEGMENT_MAX or device.segment_bytes != row.bytes:
        raise FsError(errno.EINVAL, f"segment {row.segment} cannot have another bay on device {device.device}")
    if any(bay.role == BAY_COPYING for bay in row.bays):
        raise FsError(errno.EEXIST, f"a copy of segment {row.segment} is under way")
    _check_seen(state, row)
    _check_apart(state, row, device, command.replaces)
    index = next(iter(free_indexes(state, device, 1, command.safe_index)), None)
    if index is None:
        if device.segments_free:
            raise RetryLater(errno.EAGAIN, "the free bays wait until every session has passed their freeing")
        raise NotKept(errno.ENOSPC, f"device {device.device} has no free bay")
    row.bays = [*row.bays, take(state, device, index, row.segment, BAY_COPYING, entry)]
    note_need(state, row)
    return Made(index)


def takes_bays(device: rows.DeviceRow) -> bool:
    """Returns True for a device that takes new data: a segment server has attached it, it is there, and none of its bays is doubted."""
    return bool(device.server) and pools.is_there(device) and not device.draining and not device.doubted


def _check_seen(state: State, row: rows.SegmentRow) -> None:
    """Raises NotKept(EBUSY) while a mirror is doubted: a copy of it would count, and be a reason to give up one that is right."""
    if pools.doubted(row, state.device):
        raise NotKept(errno.EBUSY, f"mirrors of segment {row.segment} are looked at first: the cluster's state went back")


def _check_apart(state: State, row: rows.SegmentRow, device: rows.DeviceRow, replaces: tuple[int, int]) -> None:
    """Raises FsError(EEXIST) if a mirror that counts, other than the one that is replaced, fails together with `device`."""
    assert row.want is not None
    if replaces != (0, 0):
        bay = named(row, *replaces)
        if bay is None or bay.role != BAY_MIRROR:
            raise FsError(errno.ESTALE, f"segment {row.segment} has no mirror in bay {replaces}")
    staying = [bay for bay in pools.complete(row) if (bay.device, bay.index) != replaces]
    if pools.domain(device, row.want) in pools.domains(staying, row.want, state.device) or any(
        bay.device == device.device and bay.role == BAY_MIRROR and (bay.device, bay.index) != replaces for bay in row.bays
    ):
        raise FsError(errno.EEXIST, f"segment {row.segment} has a mirror that fails together with device {device.device}")


def mirror_made(state: State, entry: Entry, command: MirrorMade) -> Reply:
    """Makes a copy a mirror, and the bay that it replaces stale."""
    row = _sealed_segment(state, command.segment)
    bay = named(row, command.device, command.index)
    planned: rows.BayRow | None = state.read(keys.bay(command.device, command.index), rows.BAY) if bay is not None else None
    if bay is None or planned is None or bay.role != BAY_COPYING or planned.index != command.planned or row.end != command.end:
        raise FsError(errno.ESTALE, f"segment {row.segment}: this copy is not under way any more")
    device = state.device(command.device)
    if not pools.is_there(device):
        raise NotKept(errno.EBUSY, f"device {device.device} is not there")
    _check_seen(state, row)
    _check_apart(state, row, device, command.replaces)
    mirror = SegmentBay(bay.device, bay.index, row.end, BAY_MIRROR)
    row.bays = [mirror if one == bay else one for one in row.bays]
    state.write(keys.bay(bay.device, bay.index), rows.BayRow(row.segment, BAY_MIRROR, entry.index), rows.BAY)
    old = named(row, *command.replaces)
    if old is not None:
        make_stale(state, row, old, entry.index)
    note_need(state, row)
    return Done()


def drop_bays(state: State, entry: Entry, command: DropBays) -> Reply:
    """Makes bays stale; never the last mirror that is complete, on a device that is there, and not doubted."""
    _check_count(len(command.bays))
    wanted: dict[int, set[tuple[int, int]]] = {}
    for number, device, index in command.bays:
        wanted.setdefault(number, set()).add((device, index))
    found = [_check_drop(state, number, places) for number, places in sorted(wanted.items())]
    for row, dropped in found:
        for bay in dropped:
            make_stale(state, row, bay, entry.index)
        note_need(state, row)
    return Done()


def _check_drop(state: State, number: int, places: set[tuple[int, int]]) -> tuple[rows.SegmentRow, list[SegmentBay]]:
    row = _sealed_segment(state, number)
    dropped = [bay for bay in row.bays if (bay.device, bay.index) in places]
    if len(dropped) != len(places):
        raise FsError(errno.ESTALE, f"segment {number} has other bays")
    left = [bay for bay in pools.seen(row, state.device) if bay not in dropped]
    if not left and any(bay.role == BAY_MIRROR for bay in dropped):
        raise FsError(errno.EPERM, f"segment {number} would lose its last mirror that is complete and there")
    return row, dropped


