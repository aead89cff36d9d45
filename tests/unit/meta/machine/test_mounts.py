"""The numbers of mounts: whose they are, and that the results kept for them stay bounded."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_QUARANTINED, node_mount
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine import mounts
from tests.rigs.machine_driver import Drive, sound

NODE = "00000000-0000-0000-0000-000000000001"


def state_of(drive: Drive, segment: int) -> int:
    state: int = drive.ask(m.GetSegments([segment])).segments[0].state
    return state


def test_nobody_opens_a_session_for_the_mount_of_another_node(drive: Drive) -> None:
    """It would end the mount's results (a repeated request would happen twice), its quarantine and its place in the cluster."""
    made = c.Create(drive.volume, 1, b"f", 0o100644, 0, 0)
    first = drive.ok(made, unique=9)
    held = drive.lease()[0].segment
    drive.ok(c.EndSession(drive.session, drive.epoch, False))
    assert state_of(drive, held) == SEGMENT_QUARANTINED
    other = drive.ok(c.CreateVolume("other", "uuid-other"), session=0, epoch=0, mount=0).number
    for unanswered in (None, []):
        stolen = c.OpenSession(7, other, "n2", "b2", 2, unanswered=unanswered)
        assert drive.errno(stolen, session=0, epoch=0) == errno.EPERM
    assert drive.machine.mount_node(7) == "n1" and drive.machine.stored_result(7, 9) == first
    assert state_of(drive, held) == SEGMENT_QUARANTINED
    drive.open(worker=2)
    assert state_of(drive, held) == SEGMENT_FREE
    assert drive.ok(made, unique=9) == first
    sound(drive)


def test_below_the_level_a_mount_moves_as_it_did() -> None:
    drive = Drive(level=MENDED_RULES - 1)
    drive.make_volume()
    drive.open()
    drive.ok(c.EndSession(drive.session, drive.epoch, False))
    drive.open(7, node="n2", boot_id="b2")
    drive.ok(c.CreateVolume("other", "uuid-other"), session=0, epoch=0, mount=99, unique=1)
    assert drive.machine.mount_node(7) == "n2" and drive.machine.results_held(99) == 1, "a number without a session was served"


def test_numbers_that_never_had_a_session_are_refused(drive: Drive) -> None:
    """A number is free to choose: whoever takes a new one for each request must not fill the memory of every voter, and a request that is
    sent again without a result of the first must not happen twice."""
    for number in range(100, 140):
        assert drive.errno(c.CreateVolume(f"v{number}", f"uuid-{number}"), unique=1, session=0, epoch=0, mount=number) == errno.ESTALE
        create = c.Create(drive.volume, 1, b"%d" % number, 0o100644, 0, 0)
        assert drive.errno(create, unique=2, mount=number) == errno.ESTALE, "not with the session of another mount either"
        opening = c.OpenSession(number + 1, drive.volume, "n1", "b1", 1)
        assert drive.errno(opening, unique=3, session=0, epoch=0, mount=number) == errno.ESTALE, "for another number"
    assert drive.machine.results_total == 0
    drive.ok(c.Create(drive.volume, 1, b"mine", 0o100644, 0, 0), unique=2)
    drive.ok(c.CreateVolume("daemons", "uuid-d"), unique=3, session=0, epoch=0, mount=node_mount(NODE))
    assert drive.machine.results_total == 2
    drive.reload()
    assert drive.machine.results_total == 2


def test_a_removed_node_leaves_no_results(drive: Drive) -> None:
    for number in (1, 2):
        added = c.AddNode(NODE[:-1] + str(number), f"n{number}", "node", bytes(31) + bytes([number]), level=LEVEL)
        drive.ok(added, session=0, epoch=0, mount=0)
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    kept = drive.machine.results_total
    drive.open(50, node=NODE, boot_id="b")
    drive.ok(c.Create(drive.volume, 1, b"f", 0o100644, 0, 0), unique=1)
    drive.ok(c.CreateVolume("daemons", "uuid-d"), unique=3, session=0, epoch=0, mount=node_mount(NODE))
    session, epoch = drive.session, drive.epoch
    drive.ok(c.SetNodeState(NODE, "removed"), session=0, epoch=0, mount=0)
    drive.apply(c.Create(drive.volume, 1, b"g", 0o100644, 0, 0), unique=2)  # what was in the log already
    drive.ok(c.EndSession(session, epoch, False), session=0, epoch=0, mount=0)
    assert drive.machine.results_total == kept and drive.machine.mount_node(50) is None


def test_the_oldest_mounts_of_a_node_are_forgotten(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTS_KEPT_PER_NODE", 3)
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    drive.open(5, node="n2", boot_id="b2")
    drive.ok(c.EndSession(drive.session, drive.epoch, False))
    for number in range(100, 110):
        drive.open(number)
        drive.ok(c.Create(drive.volume, 1, b"%d" % number, 0o100644, 0, 0), unique=1)
        drive.ok(c.EndSession(drive.session, drive.epoch, False), session=0, epoch=0, mount=0)
    known = [number for number in range(100, 110) if drive.machine.mount_node(number)]
    assert known == [106, 107, 108, 109], "three, and the one that was open when they were counted"
    assert drive.machine.mount_node(5) == "n2", "another node's"
    assert all((drive.machine.stored_result(number, 1) is not None) == (number in known) for number in range(100, 110))


def test_a_mount_that_may_come_back_is_forgotten_behind_those_that_were_unmounted(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its row nobody could tell it that another node had its volume since: it would lay old data over theirs."""
    monkeypatch.setattr(mounts, "MOUNTS_KEPT_PER_NODE", 3)
    drive.ok(c.EndSession(drive.session, drive.epoch, False, expired=True), session=0, epoch=0, mount=0)
    cut_off = drive.mount
    for number in range(100, 110):
        drive.open(number)
        drive.ok(c.EndSession(drive.session, drive.epoch, True))
    drive.open(5, node="n2", boot_id="b2")
    drive.ok(c.EndSession(drive.session, drive.epoch, True))
    assert drive.open(cut_off).changed_by_others
    assert len([number for number in range(100, 110) if drive.machine.mount_node(number)]) <= 3
