"""An absent device takes no data and is promised to nobody; it comes back with all that it has."""

from __future__ import annotations

import errno

from awsomefsd.base.codec import encode, seal
from awsomefsd.base.types import SEGMENT_SEALED
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.collection import GetSparse
from awsomefsd.meta.state import keys, rows
from tests.rigs.machine_driver import MIB, SEGMENT_BYTES, Drive
from tests.unit.meta.machine.test_devices import HOST, SAFE, add, clean, lease, opened, two_devices


def absent(drive: Drive, device: int, away: bool = True) -> None:
    drive.ok(c.SetAbsent(device, away), **HOST)


def test_leases_df_and_collection_leave_an_absent_device_out_until_it_is_back() -> None:
    drive = two_devices()
    who = opened(drive)
    [held] = lease(drive, who, 1)
    before = drive.ask(m.GetStatFs(1)).stat
    row = drive.machine.state.segment(held)
    assert row is not None
    row.state, row.session, row.live_bytes = SEGMENT_SEALED, 0, 4_096  # sealed, with data: what a collection would plan with
    drive.machine.state.save_segment(row)
    assert [one.segment for one in drive.ask(GetSparse(0, 100)).segments] == [held]
    absent(drive, 1)
    absent(drive, 1)  # the next leader proposes it again
    after = drive.ask(m.GetStatFs(1)).stat
    assert after.bytes_total <= before.bytes_total // 2 + 1
    assert after.bytes_available <= after.bytes_total
    assert {one.device for one in drive.ask(m.GetSegments(lease(drive, who, 5))).segments} == {2}
    sparse = drive.ask(GetSparse(0, 100))
    assert not sparse.segments
    assert sparse.total == 40
    assert drive.errno(c.KeepSegments(1, 1, SAFE), **HOST) == errno.EBUSY
    assert [one.absent for one in drive.ask(m.GetDevices()).devices] == [True, False]
    absent(drive, 1, away=False)
    assert drive.ask(m.GetStatFs(1)).stat.bytes_total == before.bytes_total
    assert {one.device for one in drive.ask(m.GetSegments(lease(drive, who, 1))).segments} == {1}
    assert drive.errno(c.SetAbsent(9, True), **HOST) == errno.ENOENT


def test_what_a_session_has_left_on_an_absent_device_is_promised_to_nobody() -> None:
    drive = two_devices(10, 10)
    who = opened(drive)
    lease(drive, who, 2)
    want = 7 * SEGMENT_BYTES
    drive.ok(c.Reserve(1, want, want), **who)
    absent(drive, 1)
    assert drive.errno(c.Reserve(1, MIB, MIB), **who) == errno.ENOSPC
    absent(drive, 1, away=False)
    drive.ok(c.Reserve(1, MIB, MIB), **who)
    clean(drive)


def test_a_volume_whose_devices_are_all_absent_gets_eio_and_not_enospc() -> None:
    """The disk is not full: who deletes files because of ENOSPC does so in vain."""
    drive = two_devices()
    who = opened(drive)
    absent(drive, 1)
    absent(drive, 2)
    assert drive.errno(c.Reserve(1, MIB, MIB), **who) == errno.EIO
    assert drive.errno(c.LeaseSegments(1, SAFE), **who) == errno.EIO
    absent(drive, 2, away=False)
    drive.ok(c.Reserve(1, MIB, MIB), **who)
    assert {one.device for one in drive.ask(m.GetSegments(lease(drive, who, 1))).segments} == {2}


def test_devices_of_another_node_that_is_gone_change_nothing_for_the_volumes_of_this_one() -> None:
    drive = Drive(device=False)
    add(drive, "d1", 20, shared=False)  # of n1
    drive.ok(c.AddDevice("d2", 21 * SEGMENT_BYTES, SEGMENT_BYTES, 20, MIB, False, "n2"), **HOST)
    drive.ok(c.CreateVolume("one", "one"), **HOST)
    who = opened(drive)
    before = drive.ask(m.GetStatFs(1)).stat
    absent(drive, 2)
    assert drive.ask(m.GetStatFs(1)).stat == before
    assert lease(drive, who, 1)


def test_the_row_of_a_present_device_has_the_bytes_that_older_builds_write() -> None:
    """Below the level of SetAbsent both vote, and the bytes of their states are compared."""
    drive = two_devices()
    absent(drive, 1)
    absent(drive, 1, away=False)
    drive.machine.flush()
    stored = drive.txn.get(keys.device(1))
    row = rows.DEVICE.loads(stored)
    fields = rows.DeviceRow.__struct_fields__
    older = [getattr(row, name) for name in fields[: fields.index("absent")]]
    assert stored == seal(1, encode(older))
    row.absent = True
    assert rows.DEVICE.loads(rows.DEVICE.dumps(row)) == row
