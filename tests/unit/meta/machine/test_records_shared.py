"""Records of a mount that shares its volume: of what its session holds, and of nothing else."""

from __future__ import annotations

import errno
import stat
from typing import Any

import pytest

from awsomefsd.base.types import NAMES_DELEGATED
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine import record_checks
from awsomefsd.meta.state import keys, rows
from tests.rigs.machine_driver import Drive

LOG, ROOT = 1 << 63, 1
FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


class Sharer:
    """A session of a shared volume that sends records."""

    def __init__(self, drive: Drive, mount: int) -> None:
        self.drive, self.mount = drive, mount
        self.sequence = self.applied = self.round = 0
        self.numbers: list[int] = []
        self.open()

    def open(self) -> m.SessionOpened:
        opened: m.SessionOpened = self.drive.ok(
            c.OpenShared(self.mount, 1, f"n{self.mount}", "b", 1, True, True, caches=True), session=0, epoch=0, mount=self.mount
        )
        self.opened = opened
        return opened

    def number(self) -> int:
        if not self.numbers:
            granted = self.drive.ok(c.GrantInodes(1, 16, 0), **self.fields)
            self.numbers = list(range(granted.first, granted.first + granted.count))
        return self.numbers.pop(0)

    @property
    def fields(self) -> dict[str, int]:
        return {"session": self.opened.session, "epoch": self.opened.epoch, "mount": self.mount}

    def acquire(self, ino: int) -> m.Leased:
        leased: m.Leased = self.drive.ok(c.AcquireLease(1, ino, 0), **self.fields)
        return leased

    def release(self, ino: int, lease: int) -> None:
        self.drive.ok(c.ReleaseLease(1, ino, lease), **self.fields)

    def record(self, command: Any, *leads_to: int, ino: int = 0) -> c.DecidedRecord:
        self.sequence += 1
        self.drive.now += 1_000
        return c.DecidedRecord(self.sequence, self.sequence, self.drive.now, command, 0, list(leads_to), 0, ino)

    def make(self, name: bytes, parent: int = ROOT, mode: int = FILE) -> c.DecidedRecord:
        return self.record(c.Create(1, parent, name, mode, 1, 2, target=b"t" * stat.S_ISLNK(mode)), 0, ino=self.number())

    def batch(self, *records: c.DecidedRecord, steps: list[c.InodeCommit] | None = None) -> c.Apply:
        return c.Apply(1, LOG + self.mount, self.applied, records[0].sequence, list(records), steps or [], [], 0, self.round)

    def send(self, *records: c.DecidedRecord, **given: Any) -> m.Applied:
        reply: m.Applied = self.drive.ok(self.batch(*records, **given), unique=77, **self.fields)
        self.applied, self.round = reply.applied, reply.round
        return reply

    def done(self, *records: c.DecidedRecord, **given: Any) -> m.Applied:
        reply = self.send(*records, **given)
        assert not reply.errno and reply.applied == records[-1].sequence, reply
        return reply

    def refused(self, number: int, *records: c.DecidedRecord) -> None:
        """The first is refused for good, and changes no row but that of the log."""
        self.drive.machine.flush()
        before = dict(self.drive.txn.rows)
        reply = self.send(*records)
        assert (reply.errno, reply.retry, reply.refused) == (number, False, records[0].sequence), reply
        self.drive.machine.flush()
        moved = {key for key in before.keys() | self.drive.txn.rows.keys() if before.get(key) != self.drive.txn.rows.get(key)}
        assert moved <= {keys.op_log(self.mount), keys.cluster()}

    def end(self) -> None:
        self.drive.ok(c.EndSession(self.opened.session, self.opened.epoch, False), session=0, epoch=0, mount=0)


@pytest.fixture
def drive() -> Any:
    made = Drive()
    made.make_volume()
    made.ok(c.SetNames(1, NAMES_DELEGATED))
    yield made
    made.machine.flush()
    assert check(made.txn) == []


def writer(drive: Drive, ino: int) -> int:
    found: int = drive.machine.write_lease(1, ino)[0]
    return found


def test_what_records_make_is_held_and_what_is_held_may_be_changed(drive: Drive) -> None:
    one, two = Sharer(drive, 1), Sharer(drive, 2)
    one.acquire(ROOT)
    directory = one.make(b"d", mode=DIRECTORY)
    made = [directory, one.make(b"f", directory.ino), one.make(b"l", directory.ino, LINK)]
    one.done(*made)
    assert [writer(drive, record.ino) for record in made] == [one.opened.session] * 3
    file = made[1].ino
    reply = drive.apply(c.AcquireLease(1, directory.ino), **two.fields)
    assert reply.errno == errno.EAGAIN and reply.retry
    one.done(
        one.record(c.SetAttr(1, file, c.SET_MODE, 0o600)),
        one.record(c.Link(1, file, ROOT, b"g"), 0),
        one.record(c.Rename(1, directory.ino, b"f", ROOT, b"h"), file, 0),
        one.record(c.Unlink(1, directory.ino, b"l"), made[2].ino),
        one.record(c.Rmdir(1, ROOT, b"d"), directory.ino),
    )
    assert drive.ask(m.GetAttr(1, file)).attr.nlink == 2


def test_what_the_session_does_not_hold_is_refused_whoever_has_it(drive: Drive) -> None:
    one, two = Sharer(drive, 1), Sharer(drive, 2)
    lease = one.acquire(ROOT)
    file, directory = one.make(b"f"), one.make(b"d", mode=DIRECTORY)
    one.done(file, directory)
    two.refused(errno.ENOLCK, two.make(b"x"))
    one.release(ROOT, lease.epoch)
    one.refused(errno.ENOLCK, one.make(b"x"))
    two.acquire(ROOT)
    two.refused(errno.ENOLCK, two.record(c.Unlink(1, ROOT, b"f"), file.ino))
    two.refused(errno.ENOLCK, two.make(b"x", directory.ino))
    two.refused(errno.ENOLCK, two.record(c.Link(1, file.ino, ROOT, b"g"), 0))
    two.done(two.make(b"x"))


def test_what_no_lease_covers_is_no_record_of_one_who_shares(drive: Drive) -> None:
    one = Sharer(drive, 1)
    one.acquire(ROOT)
    a, b, file = one.make(b"a", mode=DIRECTORY), one.make(b"b", mode=DIRECTORY), one.make(b"f")
    one.done(a, b, file)
    one.refused(errno.EINVAL, one.record(c.Rename(1, ROOT, b"a", b.ino, b"a"), a.ino, 0))
    one.refused(errno.EINVAL, one.record(c.SetAttr(1, file.ino, c.SET_SIZE, size=9)))
    one.refused(errno.EINVAL, one.record(c.SetLock(1, file.ino, 1, 1, 1, 1, 0, 9)))
    one.done(one.record(c.Rename(1, ROOT, b"a", ROOT, b"c"), a.ino, 0), one.record(c.Rename(1, ROOT, b"f", b.ino, b"f"), file.ino, 0))


def test_an_exchange_that_moves_a_directory_to_another_parent_is_no_record(drive: Drive) -> None:
    one = Sharer(drive, 1)
    one.acquire(ROOT)
    a, b = one.make(b"a", mode=DIRECTORY), one.make(b"b", mode=DIRECTORY)
    file = one.make(b"f", b.ino)
    one.done(a, b, file)
    for names in ((ROOT, b"a", b.ino, b"f"), (b.ino, b"f", ROOT, b"a")):
        command = c.Rename(1, *names, flags=c.RENAME_EXCHANGE)
        one.refused(errno.EINVAL, one.record(command, *((a.ino, file.ino) if names[1] == b"a" else (file.ino, a.ino))))


def test_a_batch_of_an_ended_session_is_refused_and_a_late_copy_does_nothing(drive: Drive) -> None:
    one, two = Sharer(drive, 1), Sharer(drive, 2)
    one.acquire(ROOT)
    made = one.make(b"f")
    batch = one.batch(made)
    drive.ok(batch, **one.fields)
    one.end()
    assert drive.errno(batch, **one.fields) == errno.ESTALE
    lease = two.acquire(ROOT)
    two.acquire(made.ino)
    two.done(two.record(c.Unlink(1, ROOT, b"f"), made.ino))
    two.release(ROOT, lease.epoch)
    before = one.opened.session
    one.open()
    assert isinstance(one.opened, m.SessionGoesOn) and one.opened.session != before and one.opened.applied == made.sequence
    one.acquire(ROOT)
    assert drive.ok(batch, **one.fields).applied == made.sequence, "skipped"
    assert drive.machine.child(1, ROOT, b"f") == 0


def test_data_goes_with_the_record_of_its_file_under_the_lease_that_this_made(drive: Drive) -> None:
    one, two = Sharer(drive, 1), Sharer(drive, 2)
    one.acquire(ROOT)
    made = one.make(b"f")
    reply = one.done(made, steps=[c.InodeCommit(made.ino, LOG + 1, 9, 4, drive.now, [], [(0, b"data")], 1)])
    assert reply.errnos == [0] and reply.attrs[0].size == 4
    later = one.record(c.SetAttr(1, made.ino, c.SET_MODE, 0o600))
    bare = c.InodeCommit(made.ino, LOG + 1, 10, 1, drive.now, [], [(0, b"x")])
    assert drive.errno(one.batch(later, steps=[bare]), **one.fields) == errno.EINVAL, "somebody else might have to let go"
    assert two.opened.session != one.opened.session


def test_numbers_are_granted_to_those_who_share_and_count_in_the_quota() -> None:
    drive = Drive()
    drive.make_volume(quota_inodes=100)
    drive.ok(c.SetNames(1, NAMES_DELEGATED))
    one, two = Sharer(drive, 1), Sharer(drive, 2)
    mine, theirs = one.number(), two.number()
    assert not {mine, *one.numbers} & {theirs, *two.numbers}
    volume: rows.VolumeRow = drive.machine.state.volume(1)
    assert volume.granted_inodes == len(one.numbers) + len(two.numbers) + 2
    two.end()
    assert drive.machine.state.volume(1).granted_inodes == len(one.numbers) + 1
    one.acquire(ROOT)
    one.refused(errno.EINVAL, one.record(c.Create(1, ROOT, b"f", FILE, 1, 2), 0, ino=theirs))
    drive.machine.flush()
    assert check(drive.txn) == []


def test_one_who_shares_without_a_cache_sends_nothing(drive: Drive) -> None:
    opened = drive.ok(c.OpenShared(5, 1, "n5", "b", 1, True, True), session=0, epoch=0, mount=5)
    fields = {"session": opened.session, "epoch": opened.epoch, "mount": 5}
    assert drive.errno(c.GrantInodes(1, 16, 0), **fields) == errno.EINVAL
    assert drive.errno(c.Apply(1, LOG, 0, 0, [], [], [], 0, 0), **fields) == errno.EINVAL


def test_directories_are_leased_where_names_are_delegated_only() -> None:
    drive = Drive()
    drive.make_volume()
    one = Sharer(drive, 1)
    assert drive.errno(c.AcquireLease(1, ROOT), **one.fields) == errno.EINVAL
    assert drive.errno(c.GrantInodes(1, 1), **one.fields) == errno.EINVAL, "numbers that it cannot use would fill the quota of the others"
    drive.ok(c.SetNames(1, NAMES_DELEGATED))
    assert one.acquire(ROOT).epoch == 1


def test_an_inode_without_names_that_others_keep_counts_as_gone_in_the_check(drive: Drive) -> None:
    """The holder does not know of their pins."""
    one = Sharer(drive, 1)
    Sharer(drive, 2)
    one.acquire(ROOT)
    made = one.make(b"f")
    one.done(made)
    gone = one.record(c.Unlink(1, ROOT, b"f"), made.ino)
    reply = one.done(gone)
    assert drive.ask(m.GetAttr(1, made.ino)).attr.nlink == 0
    state = drive.machine.state
    with_orphan = record_checks.check_of(state, gone)
    assert record_checks._of_inode(state.inode(1, made.ino)) is None and with_orphan and not reply.differs


def test_a_change_of_names_by_another_session_is_refused_for_now_while_somebody_holds_them(drive: Drive) -> None:
    """The leader recalls first; this is for a lease that was granted while it looked."""
    one, two = Sharer(drive, 1), Sharer(drive, 2)
    file = drive.ok(c.Create(1, ROOT, b"f", FILE, 1, 2), **two.fields).attr.ino
    directory = drive.ok(c.Create(1, ROOT, b"d", DIRECTORY, 1, 2), **two.fields).attr.ino
    held = {ROOT: one.acquire(ROOT).epoch}
    commands = [
        c.Create(1, ROOT, b"n", FILE, 1, 2), c.Tmpfile(1, ROOT, 0o600, 1, 2), c.Unlink(1, ROOT, b"f"), c.Rmdir(1, ROOT, b"d"),
        c.Link(1, file, ROOT, b"l"), c.Rename(1, ROOT, b"f", directory, b"f"), c.SetAttr(1, ROOT, c.SET_MODE, 0o700),
        c.SetXattr(1, ROOT, b"user.a", b"v"), c.RemoveXattr(1, ROOT, b"user.a"),
    ]  # fmt: skip
    for command in commands:
        reply = drive.apply(command, **two.fields)
        assert (reply.errno, reply.retry) == (errno.EAGAIN, True), command
    one.release(ROOT, held[ROOT])
    one.acquire(file)
    for command in (c.Unlink(1, ROOT, b"f"), c.Rename(1, ROOT, b"f", ROOT, b"g"), c.Rename(1, ROOT, b"d", ROOT, b"f")):
        reply = drive.apply(command, **two.fields)
        assert (reply.errno, reply.retry) == (errno.EAGAIN, True), command
    drive.ok(c.ReleaseOrphan(1, [file]), **two.fields)
    assert drive.errno(c.Create(1, ROOT, b"f", FILE, 1, 2), **two.fields) == errno.EEXIST, "nothing of it is changed, and nobody recalls it"
    drive.ok(c.Create(1, ROOT, b"n", FILE, 1, 2), **two.fields)
    drive.ok(c.Unlink(1, ROOT, b"f"), **one.fields)
