"""References of extents to the bytes of a frame are counted here, and so the live bytes of a segment.

An extent holds [skip, skip + length) of its frame.  As a rule no other extent holds them, and live bytes of the segment go up and down with
the extent.  A copy by reference marks both extents `shared`; the frame's SharedRow then counts, run by run, how many marked extents hold
each byte, so that a byte lives once however many hold it, and dies with the last, in any order of overwriting, truncation and deletion.
The mark stays on every part that is cut off, and bytes of an extent without it have one holder: files that were never copied pay nothing.

A row has as many runs as the marked extents have different ends in that frame.  A copy is refused beyond SHARED_RUNS_MAX (bytes are copied
then); overwriting can add two runs at a time to what is there.  Rejected: finding the other holders through the reverse rows at each change
(a frame with 10,000 owners would make 10,000 lookups of each), and a count an extent, which says nothing about partial overlap.

An unwritten extent (segment 0) holds no place; its length is added to ClusterRow.allocated_bytes, which Reserve leaves alone.
"""

from __future__ import annotations

from awsomefsd.meta.machine.segments import add_live, take_live
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State

SHARED_RUNS_MAX = 1_024

Runs = list[tuple[int, int, int]]


def add_reference(state: State, row: rows.ExtentRow) -> None:
    """Counts a new extent in the live bytes of its segment, or in the allocated bytes of the cluster."""
    if not row.segment:
        state.cluster.allocated_bytes += row.length
    elif row.shared:
        count = _count(state, row, 1)
        if count:
            add_live(state, row.segment, count)
    else:
        add_live(state, row.segment, row.length)


def drop_reference(state: State, row: rows.ExtentRow) -> None:
    """Takes an extent that is deleted out of the live bytes of its segment, or the allocated bytes of the cluster."""
    if not row.segment:
        state.cluster.allocated_bytes -= row.length
        assert state.cluster.allocated_bytes >= 0, "allocated bytes below 0"
    elif row.shared:
        count = _count(state, row, -1)
        if count:
            take_live(state, row.segment, count)
    else:
        take_live(state, row.segment, row.length)


def runs_of(state: State, row: rows.ExtentRow) -> int:
    """Returns the number of runs in which the frame of this extent is shared; 0 if the extent is not marked."""
    stored = state.read(keys.shared(row.segment, row.frame_offset), rows.SHARED) if row.shared else None
    return 0 if stored is None else len(stored.runs)


def _count(state: State, row: rows.ExtentRow, step: int) -> int:
    """Counts one holder more or less; returns how many bytes got their first or lost their last holder."""
    key = keys.shared(row.segment, row.frame_offset)
    stored = state.read(key, rows.SHARED)
    runs, changed = counted(stored.runs if stored is not None else [], row.skip, row.skip + row.length, step)
    if runs:
        state.write(key, rows.SharedRow(row.incarnation, runs), rows.SHARED)
    else:
        state.txn.delete(key)
    return changed


def counted(runs: Runs, start: int, end: int, step: int) -> tuple[Runs, int]:
    """Returns the runs after one more (or one less) holder of [start, end), and how many bytes got their first (or lost their last) one."""
    laid: Runs = []
    changed, at = 0, start
    for first, last, count in runs:
        if last <= start or first >= end:
            if first >= end and at < end:
                changed += _lay(laid, at, end, 0, step)
                at = end
            _join(laid, first, last, count)
            continue
        if at < first:
            changed += _lay(laid, at, first, 0, step)
        _join(laid, first, max(first, start), count)
        changed += _lay(laid, max(first, start), min(last, end), count, step)
        _join(laid, min(last, end), last, count)
        at = min(last, end)
    if at < end:
        changed += _lay(laid, at, end, 0, step)
    return laid, changed


def _lay(laid: Runs, start: int, end: int, count: int, step: int) -> int:
    assert count + step >= 0, "bytes of a frame lose a holder they do not have"
    _join(laid, start, end, count + step)
    return end - start if not count or not count + step else 0


def _join(laid: Runs, start: int, end: int, count: int) -> None:
    if start >= end or not count:
        return
    if laid and laid[-1][1] == start and laid[-1][2] == count:
        laid[-1] = (laid[-1][0], end, count)
    else:
        laid.append((start, end, count))
