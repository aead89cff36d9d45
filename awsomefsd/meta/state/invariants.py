"""The relations that hold inside every cached row: asserted before a row is saved and after it is read, in tests and in the simulator.

Each of them follows from the rules alone and from no input, so a violation is a bug of ours.  Tests, the simulator and the crash model set
ASSERTED and find it there.  A running service does not assert them (decision 114): a wrong count that an earlier build has left is the same
on every voter, and would end each of them at every read, where fsck and its repair only correct a number.  fsck counts the same relations
from all rows (meta/check); here the fields of one row are compared with each other.  One relation is of several rows: the segments of a
device add up, asserted after each entry that has saved the device.

The row of the cluster has no check here: fsck repairs it through the log, in entries between which its totals may be wrong.  Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from awsomefsd.base.types import (
    BAY_MIRROR,
    BAY_STALE,
    FIRST_COOKIE,
    ROOT_INO,
    SEGMENT_FREE,
    SEGMENT_LEASED,
    SEGMENT_METADATA,
    SEGMENT_QUARANTINED,
    SEGMENT_SEALED,
)
from awsomefsd.meta.state import rows

ASSERTED = False  # tests/conftest.py and tests/sim set it


def assert_row(row: rows.Row, cluster: rows.ClusterRow) -> None:
    """Raises AssertionError if a row of a cached kind contradicts itself; rows of other kinds pass."""
    if isinstance(row, rows.InodeRow):
        _assert_inode(row)
    elif isinstance(row, rows.VolumeRow):
        _assert_volume(row)
    elif isinstance(row, rows.SegmentRow):
        _assert_segment(row)
    elif isinstance(row, rows.SessionRow):
        _assert_session(row, cluster)
    elif isinstance(row, rows.DeviceRow):
        _assert_device(row)


def _assert_inode(row: rows.InodeRow) -> None:
    """All counts of an inode are at least 0 and agree with each other."""
    assert row.nlink >= 0 and row.size >= 0, "an inode has a negative link count or size"
    assert 0 <= row.allocated_bytes <= row.stored_bytes, "an inode keeps more unwritten bytes than it counts"
    assert row.extents >= 0 and not (row.inline and row.extents), "an inode has inline data and extents"
    assert row.xattrs >= 0 and row.xattr_bytes >= row.xattrs, "an inode has more attributes than bytes of them"
    assert row.trims >= 0, "an inode has a negative number of trims"
    assert 0 <= row.entries <= row.next_cookie - FIRST_COOKIE, "a directory has more entries than it gave cookies"


def _assert_volume(row: rows.VolumeRow) -> None:
    """The volume uses, has reserved and is shared by no less than nothing."""
    assert row.used_bytes >= 0 and row.used_inodes >= 0, "a volume uses less than nothing"
    assert row.granted_inodes >= 0, "a volume has granted less than nothing"
    assert row.reserved_bytes >= 0, "a volume has reserved less than nothing"
    assert row.sharers >= 0 and row.next_ino > ROOT_INO, "a volume has a negative number of sharers, or numbers no inodes"


def _assert_session(row: rows.SessionRow, cluster: rows.ClusterRow) -> None:
    """The number and the epoch of a session were drawn from the cluster's counters, and its counts are at least 0."""
    assert 0 < row.session < cluster.next_session and 0 < row.epoch < cluster.next_epoch, "a session has a number that was never drawn"
    assert row.reserved_bytes >= 0 and row.segments_leased >= 0, "a session has reserved or leased less than nothing"


def _assert_device(row: rows.DeviceRow) -> None:
    """The free segments of a device are at least those that were never leased, and at most all."""
    assert 0 <= row.segments_free <= row.segments, "a device has more free segments than segments"
    assert row.removed or 0 <= row.unused_from <= row.segments, "a device has leased segments behind its end"
    assert row.segments - row.unused_from <= row.segments_free, "segments that were never leased are not counted as free"


def _assert_segment(row: rows.SegmentRow) -> None:
    """The state of a segment agrees with the session that has it and with the bytes that live in it."""
    assert row.live_bytes >= 0 and row.committed_bytes >= 0, "a segment has less than no bytes"
    if row.state in (SEGMENT_LEASED, SEGMENT_QUARANTINED):
        assert row.session and row.incarnation, "a segment is leased or in quarantine because of no session"
    else:
        assert not row.session, "a segment that is not leased has a session"
    if row.bays:
        _assert_bays(row)
    if row.state in (SEGMENT_FREE, SEGMENT_METADATA):
        assert not row.live_bytes, "bytes of files live in a segment that is free or the metadata's"


def _assert_bays(row: rows.SegmentRow) -> None:
    """The bays of a segment are different ones, and what is committed is in one of them at least."""
    assert row.want is not None and not row.device and not row.index, "a segment in bays has a slot, or wants nothing"
    assert row.state in (SEGMENT_LEASED, SEGMENT_SEALED), "a segment in bays is neither leased nor sealed"
    assert len({bay.device for bay in row.bays if bay.role == BAY_MIRROR}) == sum(bay.role == BAY_MIRROR for bay in row.bays)
    assert all(0 <= bay.durable <= row.bytes for bay in row.bays), "a bay is durable behind its end"
    assert any(bay.role == BAY_MIRROR and bay.durable >= row.committed_bytes for bay in row.bays), "no mirror has what is committed"
    assert row.state == SEGMENT_SEALED or all(bay.role == BAY_MIRROR for bay in row.bays), "a segment is written and copied"


def assert_pool_device(device: rows.DeviceRow, bays: Iterable[rows.BayRow]) -> None:
    """Raises AssertionError unless free, stale and used bays add up to all of a device."""
    roles = Counter(bay.role for bay in bays)
    assert roles[BAY_STALE] == device.stale, "stale bays of a device are not as counted"
    assert device.removed or device.segments_free + roles.total() == device.segments, "free, stale and used bays are not all of a device"


def assert_device_total(device: rows.DeviceRow, segments: Iterable[rows.SegmentRow | None]) -> None:
    """Raises AssertionError unless free, live and quarantined segments add up to all of a device.

    `segments`: the rows of those that were ever leased, `unused_from` of them; None for a row that is gone.
    """
    count = Counter(row.state for row in segments if row is not None)
    assert count.total() == device.unused_from, "a segment that was leased once has no row"
    live = count[SEGMENT_LEASED] + count[SEGMENT_SEALED] + count[SEGMENT_METADATA]
    total = device.segments_free + live + count[SEGMENT_QUARANTINED]
    assert total == device.segments, "free, live and quarantined segments of a device are not all of it"
