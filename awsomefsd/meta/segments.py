"""Segments and devices: FREE -> LEASED -> SEALED -> FREE, with QUARANTINED between LEASED and SEALED where late writes may land.

METADATA ones are own_segments.py's.

A lease starts a new incarnation, so an extent that names (segment, incarnation) can never mean a later use of the same place.  A sealed
segment without live bytes is freed by the entry that took the last one; the index of that entry is kept, and it is leased again only when
every session has passed it (`safe_index`): a reader that still holds an old layout never sees foreign bytes.

Segments that were never leased have no rows: adding a device of a million segments is one row, and "lowest free" stays true because every
freed one is below `unused_from`.
"""

from __future__ import annotations

import errno

from awsomefsd.errors import FsError
from awsomefsd.limits import SEGMENTS_PER_SESSION_MAX
from awsomefsd.meta import homes, keys, rows
from awsomefsd.meta.commands import AddDevice, ClearQuarantine, Entry, LeaseSegments
from awsomefsd.meta.device_numbers import index_of, number_of
from awsomefsd.meta.extents import place_end, valid
from awsomefsd.meta.messages import Done, Made, Reply, SegmentsLeased
from awsomefsd.meta.quarantine import may_lease
from awsomefsd.meta.refuse import Later, NotNow, session_of
from awsomefsd.meta.state import State
from awsomefsd.types import SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_QUARANTINED, SEGMENT_SEALED, Extent, SegmentInfo, SegmentProgress

FOOTER_SHARE = 64  # one part in so many of a segment is kept for its footer


def usable_bytes(segment_bytes: int) -> int:
    """What data can fill: the rest is for the footer."""
    return segment_bytes - segment_bytes // FOOTER_SHARE


def describe(state: State, row: rows.SegmentRow) -> SegmentInfo:
    device = state.device(row.device)
    return SegmentInfo(
        row.segment,
        row.incarnation,
        row.device,
        device.first_segment_offset + row.index * device.segment_bytes,
        device.segment_bytes,
        row.state,
        row.committed_bytes,
        row.footer_offset,
        row.footer_bytes,
        row.live_bytes,
    )


def find(state: State, number: int) -> rows.SegmentRow | None:
    """The segment's row; one made up for a segment that was never leased; None if no device has it."""
    row = state.segment(number)
    if row is not None:
        return row
    for device in state.devices():
        if (index := index_of(device, number)) >= 0:
            return rows.SegmentRow(number, device.device, index, SEGMENT_FREE)
    return None


def add_device(state: State, entry: Entry, command: AddDevice) -> Reply:
    cluster = state.cluster
    for device in state.devices():
        if device.uuid == command.uuid:
            raise FsError(errno.EEXIST, f"device {command.uuid} is number {device.device} already")
    end = command.first_segment_offset + command.segments * command.segment_bytes
    if command.segments <= 0 or command.segment_bytes <= 0 or command.first_segment_offset < 0 or end > command.bytes:
        raise FsError(errno.EINVAL, "the segments do not fit the device")
    number = cluster.next_device
    row = rows.DeviceRow(
        number,
        command.uuid,
        command.bytes,
        command.segment_bytes,
        command.segments,
        command.first_segment_offset,
        command.shared,
        cluster.next_segment,
        command.segments,
        home="" if command.shared else command.home,
    )
    cluster.next_device += 1
    cluster.next_segment += command.segments
    usable = usable_bytes(command.segment_bytes) * command.segments
    cluster.total_bytes += usable
    cluster.free_bytes += usable
    cluster.segment_bytes_max = max(cluster.segment_bytes_max, command.segment_bytes)
    state.save_device(row)
    return Made(number)


# --- leases -----------------------------------------------------------------------------------------------------------
def lease(state: State, entry: Entry, command: LeaseSegments) -> Reply:
    session = session_of(state, entry)
    count = min(command.count, SEGMENTS_PER_SESSION_MAX - session.segments_leased)
    if command.count <= 0:
        raise FsError(errno.EINVAL, "no segments asked for")
    if count <= 0:
        raise FsError(errno.EDQUOT, f"session {session.session} holds {session.segments_leased} segments already")
    if session.volume:
        devices = homes.devices_of(state, homes.of_session(state, session))
    else:
        devices = homes.devices_of(state, homes.of_device(state.device(command.like))) if command.like else state.devices()
    devices = homes.leasable(devices)
    free = sum(device.segments_free for device in devices)
    if session.volume:  # what is scarce is not leased ahead, and the last one is left to collection
        total = sum(device.segments for device in devices)
        count = may_lease(state, count, free, total, _promised_to_others(state, session))
    if count <= 0:
        raise NotNow(errno.ENOSPC, "no free segment but the one that collection needs")
    chosen = lowest_free(state, devices, count, command.safe_index)
    if not chosen:
        if free:
            raise Later(errno.EAGAIN, "the free segments wait until every session has passed their freeing")
        raise NotNow(errno.ENOSPC, "no free segment")
    leased = []
    for row in chosen:
        row = take(state, row, SEGMENT_LEASED, session.session, session.worker)
        session.segments_leased += 1
        leased.append(describe(state, row))
    state.save_session(session)
    return SegmentsLeased(leased)


def _promised_to_others(state: State, session: rows.SessionRow) -> int:
    """In segments of the largest size, rounded up."""
    promised = homes.reserved_bytes(state, homes.of_session(state, session)) - session.reserved_bytes
    return -(-promised // usable_bytes(state.cluster.segment_bytes_max or FOOTER_SHARE))


def take(state: State, row: rows.SegmentRow, new_state: int, session: int, worker: int) -> rows.SegmentRow:
    """A free segment begins a new incarnation."""
    device = state.device(row.device)
    if row.index < device.unused_from:
        state.txn.delete(keys.free(row.device, row.index))
    device.unused_from = max(device.unused_from, row.index + 1)
    device.segments_free -= 1
    state.save_device(device)
    state.cluster.free_bytes -= usable_bytes(device.segment_bytes)
    incarnation = max(row.incarnation, state.cluster.incarnation_base) + 1
    row = rows.SegmentRow(row.segment, row.device, row.index, new_state, incarnation, session, worker)  # with no bytes
    state.save_segment(row)
    state.txn.put(keys.held(session, row.segment), rows.MARK)
    return row


def lowest_free(state: State, devices: list[rows.DeviceRow], count: int, safe_index: int) -> list[rows.SegmentRow]:
    """By device, then index: freed ones that are safe, then ones never leased."""
    chosen: list[rows.SegmentRow] = []
    for device in devices:
        for _, raw in state.txn.scan(*keys.free_range(device.device)):
            if len(chosen) == count:
                return chosen
            free: rows.FreeRow = rows.FREE.loads(raw)
            if free.freed_index <= safe_index:
                row = state.segment(free.segment)
                assert row is not None and row.state == SEGMENT_FREE, f"free list names segment {free.segment}"
                chosen.append(row)
        for index in range(device.unused_from, min(device.segments, device.unused_from + count - len(chosen))):
            chosen.append(rows.SegmentRow(number_of(device, index), device.device, index, SEGMENT_FREE))
    return chosen


def held_by(state: State, session: int) -> list[rows.SegmentRow]:
    """Segments leased to a session, or quarantined because of it."""
    found = []
    for key in state.keys_in(keys.held_range(session)):
        row = state.segment(keys.last_u64(key))
        assert row is not None, "a held row names a segment that was never leased"
        found.append(row)
    return found


def check_progress(state: State, session: int, step: SegmentProgress) -> rows.SegmentRow:
    """The leased segment that `step` speaks of.  Changes nothing."""
    row = state.segment(step.segment)
    if row is None or row.state != SEGMENT_LEASED or row.session != session or row.incarnation != step.incarnation:
        raise FsError(errno.ESTALE, f"segment {step.segment} incarnation {step.incarnation} is not leased to session {session}")
    device = state.device(row.device)
    if not 0 <= step.committed_bytes <= device.segment_bytes:
        raise FsError(errno.EINVAL, f"segment {step.segment}: {step.committed_bytes} bytes do not fit")
    if step.sealed and not 0 <= step.footer_offset <= step.footer_offset + step.footer_bytes <= device.segment_bytes:
        raise FsError(errno.EINVAL, f"segment {step.segment}: footer outside")
    return row


def durable_lengths(state: State, session: int, steps: list[SegmentProgress]) -> dict[int, int]:
    """Segment -> committed length after these steps.  Changes nothing."""
    durable: dict[int, int] = {}
    for step in steps:
        if step.segment in durable:
            raise FsError(errno.EINVAL, f"segment {step.segment} is named twice")
        row = check_progress(state, session, step)
        durable[step.segment] = max(row.committed_bytes, step.committed_bytes)
    return durable


def check_place(state: State, session: int, ino: int, extent: Extent, durable: dict[int, int]) -> None:
    """Only durable bytes of the session's own segments may become a file's."""
    if not valid(extent):
        raise FsError(errno.EINVAL, f"inode {ino}: no such extent can be")
    segment = state.segment(extent.segment)
    if (
        segment is None
        or segment.state != SEGMENT_LEASED
        or segment.session != session
        or segment.incarnation != extent.incarnation
        or place_end(extent) > durable.get(extent.segment, segment.committed_bytes)
    ):
        raise FsError(errno.ESTALE, f"inode {ino}: segment {extent.segment} is not this session's, or not so long")


def advance(state: State, row: rows.SegmentRow, step: SegmentProgress) -> None:
    """Apply a checked step."""
    row.committed_bytes = max(row.committed_bytes, step.committed_bytes)
    state.save_segment(row)
    if step.sealed:
        row.footer_offset, row.footer_bytes = step.footer_offset, step.footer_bytes
        _end_lease(state, row)
        seal(state, row)


def _end_lease(state: State, row: rows.SegmentRow) -> None:
    session = state.session(row.session)
    assert session is not None and session.segments_leased > 0
    session.segments_leased -= 1
    state.save_session(session)


def seal(state: State, row: rows.SegmentRow) -> None:
    """LEASED or QUARANTINED -> SEALED (and FREE at the end of the entry if nothing in it lives)."""
    state.txn.delete(keys.held(row.session, row.segment))
    row.state, row.session, row.worker = SEGMENT_SEALED, 0, 0
    state.save_segment(row)
    state.death_row.add(row.segment)


def end_leases(state: State, session: int, *, exited: bool) -> None:
    """All leased segments of a session: sealed at their committed length, or quarantined where a late write may still land."""
    for row in held_by(state, session):
        if row.state == SEGMENT_LEASED:
            _end_lease(state, row)
            if exited:
                seal(state, row)
            else:
                row.state = SEGMENT_QUARANTINED
                state.save_segment(row)


def clear_quarantine(state: State, entry: Entry, command: ClearQuarantine) -> Reply:
    if not command.proof:
        raise FsError(errno.EINVAL, "a quarantine ends by proof only")
    release_quarantine(state, command.session)
    return Done()


def release_quarantine(state: State, session: int) -> None:
    for row in held_by(state, session):
        if row.state == SEGMENT_QUARANTINED:
            seal(state, row)
    forget_ended(state, session)


def forget_ended(state: State, session: int) -> None:
    """The row of an ended session goes when nothing refers to it any more."""
    row = state.session(session)
    if row is not None and row.ended and not state.any_in(keys.held_range(session)) and not state.any_in(keys.pinner_range(session)):
        state.drop(keys.session(session))


# --- live bytes -------------------------------------------------------------------------------------------------------
def add_live(state: State, number: int, count: int) -> None:
    row = state.segment(number)
    assert row is not None and row.state != SEGMENT_FREE, f"extent in free segment {number}"
    row.live_bytes += count
    state.save_segment(row)


def take_live(state: State, number: int, count: int) -> None:
    row = state.segment(number)
    assert row is not None and row.live_bytes >= count, f"live bytes of segment {number} below 0"
    row.live_bytes -= count
    state.save_segment(row)
    if not row.live_bytes:
        state.death_row.add(number)


def free_dead(state: State, index: int) -> None:
    """At the end of an entry: free what is sealed and wholly dead."""
    for number in sorted(state.death_row):
        row = state.segment(number)
        assert row is not None
        if row.state != SEGMENT_SEALED or row.live_bytes:
            continue
        device = state.device(row.device)
        row.state, row.freed_index = SEGMENT_FREE, index
        row.committed_bytes = row.footer_offset = row.footer_bytes = 0
        device.segments_free += 1
        state.cluster.free_bytes += usable_bytes(device.segment_bytes)
        state.save_segment(row)
        state.save_device(device)
        state.write(keys.free(row.device, row.index), rows.FreeRow(number, index), rows.FREE)
    state.death_row.clear()
