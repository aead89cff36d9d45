"""Sessions: holders of volumes, takeover, expiry, and requests that happen once."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.errors import FormatTooNew
from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_QUARANTINED, SEGMENT_SEALED
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.state import keys
from tests.rigs.machine_driver import Drive, sound


def states(drive: Drive, *numbers: int) -> list[int]:
    return [info.state for info in drive.ask(m.GetSegments(list(numbers))).segments]


# --- sessions -----------------------------------------------------------------------------------------------------------
def test_a_volume_has_one_holder(drive: Drive) -> None:
    other = c.OpenSession(8, drive.volume, "n2", "b2", 1)
    assert drive.errno(other) == errno.EBUSY
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    opened = drive.open(8, node="n2", boot_id="b2")
    assert (opened.session, opened.epoch, opened.resumed, opened.changed_by_others) == (2, 2, False, False)
    drive.ok(c.EndSession(drive.session, drive.epoch, False))
    assert drive.open(7).changed_by_others, "mount 8 has held the volume since"
    drive.ok(c.EndSession(drive.session, drive.epoch, False))
    assert not drive.open(7).changed_by_others
    sound(drive)


def test_takeover_keeps_everything_but_segments(drive: Drive) -> None:
    file, held = drive.create(b"f"), drive.lease(2)
    drive.write(held[0], file, 0, 100)
    drive.ok(c.SetLock(drive.volume, file, 0, 1, 1, 1, 0, 10))
    drive.ok(c.Reserve(drive.volume, 1000, 1000))
    drive.ok(c.Unlink(drive.volume, 1, b"f", True))
    session = drive.session
    opened = drive.open(worker=2)
    assert (opened.session, opened.resumed, opened.reserved_bytes) == (session, True, 1000)
    assert states(drive, *(info.segment for info in held)) == [SEGMENT_SEALED, SEGMENT_FREE]
    assert len(drive.ask(m.GetLocks(session)).locks) == 1
    assert drive.ask(m.GetAttr(drive.volume, file)).attr.nlink == 0
    assert drive.errno(c.OpenSession(7, drive.volume, "n1", "b1", 2)) == errno.ESTALE
    assert drive.errno(drive.commit(held[0])) == errno.ESTALE, "the dead worker's segment"
    sound(drive)


def test_takeover_without_proof_quarantines(drive: Drive) -> None:
    held = drive.lease()[0].segment
    drive.open(worker=2, predecessor_exited=False)
    assert states(drive, held) == [SEGMENT_QUARANTINED]
    sound(drive)
    assert drive.errno(c.ClearQuarantine(drive.session, "")) == errno.EINVAL
    drive.ok(c.ClearQuarantine(drive.session, "the process has exited"))
    assert states(drive, held) == [SEGMENT_FREE]
    sound(drive)


def test_end_of_a_session_ends_all_it_held(drive: Drive) -> None:
    file, held = drive.create(b"f"), drive.lease()[0]
    drive.write(held, file, 0, 100)
    drive.ok(c.Reserve(drive.volume, 1000, 1000))
    drive.ok(c.SetLock(drive.volume, file, 1, 1, 1, 1, 0, 0))
    drive.machine.take_unlocked()
    drive.ok(c.Unlink(drive.volume, 1, b"f", True))
    assert drive.errno(c.EndSession(drive.session, drive.epoch + 1, True)) == errno.ESTALE
    drive.ok(c.EndSession(drive.session, drive.epoch, False))
    assert drive.machine.take_unlocked() == {(drive.volume, file)} and drive.machine.take_unlocked() == set()
    assert drive.ask_errno(m.GetAttr(drive.volume, file)) == errno.ENOENT
    volume = drive.ask(m.GetVolumes()).volumes[0]
    assert (volume.reserved_bytes, volume.holder, volume.used_bytes) == (0, 0, 0)
    assert states(drive, held.segment) == [SEGMENT_QUARANTINED], "nothing lives in it, but a late write may land"
    for command in (c.Create(drive.volume, 1, b"x", 0o100644, 0, 0), c.LeaseSegments(1, 0), c.Reserve(drive.volume, 1, 1)):
        assert drive.errno(command) == errno.ESTALE
    sound(drive)
    drive.ok(c.ClearQuarantine(drive.session, "new boot"))
    assert states(drive, held.segment) == [SEGMENT_FREE]
    sound(drive)


def test_a_new_boot_is_proof(drive: Drive) -> None:
    old = drive.lease()[0].segment
    drive.ok(c.Reserve(drive.volume, 1, 1), unique=5)
    drive.open(9, boot_id="b2")
    assert states(drive, old) == [SEGMENT_FREE]
    assert drive.machine.live_sessions() == {2: 2}
    assert drive.machine.stored_result(7, 5) is None, "that mount never asks again"
    sound(drive)


def test_nodes_that_share_a_boot_are_told_apart(drive: Drive) -> None:
    """As in namespaces of one machine: a node that comes back, or is booted again, says nothing of the others."""
    held: dict[str, int] = {}
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    for number, node in enumerate(("n1", "n2", "n3"), 11):
        volume = drive.ok(c.CreateVolume(f"of-{node}", f"u-{node}")).number
        drive.open(number, node=node, volume=volume)
        held[node] = drive.lease()[0].segment
        if node != "n3":
            drive.ok(c.EndSession(drive.session, drive.epoch, False))
    assert states(drive, *held.values()) == [SEGMENT_QUARANTINED, SEGMENT_QUARANTINED, SEGMENT_LEASED]
    drive.open(21, node="n2", volume=drive.ok(c.CreateVolume("another", "u-another")).number)
    assert states(drive, *held.values()) == [SEGMENT_QUARANTINED, SEGMENT_QUARANTINED, SEGMENT_LEASED], "the same boot proves nothing"
    drive.open(22, node="n2", boot_id="b2", volume=drive.ok(c.CreateVolume("third", "u-third")).number)
    assert states(drive, *held.values()) == [SEGMENT_QUARANTINED, SEGMENT_FREE, SEGMENT_LEASED], "only what ran on that node has ended"
    drive.open(11, node="n1", boot_id="b2", volume=drive.ok(c.CreateVolume("fourth", "u-fourth")).number)
    assert states(drive, *held.values()) == [SEGMENT_FREE, SEGMENT_FREE, SEGMENT_LEASED]
    sound(drive)


def test_wrong_epoch_and_wrong_volume(drive: Drive) -> None:
    command = c.Create(drive.volume, 1, b"x", 0o100644, 0, 0)
    assert drive.errno(command, epoch=drive.epoch + 1) == errno.ESTALE
    assert drive.errno(c.LeaseSegments(1, 0), session=0) == errno.ESTALE
    drive.ok(command, session=0, epoch=0)
    other = drive.ok(c.CreateVolume("other", "u2")).number
    assert drive.errno(c.Create(other, 1, b"x", 0o100644, 0, 0)) == errno.EINVAL


def test_many_pins_end_in_steps(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.meta.machine.sessions.REAP_EXTENTS_PER_ENTRY", 3)
    for at in range(10):
        drive.create(b"%d" % at)
        drive.ok(c.Unlink(drive.volume, 1, b"%d" % at, True))
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    sound(drive)
    assert drive.machine.reap_pending()
    drive.ok(c.Reap(100))
    assert not drive.machine.reap_pending() and drive.ask(m.GetVolumes()).volumes[0].used_inodes == 1
    sound(drive)


# --- exactly once -------------------------------------------------------------------------------------------------------
def test_a_request_happens_once(drive: Drive) -> None:
    command = c.Create(drive.volume, 1, b"f", 0o100644, 0, 0)
    first = drive.ok(command, unique=3)
    drive.reload()
    assert drive.apply(command, unique=3) == first and drive.machine.stored_result(7, 3) == first
    failed = drive.apply(command, unique=4)
    assert failed.errno == errno.EEXIST
    drive.ok(c.Unlink(drive.volume, 1, b"f"))
    drive.reload()
    assert drive.apply(command, unique=4) == failed, "a refusal is a result too"
    assert drive.machine.results_held(7) == 2
    drive.ok(c.Reap(1), unique=5, acks=[3, 4])
    assert drive.machine.results_held(7) == 1 and drive.machine.stored_result(7, 3) is None
    drive.machine.flush()
    assert [keys.last_u64(key) for key in drive.txn.rows if keys.kind_of(key)[1:] == (0, keys.RESULT)] == [5]
    assert drive.apply(command, unique=4).created, "acknowledged ids are forgotten"


def test_a_fenced_request_may_come_again(drive: Drive) -> None:
    command = c.Create(drive.volume, 1, b"f", 0o100644, 0, 0)
    drive.ok(c.EndSession(drive.session, drive.epoch, False), session=0, epoch=0)
    assert drive.errno(command, unique=3) == errno.ESTALE
    drive.open(worker=2)
    assert drive.ok(command, unique=3).created


def test_replayed_entries_change_nothing(drive: Drive) -> None:
    entry = drive.entry(c.Create(drive.volume, 1, b"f", 0o100644, 0, 0), unique=3)
    reply = drive.machine.apply(entry)
    drive.machine.flush()
    before = dict(drive.txn.rows)
    assert drive.machine.apply(entry) == reply and drive.machine.apply(drive.entries[0]) == m.Done()
    drive.machine.flush()
    assert drive.txn.rows == before and drive.machine.applied_index == entry.index


def test_newer_entries_stop_the_machine(drive: Drive) -> None:
    entry = drive.entry(c.Reap(1))
    entry.version = c.COMMAND_VERSION + 1
    with pytest.raises(FormatTooNew):
        drive.machine.apply(entry)
