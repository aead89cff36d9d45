"""Records of a mount that decides by itself are applied in order, once, by the rules of their commands."""

from __future__ import annotations

import errno
import stat
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import APPLY_RECORDS_MAX, INODE_RANGES_MAX, REAP_EXTENTS_PER_ENTRY
from awsomefsd.base.types import LOCK_POSIX
from awsomefsd.meta.api import bounds
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.check.repair import commands, plan
from awsomefsd.meta.check.repair_txn import Hints, no_frame
from awsomefsd.meta.machine import filemap, record_checks, records
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import RetryLater
from tests.rigs.machine_driver import Drive
from tests.rigs.memory_txn import MemTxn

LOG = 1 << 63
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class Holder:
    """A mount that sends records; it numbers them and what they make."""

    def __init__(self, count: int = 64, **fields: Any) -> None:
        self.drive = Drive(txn=None)
        self.volume = self.drive.make_volume(**fields)
        self.drive.open()
        self.applied = self.sequence = self.round = 0
        self.numbers = self.grant(count) if count else range(0)
        self.used = 0

    def grant(self, count: int, lowest: int = 0) -> range:
        granted: m.InodesGranted = self.drive.ok(c.GrantInodes(self.volume, count, lowest))
        return range(granted.first, granted.first + granted.count)

    def number(self) -> int:
        self.used += 1
        return self.numbers[self.used - 1]

    def record(self, command: Any, *leads_to: int, ino: int = 0, check: int = 0, unique: int = 0) -> c.DecidedRecord:
        self.sequence += 2  # data records have numbers of the same row
        self.drive.now += 1_000
        return c.DecidedRecord(self.sequence, unique or self.sequence, self.drive.now, command, 0, list(leads_to), check, ino)

    def create(self, name: bytes, parent: int = 1, mode: int = FILE) -> c.DecidedRecord:
        return self.record(c.Create(self.volume, parent, name, mode, 1, 2), 0, ino=self.number())

    def unlink(self, name: bytes, ino: int, parent: int = 1) -> c.DecidedRecord:
        return self.record(c.Unlink(self.volume, parent, name), ino)

    def batch(self, *records: c.DecidedRecord, after: int | None = None, **fields: Any) -> c.Apply:
        first = records[0].sequence if records else 0
        given = {"log": LOG, "inodes": [], "segments": [], "consumed": 0, "round": self.round} | fields
        return c.Apply(self.volume, given["log"], self.applied if after is None else after, first, list(records), given["inodes"],
                       given["segments"], given["consumed"], given["round"])  # fmt: skip

    def send(self, *records: c.DecidedRecord, **fields: Any) -> m.Applied:
        reply: m.Applied = self.drive.ok(self.batch(*records, **fields), unique=77)
        self.applied, self.round = reply.applied, reply.round
        return reply

    def done(self, *records: c.DecidedRecord, **fields: Any) -> m.Applied:
        reply = self.send(*records, **fields)
        assert not reply.errno and reply.applied == records[-1].sequence, reply
        return reply

    def inode(self, ino: int) -> rows.InodeRow | None:
        return self.drive.machine.state.inode(self.volume, ino)

    def names(self, parent: int = 1) -> dict[bytes, int]:
        span = keys.cookies_after(self.volume, parent, 0)
        found = [rows.COOKIE.loads(raw) for _, raw in self.drive.txn.scan(*span)]
        return {row.name: row.ino for row in found}

    def log(self) -> rows.OpLogRow:
        row: rows.OpLogRow = self.drive.machine.state.read(keys.op_log(self.drive.mount), rows.OPLOG)
        return row

    def faults(self) -> list[Any]:
        self.drive.machine.flush()
        return check(self.drive.txn)


@pytest.fixture
def holder() -> Holder:
    return Holder()


def test_records_run_the_rules_in_order_each_with_its_own_time_number_and_stamp(holder: Holder) -> None:
    directory, file = holder.create(b"d", mode=DIRECTORY), None
    file = holder.create(b"f", parent=directory.ino)
    moved = holder.record(c.Rename(holder.volume, directory.ino, b"f", 1, b"g"), file.ino, 0)
    mode = holder.record(c.SetAttr(holder.volume, file.ino, c.SET_MODE, 0o600))
    gone = holder.record(c.Rmdir(holder.volume, 1, b"d"), directory.ino)
    holder.done(directory, file, moved, mode, gone)
    assert holder.names() == {b"g": file.ino} and holder.inode(directory.ino) is None
    row, root = holder.inode(file.ino), holder.inode(1)
    assert row is not None and root is not None
    assert (row.mode, row.btime_ns, row.ctime_ns) == (stat.S_IFREG | 0o600, file.time_ns, mode.time_ns)
    assert (root.mtime_ns, root.ctime_ns) == (gone.time_ns, gone.time_ns)
    stamp = holder.drive.entries[-1].stamp
    assert (row.stamp, root.stamp) == (stamp - 2, stamp - 1)
    assert holder.drive.machine.last_stamp == stamp and holder.faults() == []


def test_a_time_that_does_not_move_moves_ctime_once_a_record(holder: Holder) -> None:
    holder.done(made := holder.create(b"f"))
    again = [holder.record(c.SetAttr(holder.volume, made.ino, c.SET_MODE, mode)) for mode in (1, 2, 3)]
    for record in again:
        record.time_ns = made.time_ns
    holder.done(*again)
    row = holder.inode(made.ino)
    assert row is not None and row.ctime_ns == made.time_ns + 3


def test_removals_of_one_batch_are_told_apart_by_readers_of_the_stream(holder: Holder) -> None:
    made = [holder.create(name) for name in (b"a", b"b")]
    holder.done(*made)
    holder.drive.ok(c.RegisterReader("reader", holder.drive.index), session=0, epoch=0, mount=0)
    holder.done(holder.unlink(b"a", made[0].ino), holder.unlink(b"b", made[1].ino))
    found = [(keys.last_u64(key) & 0xFFFFFFFF, rows.TOMBSTONE.loads(raw)) for key, raw in
             holder.drive.txn.scan(*keys.kind_range(0, keys.TOMBSTONE))]  # fmt: skip
    stamp = holder.drive.entries[-1].stamp
    assert [(number, row.name, row.stamp) for number, row in found] == [
        (0, b"a", stamp - 2), (1, b"", stamp - 2), (2, b"b", stamp - 1), (3, b"", stamp - 1),
    ]  # fmt: skip


# --- exactly once -------------------------------------------------------------------------------------------------------
def test_a_batch_that_comes_twice_is_done_once(holder: Holder) -> None:
    batch = holder.batch(holder.create(b"a"), holder.create(b"b"))
    first = holder.drive.ok(batch)
    before = state_of(holder)
    assert holder.drive.ok(batch) == first and state_of(holder) == before


def test_a_batch_that_reaches_back_is_done_from_what_is_applied(holder: Holder) -> None:
    made = [holder.create(name) for name in (b"a", b"b", b"c")]
    holder.drive.ok(holder.batch(*made[:2], after=0))
    holder.drive.ok(holder.batch(*made, after=0))
    assert sorted(holder.names()) == [b"a", b"b", b"c"] and holder.faults() == []


def test_a_gap_changes_nothing_and_tells_how_far_the_log_is_applied(holder: Holder) -> None:
    made = [holder.create(name) for name in (b"a", b"b", b"c")]
    holder.done(made[0])
    before = state_of(holder)
    reply = holder.drive.ok(holder.batch(made[2], after=made[1].sequence))
    assert (reply.errno, reply.refused, reply.applied) == (errno.ESTALE, 0, made[0].sequence)
    assert state_of(holder) == before
    holder.done(*made[1:])


def test_neither_a_reply_nor_a_refusal_is_kept(holder: Holder) -> None:
    holder.drive.ok(holder.batch(holder.create(b"a")), unique=5)
    assert holder.drive.errno(holder.batch(log=0), unique=6) == errno.EINVAL
    assert holder.drive.machine.results_held(holder.drive.mount) == 0


def reserved(holder: Holder) -> int:
    session = holder.drive.machine.state.session(holder.drive.session)
    assert session is not None
    return session.reserved_bytes


def test_commits_of_a_batch_that_comes_twice_are_done_once_and_answered_the_same(holder: Holder) -> None:
    """A segment that it ends may be ended once, and space be used up once."""
    holder.drive.ok(c.Reserve(holder.volume, 1_000_000, 1_000_000))
    held, segment, made = reserved(holder), holder.drive.lease()[0], holder.create(b"f")
    step = c.InodeCommit(made.ino, LOG, made.sequence + 1, 5_000, holder.drive.now, [holder.drive.frame(segment, 0, 5_000)])
    progress = holder.drive.progress(segment)
    progress.sealed = True
    batch = holder.batch(made, inodes=[step], segments=[progress], consumed=5_300)
    first = holder.drive.ok(batch, unique=5)
    before = state_of(holder)
    assert holder.drive.ok(batch, unique=5) == first and state_of(holder) == before
    assert holder.drive.machine.results_held(holder.drive.mount) == 1 and reserved(holder) == held - 5_300

    late = holder.drive.ok(batch, unique=6, acks=[5])  # a copy that comes when nobody waits for it
    assert (late.errno, late.refused, late.retry, late.applied) == (errno.ESTALE, 0, False, made.sequence)
    assert reserved(holder) == held - 5_300 and holder.drive.machine.results_held(holder.drive.mount) == 0 and holder.faults() == []


def test_commits_go_with_a_record(holder: Holder) -> None:
    step = c.InodeCommit(1, LOG, 9, 3, holder.drive.now, [], [(0, b"abc")])
    assert holder.drive.errno(holder.batch(inodes=[step])) == errno.EINVAL
    assert holder.drive.errno(holder.batch(consumed=1)) == errno.EINVAL


def test_a_late_copy_of_a_batch_that_was_stopped_does_no_commits(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender has sent the rest again, and the commits with it or by themselves."""
    holder.drive.ok(c.Reserve(holder.volume, 1_000, 1_000))
    made = [holder.create(b"a"), holder.create(b"b")]
    step = c.InodeCommit(made[0].ino, LOG, made[1].sequence + 1, 3, holder.drive.now, [], [(0, b"abc")])
    stopped = holder.batch(*made, inodes=[step], consumed=3)
    check_once = records._check_once_an_entry

    def busy(state: Any, entry: Any, record: c.DecidedRecord) -> None:
        if record is made[1]:
            raise RetryLater(errno.EAGAIN, "later")
        check_once(state, entry, record)

    with monkeypatch.context() as patch:
        patch.setattr(records, "_check_once_an_entry", busy)
        reply = holder.drive.ok(stopped, unique=5)
    assert reply.retry and reply.applied == made[0].sequence and reply.errnos == [] and reserved(holder) == 1_000
    holder.applied = reply.applied
    holder.done(made[1], inodes=[step], consumed=3)
    before = beside_log(holder)
    assert holder.drive.ok(stopped, unique=5).errno == errno.ESTALE
    assert beside_log(holder) == before and reserved(holder) == 997


def test_the_log_goes_on_under_the_next_session(holder: Holder) -> None:
    made = [holder.create(name) for name in (b"a", b"b")]
    batch = holder.batch(made[0])
    holder.done(made[0])
    holder.drive.ok(c.EndSession(holder.drive.session, holder.drive.epoch, False), session=0, epoch=0, mount=0)
    assert holder.drive.errno(batch) == errno.ESTALE, "the session has ended"
    opened = holder.drive.open()
    assert isinstance(opened, m.SessionGoesOn)
    assert (opened.log, opened.applied) == (LOG, made[0].sequence)
    assert opened.numbers == [(made[0].ino + 1, holder.numbers.stop)]
    before = state_of(holder)
    holder.drive.ok(batch)
    assert state_of(holder) == before, "skipped: the log is the same"
    holder.done(made[1])
    assert sorted(holder.names()) == [b"a", b"b"]


def test_a_successor_is_told_how_far_the_log_is_applied(holder: Holder) -> None:
    holder.done(holder.create(b"a"))
    opened = holder.drive.open(worker=2)
    assert isinstance(opened, m.SessionGoesOn) and opened.resumed and opened.applied == holder.applied


def test_a_mount_without_records_is_answered_as_before() -> None:
    drive = Drive()
    drive.make_volume()
    assert type(drive.open()) is m.SessionOpened


def test_another_log_begins_only_under_another_session(holder: Holder) -> None:
    made = holder.create(b"a")
    holder.done(made)
    assert holder.drive.errno(holder.batch(holder.create(b"b"), log=2, after=0)) == errno.EINVAL
    holder.drive.ok(c.EndSession(holder.drive.session, holder.drive.epoch, False), session=0, epoch=0, mount=0)
    holder.drive.open()
    holder.applied = 0
    holder.done(holder.create(b"c"), log=2)
    assert holder.drive.errno(holder.batch(made, after=0)) == errno.EINVAL, "a late batch of the first log"
    assert holder.log().log == 2 and sorted(holder.names()) == [b"a", b"c"]


def test_a_new_boot_forgets_the_log(holder: Holder) -> None:
    holder.done(holder.create(b"a"))
    opened = holder.drive.open(mount=8, boot_id="b2")
    assert type(opened) is m.SessionOpened
    assert holder.drive.txn.get(keys.op_log(7)) is None and holder.faults() == []


# --- refusals -----------------------------------------------------------------------------------------------------------
def test_a_refused_record_ends_the_batch_and_leaves_what_came_before(holder: Holder) -> None:
    first, twice, last = holder.create(b"a"), holder.create(b"a"), holder.create(b"z")
    twice.leads_to = [first.ino]  # as its holder saw it, and the rule says EEXIST
    reply = holder.send(first, twice, last)
    assert (reply.applied, reply.errno, reply.refused, reply.retry) == (first.sequence, errno.EEXIST, twice.sequence, False)
    assert list(holder.names()) == [b"a"] and holder.faults() == []
    holder.done(last)
    assert sorted(holder.names()) == [b"a", b"z"]


def test_attributes_of_a_file_that_ended_with_an_earlier_session_are_passed(holder: Holder) -> None:
    holder.done(made := holder.record(c.Tmpfile(holder.volume, 1, 0o600, 1, 2), ino=holder.number()))
    about = [
        holder.record(c.SetAttr(holder.volume, made.ino, c.SET_MODE, 0o600), check=1),
        holder.record(c.SetXattr(holder.volume, made.ino, b"user.x", b"value", 0)),
        holder.record(c.RemoveXattr(holder.volume, made.ino, b"user.x")),
    ]
    holder.drive.ok(c.EndSession(holder.drive.session, holder.drive.epoch, True))
    holder.drive.open()
    reply = holder.done(*about, behind := holder.create(b"f"))
    assert not reply.differs and holder.names() == {b"f": behind.ino} and holder.inode(made.ino) is None
    again = holder.record(c.Link(holder.volume, made.ino, 1, b"name"), 0)
    assert holder.send(again).refused == again.sequence, "that could be seen"


def test_a_late_copy_of_a_refused_batch_brings_nothing_in(holder: Holder) -> None:
    """Its sender has put the refused record aside, and made the name that was missing."""
    first = holder.create(b"a")
    refused, later = holder.unlink(b"b", 77), holder.create(b"c")
    batch = holder.batch(first, refused, later)
    reply: m.Applied = holder.drive.ok(batch, unique=77)
    assert (reply.errno, reply.refused, reply.applied, reply.round) == (errno.ESTALE, refused.sequence, first.sequence, 1)
    holder.applied, holder.round = reply.applied, reply.round
    holder.done(holder.create(b"b"))
    late: m.Applied = holder.drive.ok(batch, unique=77)
    assert (late.errno, late.refused, late.round) == (errno.ESTALE, 0, 1) and late.applied == holder.sequence
    assert b"c" not in holder.names()


def test_a_refusal_that_passes_begins_no_round(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = holder.create(b"a")

    def busy(*_args: Any) -> None:
        raise RetryLater(errno.EAGAIN, "later")

    with monkeypatch.context() as patch:
        patch.setattr("awsomefsd.meta.machine.records._check_once_an_entry", busy)
        reply = holder.send(made)
    assert reply.retry and reply.refused == made.sequence and reply.round == 0
    holder.done(made)


def test_a_name_that_leads_elsewhere_is_refused(holder: Holder) -> None:
    holder.done(made := holder.create(b"a"))
    elsewhere = [
        holder.unlink(b"a", made.ino + 1),
        holder.unlink(b"none", made.ino),
        holder.create(b"a"),
        holder.record(c.Rename(holder.volume, 1, b"a", 1, b"b"), made.ino, made.ino),
        holder.record(c.Link(holder.volume, made.ino, 1, b"a"), 0),
    ]
    for record in elsewhere:
        before = beside_log(holder)
        reply = holder.send(record)
        assert (reply.errno, reply.refused, reply.applied) == (errno.ESTALE, record.sequence, made.sequence), record
        assert beside_log(holder) == before


def test_what_leads_nowhere_has_to_say_so(holder: Holder) -> None:
    for record in (
        holder.record(c.Create(holder.volume, 1, b"a", FILE, 0, 0), ino=holder.number()),
        holder.record(c.SetAttr(holder.volume, 1, 0), 1),
        holder.record(c.Unlink(holder.volume, 1, b"x" * 256), 0),
    ):
        assert holder.send(record).errno in (errno.EINVAL, errno.ENAMETOOLONG)


def test_a_batch_that_no_sender_makes_is_refused_whole(holder: Holder) -> None:
    one, two = holder.create(b"a"), holder.create(b"b")
    foreign = holder.record(c.SetAttr(holder.volume + 1, 1, 0))
    many = [holder.record(c.SetAttr(holder.volume, 1, 0)) for _ in range(APPLY_RECORDS_MAX + 1)]
    for batch in (holder.batch(two, one), holder.batch(one, one), holder.batch(one, foreign), holder.batch(one, log=0)):
        assert holder.drive.errno(batch) == errno.EINVAL
    assert holder.drive.errno(holder.batch(*many)) == errno.E2BIG
    wrong = holder.batch(one)
    wrong.first += 1
    assert holder.drive.errno(wrong) == errno.EINVAL
    assert holder.drive.errno(holder.batch(one), session=0, epoch=0) == errno.ESTALE
    assert holder.drive.errno(holder.batch(one), epoch=holder.drive.epoch + 1) == errno.ESTALE


def test_a_check_that_differs_is_reported_and_applied(holder: Holder) -> None:
    right, wrong, last = holder.create(b"a"), holder.create(b"b"), holder.create(b"c")
    holder.done(right)
    right.check = record_checks.check_of(holder.drive.machine.state, right)
    wrong.check = 1
    reply = holder.done(wrong, last)
    assert reply.differs == wrong.sequence and not reply.errno


# --- data behind records ------------------------------------------------------------------------------------------------
def test_data_of_a_file_that_the_same_batch_makes_is_committed(holder: Holder) -> None:
    segment = holder.drive.lease()[0]
    made = holder.create(b"f")
    step = c.InodeCommit(made.ino, LOG, made.sequence + 1, 5_000, holder.drive.now, [holder.drive.frame(segment, 0, 5_000)])
    reply = holder.done(made, inodes=[step], segments=[holder.drive.progress(segment)])
    assert reply.errnos == [0] and reply.attrs[0].size == 5_000 and holder.faults() == []
    row = holder.inode(made.ino)
    assert row is not None and row.stamp == holder.drive.entries[-1].stamp


def test_no_data_behind_a_refused_record(holder: Holder) -> None:
    made, refused = holder.create(b"f"), holder.unlink(b"none", 0)
    step = c.InodeCommit(made.ino, LOG, made.sequence + 1, 3, holder.drive.now, [], [(0, b"abc")])
    holder.drive.ok(c.Reserve(holder.volume, 1_000, 1_000))
    reply = holder.send(made, refused, inodes=[step], consumed=3)
    assert (reply.errno, reply.errnos, reply.attrs) == (errno.ENOENT, [], [])
    row = holder.inode(made.ino)
    assert row is not None and row.size == 0 and reserved(holder) == 1_000


def test_data_in_places_that_are_not_the_sessions_refuses_the_records_too(holder: Holder) -> None:
    segment = holder.drive.lease()[0]
    made = holder.create(b"f")
    step = c.InodeCommit(made.ino, LOG, made.sequence + 1, 9, 1, [holder.drive.frame(segment, 0, 9)])
    segment.incarnation += 1
    assert holder.drive.errno(holder.batch(made, inodes=[step], segments=[holder.drive.progress(segment)])) == errno.ESTALE


def test_a_second_cut_through_very_many_extents_waits_for_the_next_entry(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filemap, "REAP_EXTENTS_PER_ENTRY", 2)
    assert REAP_EXTENTS_PER_ENTRY > 2
    holder.done(made := holder.create(b"f"))
    segment = holder.drive.lease()[0]
    for block in range(0, 20, 2):
        holder.drive.write(segment, made.ino, block * 4096, 4096)
    punch = c.FALLOC_PUNCH_HOLE | c.FALLOC_KEEP_SIZE
    holes = [holder.record(c.Fallocate(holder.volume, made.ino, punch, block * 4096, 8 * 4096)) for block in (0, 10)]
    reply = holder.send(*holes)
    assert (reply.errno, reply.retry, reply.applied) == (errno.EAGAIN, True, holes[0].sequence)
    holder.done(*holes[1:])
    layout = holder.drive.ask(m.GetLayout(holder.volume, made.ino, 0, 1 << 20))
    assert [extent.file_offset // 4096 for extent in layout.extents] == [8, 18]
    assert holder.faults() == []


def test_space_is_not_kept_by_records(holder: Holder) -> None:
    holder.done(made := holder.create(b"f"))
    for mode in (0, c.FALLOC_KEEP_SIZE, c.FALLOC_ZERO_RANGE):
        assert holder.send(holder.record(c.Fallocate(holder.volume, made.ino, mode, 0, 4096))).errno == errno.EINVAL


# --- inode numbers ------------------------------------------------------------------------------------------------------
def test_numbers_come_from_the_grant_and_only_upwards(holder: Holder) -> None:
    host = holder.drive.create(b"by-the-host")
    assert host == holder.numbers.stop
    later, earlier, foreign, none = (holder.create(name) for name in (b"a", b"b", b"c", b"d"))
    later.ino, earlier.ino, foreign.ino, none.ino = holder.numbers[5], holder.numbers[4], host + 1, 0
    holder.done(later)
    for record in (earlier, foreign, none):
        assert holder.send(record).errno == errno.EINVAL
    again = holder.create(b"e")
    again.ino = later.ino
    assert holder.send(again).errno == errno.EINVAL
    assert holder.log().numbers == [(holder.numbers[6], holder.numbers.stop)] and holder.faults() == []


def test_a_number_is_not_used_again_when_its_inode_is_gone(holder: Holder) -> None:
    made = holder.create(b"a")
    holder.done(made, holder.unlink(b"a", made.ino))
    again = holder.create(b"a")
    again.ino = made.ino
    assert holder.send(again).errno == errno.EINVAL


def test_a_second_grant_follows_the_first(holder: Holder) -> None:
    more = holder.grant(10)
    made = holder.create(b"a")
    made.ino = more[3]
    holder.done(made)
    assert holder.log().numbers == [(more[4], more.stop)], "what was passed over is gone"
    assert holder.log().reserved == 6 and holder.faults() == []


def test_a_grant_counts_as_used_until_its_session_ends() -> None:
    holder = Holder(count=0, quota_inodes=100)
    assert len(holder.grant(4_096)) == 99 // 8, "a part of what is left, so that others find something"
    granted = holder.log().reserved
    assert holder.drive.ask(m.GetStatFs(holder.volume)).stat.inodes_free == 99 - granted
    while holder.drive.machine.state.volume(holder.volume).used_inodes + granted < 100:
        holder.drive.create(b"%d" % holder.drive.index)
    assert holder.drive.errno(c.Create(holder.volume, 1, b"full", FILE, 0, 0)) == errno.EDQUOT
    assert holder.drive.errno(c.GrantInodes(holder.volume, 1)) == errno.EDQUOT
    holder.numbers = range(holder.log().numbers[0][0], holder.log().numbers[0][1])
    holder.done(*[holder.create(b"r%d" % number) for number in range(granted)])
    assert holder.drive.machine.state.volume(holder.volume).used_inodes == 100 and holder.faults() == []


def test_numbers_outlive_the_session_and_their_room_in_the_quota_does_not() -> None:
    holder = Holder(count=0, quota_inodes=10)
    holder.numbers = holder.grant(1)
    holder.drive.ok(c.EndSession(holder.drive.session, holder.drive.epoch, False), session=0, epoch=0, mount=0)
    assert holder.faults() == []
    holder.drive.open()
    while holder.drive.machine.state.volume(holder.volume).used_inodes < 10:
        holder.drive.create(b"%d" % holder.drive.index)
    made = holder.create(b"late")
    assert holder.send(made).errno == errno.EDQUOT
    holder.drive.ok(c.SetVolume(holder.volume, quota_inodes=11), session=0, epoch=0)
    holder.done(made)
    assert holder.faults() == []


def test_numbers_are_given_back(holder: Holder) -> None:
    assert len(holder.grant(0, lowest=holder.numbers[10])) == 0
    assert holder.log().numbers == [(holder.numbers[10], holder.numbers.stop)]
    assert holder.drive.machine.state.volume(holder.volume).granted_inodes == 54
    holder.grant(0, lowest=1 << 62)
    assert holder.log().numbers == [] and holder.faults() == []


def test_a_mount_has_a_bounded_number_of_them(holder: Holder) -> None:
    assert holder.drive.errno(c.GrantInodes(holder.volume, 4_097)) == errno.EINVAL
    for count in (4_096, 4_096, 4_096, 4_096 - 64):
        assert len(holder.grant(4_096)) == count
    assert holder.drive.errno(c.GrantInodes(holder.volume, 1)) == errno.EAGAIN


def test_numbers_of_one_volume_are_none_of_another() -> None:
    """A mount's number opens a session of another volume: what it was granted there names other inodes here, or those to come."""
    holder = Holder(8, quota_inodes=100)
    drive, granted = holder.drive, holder.numbers
    holder.done(holder.create(b"a"))
    drive.ok(c.EndSession(drive.session, drive.epoch, True), session=0, epoch=0, mount=0)
    first, holder.volume = holder.volume, drive.make_volume("second", quota_inodes=100)
    assert type(drive.open()) is m.SessionOpened, "it has nothing here"
    while (victim := drive.create(b"%d" % drive.index)) < granted[5]:
        pass
    holder.applied = 0
    stolen = holder.record(c.Create(holder.volume, 1, b"b", FILE, 0, 0), 0, ino=victim)
    assert holder.send(stolen).errno == errno.EINVAL and holder.log().numbers == []
    holder.numbers, holder.used = holder.grant(4), 0
    holder.done(holder.create(b"c"))
    assert holder.faults() == []
    drive.ok(c.EndSession(drive.session, drive.epoch, True), session=0, epoch=0, mount=0)
    granted_inodes = [drive.machine.state.volume(number).granted_inodes for number in (first, holder.volume)]
    assert granted_inodes == [0, 0] and holder.faults() == []


def test_numbers_of_a_mount_are_few_ranges() -> None:
    """The row is written by each batch, and told with each session."""
    holder = Holder(1)
    for _ in range(INODE_RANGES_MAX):
        holder.grant(1)
    assert len(holder.log().numbers) == 1, "what follows is joined"
    for _ in range(INODE_RANGES_MAX - 1):
        holder.drive.create(b"%d" % holder.drive.index)
        holder.grant(1)
    assert len(holder.log().numbers) == INODE_RANGES_MAX
    assert len(holder.grant(1)) == 1, "it follows the last one"
    holder.drive.create(b"another")
    assert holder.drive.errno(c.GrantInodes(holder.volume, 1)) == errno.EAGAIN
    assert len(holder.grant(1, lowest=holder.numbers[0] + INODE_RANGES_MAX + 2)) == 1 and holder.faults() == []


def test_whiteouts_and_files_without_a_name_have_numbers_of_the_grant(holder: Holder) -> None:
    holder.done(made := holder.create(b"a"))
    whiteout, unnamed = holder.number(), holder.number()
    moved = holder.record(c.Rename(holder.volume, 1, b"a", 1, b"b", c.RENAME_WHITEOUT), made.ino, 0, ino=whiteout)
    temporary = holder.record(c.Tmpfile(holder.volume, 1, 0o600, 0, 0), ino=unnamed)
    release = holder.record(c.ReleaseOrphan(holder.volume, [unnamed]))
    holder.done(moved, temporary, release)
    assert holder.names() == {b"a": whiteout, b"b": made.ino} and holder.inode(unnamed) is None
    missing = holder.record(c.Rename(holder.volume, 1, b"b", 1, b"c", c.RENAME_WHITEOUT), made.ino, 0)
    assert holder.send(missing).errno == errno.EINVAL and holder.faults() == []


def test_locks_attributes_and_links_run_as_records(holder: Holder) -> None:
    holder.done(made := holder.create(b"a"))
    holder.done(
        holder.record(c.SetXattr(holder.volume, made.ino, b"user.a", b"1")),
        holder.record(c.SetXattr(holder.volume, made.ino, b"user.b", b"2")),
        holder.record(c.RemoveXattr(holder.volume, made.ino, b"user.a")),
        holder.record(c.Link(holder.volume, made.ino, 1, b"b"), 0),
        holder.record(c.SetLock(holder.volume, made.ino, LOCK_POSIX, 5, 77, 1, 0, 99)),
    )
    row = holder.inode(made.ino)
    assert row is not None and (row.nlink, row.xattrs) == (2, 1) and holder.faults() == []
    reply = holder.send(holder.record(c.SetLock(holder.volume, made.ino, LOCK_POSIX, 6, 78, 1, 0, 9)))
    assert reply.errno == errno.EAGAIN


def state_of(holder: Holder) -> dict[bytes, bytes]:
    """All rows but the one that counts entries."""
    holder.drive.machine.flush()
    return {key: raw for key, raw in holder.drive.txn.rows.items() if key != keys.cluster()}


def beside_log(holder: Holder) -> dict[bytes, bytes]:
    """All of them but the row of the mount, which counts refusals."""
    return {key: raw for key, raw in state_of(holder).items() if keys.kind_of(key)[2] != keys.OPLOG}


def test_a_machine_that_is_made_again_goes_on_in_the_middle() -> None:
    holder = Holder()
    made = [holder.create(name) for name in (b"a", b"b", b"c")]
    holder.done(*made[:2])
    holder.drive.reload()
    assert isinstance(holder.drive.txn, MemTxn)
    holder.done(*made)
    assert sorted(holder.names()) == [b"a", b"b", b"c"]


def test_what_the_quota_counts_for_grants_is_repaired(holder: Holder) -> None:
    holder.drive.machine.flush()
    txn = holder.drive.txn
    for key, codec, changes in (
        (keys.volume(holder.volume), rows.VOLUME, {"granted_inodes": 5, "next_ino": 3}),
        (keys.op_log(7), rows.OPLOG, {"reserved": 1_000}),
    ):
        txn.put(key, codec.dumps(replace(codec.loads(txn.get(key)), **changes)))
    assert {fault.kind for fault in check(txn)} == {"volume-granted", "op-log", "ino-counter"}
    holder.drive.reload()
    for command in commands(plan(txn, Hints(0, [], no_frame))):
        holder.drive.ok(command, session=0, epoch=0, mount=0)
    assert holder.faults() == []
    assert rows.VOLUME.loads(txn.get(keys.volume(holder.volume))).granted_inodes == 64


@pytest.mark.parametrize("number", [-1, 1 << 63, (1 << 64) - 1])
def test_numbers_in_records_are_checked_before_they_get_into_the_log(number: int) -> None:
    """The machine would trip over some of them, at every start, as over those of a single command (api/bounds.py)."""
    holder = Holder()
    made = holder.create(b"f")
    bounds.check(m.Propose(1, 1, 1, [], holder.batch(made)))
    wild = [replace(made, **{name: number}) for name in ("sequence", "time_ns", "ino")]
    wild += [replace(made, leads_to=[number]), replace(made, command=replace(made.command, parent=number))]
    for record in wild:
        with pytest.raises(ProtocolError):
            bounds.check(m.Propose(1, 1, 1, [], holder.batch(record)))
