"""Before a snapshot is made the leader has the mounts of the volumes write what they hold back, and names the one that does not."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.limits import SNAPSHOT_FLUSH_MS_MAX, SNAPSHOT_FLUSHES_MAX
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.snapshots import AnswerFlush, FlushAsked, FlushVolumes
from tests.unit.meta.server.leader_group import Cluster, Wire


class Mount:
    """A session of a volume, and its connection to the leader."""

    def __init__(self, cluster: Cluster, number: int, *, shared: bool = False) -> None:
        self.wire: Wire = cluster.wire("n1", number)
        self.opened = self.wire.open(number, shared=shared)

    def listen(self, *, flushes: bool = True) -> int:
        """What a worker of this build, or of an older one, has always with the leader; returns the number of the call."""
        return self.wire.send(m.AwaitSpaceRecall(self.opened.session, self.opened.epoch, flushes))

    def heard(self, call: int) -> m.Reply | None:
        return self.wire.answers.get(call)

    def asked(self, call: int) -> int:
        """The flush that it was asked for."""
        told = self.heard(call)
        assert isinstance(told, FlushAsked), told
        return told.flush

    def answer(self, flush: int, number: int = 0) -> None:
        assert self.wire.ask(AnswerFlush(self.opened.session, self.opened.epoch, flush, number)) == m.Done()


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster(1)
    for voter in made.voters.values():
        voter.replica.machine.state.cluster.level = MENDED_RULES
    return made


def snapshot_of(wire: Wire, *volumes: int) -> int:
    return wire.send(FlushVolumes(list(volumes)))


def test_all_mounts_of_a_volume_are_asked_and_waited_for(cluster: Cluster) -> None:
    one, other = Mount(cluster, 5, shared=True), Mount(cluster, 6, shared=True)
    heard = one.listen(), other.listen()
    admin = cluster.wire("n1", 0)
    call = snapshot_of(admin, 1)
    cluster.turn()
    flush = one.asked(heard[0])
    assert other.asked(heard[1]) == flush and call not in admin.answers
    one.answer(flush)
    assert call not in admin.answers
    other.answer(flush)
    assert admin.answers[call] == m.Done()


def test_without_a_mount_there_is_nothing_to_wait_for(cluster: Cluster) -> None:
    admin = cluster.wire("n1", 0)
    assert admin.ask(FlushVolumes([1, 77])) == m.Done()


def test_a_worker_that_was_not_there_is_told_when_it_comes(cluster: Cluster) -> None:
    mount, admin = Mount(cluster, 5), cluster.wire("n1", 0)
    call = snapshot_of(admin, 1)
    cluster.turn()
    assert call not in admin.answers
    first = mount.listen()
    cluster.turn()
    flush = mount.asked(first)
    again = mount.listen()  # it goes on listening while it writes
    cluster.turn()
    assert mount.heard(again) is None, "it was told already"
    mount.wire = cluster.wire("n1", 5)  # its successor has to write what it found
    later = mount.listen()
    cluster.turn()
    assert mount.asked(later) == flush and call not in admin.answers
    mount.answer(flush)
    assert admin.answers[call] == m.Done()


def test_an_answer_counts_for_earlier_flushes_only(cluster: Cluster) -> None:
    mount, admin = Mount(cluster, 5), cluster.wire("n1", 0)
    heard = mount.listen()
    first = snapshot_of(admin, 1)
    cluster.turn()
    early = mount.asked(heard)
    second = snapshot_of(admin, 1)
    heard = mount.listen()
    cluster.turn()
    late = mount.asked(heard)
    assert late > early
    mount.answer(early)
    assert admin.answers.get(first) == m.Done() and second not in admin.answers
    third = snapshot_of(admin, 1)
    cluster.turn()
    mount.answer(late)
    assert admin.answers.get(second) == m.Done() and third not in admin.answers


def test_a_session_that_ends_is_waited_for_no_longer(cluster: Cluster) -> None:
    mount, admin = Mount(cluster, 5), cluster.wire("n1", 0)
    mount.listen()
    call = snapshot_of(admin, 1)
    cluster.turn()
    assert call not in admin.answers
    mount.wire.ask(m.Propose(9, 0, 0, [], c.EndSession(mount.opened.session, mount.opened.epoch, True)))
    assert admin.answers[call] == m.Done()


@pytest.mark.parametrize("why", ["late", "failed", "old"])
def test_a_mount_that_has_not_written_is_named(cluster: Cluster, why: str) -> None:
    mount, admin = Mount(cluster, 5), cluster.wire("n1", 0)
    heard = mount.listen(flushes=why != "old")
    call = snapshot_of(admin, 1)
    cluster.turn()
    if why == "failed":
        mount.answer(mount.asked(heard), errno.ENOSPC)
    elif why == "late":
        cluster.advance(SNAPSHOT_FLUSH_MS_MAX / 1_000)
        cluster.turn()
    told = admin.answers[call]
    assert isinstance(told, m.Failed) and "the mount of volume 1 on node host5" in told.detail
    assert told.errno == {"late": errno.ETIMEDOUT, "failed": errno.EIO, "old": errno.EOPNOTSUPP}[why]
    if why == "old":
        assert mount.heard(heard) is None, "a build of before cannot read another answer"


def test_so_many_are_under_way_at_most(cluster: Cluster) -> None:
    Mount(cluster, 5)
    admin = cluster.wire("n1", 0)
    calls = [snapshot_of(admin, 1) for _ in range(SNAPSHOT_FLUSHES_MAX + 1)]
    cluster.turn()
    told = admin.answers[calls[-1]]
    assert isinstance(told, m.Failed) and told.retry and not set(calls[:-1]) & set(admin.answers)


def test_who_asked_a_leader_that_fell_asks_the_next_one() -> None:
    cluster = Cluster(3)
    admin = cluster.wire("n1", 0)
    Mount(cluster, 5)
    call = snapshot_of(admin, 1)
    cluster.turn()
    cluster.lead("n2")
    cluster.turn()
    assert isinstance(admin.answers[call], m.NotLeader)
