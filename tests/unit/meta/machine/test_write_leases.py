"""Write leases as entries: one holder, epochs that fence, foreign changes, the end of a session; volumes that are shared or held whole."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from awsomefsd.base.types import LEASE_WRITE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from tests.rigs.machine_driver import Drive


@dataclass
class Sharer:
    """A session of a volume with several."""

    drive: Drive
    mount: int
    opened: m.SessionOpened

    @property
    def fields(self) -> dict[str, int]:
        return {"session": self.opened.session, "epoch": self.opened.epoch, "mount": self.mount}

    def acquire(self, known: int = 0) -> m.Leased:
        return self.drive.ok(c.AcquireLease(1, self.drive.ino, known), **self.fields)

    def release(self, lease: int) -> None:
        self.drive.ok(c.ReleaseLease(1, self.drive.ino, lease), **self.fields)

    def inline(self, lease: int = 0, sequence: int = 1) -> c.Commit:
        step = c.InodeCommit(self.drive.ino, self.mount, sequence, 1, self.drive.now, [], [(0, b"%d" % self.mount)], lease)
        return c.Commit(1, [step], 0, [])

    def end(self, clean: bool = True) -> None:
        self.drive.ok(c.EndSession(self.opened.session, self.opened.epoch, clean), session=0, epoch=0, mount=0)


def share(drive: Drive, mount: int) -> Sharer:
    return Sharer(drive, mount, drive.open(mount, node=f"n{mount}", shared=True))


@pytest.fixture
def drive():
    made = Drive()
    made.make_volume()
    first = share(made, 1)
    made.ino = made.create(b"f")
    first.end()
    yield made
    made.machine.flush()
    assert check(made.txn) == []


def test_a_volume_is_shared_or_held_whole(drive):
    one = share(drive, 1)
    two = share(drive, 2)
    whole = c.OpenSession(3, 1, "n3", "b", 1)
    assert drive.errno(whole, session=0, epoch=0, mount=3) == errno.EBUSY
    assert drive.errno(c.DeleteVolume(1, True), session=0, epoch=0, mount=0) == errno.EBUSY
    one.end()
    two.end()
    drive.ok(whole, session=0, epoch=0, mount=3)
    assert drive.errno(c.OpenSession(2, 1, "n2", "b1", 1, True, True), session=0, epoch=0, mount=2) == errno.EBUSY
    assert drive.errno(c.AcquireLease(1, drive.ino), session=3 + 1, epoch=3 + 1, mount=3) == errno.EINVAL


def test_one_holder_and_an_epoch_for_each(drive):
    one, two = share(drive, 1), share(drive, 2)
    first = one.acquire()
    assert first.mode == LEASE_WRITE and one.acquire() == first
    reply = drive.apply(c.AcquireLease(1, drive.ino), **two.fields)
    assert reply.errno == errno.EAGAIN and reply.retry
    one.release(first.epoch + 1)
    assert one.acquire() == first, "another lease is not ended"
    one.release(first.epoch)
    second = two.acquire()
    assert second.epoch > first.epoch


def test_what_an_ended_lease_held_back_never_lands(drive):
    one, two = share(drive, 1), share(drive, 2)
    first = one.acquire()
    drive.ok(one.inline(first.epoch), **one.fields)
    assert drive.errno(two.inline(), **two.fields) == errno.EAGAIN, "no lease, and another has it"
    size = c.SetAttr(1, drive.ino, c.SET_SIZE, size=0)
    assert drive.errno(size, **two.fields) == errno.EAGAIN
    one.release(first.epoch)
    drive.ok(two.inline(), **two.fields)
    assert drive.ok(one.inline(first.epoch, 2), **one.fields).errnos == [errno.ENOLCK]
    two.acquire()
    assert drive.ok(one.inline(first.epoch, 2), **one.fields).errnos == [errno.ENOLCK]
    assert drive.ask(m.GetLayout(1, drive.ino, 0, 10)).inline == b"2"


def test_an_ended_lease_is_refused_for_its_inode_alone(drive):
    """And not for data that had been committed: a worker that died before it heard so says it again."""
    one, two = share(drive, 1), share(drive, 2)
    first = one.acquire()
    other = drive.ok(c.Create(1, 1, b"g", 0o100644, 0, 0), **one.fields).attr.ino
    drive.ok(one.inline(first.epoch, 1), **one.fields)
    one.release(first.epoch)
    assert drive.ok(one.inline(first.epoch, 1), **one.fields).errnos == [0]
    two.acquire()
    again = one.inline(first.epoch, 2).inodes[0]
    step = c.InodeCommit(other, one.mount, 3, 1, drive.now, [], [(0, b"x")])
    reply = drive.ok(c.Commit(1, [again, step], 0, []), **one.fields)
    assert reply.errnos == [errno.ENOLCK, 0] and reply.attrs[0] is None and reply.attrs[1].size == 1
    assert drive.ask(m.GetLayout(1, drive.ino, 0, 10)).inline == b"1"


def test_leases_end_with_their_session(drive):
    one, two = share(drive, 1), share(drive, 2)
    first = one.acquire()
    one.end(clean=False)
    assert two.acquire().epoch > first.epoch
    assert drive.errno(one.inline(first.epoch), **one.fields) == errno.ESTALE


def test_changes_by_others_are_told(drive):
    one, two = share(drive, 1), share(drive, 2)
    lease = one.acquire()
    drive.ok(one.inline(lease.epoch), **one.fields)
    known = one.acquire().changes
    one.end(clean=False)
    one = share(drive, 1)
    back = one.acquire(known)
    assert not back.changed_by_others and not one.opened.changed_by_others
    one.release(back.epoch)
    lease = two.acquire(known)
    assert not lease.changed_by_others
    drive.ok(two.inline(lease.epoch), **two.fields)
    two.release(lease.epoch)
    back = one.acquire(known)
    assert back.changed_by_others and back.changes != known
    one.release(back.epoch)
    drive.ok(c.SetAttr(1, drive.ino, c.SET_SIZE, size=0), **one.fields)
    assert two.acquire(back.changes).changed_by_others


def test_own_changes_are_not_foreign_and_every_change_of_another_is(drive):
    one, two = share(drive, 1), share(drive, 2)
    lease = two.acquire()
    drive.ok(two.inline(lease.epoch), **two.fields)
    two.release(lease.epoch)
    lease = one.acquire()
    for sequence in (1, 2):
        drive.ok(one.inline(lease.epoch, sequence), **one.fields)
    one.release(lease.epoch)
    drive.ok(one.inline(0, 3), **one.fields)
    assert not one.acquire(lease.changes).changed_by_others, "all of it was its own, after the other's that it knew of"
    one.release(one.acquire().epoch)
    lease = two.acquire(lease.changes)
    assert lease.changed_by_others
    two.release(lease.epoch)
    known = lease.changes
    drive.ok(one.inline(0, 4), **one.fields)
    assert two.acquire(known).changed_by_others, "by the same mount as before, but later than what was told"


def test_a_lock_that_was_lost_is_a_foreign_change(drive):
    one = share(drive, 1)
    known = one.acquire().changes
    drive.ok(c.SetLock(1, drive.ino, 0, 1, 1, 1, 0, 9), **one.fields)
    one.end(clean=False)
    assert share(drive, 1).acquire(known).changed_by_others


def test_a_mount_that_had_the_volume_whole_is_foreign_to_those_that_share_it(drive):
    one = share(drive, 1)
    one.end()
    drive.open(3, node="n3")
    drive.ok(c.EndSession(drive.session, drive.epoch, True), session=0, epoch=0, mount=0)
    assert share(drive, 1).opened.changed_by_others
    assert not share(drive, 3).opened.changed_by_others
    assert not share(drive, 4).opened.changed_by_others, "new here"


def test_a_lease_goes_with_its_inode(drive):
    one = share(drive, 1)
    one.acquire()
    drive.ok(c.Unlink(1, 1, b"f"), **one.fields)
    drive.machine.flush()
    assert not drive.machine.write_leases(b"", 10)[0]


def test_a_file_is_made_with_its_lease_by_those_who_may_hold_one(drive):
    one, two = share(drive, 1), share(drive, 2)
    found = drive.ok(c.Create(1, 1, b"g", 0o100644, 0, 0, lease=True), **one.fields)
    assert (found.leased.mode, found.leased.epoch, found.leased.sequence) == (LEASE_WRITE, 1, 0)
    drive.ino = found.attr.ino
    drive.ok(one.inline(found.leased.epoch), **one.fields)
    assert drive.apply(c.AcquireLease(1, drive.ino), **two.fields).retry
    assert one.acquire() == m.Leased(0, 0, LEASE_WRITE, 1, found.leased.changes + 1, False)
    one.release(1)
    assert two.acquire().epoch == 2
    assert drive.ok(c.Create(1, 1, b"d", 0o40755, 0, 0, lease=True), **one.fields).leased is None, "only files"
    one.end()
    two.end()
    drive.open(3, node="n3")
    assert drive.ok(c.Create(1, 1, b"h", 0o100644, 0, 0, lease=True)).leased is None, "the volume is held whole"
