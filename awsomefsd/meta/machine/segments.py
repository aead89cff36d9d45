"""Segments and devices: FREE -> LEASED -> SEALED -> FREE, with QUARANTINED between LEASED and SEALED where late writes may land.

METADATA ones are checkpoint_segments.py's, and what is different of segments in bays of a pool bays.py's.

A segment lease starts a new incarnation, so an extent that names (segment, incarnation) can never mean a later use of the same place.  A
sealed segment without live bytes is freed by the entry that took the last one; the index of that entry is kept, and it is leased again
only when every session has passed it (`safe_index`): a reader that still holds an old layout never sees foreign bytes.

Segments that were never leased have no rows: adding a device of a million segments is one row, and "lowest free" stays true because every
freed one is below `unused_from`.

What a writer leaves of a segment is leased to another one, of any volume, in the same incarnation: so a hundred small volumes fill one
segment and do not keep one each.  Only a segment that its own writer has sealed, with a footer behind everything that it wrote there, has
such a rest, and a `begun` row; so nothing is on its way to it, and no block of it was ever written.  The new lessee begins behind the
footer.  Frames of different lessees differ in their sequence, which grows with the offset (io/segment/packing.py).  A recovery forgets all
rests: somebody may have filled them in the time that it has lost.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import SEGMENT_REST_SHARE, SEGMENTS_PER_SESSION_MAX
from awsomefsd.base.rule_levels import DELEGATION, MENDED_RULES
from awsomefsd.base.types import (
    SEGMENT_FREE,
    SEGMENT_LEASED,
    SEGMENT_QUARANTINED,
    SEGMENT_SEALED,
    Extent,
    SegmentInfo,
    SegmentProgress,
    is_pool,
)
from awsomefsd.meta.api.commands import AddDevice, ClearQuarantine, Entry, LeaseSegments
from awsomefsd.meta.api.messages import Done, Made, Reply, SegmentsLeased
from awsomefsd.meta.api.space import FOOTER_SHARE, usable_bytes
from awsomefsd.meta.machine import bays, locality
from awsomefsd.meta.machine.device_numbers import index_of, number_of
from awsomefsd.meta.machine.quarantine import leasable_count
from awsomefsd.meta.state import invariants, keys, rows
from awsomefsd.meta.state.extents import is_valid, place_end
from awsomefsd.meta.state.lookups import NotKept, RetryLater, session_of
from awsomefsd.meta.state.rows_cache import State


def describe(state: State, row: rows.SegmentRow) -> SegmentInfo:
    """Returns a segment as queries show it; its offset is in bytes on the device."""
    if row.bays:
        return bays.describe(row)
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
    """Returns the segment's row; a new one for a segment that was never leased; None if no device has it."""
    row = state.segment(number)
    if row is not None:
        return row
    for device in state.devices():
        if (index := index_of(device, number)) >= 0:
            return rows.SegmentRow(number, device.device, index, SEGMENT_FREE)
    return None


def add_device(state: State, entry: Entry, command: AddDevice) -> Reply:
    """Adds a device whose segments are all free.  Answered by Made(number)."""
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
    """Leases free segments to the session of the entry.  Answered by SegmentsLeased."""
    session = session_of(state, entry)
    count = min(command.count, SEGMENTS_PER_SESSION_MAX - session.segments_leased)
    if command.count <= 0:
        raise FsError(errno.EINVAL, "no segments asked for")
    if count <= 0:
        raise FsError(errno.EDQUOT, f"session {session.session} holds {session.segments_leased} segments already")
    if session.volume and is_pool(locality.of_session(state, session)):
        raise FsError(errno.EINVAL, "the data of this volume is in bays of a pool, which LeaseBays leases")
    if session.volume:
        devices = locality.devices_of(state, locality.of_session(state, session))
    elif not command.like:
        devices = state.devices()
    elif 0 < command.like < state.cluster.next_device:
        devices = locality.devices_of(state, locality.of_device(state.device(command.like)))
    else:
        raise FsError(errno.ENOENT, f"there is no device {command.like}")
    locality.check_present(devices)
    devices = locality.leasable(devices)
    if state.acts_at(DELEGATION):
        devices = locality.seen(devices, command.avoid)
    if command.begun and session.volume and (row := _begun(state, devices)) is not None:
        return SegmentsLeased([_take_begun(state, row, session)])
    free = sum(device.segments_free for device in devices)
    if session.volume:  # what is scarce is not leased ahead, and the last one is left to collection
        total = sum(device.segments for device in devices)
        count = leasable_count(state, count, free, total, _promised_to_others(state, session))
    if count <= 0:
        raise NotKept(errno.ENOSPC, "no free segment but the one that collection needs")
    chosen = lowest_free(state, devices, count, command.safe_index)
    if not chosen:
        if free:
            raise RetryLater(errno.EAGAIN, "the free segments wait until every session has passed their freeing")
        raise NotKept(errno.ENOSPC, "no free segment")
    leased = []
    for row in chosen:
        row = take(state, row, SEGMENT_LEASED, session.session, session.worker)
        session.segments_leased += 1
        leased.append(describe(state, row))
    state.save_session(session)
    return SegmentsLeased(leased)


def _begun(state: State, devices: list[rows.DeviceRow]) -> rows.SegmentRow | None:
    """Returns the lowest segment that was begun on these devices, and whose rest may be leased; None without one."""
    for device in devices:
        for key in state.keys_in(keys.begun_range(device.device), 1):
            row = state.segment(number_of(device, keys.begun_place(key)[1]))
            assert row is not None and row.state == SEGMENT_SEALED, f"a segment that is not sealed has a rest: {row}"
            return row
    return None


def _take_begun(state: State, row: rows.SegmentRow, session: rows.SessionRow) -> SegmentInfo:
    state.txn.delete(keys.begun(row.device, row.index))
    row.state, row.session, row.worker = SEGMENT_LEASED, session.session, session.worker
    row.committed_bytes = row.footer_offset + row.footer_bytes  # the lessee's begin behind it
    state.save_segment(row)
    state.txn.put(keys.held(session.session, row.segment), rows.MARK)
    session.segments_leased += 1
    state.save_session(session)
    return describe(state, row)


def has_rest(row: rows.SegmentRow, segment_bytes: int) -> bool:
    """Returns True if so much of a segment was never written, behind the footer of its writer, that it is worth a lease."""
    rest = segment_bytes - row.footer_offset - row.footer_bytes
    return row.footer_bytes > 0 and row.footer_offset >= row.committed_bytes and rest * SEGMENT_REST_SHARE >= segment_bytes


def _is_unused(row: rows.SegmentRow, step: SegmentProgress) -> bool:
    """Returns True for a begun segment that its lessee gives back as it got it; one that tried to write there reports no footer."""
    begun = row.footer_bytes > 0 and row.committed_bytes == row.footer_offset + row.footer_bytes
    same = (step.footer_offset, step.footer_bytes) == (row.footer_offset, row.footer_bytes)
    return step.sealed and begun and same and step.committed_bytes <= row.committed_bytes


def _promised_to_others(state: State, session: rows.SessionRow) -> int:
    """Returns what is promised to other sessions, in segments of the largest size, rounded up."""
    promised = locality.reserved_bytes(state, locality.of_session(state, session)) - session.reserved_bytes
    return -(-promised // usable_bytes(state.cluster.segment_bytes_max or FOOTER_SHARE))


def take(state: State, row: rows.SegmentRow, new_state: int, session: int, worker: int) -> rows.SegmentRow:
    """Begins a new incarnation of a free segment, and returns its new row."""
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
    """Returns up to `count` free segments by device, then index: freed ones that are safe, then ones that were never leased."""
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


def segments_of(state: State, session: int) -> list[rows.SegmentRow]:
    """Returns the rows of segments that are leased to a session, or in quarantine because of it."""
    found = []
    for key in state.keys_in(keys.held_range(session)):
        row = state.segment(keys.last_u64(key))
        assert row is not None, "a held row names a segment that was never leased"
        found.append(row)
    return found


def check_progress(state: State, session: int, step: SegmentProgress) -> rows.SegmentRow:
    """Returns the leased segment that `step` names.  Changes nothing.  Raises FsError(ESTALE) if the session has no such lease."""
    row = state.segment(step.segment)
    if row is None or row.state != SEGMENT_LEASED or row.session != session or row.incarnation != step.incarnation:
        raise FsError(errno.ESTALE, f"segment {step.segment} incarnation {step.incarnation} is not leased to session {session}")
    segment_bytes = row.bytes or state.device(row.device).segment_bytes
    if not 0 <= step.committed_bytes <= segment_bytes:
        raise FsError(errno.EINVAL, f"segment {step.segment}: {step.committed_bytes} bytes do not fit")
    if step.sealed and not 0 <= step.footer_offset <= step.footer_offset + step.footer_bytes <= segment_bytes:
        raise FsError(errno.EINVAL, f"segment {step.segment}: footer outside")
    if row.bays:
        bays.check_progress(row, step)
    return row


def durable_lengths(state: State, session: int, steps: list[SegmentProgress]) -> dict[int, int]:
    """Returns segment -> committed bytes after these steps.  Changes nothing."""
    durable: dict[int, int] = {}
    for step in steps:
        if step.segment in durable:
            raise FsError(errno.EINVAL, f"segment {step.segment} is named twice")
        row = check_progress(state, session, step)
        durable[step.segment] = max(row.committed_bytes, step.committed_bytes)
    return durable


def check_place(state: State, session: int, ino: int, extent: Extent, durable: dict[int, int]) -> None:
    """Raises FsError(ESTALE) unless an extent names durable bytes of the session's own segments: only those may become a file's."""
    if not is_valid(extent):
        raise FsError(errno.EINVAL, f"inode {ino}: no such extent can be")
    segment = state.segment(extent.segment)
    if (
        segment is None
        or segment.state != SEGMENT_LEASED
        or segment.session != session
        or segment.incarnation != extent.incarnation
        or extent.frame_offset < segment.footer_offset + segment.footer_bytes  # another one's: leased when it was begun
        or place_end(extent) > durable.get(extent.segment, segment.committed_bytes)
    ):
        raise FsError(errno.ESTALE, f"inode {ino}: segment {extent.segment} is not this session's, or not so long")


def advance(state: State, row: rows.SegmentRow, step: SegmentProgress) -> None:
    """Applies a checked step: a segment is longer, or sealed."""
    if state.acts_at(DELEGATION) and _is_unused(row, step):
        row.committed_bytes = row.footer_offset  # as it was before it was leased: its rest is still one
    else:
        row.committed_bytes = max(row.committed_bytes, step.committed_bytes)
    if row.bays:
        bays.advance(row, step)
    state.save_segment(row)
    if step.sealed:
        row.footer_offset, row.footer_bytes = step.footer_offset, step.footer_bytes
        _end_lease(state, row)
        seal(state, row)
        if state.acts_at(MENDED_RULES) and not row.bays and has_rest(row, state.device(row.device).segment_bytes):
            state.txn.put(keys.begun(row.device, row.index), rows.MARK)


def _end_lease(state: State, row: rows.SegmentRow) -> None:
    session = state.session(row.session)
    assert session is not None and session.segments_leased > 0
    session.segments_leased -= 1
    state.save_session(session)


def seal(state: State, row: rows.SegmentRow) -> None:
    """Makes a LEASED or QUARANTINED segment SEALED (and FREE at the end of the entry if nothing in it lives)."""
    state.txn.delete(keys.held(row.session, row.segment))
    row.state, row.session, row.worker = SEGMENT_SEALED, 0, 0
    if row.bays:
        bays.sealed(state, row)
    state.save_segment(row)
    state.maybe_dead.add(row.segment)


def end_leases(state: State, session: int, *, exited: bool) -> None:
    """Ends the leases of all segments of a session: sealed at their committed length, or quarantined where a late write may still land."""
    for row in segments_of(state, session):
        if row.state == SEGMENT_LEASED:
            _end_lease(state, row)
            if exited or row.bays:  # late writes to bays do no harm
                seal(state, row)
            else:
                row.state = SEGMENT_QUARANTINED
                state.save_segment(row)


def clear_quarantine(state: State, entry: Entry, command: ClearQuarantine) -> Reply:
    """Ends the quarantine of what a session had leased, given the proof that no write of it can land."""
    if not command.proof:
        raise FsError(errno.EINVAL, "a quarantine ends by proof only")
    release_quarantine(state, command.session)
    return Done()


def release_quarantine(state: State, session: int) -> None:
    """Seals all segments that are in quarantine because of a session."""
    for row in segments_of(state, session):
        if row.state == SEGMENT_QUARANTINED:
            seal(state, row)
    forget_ended(state, session)


def forget_ended(state: State, session: int) -> None:
    """Deletes the row of an ended session if nothing refers to it any more."""
    row = state.session(session)
    spans = (keys.held_range(session), *keys.session_rest_ranges(session))
    if row is not None and row.ended and not any(state.any_in(span) for span in spans):
        state.drop(keys.session(session))


# --- live bytes -------------------------------------------------------------------------------------------------------
def add_live(state: State, number: int, count: int) -> None:
    """Counts bytes of a segment as live."""
    row = state.segment(number)
    assert row is not None and row.state != SEGMENT_FREE, f"extent in free segment {number}"
    row.live_bytes += count
    state.save_segment(row)


def take_live(state: State, number: int, count: int) -> None:
    """Counts bytes of a segment as dead; with the last one it may be freed at the end of the entry."""
    row = state.segment(number)
    assert row is not None and row.live_bytes >= count, f"live bytes of segment {number} below 0"
    row.live_bytes -= count
    state.save_segment(row)
    if not row.live_bytes:
        state.maybe_dead.add(number)


def free_dead(state: State, index: int) -> None:
    """Frees the segments that are sealed and wholly dead; called at the end of an entry."""
    for number in sorted(state.maybe_dead):
        row = state.segment(number)
        assert row is not None
        if row.state != SEGMENT_SEALED or row.live_bytes:
            continue
        if row.bays:
            bays.free_dead(state, row, index)
            continue
        device = state.device(row.device)
        state.txn.delete(keys.begun(row.device, row.index))
        row.state, row.freed_index = SEGMENT_FREE, index
        row.committed_bytes = row.footer_offset = row.footer_bytes = 0
        device.segments_free += 1
        state.cluster.free_bytes += usable_bytes(device.segment_bytes)
        state.save_segment(row)
        state.save_device(device)
        state.write(keys.free(row.device, row.index), rows.FreeRow(number, index), rows.FREE)
    state.maybe_dead.clear()


def assert_devices(state: State) -> None:
    """Raises AssertionError if the segments of a device that the entry has saved do not add up.  Only tests call it (invariants.py)."""
    for number in sorted(state.devices_saved):
        device = state.device(number)
        if device.pool:
            found = [rows.BAY.loads(raw) for _, raw in state.txn.scan(*keys.bays_range(number))]
            invariants.assert_pool_device(device, found)
        elif not device.removed:  # the rows of a removed one go a few an entry
            invariants.assert_device_total(device, [state.segment(number_of(device, index)) for index in range(device.unused_from)])
    state.devices_saved.clear()
