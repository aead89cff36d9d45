"""The leader over several voters: losing leadership at every point of a request, read tickets, renewals, the next leader's grace."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest

from awsomefsd.base.limits import SESSION_SELF_FENCE_MS, SESSION_TTL_MS
from awsomefsd.base.types import Extent, SegmentProgress
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.core import ClientCore, Outstanding
from awsomefsd.meta.machine import filemap
from awsomefsd.meta.state import extent_counts, keys
from tests.unit.meta.server.leader_group import Cluster, Wire


def create(opened: m.SessionOpened, unique: int, name: bytes, acks: list[int] | None = None) -> m.Propose:
    return m.Propose(unique, opened.session, opened.epoch, acks or [], c.Create(1, 1, name, 0o100644, 0, 0))


def set_lock(opened: m.SessionOpened, unique: int, owner: int, kind: int, wait: bool = False) -> m.Body:
    command = c.SetLock(1, 2, 0, owner, 1, kind, 0, 9)
    return (m.WaitLock if wait else m.Propose)(unique, opened.session, opened.epoch, [], command)


def made(cluster: Cluster) -> list[bytes]:
    return [entry.command.name for entry in cluster.entries if isinstance(entry.command, c.Create)]


def test_who_does_not_lead_says_who_does():
    cluster = Cluster()
    wire = cluster.wire("n2")
    assert wire.greeting == m.NotLeader("n1", "/n1")
    assert wire.ask(m.GetAttr(1, 1)) == m.NotLeader("n1", "/n1")
    assert isinstance(wire.ask(m.GetStatus()), m.Status), "a node tells of itself"
    assert wire.ask(m.GetStatus(of_leader=True)) == m.NotLeader("n1", "/n1")
    cluster.voters["n2"].log.leader = ""
    assert wire.ask(m.GetAttr(1, 1)) == m.NotLeader("", "")


def test_a_proposal_lost_with_its_leader_is_executed_once_by_the_next():
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    log = cluster.voters["n1"].log
    log.auto = False
    call = one.send(create(opened, 10, b"a"))
    one.voter.turn()
    assert call not in one.answers, "not answered before it is committed"
    cluster.lead("n2")
    assert one.answers[call] == m.NotLeader("n2", "/n2")
    two = cluster.wire("n2")
    assert two.ask(create(opened, 10, b"a")).created
    assert made(cluster) == [b"a"]


def test_a_proposal_committed_without_its_answer_gets_the_kept_one():
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    log = cluster.voters["n1"].log
    log.auto = False
    call = one.send(create(opened, 10, b"a"))
    one.voter.turn()
    log.commit()  # a quorum has it, and this node does not know
    cluster.lead("n2")
    assert one.answers[call] == m.NotLeader("n2", "/n2")
    two = cluster.wire("n2")
    reply = two.ask(create(opened, 10, b"a"))
    assert reply.created and made(cluster) == [b"a"]


def test_a_copy_from_where_an_extent_row_is_gone_is_not_proposed(monkeypatch: pytest.MonkeyPatch):
    """The copy would have a hole there, and nothing would tell it from one.  A large file is counted first, request by request."""
    cluster = Cluster()
    wire = cluster.wire("n1")
    opened = wire.open()

    def propose(unique: int, command: Any) -> Any:
        return wire.ask(m.Propose(unique, opened.session, opened.epoch, [], command))

    source, target = (propose(number, c.Create(1, 1, name, 0o100644, 0, 0)).attr.ino for number, name in ((10, b"s"), (11, b"t")))
    (segment,) = propose(12, c.LeaseSegments(1, 0)).segments
    step = [SegmentProgress(segment.segment, segment.incarnation, 20 * 5_000, False)]
    pieces = [Extent(at * 8192, 4096, segment.segment, segment.incarnation, 1 + at, at * 5_000, 64, 0) for at in range(20)]
    propose(13, c.Commit(1, [c.InodeCommit(source, 1, 1, 20 * 8192, 5, pieces)], 0, step))
    copy = c.CopyRange(1, source, 0, target, 0, 1 << 20)
    monkeypatch.setattr(filemap, "LAYOUT_COUNTED_MAX", 4)
    monkeypatch.setattr(extent_counts, "EXTENTS_PER_PORTION", 8)
    assert propose(14, copy).reached == 19 * 8192 + 8192
    machine = cluster.voters["n1"].replica.machine
    machine.state.txn.delete(keys.extent(1, source, 5 * 8192))
    machine.state.extent_counts.forget()
    proposed = len(cluster.entries)
    refusals = [propose(15, copy) for _ in range(3)]
    assert [(one.errno, one.retry) for one in refusals] == [(errno.EAGAIN, True)] * 2 + [(errno.EIO, False)]
    assert len(cluster.entries) == proposed


def test_the_daemons_own_proposal_is_not_sent_elsewhere_by_itself():
    cluster = Cluster()
    local = cluster.wire("n1", 0)
    cluster.voters["n1"].log.auto = False
    call = local.send(m.Propose(0, 0, 0, [], c.CreateVolume("v2", "uuid2")))
    local.voter.turn()
    cluster.lead("n2")
    reply = local.answers[call]
    assert isinstance(reply, m.Failed) and reply.retry and "known" in reply.detail


def test_copies_left_on_older_connections_are_never_executed():
    cluster = Cluster()
    one = cluster.wire("n1", number=1)
    opened = one.open()
    two = cluster.wire("n1", number=2)
    assert one.voter.leader.take_void() == [one]
    assert two.ask(create(opened, 10, b"a")).created
    assert two.ask(create(opened, 11, b"b", acks=[10])).created
    late = one.send(create(opened, 10, b"a"))  # its answer was acknowledged: only the connection tells that this is old
    one.voter.turn()
    assert late not in one.answers and made(cluster) == [b"a", b"b"]
    one.close()
    cluster.lead("n2")
    cluster.lead("n1")
    late = two.send(create(opened, 11, b"b"))
    two.voter.turn()
    assert late not in two.answers and two in two.voter.leader.take_void(), "greeted in another term"


def test_a_greeting_that_comes_late_ends_its_own_connection_only():
    cluster = Cluster()
    live = cluster.wire("n1", number=2, client=77)
    opened = live.open()
    late = cluster.wire("n1", number=1, client=77)
    assert late.greeting is None and late.voter.leader.take_void() == [late]
    late.close()
    assert live.ask(create(opened, 10, b"a")).created
    for client in (78, 0):  # a successor counts from the beginning, and a client of an older build says nothing
        successor = cluster.wire("n1", number=1, client=client)
        assert isinstance(successor.greeting, m.Welcome) and live.voter.leader.take_void() == [live]
        live.close()
        live = successor


def test_connections_that_end_together_end_in_the_order_of_their_greetings():
    """In the order of a set it was another one in every process: a seed of the simulator was not one run."""
    cluster = Cluster()
    wires = [cluster.wire("n1", number=7 + number) for number in range(3)]  # of one mount: the newest stays
    wires += [cluster.wire("n1", mount=100 + number, number=1) for number in range(12)]
    leader = wires[0].voter.leader
    assert leader.take_void() == wires[:2]
    cluster.lead("n2")
    assert [wire for wire in leader.take_void() if wire in wires] == wires[2:], "beside one of the cluster's own"


def test_queries_wait_for_their_ticket_and_see_nothing_stale():
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    log = cluster.voters["n1"].log
    log.auto = False
    before = log.tickets
    calls = [one.send(m.Lookup(1, 1, b"a")) for _ in range(3)]
    one.voter.turn()
    assert not any(call in one.answers for call in calls)
    tickets = log.tickets
    assert tickets - before <= 2, "one for all of a turn, and one to learn that they take a round"
    made_ = one.send(create(opened, 10, b"a"))
    one.voter.turn()
    log.commit()
    log.confirmed = tickets
    one.voter.turn()
    assert one.answers[made_].created
    assert all(isinstance(one.answers[call], m.Found) for call in calls)
    late = one.send(m.Lookup(1, 1, b"a"))
    one.voter.turn()
    cluster.lead("n2")
    assert one.answers[late] == m.NotLeader("n2", "/n2"), "a ticket of an ended leadership confirms nothing"


def test_renewals_in_an_isolated_leader_are_not_acknowledged():
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    renew = m.Renew(opened.session, opened.epoch, 0)
    assert one.ask(renew) == m.Done()
    log = cluster.voters["n1"].log
    log.auto = False
    call = one.send(renew)
    one.voter.turn()
    assert call not in one.answers
    log.confirmed = log.tickets
    one.voter.turn()
    assert one.answers[call] == m.Done()
    call = one.send(renew)
    one.voter.turn()
    cluster.lead("n2")
    assert one.answers[call] == m.NotLeader("n2", "/n2")


def test_a_renewal_waits_for_the_next_heartbeat_and_a_query_for_none():
    """A round of heartbeats for each renewal would keep an idle cluster busy; whoever looks something up waits for its answer."""
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    log = cluster.voters["n1"].log
    log.auto = False
    renew, look = m.Renew(opened.session, opened.epoch, 0), m.GetAttr(1, 1)
    one.send(look)
    one.voter.turn()
    log.confirmed = log.tickets
    one.voter.turn()
    for bodies, patient in (([renew], 1), ([look], 0), ([renew, look], 0), ([renew, renew, m.GetCheckpoints()], 1)):
        drawn, before = log.tickets, log.patient
        calls = [one.send(body) for body in bodies]
        one.voter.turn()
        assert (log.tickets - drawn, log.patient - before) == (1, patient), "one ticket for all of a turn"
        log.confirmed = log.tickets
        one.voter.turn()
        assert all(call in one.answers for call in calls)


def test_a_new_leader_grants_a_full_ttl_and_only_leaders_end_sessions():
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    for _ in range(4):
        cluster.advance(2)
        cluster.turn()
    two = cluster.lead("n2")
    for _ in range(4):
        cluster.advance(2)
        cluster.turn()
        assert opened.session in two.replica.machine.live_sessions()
    cluster.advance(2)
    cluster.turn()
    cluster.turn()
    assert opened.session not in two.replica.machine.live_sessions()
    assert sum(isinstance(entry.command, c.EndSession) for entry in cluster.entries) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_an_administrator_ends_a_session_only_when_its_worker_serves_no_more(shared):
    """A worker that is cut off serves what it has cached until its lease is over, so nobody else may get the volume before."""
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open(shared=shared)
    admin = cluster.wire("n1", 0)
    for _ in range(3):  # asking again changes nothing
        reply = admin.ask(m.Propose(0, 0, 0, [], c.EndSession(opened.session, opened.epoch, False)))
        assert isinstance(reply, m.Failed) and reply.errno == errno.EAGAIN and reply.retry
        assert opened.session in one.voter.replica.machine.live_sessions()
    assert one.ask(m.Renew(opened.session, opened.epoch, 0)).errno == errno.ESTALE, "its worker learns of it if it can"
    passed = 0
    while opened.session in one.voter.replica.machine.live_sessions():
        passed += 1  # a longer step would be a jump of the clock
        cluster.advance(1)
        cluster.turn()
        cluster.turn()
    assert SESSION_SELF_FENCE_MS < passed * 1_000 <= SESSION_TTL_MS + 2_000
    assert opened.session not in one.voter.replica.machine.live_sessions()


def passes(cluster: Cluster, seconds: int) -> None:
    for _ in range(seconds):  # a longer step would be a jump of the clock
        cluster.advance(1)
        cluster.turn()


def succeed(one: Wire, worker: int) -> int:
    command = c.OpenSession(one.mount, 1, f"host{one.mount}", "boot", worker)
    return one.send(m.Propose(100 + worker, 0, 0, [], command))


def test_the_lease_of_a_successor_is_over_before_its_session_ends_that_is_renewed_no_more():
    """Its answer promised a full one."""
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    cluster.wire("n1", 0).ask(m.Propose(0, 0, 0, [], c.EndSession(opened.session, opened.epoch, False)))
    passes(cluster, SESSION_TTL_MS // 1_000 - 1)
    call = succeed(one, 2)
    one.voter.turn()
    assert one.answers[call].resumed
    passes(cluster, SESSION_SELF_FENCE_MS // 1_000 + 1)
    assert opened.session in one.voter.replica.machine.live_sessions()
    passes(cluster, SESSION_TTL_MS // 1_000)
    assert opened.session not in one.voter.replica.machine.live_sessions()


def test_no_session_ends_that_a_successor_is_just_opening():
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    passes(cluster, SESSION_TTL_MS // 1_000 - 1)
    log = cluster.voters["n1"].log
    log.auto = False
    call = succeed(one, 2)
    passes(cluster, 2)  # the followers take their time
    log.commit()
    log.auto = True
    passes(cluster, SESSION_SELF_FENCE_MS // 1_000)
    assert one.answers[call].resumed and opened.session in one.voter.replica.machine.live_sessions()
    passes(cluster, SESSION_TTL_MS // 1_000)
    assert opened.session not in one.voter.replica.machine.live_sessions()


def test_no_renewal_is_acknowledged_while_the_end_of_its_session_is_on_its_way():
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    log = cluster.voters["n1"].log
    log.auto = False
    cluster.wire("n1", 0).send(m.Propose(0, 0, 0, [], c.EndSession(opened.session, opened.epoch, True)))
    one.voter.turn()
    call = one.send(m.Renew(opened.session, opened.epoch, 0))
    log.confirmed = 1 << 30
    one.voter.turn()
    assert call not in one.answers
    log.commit()
    one.voter.turn()
    one.voter.turn()
    assert one.answers[call].errno == errno.ESTALE


def test_locks_survive_and_waiting_ones_are_granted_by_the_next_leader():
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    one.ask(create(opened, 10, b"f"))
    assert one.ask(set_lock(opened, 11, 1, 1)) == m.Done()
    call = one.send(set_lock(opened, 12, 2, 1, wait=True))
    one.voter.turn()
    assert call not in one.answers
    cluster.lead("n2")
    assert one.answers[call] == m.NotLeader("n2", "/n2")
    two = cluster.wire("n2")
    call = two.send(set_lock(opened, 12, 2, 1, wait=True))
    two.voter.turn()
    assert call not in two.answers, "the lock that is held survived"
    assert two.ask(set_lock(opened, 13, 1, 2)) == m.Done()
    assert two.answers[call] == m.Done()


def test_a_waiting_lock_is_not_tested_while_another_is_on_its_way():
    cluster = Cluster()
    one = cluster.wire("n1")
    opened = one.open()
    one.ask(create(opened, 10, b"f"))
    log = cluster.voters["n1"].log
    log.auto = False
    first = one.send(set_lock(opened, 11, 1, 1))
    second = one.send(set_lock(opened, 12, 2, 1, wait=True))
    one.voter.turn()
    one.voter.turn()
    assert len(log.proposed) == 1
    log.commit()
    one.voter.turn()
    assert one.answers[first] == m.Done() and second not in one.answers and not log.proposed


def test_exactly_once_over_random_leaders_with_the_clients_core(seed):
    """Requests in order, names that must be new: executed twice is EEXIST, not at all is a missing name."""
    rng = random.Random(seed)
    cluster = Cluster()
    opened = cluster.wire("n1").open()
    wires: list[Wire] = []
    failed: list[object] = []
    wire: list[Wire | None] = [None]
    sent: list[tuple[int, m.Body]] = []
    core = ClientCore(5, ["/n1", "/n2", "/n3"], lambda call, body: sent.append((call, body)), lambda: cluster.now)
    calls: dict[int, int] = {}

    def connect() -> None:
        node = core.endpoint[1:]
        sent.clear()
        calls.clear()
        fresh = cluster.wire(node, number=core.hello().connection)
        wires.append(fresh)
        if core.on_greeting(fresh.greeting):
            wire[0] = fresh

    def pump() -> None:
        if wire[0] is None or not core.connected:
            connect()
        now = wire[0]
        if now is None:
            return
        for call, body in sent:
            calls[now.send(body)] = call
        sent.clear()
        cluster.turn()
        for call in list(now.answers):
            ended = core.take(m.Answer(calls.pop(call, -1), now.answers.pop(call)))
            if ended is not None:
                ended.request.resume(ended.reply, ended.error)
        core.tick()
        if not core.connected:
            wire[0] = None

    for number in range(150):
        unique = 100 + number

        def done(reply, error, unique=unique):
            if error is not None:
                failed.append(error)
            core.ack(unique)

        body = m.Propose(core.register(unique), opened.session, opened.epoch, core.take_acks(), create(opened, 0, b"%d" % unique).command)
        assert core.submit(Outstanding(body, done)) is None
        for _ in range(rng.randrange(3)):
            pump()
        if rng.random() < 0.15:
            cluster.lead(rng.choice(list(cluster.voters)))
        if rng.random() < 0.1:
            core.on_disconnected()
        log = rng.choice(list(cluster.voters.values())).log
        log.auto = rng.random() < 0.7
        if log.leading and rng.random() < 0.3:
            log.commit()
        if wires and rng.random() < 0.2:  # an older connection delivers a copy that was left behind
            rng.choice(wires[:-1] or wires).send(body) if len(wires) > 1 else None
        cluster.advance(0.01)
    for voter in cluster.voters.values():
        voter.log.auto = True
    for _ in range(60):
        cluster.advance(0.1)
        pump()
    assert not failed
    names = made(cluster)
    machine = next(voter for voter in cluster.voters.values() if voter.log.leading).replica.machine
    assert machine.state.inode(1, 1).entries == 150
    assert sorted(set(names)) == sorted(b"%d" % (100 + number) for number in range(150))


def test_who_does_not_lead_or_waits_for_the_log_sleeps():
    """Nothing is reaped then, so nothing may be due for it: the metadata thread of a follower would never wait."""
    cluster = Cluster()
    for name in ("n2", "n3"):
        assert cluster.voters[name].leader.idle_ms() > 0
    leader = cluster.voters["n1"]
    leader.turn()
    leader.log.auto = False
    cluster.wire("n1", 0).send(m.Propose(0, 0, 0, [], c.CreateVolume("more", "uuid2")))
    leader.turn()
    assert len(leader.leader._proposals) == 1
    assert leader.leader.idle_ms() > 0
