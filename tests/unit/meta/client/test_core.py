"""The client's core without a socket: resending in order, following the leader, pauses, deadlines, silence."""

from __future__ import annotations

import errno

import pytest

from awsomefsd.base.errors import FsError, Overloaded
from awsomefsd.base.limits import CLIENT_SILENCE_MS
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.core import RETRY_PAUSE_MS, ClientCore, GreetingRefused, OutcomeUnknown, Outstanding

MS = 1_000_000
WELCOME = m.Welcome(m.PROTOCOL_VERSION, "cluster", 1)


class Bench:
    """A core, what it sent on the present connection, and its clock."""

    def __init__(self, *endpoints: str) -> None:
        self.now = 1_000 * MS
        self.sent: list[tuple[int, m.Body]] = []
        self.core = ClientCore(5, endpoints or ("/a",), lambda call, body: self.sent.append((call, body)), lambda: self.now)

    def greet(self, reply: m.Reply = WELCOME) -> bool:
        self.sent.clear()
        self.hello = self.core.hello()
        return self.core.on_greeting(reply)

    def submit(self, body: m.Body, deadline_ms: int | None = None) -> Outstanding:
        request = Outstanding(body, lambda *_: None, None if deadline_ms is None else self.now + deadline_ms * MS)
        assert self.core.submit(request) is None
        return request

    def propose(self, unique: int, **options) -> Outstanding:
        core = self.core
        return self.submit(m.Propose(core.register(unique), 1, 1, core.take_acks(), c.RemoveReader("r")), **options)

    def answer(self, call: int, reply: m.Reply):
        return self.core.take(m.Answer(call, reply))

    def uniques(self) -> list[int]:
        return [body.unique for _, body in self.sent]


def test_outstanding_requests_follow_the_leader_in_order_with_their_ids():
    bench = Bench("/a")
    assert bench.greet() and bench.hello.connection == 1
    for unique in (10, 11, 12):
        bench.propose(unique)
    assert bench.answer(bench.sent[1][0], m.Done()).reply == m.Done()
    assert bench.answer(bench.sent[2][0], m.NotLeader("n2", "/b")) is None
    assert not bench.core.connected and bench.core.endpoint == "/b" and bench.core.connect_ns <= bench.now
    bench.propose(13)
    assert bench.greet() and bench.hello.connection == 2
    assert bench.uniques() == [10, 12, 13]
    ended = [bench.answer(call, m.Done()).request for call, _ in list(bench.sent)]
    assert [(request.body.unique, request.repeated) for request in ended] == [(10, True), (12, True), (13, False)]


def test_nobody_leads_and_the_endpoints_are_tried_in_turn_with_growing_pauses():
    bench = Bench("/a", "/b", "/c")
    seen, pauses = [], []
    for _ in range(5):
        seen.append(bench.core.endpoint)
        assert not bench.greet(m.NotLeader("", ""))
        pauses.append(bench.core.connect_ns - bench.now)
    assert seen == ["/a", "/b", "/c", "/a", "/b"] and pauses == sorted(pauses) and pauses[0] == 0 < pauses[-1]
    assert bench.greet()
    bench.core.on_disconnected()
    assert bench.core.connect_ns == bench.now, "whoever was greeted begins anew"


def test_two_nodes_that_name_each_other_cost_pauses_and_a_dead_leader_is_left():
    bench = Bench("/a")
    for address in ("/b", "/a", "/b"):
        assert not bench.greet(m.NotLeader("n", address))
        assert bench.core.endpoint == address
    assert bench.core.connect_ns > bench.now
    bench.core.on_disconnected()
    assert bench.core.endpoint == "/a", "back to what was configured"


def test_a_refused_proposal_pauses_and_takes_new_acks_along():
    bench = Bench()
    bench.greet()
    bench.propose(10)
    first = bench.sent[0]
    bench.core.ack_inherited(7)
    assert bench.answer(first[0], m.Failed(errno.EAGAIN, "", True)) is None
    assert bench.core.due_ns() == bench.now + RETRY_PAUSE_MS * MS
    assert bench.core.tick() == [] and len(bench.sent) == 1
    bench.now += RETRY_PAUSE_MS * MS
    assert bench.core.tick() == []
    call, body = bench.sent[1]
    assert call != first[0] and body.unique == 10 and body.acks == [7]
    assert isinstance(bench.answer(call, m.Failed(errno.ENOENT)).error, FsError)
    assert bench.core.due_ns() is None


def test_a_deadline_ends_a_request_wherever_it_is_and_its_late_answer_is_nobodys(monkeypatch):
    monkeypatch.setattr("awsomefsd.meta.client.core.RPC_INFLIGHT_MAX", 2)
    bench = Bench()
    bench.greet()
    late = [bench.propose(unique, deadline_ms=50) for unique in (10, 11, 12)]
    patient = bench.propose(13)
    assert bench.uniques() == [10, 11]
    assert bench.answer(bench.sent[0][0], m.Failed(errno.EAGAIN, "", True)) is None
    assert bench.uniques() == [10, 11, 12]
    assert bench.core.due_ns() == bench.now + RETRY_PAUSE_MS * MS
    bench.now += 50 * MS
    ended = bench.core.tick()
    assert {id(one.request) for one in ended} == set(map(id, late)) and all(isinstance(one.error, OutcomeUnknown) for one in ended)
    assert bench.uniques()[-1] == 13 and bench.core.due_ns() is None
    assert bench.answer(bench.sent[1][0], m.Done()) is None
    assert bench.answer(bench.sent[-1][0], m.Done()).request is patient


def test_the_only_node_is_given_up_too_if_it_is_behind_a_network():
    bench = Bench("10.0.0.1:7000")
    bench.greet()
    bench.submit(m.AwaitRecalls(1, 1, 0))
    bench.submit(m.GetLease(1, 1, 1, 2, 1))
    bench.now += CLIENT_SILENCE_MS * MS
    bench.core.tick()
    assert bench.core.connected, "these wait for others"
    bench.propose(10)
    bench.now += CLIENT_SILENCE_MS * MS
    bench.core.tick()
    assert not bench.core.connected and bench.core.endpoint == "10.0.0.1:7000"
    bench.greet()
    assert bench.sent[-1][1].unique == 10


def test_a_silent_node_is_given_up_only_if_there_is_another_and_an_answer_is_owed():
    alone = Bench("/a")
    alone.greet()
    alone.propose(10)
    assert alone.core.due_ns() is None
    bench = Bench("/a", "/b")
    bench.greet()
    lock = c.SetLock(1, 2, 0, 1, 1, 1, 0, 9)
    bench.submit(m.WaitLock(9, 1, 1, [], lock))
    for _ in range(3):
        bench.now += CLIENT_SILENCE_MS * MS
        bench.core.tick()
        assert bench.core.connected, "a lock may take for ever"
    bench.propose(10)
    bench.now += (CLIENT_SILENCE_MS - 1) * MS
    bench.core.tick()
    assert bench.core.connected and bench.core.due_ns() == bench.now + MS
    bench.now += MS
    bench.core.tick()
    assert not bench.core.connected and bench.core.endpoint == "/b"
    bench.greet()
    assert bench.uniques() == [9, 10]


def test_a_cancelled_lock_stays_cancelled_over_leaders():
    bench = Bench()
    bench.greet()
    bench.submit(m.WaitLock(9, 1, 1, [], c.SetLock(1, 2, 0, 1, 1, 1, 0, 9)))
    bench.core.cancel(9)
    assert bench.sent[-1] == (0, m.Cancel(9))
    bench.answer(bench.sent[0][0], m.NotLeader("n", "/b"))
    bench.greet()
    assert [type(body) for _, body in bench.sent] == [m.WaitLock, m.Cancel]
    ended = bench.answer(bench.sent[0][0], m.Failed(errno.EINTR))
    assert ended.error.errno == errno.EINTR
    bench.core.cancel(9)
    assert len(bench.sent) == 2


def test_another_protocol_is_refused_and_tried_again_later():
    bench = Bench()
    with pytest.raises(GreetingRefused):
        bench.greet(m.Failed(errno.EPROTONOSUPPORT, "protocol 1; this daemon speaks 2"))
    assert not bench.core.connected and bench.core.endpoint == "/a"


LOCK = c.SetLock(1, 2, 0, 1, 1_000, 1, 0, 5)


def test_what_waits_for_others_holds_up_nothing_else(monkeypatch):
    """Processes that wait for a lock: the renewal and the unlock go out, the leases in their order, the rest within the bound."""
    monkeypatch.setattr("awsomefsd.meta.client.core.RPC_INFLIGHT_MAX", 2)
    bench = Bench()
    bench.greet()
    waits = [bench.submit(m.WaitLock(bench.core.register(unique), 1, 1, [], LOCK)) for unique in (10, 11, 12)]
    bench.submit(m.AwaitRecalls(1, 1, 0))
    proposed = [bench.propose(unique) for unique in (20, 21, 22)]
    leases = [m.Renew(1, 1, 0), m.ReturnLeases(1, 1, []), m.GetLease(1, 1, 1, 2, 1), m.AnswerRecall(1, 1, 1, 1)]
    for body in leases:
        bench.submit(body)
    waiting = [*(one.body for one in waits), m.AwaitRecalls(1, 1, 0)]
    assert [body for _, body in bench.sent] == [*waiting, proposed[0].body, proposed[1].body, *leases]
    assert bench.answer(bench.sent[0][0], m.Done()).request is waits[0]
    assert bench.sent[-1][1] == leases[-1], "the place of a lock that waited is nobody's"
    assert bench.answer(bench.sent[4][0], m.Done()).request is proposed[0]
    assert bench.sent[-1][1] is proposed[2].body
    bench.greet()
    assert len(bench.sent) == 9, "all that is outstanding, and no more"
    for call, _ in list(bench.sent):
        bench.answer(call, m.Done())
    assert bench.core._uncounted == 0 == len(bench.core._outstanding)


def test_locks_that_wait_without_end_are_bounded(monkeypatch):
    monkeypatch.setattr("awsomefsd.meta.client.core.CLIENT_QUEUED_MAX", 2)
    bench = Bench()
    bench.greet()
    for unique in (10, 11):
        bench.submit(m.WaitLock(unique, 1, 1, [], LOCK))
    ended = bench.core.submit(Outstanding(m.WaitLock(12, 1, 1, [], LOCK), lambda *_: None))
    assert isinstance(ended.error, Overloaded)


@pytest.mark.parametrize("reply", [m.Failed(errno.EINTR), m.Failed(errno.EDEADLK), m.Done()])
def test_acknowledgements_are_not_lost_with_a_lock_that_is_not_granted(reply):
    """It was never an entry; meanwhile others take them along."""
    bench = Bench()
    bench.greet()
    for unique in (7, 8):
        bench.core.ack_inherited(unique)
    bench.submit(m.WaitLock(bench.core.register(10), 1, 1, bench.core.copy_acks(), LOCK))
    assert bench.sent[0][1].acks == [7, 8]
    bench.answer(bench.sent[0][0], reply)
    assert bench.core.take_acks() == ([] if reply == m.Done() else [7, 8])


def test_a_lock_that_waits_for_room_takes_the_acknowledgements_that_make_it():
    bench = Bench()
    bench.greet()
    bench.submit(m.WaitLock(bench.core.register(10), 1, 1, bench.core.copy_acks(), LOCK))
    bench.core.ack_inherited(7)
    bench.answer(bench.sent[0][0], m.Failed(errno.EAGAIN, "too many results", True))
    bench.now += RETRY_PAUSE_MS * MS
    bench.core.tick()
    assert bench.sent[1][1].acks == [7] and bench.core.acks_waiting == 1
    bench.core.cancel(10)
    assert bench.sent[-1][1] == m.Cancel(10)


@pytest.mark.parametrize("number", [errno.EMSGSIZE, errno.EOPNOTSUPP])
def test_acknowledgements_of_a_proposal_that_was_no_entry_go_with_the_next(number):
    bench = Bench()
    bench.greet()
    bench.core.ack_inherited(7)
    bench.propose(10)
    bench.answer(bench.sent[0][0], m.Failed(number))
    bench.propose(11)
    assert bench.sent[1][1].acks == [7]
    bench.answer(bench.sent[1][0], m.Failed(errno.EEXIST))
    assert not bench.core.acks_waiting


@pytest.mark.parametrize("kind", ["proposal", "lock"])
def test_acknowledgements_that_joined_a_request_when_it_was_sent_again_go_with_the_next(kind):
    """The first copy may have become the entry: then the leader answers with the result that it kept, and proposes nothing."""
    bench = Bench()
    bench.greet()
    if kind == "proposal":
        bench.propose(10)
    else:
        bench.submit(m.WaitLock(bench.core.register(10), 1, 1, bench.core.copy_acks(), LOCK))
    bench.core.ack_inherited(7)
    bench.answer(bench.sent[0][0], m.Failed(errno.EAGAIN, "the outcome is not known", True))
    bench.now += RETRY_PAUSE_MS * MS
    bench.core.tick()
    assert bench.sent[1][1].acks == [7]
    assert bench.answer(bench.sent[1][0], m.Done()).reply == m.Done()
    bench.propose(11)
    assert bench.sent[2][1].acks == [7]
    bench.answer(bench.sent[2][0], m.Done())
    assert not bench.core.acks_waiting
