"""What a leader takes and cannot decide is bounded, in number and in bytes."""

from __future__ import annotations

import errno

from awsomefsd.base.limits import BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, PROPOSALS_PENDING_BYTES_MAX, PROPOSALS_PENDING_MAX
from awsomefsd.base.types import LOCK_POSIX
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Reply
from awsomefsd.meta.server.proposals import Proposals
from awsomefsd.meta.server.request import Request


class Nobody:
    mount = 0

    def answer(self, call: int, reply: Reply) -> None:
        raise AssertionError("nothing is answered here")


def entry(index: int) -> c.Entry:
    return c.Entry(index, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, [], c.NoOp())


def lock(ino: int) -> c.SetLock:
    return c.SetLock(7, ino, LOCK_POSIX, 1, 2, 1, 0, 9)


def locks(index: int) -> c.Entry:
    """One batch of records, with locks of two files among them."""
    commands = [lock(2), c.Unlink(7, 1, b"a"), lock(2), lock(3)]
    records = [c.DecidedRecord(number, number, 0, command) for number, command in enumerate(commands, 1)]
    return c.Entry(index, 1, 3, 0, 1, 0, 0, 1, 0, 1, 1, [], c.Apply(7, 1, 0, 1, records, [], [], 0))


def hand_over(proposals: Proposals, index: int, size: int) -> None:
    proposals.enter(entry(index), Request(Nobody(), index, None, size))
    proposals.mark_handed_over()


def test_large_proposals_that_are_not_decided_end_admission() -> None:
    proposals = Proposals()
    size = BATCH_BYTES_MAX // 8
    count = 0
    while not proposals.is_full:
        count += 1
        hand_over(proposals, count, size)
    assert count == PROPOSALS_PENDING_BYTES_MAX // size
    assert proposals.take_decided(entry(1)) is not None and not proposals.is_full
    assert proposals.take_decided(entry(1)) is None
    hand_over(proposals, count + 1, size)
    assert proposals.is_full
    assert len(proposals.take_all()) == count and not proposals.is_full


def test_many_small_ones_too() -> None:
    proposals = Proposals()
    for index in range(1, PROPOSALS_PENDING_MAX + 1):
        assert not proposals.is_full
        hand_over(proposals, index, 10)
    assert proposals.is_full


def batch(index: int, count: int) -> c.Entry:
    records = [c.DecidedRecord(number + 1, 1, 0, c.SetAttr(7, 1, 0)) for number in range(count)]
    return c.Entry(index, 1, 3, 0, 1, 0, 0, 1, 0, 1, 1, [], c.Apply(7, 1, 0, 1, records, [], [], 0))


def test_each_record_of_a_batch_counts() -> None:
    """It is as much work for those who apply it as a command of its own: a few requests must not hold up leader and voters for seconds."""
    proposals = Proposals()
    proposals.enter(batch(1, BATCH_ENTRIES_MAX - 2), Request(Nobody(), 1, None, 10))
    assert not proposals.is_full
    proposals.enter(entry(2), Request(Nobody(), 2, None, 10))
    assert proposals.is_full
    proposals.mark_handed_over()
    assert not proposals.is_full
    index = 2
    while not proposals.is_full:
        index += 1
        proposals.enter(batch(index, BATCH_ENTRIES_MAX), Request(Nobody(), index, None, 10))
        proposals.mark_handed_over()
    assert index == 2 + PROPOSALS_PENDING_MAX // BATCH_ENTRIES_MAX - 1
    assert proposals.take_decided(entry(3)) is not None and not proposals.is_full, "whatever is at its index"
    proposals.take_all()
    proposals.enter(batch(1, PROPOSALS_PENDING_MAX - 2), Request(Nobody(), 1, None, 10))
    proposals.mark_handed_over()
    assert not proposals.is_full, "nothing is left of what was taken"


def test_locks_among_records_are_on_their_way_as_single_ones_are() -> None:
    """Who waits for a lock is not tried again before they are decided: each would be proposed behind them and refused."""
    proposals = Proposals()
    proposals.enter(locks(1), Request(Nobody(), 1, None, 10))
    single = entry(2)
    single.command = lock(3)
    proposals.enter(single, Request(Nobody(), 2, None, 10))
    assert proposals.locking == {(7, 2): 2, (7, 3): 2}
    assert proposals.take_unlocked(locks(1).command) == [(7, 2)]
    assert proposals.take_unlocked(single.command) == [(7, 3)] and not proposals.locking


def test_a_command_above_the_clusters_level_is_refused_before_it_is_in_a_log():
    class Later(c.Command):
        since = 2

    class At:
        level = 1
        level_known = 2

    proposals = Proposals()
    refusal = proposals.refusal(At(), 0, [], Later(), 100)
    assert refusal.errno == errno.EOPNOTSUPP and "upgrade finalize" in refusal.detail
    At.level = 2
    assert proposals.refusal(At(), 0, [], Later(), 100) is None
    At.level = 1
    assert proposals.refusal(At(), 0, [], c.NoOp(), 100) is None
