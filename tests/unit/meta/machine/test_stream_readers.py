"""Readers of the change stream: what is kept for them."""

from __future__ import annotations

import errno

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.state import keys
from tests.rigs.machine_driver import Drive, sound


def test_tombstones_while_somebody_reads(drive: Drive) -> None:
    span = keys.kind_range(0, keys.TOMBSTONE)

    def remove_one() -> None:
        drive.create(b"f")
        drive.ok(c.Unlink(drive.volume, 1, b"f"))

    remove_one()
    assert not drive.machine.state.any_in(span)
    drive.ok(c.RegisterReader("site-b", drive.index))
    drive.ok(c.RegisterReader("site-b", 0))
    assert drive.machine.reader_cursors() == {"site-b": drive.index - 2}
    remove_one()
    passed = drive.index
    remove_one()
    assert len(drive.machine.state.keys_in(span)) == 4
    drive.ok(c.AdvanceReader("site-b", passed))
    assert len(drive.machine.state.keys_in(span)) == 2
    drive.ok(c.AdvanceReader("site-b", 1))
    assert drive.machine.reader_cursors() == {"site-b": passed}
    drive.ok(c.RemoveReader("site-b"))
    assert not drive.machine.state.any_in(span)
    assert drive.errno(c.RemoveReader("site-b")) == drive.errno(c.AdvanceReader("x", 1)) == errno.ENOENT
    sound(drive)
