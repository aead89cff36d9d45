"""Devices of one node only: a volume's data stays where its node can reach it, and space is promised only there."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.limits import MIB
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.commands import UNDECIDED
from awsomefsd.meta.check.check import check
from awsomefsd.meta.state import rows
from tests.rigs.machine_driver import Drive

SEGMENT = 4 * MIB


def add_device(drive: Drive, uuid: str, segments: int, *, home: str = "", shared: bool = False) -> None:
    drive.ok(c.AddDevice(uuid, (segments + 1) * SEGMENT, SEGMENT, segments, MIB, shared, home), session=0, epoch=0, mount=0)


def fresh() -> Drive:
    drive = Drive(device=False)
    return drive


def open_on(drive: Drive, node: str, volume: int, mount: int) -> m.SessionOpened:
    return drive.ok(c.OpenSession(mount, volume, node, "boot", 1), mount=mount, session=0, epoch=0)


def test_a_volume_lives_where_it_was_mounted_first() -> None:
    drive = fresh()
    add_device(drive, "d1", 40, home="n1")
    add_device(drive, "d2", 20, home="n2")
    for name in ("one", "two"):
        drive.ok(c.CreateVolume(name, name), session=0, epoch=0, mount=0)
    assert drive.machine.state.volume(1).home == UNDECIDED
    first, second = open_on(drive, "n1", 1, 11), open_on(drive, "n2", 2, 22)
    for opened, mount, device in ((first, 11, 1), (second, 22, 2)):
        leased = drive.ok(c.LeaseSegments(3, 1 << 40), mount=mount, session=opened.session, epoch=opened.epoch)
        assert {info.device for info in leased.segments} == {device}
    drive.ok(c.EndSession(first.session, first.epoch, True), session=0, epoch=0, mount=0)
    refused = drive.apply(c.OpenSession(12, 1, "n2", "boot", 1), mount=12, session=0, epoch=0)
    assert refused.errno == errno.ENXIO and "node n1; mount it there" in refused.detail
    open_on(drive, "n1", 1, 13)
    drive.machine.flush()
    assert check(drive.txn) == []


def test_a_node_without_a_device_is_told_so() -> None:
    drive = fresh()
    drive.ok(c.CreateVolume("one", "one"), session=0, epoch=0, mount=0)
    opened = open_on(drive, "n3", 1, 11)
    assert drive.errno(c.Reserve(1, 1 * MIB, MIB), mount=11, session=opened.session, epoch=opened.epoch) == errno.ENOSPC
    drive.ok(c.EndSession(opened.session, opened.epoch, True), session=0, epoch=0, mount=0)
    add_device(drive, "d1", 40, home="n1")
    refused = drive.apply(c.OpenSession(12, 1, "n3", "boot", 1), mount=12, session=0, epoch=0)
    assert refused.errno == errno.ENXIO and "device add" in refused.detail
    open_on(drive, "n1", 1, 13)


def test_space_is_promised_only_where_it_is() -> None:
    drive = fresh()
    add_device(drive, "d1", 100, home="n1")
    add_device(drive, "d2", 20, home="n2")
    for name in ("one", "two"):
        drive.ok(c.CreateVolume(name, name), session=0, epoch=0, mount=0)
    first, second = open_on(drive, "n1", 1, 11), open_on(drive, "n2", 2, 22)
    shown = drive.ask(m.GetStatFs(2)).stat
    assert shown.bytes_total < 21 * SEGMENT and shown.bytes_free < 20 * SEGMENT
    want = 40 * SEGMENT
    assert drive.errno(c.Reserve(2, want, want), mount=22, session=second.session, epoch=second.epoch) == errno.ENOSPC
    assert drive.ok(c.Reserve(1, want, want), mount=11, session=first.session, epoch=first.epoch).bytes == want
    after = drive.ask(m.GetStatFs(2)).stat
    assert after.bytes_free == shown.bytes_free, "what is promised on one node is not missing on the other"


def test_collection_stays_on_devices_of_the_same_kind() -> None:
    drive = fresh()
    add_device(drive, "d1", 40, home="n1")
    add_device(drive, "d2", 40, shared=True)
    opened = drive.ok(c.OpenCollector("n1", "boot"), session=0, epoch=0, mount=0)
    for like in (1, 2, 1):
        leased = drive.ok(c.LeaseSegments(1, 1 << 40, like), mount=0, session=opened.session, epoch=opened.epoch)
        assert [info.device for info in leased.segments] == [like]


def test_shared_devices_come_first_and_are_for_every_node() -> None:
    drive = fresh()
    add_device(drive, "d1", 40, home="n1")
    add_device(drive, "d2", 40, shared=True)
    drive.ok(c.CreateVolume("one", "one"), session=0, epoch=0, mount=0)
    opened = open_on(drive, "n1", 1, 11)
    leased = drive.ok(c.LeaseSegments(2, 1 << 40), mount=11, session=opened.session, epoch=opened.epoch)
    assert {info.device for info in leased.segments} == {2}
    drive.ok(c.EndSession(opened.session, opened.epoch, True), session=0, epoch=0, mount=0)
    open_on(drive, "n9", 1, 12)


@pytest.mark.parametrize("home", ["n1", ""])
def test_a_recovered_node_has_all_devices(home: str) -> None:
    drive = fresh()
    add_device(drive, "d1", 40, home=home)
    drive.ok(c.CreateVolume("one", "one"), session=0, epoch=0, mount=0)
    open_on(drive, "n1", 1, 11)
    drive.ok(c.Recover(5, "nobody", "n7"), session=0, epoch=0, mount=0)
    open_on(drive, "n7", 1, 12)
    row = drive.machine.state.device(1)
    assert isinstance(row, rows.DeviceRow) and row.home == ("n7" if home else "")


def test_only_what_is_on_shared_devices_can_be_shared() -> None:
    drive = fresh()
    for name in ("one", "two"):
        drive.ok(c.CreateVolume(name, name), session=0, epoch=0, mount=0)
    add_device(drive, "d1", 40, home="n1")
    wanted = c.OpenShared(11, 1, "n1", "boot", 1, shared=True)
    refused = drive.apply(wanted, mount=11, session=0, epoch=0)
    assert refused.errno == errno.ENXIO and "--shared" in refused.detail
    assert drive.machine.state.volume(1).home == UNDECIDED, "a refusal changes nothing"
    opened = open_on(drive, "n1", 2, 12)
    drive.ok(c.EndSession(opened.session, opened.epoch, True), session=0, epoch=0, mount=0)
    add_device(drive, "d2", 40, shared=True)
    refused = drive.apply(c.OpenShared(13, 2, "n1", "boot", 1, shared=True), mount=13, session=0, epoch=0)
    assert refused.errno == errno.ENXIO and "node n1" in refused.detail
    drive.ok(wanted, mount=11, session=0, epoch=0)
    drive.ok(c.OpenShared(14, 1, "n2", "boot", 1, shared=True), mount=14, session=0, epoch=0)
    assert drive.machine.state.volume(1).sharers == 2
    drive.machine.flush()
    assert check(drive.txn) == []
