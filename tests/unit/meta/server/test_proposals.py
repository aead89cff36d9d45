"""What a leader takes and cannot decide is bounded, in number and in bytes."""

from __future__ import annotations

import errno

from awsomefsd.base.limits import BATCH_BYTES_MAX, PROPOSALS_PENDING_BYTES_MAX, PROPOSALS_PENDING_MAX
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
