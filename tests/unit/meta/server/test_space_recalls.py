"""Before anybody is told ENOSPC or EDQUOT, the leader asks the other sessions for what they have reserved and do not need."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.limits import SPACE_RECALL_MS_MAX
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.unit.meta.server.leader_group import Cluster, Wire

MIB = 1 << 20
QUOTA = 8 * MIB


class Mount:
    """A session that shares volume 1, and its connection to the leader."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.wire: Wire = cluster.wire("n1", number)
        self.opened = self.wire.open(number, shared=True)
        self.unique = 100

    def reserve(self, count: int, least: int = 0) -> int:
        """Sends it; returns the number of the call."""
        self.unique += 1
        command = c.Reserve(1, count, least)
        return self.wire.send(m.Propose(self.unique, self.opened.session, self.opened.epoch, [], command))

    def listen(self) -> int:
        return self.wire.send(m.AwaitSpaceRecall(self.opened.session, self.opened.epoch))

    def told(self, call: int) -> m.Reply | None:
        return self.wire.answers.get(call)


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster(1)
    for voter in made.voters.values():
        voter.replica.machine.state.cluster.level = MENDED_RULES
    reply = made.wire("n1", 0).ask(m.Propose(0, 0, 0, [], c.SetVolume(1, quota_bytes=QUOTA)))
    assert not isinstance(reply, m.Failed)
    return made


def two(cluster: Cluster) -> tuple[Mount, Mount]:
    """The first has reserved the whole quota."""
    one, other = Mount(cluster, 5), Mount(cluster, 6)
    call = one.reserve(QUOTA, QUOTA)
    cluster.turn()
    assert one.told(call) == m.Reserved(QUOTA)
    return one, other


def test_a_refusal_waits_for_what_the_other_gives_back(cluster: Cluster) -> None:
    one, other = two(cluster)
    heard = one.listen()
    asked = other.reserve(MIB, MIB)
    cluster.turn()
    assert one.told(heard) == m.Done() and other.told(asked) is None
    given = one.reserve(-QUOTA)
    cluster.turn()
    assert one.told(given) == m.Reserved(-QUOTA) and other.told(asked) is None, "the session has not said yet that this was all"
    one.listen()
    cluster.turn()
    assert other.told(asked) == m.Reserved(MIB)


def test_what_is_really_full_is_told_when_all_have_answered(cluster: Cluster) -> None:
    one, other = two(cluster)
    one.listen()
    asked = other.reserve(MIB, MIB)
    cluster.turn()
    again = one.listen()
    cluster.turn()
    reply = other.told(asked)
    assert isinstance(reply, m.Failed) and reply.errno == errno.EDQUOT
    assert one.told(again) is None, "the second refusal asks nobody"


def test_who_does_not_answer_is_not_waited_for_without_end(cluster: Cluster) -> None:
    one, other = two(cluster)
    one.listen()
    asked = other.reserve(MIB, MIB)
    cluster.turn()
    cluster.advance(SPACE_RECALL_MS_MAX / 1_000)
    cluster.turn()
    cluster.turn()
    assert isinstance(other.told(asked), m.Failed)


def test_who_never_asked_is_not_waited_for(cluster: Cluster) -> None:
    """A worker of an older build, or one without a connection."""
    _, other = two(cluster)
    asked = other.reserve(MIB, MIB)
    cluster.turn()
    assert isinstance(other.told(asked), m.Failed)


def test_a_session_that_ends_answers_with_that(cluster: Cluster) -> None:
    one, other = two(cluster)
    one.listen()
    asked = other.reserve(MIB, MIB)
    cluster.turn()
    one.wire.ask(m.Propose(99, 0, 0, [], c.EndSession(one.opened.session, one.opened.epoch, True)))
    cluster.turn()
    assert other.told(asked) == m.Reserved(MIB)


def test_a_session_that_ended_is_told_so(cluster: Cluster) -> None:
    one, _ = two(cluster)
    heard = one.listen()
    one.wire.ask(m.Propose(99, 0, 0, [], c.EndSession(one.opened.session, one.opened.epoch, True)))
    assert one.told(heard) == m.Failed(errno.ESTALE, "the session has ended")
    assert one.told(one.listen()) == m.Failed(errno.ESTALE, "the session has ended")


def test_everybody_asks_the_next_leader_anew() -> None:
    cluster = Cluster()
    for voter in cluster.voters.values():
        voter.replica.machine.state.cluster.level = MENDED_RULES
    cluster.wire("n1", 0).ask(m.Propose(0, 0, 0, [], c.SetVolume(1, quota_bytes=QUOTA)))
    one, other = two(cluster)
    heard = one.listen()
    asked = other.reserve(MIB, MIB)
    cluster.turn()
    assert one.told(heard) == m.Done()
    parked = one.listen()
    cluster.lead("n2")
    assert one.told(parked) == m.NotLeader("n2", "/n2")
    assert isinstance(other.told(asked), (m.NotLeader, m.Failed))
