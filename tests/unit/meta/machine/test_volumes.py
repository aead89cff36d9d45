"""Volumes, and the first entry of a cluster."""

from __future__ import annotations

import errno

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.rigs.machine_driver import Drive, sound


def test_volumes(drive: Drive) -> None:
    assert drive.errno(c.CreateVolume("vol", "x")) == errno.EEXIST
    assert drive.errno(c.CreateVolume("new", "uuid-vol")) == errno.EEXIST
    for name in ("", "..", "a/b", "x" * 64, "tab\t"):
        assert drive.errno(c.CreateVolume(name, "x")) == errno.EINVAL
    number = drive.ok(c.CreateVolume("two", "u2", 5, 6, 0o1777, 3, 4)).number
    root = drive.ask(m.GetAttr(number, 1)).attr
    assert (root.mode, root.uid, root.gid, root.nlink) == (0o041777, 3, 4, 2)
    drive.ok(c.SetVolume(number, 100, -1, "three"))
    shown = drive.ask(m.GetVolumes("three")).volumes[0]
    assert (shown.volume, shown.quota_bytes, shown.quota_inodes) == (number, 100, 6)
    assert drive.ask_errno(m.GetVolumes("two")) == errno.ENOENT
    assert drive.errno(c.SetVolume(number, name="vol")) == errno.EEXIST
    assert drive.errno(c.DeleteVolume(drive.volume, True)) == errno.EBUSY
    drive.ok(c.DeleteVolume(number))
    assert drive.errno(c.SetVolume(number, 1)) == errno.ENOENT and len(drive.ask(m.GetVolumes()).volumes) == 1
    drive.create(b"f")
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    assert drive.errno(c.DeleteVolume(drive.volume)) == errno.ENOTEMPTY
    sound(drive)


def test_a_volume_has_its_names_from_the_entry_that_makes_it(drive: Drive) -> None:
    number = drive.ok(c.CreateVolume("two", "u2", names=1)).number
    assert drive.ask(m.GetVolumes()).delegated == [number]
    assert drive.errno(c.CreateVolume("three", "u3", names=2)) == errno.EINVAL
    assert len(drive.ask(m.GetVolumes()).volumes) == 2
    sound(drive)


def test_init(drive: Drive) -> None:
    assert (drive.machine.cluster_uuid, drive.machine.site, drive.machine.last_stamp) == ("c-uuid", 1, drive.index << 16)
    drive.ok(c.Init("c-uuid", 1))
    assert drive.errno(c.Init("another", 1)) == errno.EEXIST
