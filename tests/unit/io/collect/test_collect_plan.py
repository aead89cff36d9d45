"""The plan of a collection in figures that people read."""

from __future__ import annotations

from awsomefsd.base.limits import MIB
from awsomefsd.base.types import SEGMENT_SEALED, SegmentInfo
from awsomefsd.io.collect.collect_plan import dead_bytes


def test_a_segment_that_is_filled_to_the_last_takes_nothing_from_what_others_would_give() -> None:
    """The sum was below 0 on a full device, and `device collect start` answered "a bug in the daemon"."""
    full = SegmentInfo(1, 1, 1, MIB, MIB, SEGMENT_SEALED, MIB, live_bytes=MIB - 4096)
    empty = SegmentInfo(2, 1, 1, 2 * MIB, MIB, SEGMENT_SEALED, MIB, live_bytes=0)
    assert dead_bytes(full) == 0 < dead_bytes(empty)
