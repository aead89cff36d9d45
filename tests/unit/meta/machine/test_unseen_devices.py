"""LeaseSegments with `avoid`: a node that does not see a device is leased nothing there."""

from __future__ import annotations

import errno

from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.base.types import SegmentInfo, SegmentProgress
from awsomefsd.meta.api import commands as c
from tests.rigs.machine_driver import Drive
from tests.unit.meta.machine.test_devices import HOST, SAFE, add, opened


def two_devices(level: int = DELEGATION) -> tuple[Drive, dict[str, int]]:
    drive = Drive(device=False, level=level)
    for uuid in ("d1", "d2"):
        add(drive, uuid, 20)
    drive.ok(c.CreateVolume("one", "one"), **HOST)
    return drive, opened(drive)


def lease(drive: Drive, who: dict[str, int], *avoid: int, begun: bool = False) -> SegmentInfo:
    return drive.ok(c.LeaseSegments(1, SAFE, begun=begun, avoid=list(avoid)), **who).segments[0]


def sealed(drive: Drive, who: dict[str, int], info: SegmentInfo, committed: int, footer: tuple[int, int]) -> None:
    drive.ok(c.Commit(1, [], 0, [SegmentProgress(info.segment, info.incarnation, committed, True, *footer)]), **who)


def begin(drive: Drive, who: dict[str, int]) -> SegmentInfo:
    """A segment of device 1 with a rest that may be leased, and with a byte that lives in it."""
    info = lease(drive, who)
    row = drive.machine.state.segment(info.segment)
    assert row is not None
    row.live_bytes = 1
    drive.machine.state.save_segment(row)
    sealed(drive, who, info, 8_192, (8_192, 4_096))
    return info


def test_nothing_is_leased_on_a_device_that_is_not_seen() -> None:
    drive, who = two_devices()
    begin(drive, who)
    assert lease(drive, who, 1).device == lease(drive, who, 1, begun=True).device == 2
    assert lease(drive, who, 2).device == 1
    assert lease(drive, who, 77).device == 1, "no such device"
    assert drive.errno(c.LeaseSegments(1, SAFE, avoid=[2, 1]), **who) == errno.EIO


def test_below_the_level_of_the_rule_every_device_is_leased() -> None:
    drive, who = two_devices(DELEGATION - 1)
    assert lease(drive, who, 1).device == 1
    assert lease(drive, who, 1, 2).device == 1


def test_a_begun_segment_that_is_given_back_unused_is_leased_again() -> None:
    drive, who = two_devices()
    first = begin(drive, who)
    again = lease(drive, who, begun=True)
    assert (again.segment, again.committed_bytes) == (first.segment, 12_288)
    sealed(drive, who, again, 12_288, (again.footer_offset, again.footer_bytes))
    assert lease(drive, who, begun=True) == again


def test_one_in_which_a_write_was_tried_is_not() -> None:
    """It may have landed: a lessee that tried and failed reports no footer, one that wrote a longer segment."""
    for committed, footer in ((12_288, (0, 0)), (16_384, (8_192, 4_096))):
        drive, who = two_devices()
        first = begin(drive, who)
        again = lease(drive, who, begun=True)
        sealed(drive, who, again, committed, footer)
        assert lease(drive, who, begun=True).segment != first.segment
