"""Leases end to end over leaders that come and go: holders, the leader's table, and what is true in time.

`Mount` is a worker: a LeaseHolder, a session lease counted from sending, and connections whose answers a test may delay and reorder.
"""

from __future__ import annotations

import errno
import random

import pytest

from awsomefsd.base.limits import CONTEST_QUIET_MS, CONTEST_QUIET_MS_MAX
from awsomefsd.base.types import LEASE_NONE, LEASE_READ, LEASE_WRITE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.held_leases import LeaseHolder
from awsomefsd.meta.client.leases import AdoptedLease
from awsomefsd.meta.client.session_lease import RenewalTimer
from tests.unit.meta.server.leader_group import Cluster, Wire

INO = 2


class Mount:
    """Asks over `wire`; answers wait in it until `take`."""

    def __init__(self, cluster: Cluster, mount: int) -> None:
        self.cluster = cluster
        self.mount = mount
        self.lease = RenewalTimer()
        self.slow = False  # does not answer recalls by itself
        self.recalled: list = []
        self.looks: list = []  # that are not answered yet
        self.holder = LeaseHolder(self._on_recall, lambda: self.lease.left_ns(cluster.now), lambda ino, answer: self.looks.append(answer))
        self.asked: dict[tuple[Wire, int], m.Body] = {}
        self.sent: dict[tuple[Wire, int], int] = {}
        self.wire: Wire | None = None
        self.term = 0
        self.connect(next(name for name, voter in cluster.voters.items() if voter.log.leading))
        self.lease.begin(cluster.now)
        opened = self.wire.open(shared=True)
        self.session, self.epoch = opened.session, opened.epoch
        self.holder.begin(self.session, self.epoch)
        self.greet()

    def _on_recall(self, ino: int, mode: int, done) -> None:
        if self.slow:
            self.recalled.append(done)
        else:
            done()

    def connect(self, node: str) -> bool:
        self.wire = self.cluster.wire(node, self.mount, 1)
        if isinstance(self.wire.greeting, m.Welcome):
            self.term = self.wire.greeting.term
            return True
        self.wire = None
        return False

    def greet(self) -> None:
        report = self.holder.greeted(self.term)
        if report is not None:
            self.send(report)
        self.send(self.holder.awaits())

    def send(self, body: m.Body) -> None:
        if self.wire is not None:
            call = self.wire.send(body)
            self.asked[(self.wire, call)], self.sent[(self.wire, call)] = body, self.cluster.now

    def get(self, mode: int, ino: int = INO) -> None:
        self.send(m.GetLease(self.session, self.epoch, 1, ino, mode, self.holder.known(ino)))

    def renew(self) -> None:
        self.send(m.Renew(self.session, self.epoch, 0))

    def take(self, wire: Wire, call: int) -> None:
        """An answer arrives."""
        reply, body = wire.answers.pop(call), self.asked.pop((wire, call))
        sent = self.sent.pop((wire, call))
        if isinstance(body, m.GetLease) and isinstance(reply, m.Leased):
            self.holder.granted(body.ino, reply)
        elif isinstance(reply, m.Recalls):
            self.holder.recalled(reply)
            if wire is self.wire:
                self.send(self.holder.awaits())
        elif isinstance(body, m.Renew):
            error = None if reply == m.Done() else self.lost(reply)
            if error is not False:
                self.lease.take_answer(sent, error, True, self.cluster.now)
        self.flush()

    def lost(self, reply: m.Reply):
        from awsomefsd.base.errors import FsError

        return FsError(errno.ESTALE) if isinstance(reply, m.Failed) and reply.errno == errno.ESTALE else False

    def flush(self) -> None:
        replies, self.holder.replies = self.holder.replies, []
        for reply in replies:
            self.send(reply)

    def arrivals(self) -> list[tuple[Wire, int]]:
        return [key for key in self.asked if key[1] in key[0].answers]

    def settle(self) -> None:
        while True:
            self.cluster.turn()
            found = self.arrivals()
            if not found:
                return
            for key in found:
                self.take(*key)


def settle(*mounts: Mount) -> None:
    for _ in range(6):
        for mount in mounts:
            mount.settle()


def two() -> tuple[Cluster, Mount, Mount]:
    cluster = Cluster()
    one, other = Mount(cluster, 1), Mount(cluster, 2)
    one.send(m.Propose(7, one.session, one.epoch, [], c.Create(1, 1, b"f", 0o100644, 0, 0)))
    settle(one, other)
    return cluster, one, other


def test_readers_share_and_a_writer_waits_for_them_to_let_go():
    _, one, other = two()
    one.get(LEASE_READ)
    other.get(LEASE_READ)
    settle(one, other)
    assert one.holder.mode(INO) == other.holder.mode(INO) == LEASE_READ
    stamp = other.holder.stamp(INO)
    assert other.holder.valid(INO, stamp)
    other.slow = True
    one.get(LEASE_WRITE)
    settle(one, other)
    assert one.holder.mode(INO) == LEASE_READ and other.holder.mode(INO) == LEASE_READ, "asked, and not answered yet"
    other.recalled.pop()()
    other.flush()
    settle(one, other)
    assert one.holder.mode(INO) == LEASE_WRITE and one.holder.may_buffer(INO) and not other.holder.valid(INO, stamp)
    other.get(LEASE_READ)
    settle(one, other)
    assert one.holder.mode(INO) == other.holder.mode(INO) == LEASE_READ, "a reader makes the writer a reader"
    assert not one.holder.may_buffer(INO)


def test_two_readers_that_both_want_to_write_do_not_block_each_other():
    _, one, other = two()
    for mount in (one, other):
        mount.get(LEASE_READ)
    settle(one, other)
    one.get(LEASE_WRITE)
    other.get(LEASE_WRITE)
    settle(one, other)
    assert sorted((one.holder.mode(INO), other.holder.mode(INO))) == [LEASE_NONE, LEASE_WRITE]


def test_names_and_attributes_change_after_readers_let_go_and_grants_wait_for_changes():
    cluster, one, other = two()
    other.get(LEASE_READ, 1)
    other.get(LEASE_READ)
    settle(one, other)
    other.slow = True
    one.send(m.Propose(8, one.session, one.epoch, [], c.Unlink(1, 1, b"f")))
    settle(one, other)
    assert len(other.recalled) == 2 and not any(isinstance(entry.command, c.Unlink) for entry in cluster.entries)
    log = cluster.voters["n1"].log
    log.auto = False
    for done in other.recalled:
        done()
    other.flush()
    settle(one, other)
    other.get(LEASE_READ, 1)
    settle(one, other)
    assert log.proposed and other.holder.mode(1) == LEASE_NONE, "no grant while a change of the names is on its way"
    log.auto = True
    settle(one, other)
    assert other.holder.mode(1) == LEASE_READ


def test_the_holder_under_recall_overtakes_and_the_machine_fences_it_afterwards():
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    settle(one, other)
    epoch = one.holder.may_buffer(INO)
    one.slow = True
    other.send(m.Propose(9, other.session, other.epoch, [], c.SetAttr(1, INO, c.SET_SIZE, size=0)))
    settle(one, other)
    step = c.InodeCommit(INO, 1, 1, 3, 5, [], [(0, b"abc")], epoch)
    one.send(m.Propose(10, one.session, one.epoch, [], c.Commit(1, [step], 0, [])))
    settle(one, other)
    assert [type(entry.command) for entry in cluster.entries][-1] is c.Commit, "before the truncation that waits"
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    assert type(cluster.entries[-1].command) is c.SetAttr
    newer = c.InodeCommit(INO, 1, 2, 3, 5, [], [(0, b"xyz")], epoch)
    call = one.wire.send(m.Propose(11, one.session, one.epoch, [], c.Commit(1, [newer], 0, [])))
    one.wire.voter.turn()
    assert one.wire.answers.pop(call).errnos == [errno.ENOLCK]


def test_a_recall_that_is_not_answered_ends_the_session_after_its_lease_and_progress_moves_the_deadline():
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    settle(one, other)
    one.slow = True
    other.get(LEASE_WRITE)
    settle(one, other)
    sequence = one.holder._recalling[INO][1]
    for second in range(45):
        cluster.advance(1)
        if second < 12 and second % 4 == 0:
            one.send(m.ExtendRecall(one.session, one.epoch, one.term, sequence, second + 1))
        for mount in (one, other):
            if mount.lease.poll(cluster.now) == "renew":
                mount.renew()
        settle(one, other)
        if other.holder.mode(INO) == LEASE_WRITE:
            break
        if second < 17:
            assert one.holder.mode(INO) == LEASE_WRITE, second
    assert other.holder.mode(INO) == LEASE_WRITE and one.holder.mode(INO) == LEASE_NONE and second >= 18


def test_a_new_leader_changes_nothing_until_all_have_said_what_they_read():
    cluster, one, other = two()
    other.get(LEASE_READ)
    settle(one, other)
    cluster.lead("n2")
    assert one.connect("n2")
    one.greet()
    one.get(LEASE_WRITE)
    settle(one)
    assert one.holder.mode(INO) == LEASE_NONE and other.holder.mode(INO) == LEASE_READ
    assert other.connect("n2")
    other.greet()
    settle(one, other)
    assert one.holder.mode(INO) == LEASE_WRITE and other.holder.mode(INO) == LEASE_NONE, "reported, then recalled"


def test_one_that_never_reports_is_ended_and_only_then_others_go_on():
    cluster, one, other = two()
    other.get(LEASE_READ)
    settle(one, other)
    cluster.lead("n2")
    one.connect("n2")
    one.greet()
    one.get(LEASE_WRITE)
    other.connect("n2")  # renews, and does not report
    for _ in range(60):
        cluster.advance(0.5)
        for mount in (one, other):
            if mount.lease.poll(cluster.now) == "renew":
                mount.renew()
        settle(one, other)
        assert not (one.holder.mode(INO) == LEASE_WRITE and other.holder.mode(INO))
    assert one.holder.mode(INO) == LEASE_WRITE


def test_grants_that_come_after_a_newer_recall_or_term_give_nothing():
    cluster, one, other = two()
    one.get(LEASE_READ)
    cluster.turn()
    late = one.arrivals()
    assert late
    other.get(LEASE_WRITE)
    cluster.turn()
    for key in [key for key in one.arrivals() if key not in late]:
        one.take(*key)  # the recall came first
    settle(other)
    for key in late:
        one.take(*key)
    assert one.holder.mode(INO) == LEASE_NONE
    settle(one, other)
    assert other.holder.mode(INO) == LEASE_WRITE
    other.get(LEASE_READ, 1)
    cluster.turn()
    late = other.arrivals()
    cluster.lead("n2")
    other.connect("n2")
    other.greet()
    for key in late:
        other.take(*key)
    assert other.holder.mode(1) == LEASE_NONE and other.holder.mode(INO) == LEASE_WRITE, "write leases are entries"


def test_a_release_does_not_end_a_grant_that_it_has_not_seen():
    cluster, one, other = two()
    one.get(LEASE_READ)
    settle(one, other)
    one.get(LEASE_READ)
    cluster.turn()  # granted again, and on its way
    late = one.arrivals()
    one.send(one.holder.release([INO]))
    other.get(LEASE_WRITE)
    cluster.turn()
    for key in late:
        one.take(*key)
    other.settle()
    assert not (one.holder.mode(INO) and other.holder.mode(INO))
    settle(one, other)
    assert other.holder.mode(INO) == LEASE_WRITE and not one.holder.mode(INO)


def test_what_a_mount_changes_itself_is_not_valid_before_the_outcome_is_known():
    _, one, other = two()
    one.get(LEASE_READ)
    settle(one, other)
    holder = one.holder
    stamp = holder.stamp(INO)
    holder.change([INO])
    assert not holder.valid(INO, stamp) and not holder.stamp(INO), "an answer may be from before or after the change"
    holder.changed([INO])
    assert holder.stamp(INO) and not holder.valid(INO, stamp), "nor what was asked for before it"
    stamp = holder.stamp(INO)
    holder.touch(INO)
    assert not holder.valid(INO, stamp)


def test_a_successor_goes_on_with_the_write_leases_under_which_data_is_held_back():
    _, one, other = two()
    one.get(LEASE_WRITE)
    settle(one, other)
    epoch = one.holder.may_buffer(INO)
    one.holder.begin(one.session, one.epoch)
    one.holder.adopt({INO: AdoptedLease(epoch, 1)})
    one.send(one.holder.greeted(one.term))
    one.slow = True
    other.get(LEASE_READ)
    settle(one, other)
    assert one.recalled and not other.holder.mode(INO), "its data is committed first"
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    assert one.holder.mode(INO) == other.holder.mode(INO) == LEASE_READ


def asks(cluster: Cluster, mount: int, body: m.Body) -> tuple[Wire, int]:
    wire = cluster.wire("n1", mount, 1)
    return wire, wire.send(body)


def value(one: Mount, data: bytes, sequence: int, epoch: int) -> m.Propose:
    step = c.InodeCommit(INO, one.mount, sequence, len(data), 5, [], [(0, data)], epoch)
    return m.Propose(100 + sequence, one.session, one.epoch, [], c.Commit(1, [step], 0, []))


QUESTIONS = [m.GetAttr(1, INO), m.GetLayout(1, INO, 0, 100), m.Lookup(1, 1, b"f")]


@pytest.mark.parametrize("body", QUESTIONS, ids=lambda body: type(body).__name__)
@pytest.mark.parametrize("mount", [0, 9])
@pytest.mark.parametrize("auto", [True, False], ids=["at once", "confirmed later"])
def test_a_question_of_one_without_a_lease_waits_for_what_the_writer_holds_back(body, mount, auto):
    """Also of tools, which are no mount; also where a quorum confirms it first."""
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    settle(one, other)
    epoch = one.holder.may_buffer(INO)
    one.slow = True
    log = cluster.voters["n1"].log
    log.auto = auto
    wire, call = asks(cluster, mount, body)
    settle(one, other)
    assert one.recalled and call not in wire.answers, "it is asked while the question is being confirmed"
    log.confirmed = log.tickets
    log.auto = True
    settle(one, other)
    assert call not in wire.answers
    one.send(value(one, b"abc", 1, epoch))
    settle(one, other)
    assert call not in wire.answers, "more may be held back"
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    reply = wire.answers.pop(call)
    assert reply.inline == b"abc" if isinstance(reply, m.Layout) else reply.attr.size == 3
    assert one.holder.mode(INO) == LEASE_READ, "what it has read stays"
    wire, call = asks(cluster, mount, body)
    cluster.turn()
    assert call in wire.answers, "nobody writes"


def test_the_writer_itself_and_questions_about_other_things_do_not_wait():
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    settle(one, other)
    call = one.wire.send(m.GetAttr(1, INO))
    cluster.turn()
    assert isinstance(one.wire.answers.pop(call), m.Found)
    for body in (m.GetAttr(1, 1), m.GetXattr(1, INO, b"user.a"), m.Lookup(1, 1, b"none")):
        wire, call = asks(cluster, 9, body)
        cluster.turn()
        assert call in wire.answers
    assert one.holder.mode(INO) == LEASE_WRITE


def test_a_page_of_a_directory_leaves_out_the_attributes_of_what_others_write():
    _cluster, one, other = two()
    one.send(m.Propose(8, one.session, one.epoch, [], c.Create(1, 1, b"g", 0o100644, 0, 0)))
    one.get(LEASE_WRITE)
    settle(one, other)
    for wire, plus, expected in ((other.wire, True, [None, 3]), (one.wire, True, [INO, 3]), (other.wire, False, [None, None])):
        entries = wire.ask(m.ReadDir(1, 1, 0, 10, plus)).entries
        assert [entry.attr and entry.attr.ino for entry in entries] == expected
        assert [entry.ino for entry in entries] == [INO, 3]
    assert one.holder.mode(INO) == LEASE_WRITE, "and nobody was asked"


def test_a_question_that_was_woken_is_answered_before_the_next_writer_who_waits_behind_it():
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    settle(one, other)
    one.slow = True
    wire, call = asks(cluster, 9, m.GetAttr(1, INO))
    settle(one, other)
    other.get(LEASE_WRITE)
    settle(one, other)
    while one.recalled:
        one.recalled.pop(0)()
        one.flush()
        settle(one, other)
    assert call in wire.answers and other.holder.mode(INO) == LEASE_WRITE


def test_questions_that_wait_end_with_their_connection_the_leadership_or_the_writer():
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    settle(one, other)
    one.slow = True
    gone, lost = asks(cluster, 9, m.GetAttr(1, INO))
    cluster.turn()
    leader = cluster.voters["n1"].leader
    assert leader.figures()["lease_waiters"] == 1
    leader.drop_origin(gone)
    assert leader.figures()["lease_waiters"] == 0
    wire, call = asks(cluster, 9, m.GetAttr(1, INO))
    cluster.turn()
    cluster.lead("n2")
    assert isinstance(wire.answers.pop(call), m.NotLeader) and lost not in gone.answers
    wire = cluster.wire("n2", 9, 2)
    call = wire.send(m.GetAttr(1, INO))
    other.connect("n2")
    other.greet()
    for _ in range(30):  # `one` is not heard of any more
        cluster.advance(1)
        if other.lease.poll(cluster.now) == "renew":
            other.renew()
        settle(other)
    assert isinstance(wire.answers.pop(call), m.Found)


def test_the_source_of_a_copy_is_committed_first_and_only_read():
    cluster, one, other = two()
    one.send(m.Propose(8, one.session, one.epoch, [], c.Create(1, 1, b"g", 0o100644, 0, 0)))
    one.get(LEASE_WRITE)
    settle(one, other)
    epoch = one.holder.may_buffer(INO)
    one.slow = True
    other.send(m.Propose(9, other.session, other.epoch, [], c.CopyRange(1, INO, 0, 3, 0, 10)))
    settle(one, other)
    assert one.recalled and type(cluster.entries[-1].command) is not c.CopyRange
    one.send(value(one, b"abc", 1, epoch))
    settle(one, other)
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    assert type(cluster.entries[-1].command) is c.CopyRange and one.holder.mode(INO) == LEASE_READ


def test_a_file_is_made_with_its_write_lease():
    cluster, one, other = two()
    create = c.Create(1, 1, b"g", 0o100644, 0, 0, lease=True)
    body = m.Propose(8, one.session, one.epoch, [], create)
    found = one.wire.ask(body)
    assert found.leased.term == one.term and found.leased.sequence and one.holder.granted(found.attr.ino, found.leased)
    assert one.holder.may_buffer(found.attr.ino) == found.leased.epoch
    entries = len(cluster.entries)
    one.slow = True
    wire, call = asks(cluster, 9, m.GetAttr(1, found.attr.ino))
    settle(one, other)
    assert one.recalled and call not in wire.answers and len(cluster.entries) == entries
    again = one.wire.ask(body)
    assert again.leased.epoch == found.leased.epoch and again.leased.sequence > found.leased.sequence, "asked again, told anew"
    settle(one, other)
    assert len(one.recalled) == 2, "a newer grant was told, so it was asked anew"
    one.recalled.pop(0)()
    one.flush()
    settle(one, other)
    assert call not in wire.answers
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    assert call in wire.answers
    assert one.wire.ask(body).leased is None, "it has been given back since"
    assert other.wire.ask(m.Propose(9, other.session, other.epoch, [], create)).errno == errno.EEXIST
    existing = m.Propose(10, other.session, other.epoch, [], c.Create(1, 1, b"g", 0o100644, 0, 0, open_existing=True, lease=True))
    assert other.wire.ask(existing).leased is None
    tmpfile = other.wire.ask(m.Propose(11, other.session, other.epoch, [], c.Tmpfile(1, 1, 0o600, 0, 0, lease=True)))
    assert tmpfile.leased.sequence and (1, tmpfile.attr.ino) in dict(cluster.voters["n1"].replica.machine.write_leases(b"", 100)[0])


def test_a_directory_is_made_with_the_lease_to_read_it():
    cluster, one, other = two()
    body = m.Propose(8, one.session, one.epoch, [], c.Create(1, 1, b"d", 0o40755, 0, 0, lease=True))
    found = one.wire.ask(body)
    ino = found.attr.ino
    assert found.leased.mode == LEASE_READ and one.holder.granted(ino, found.leased) and one.holder.mode(ino) == LEASE_READ
    assert one.wire.ask(body).leased is None, "of a repeated request nobody knows what came since"
    one.slow = True
    inside = m.Propose(9, other.session, other.epoch, [], c.Create(1, ino, b"f", 0o100644, 0, 0, lease=True))
    wire, call = asks(cluster, other.mount, inside)
    settle(one, other)
    assert one.recalled and call not in wire.answers
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    assert wire.answers[call].created and one.holder.mode(ino) == LEASE_NONE


@pytest.mark.parametrize("command", [c.SetAttr(1, INO, c.SET_MODE, 0o600), c.Unlink(1, 1, b"f"), c.Link(1, INO, 1, b"g")], ids=str)
def test_a_change_that_comes_while_a_lease_is_being_granted_recalls_it_first(command):
    """Else its holder would go on with what it was told between the grant and the change."""
    cluster, one, other = two()
    one.slow = True
    wire = cluster.wire("n1", other.mount, 1)
    one.get(LEASE_WRITE)
    call = wire.send(m.Propose(90, other.session, other.epoch, [], command))
    cluster.turn()
    granted = next(key for key in one.arrivals() if isinstance(one.asked[key], m.GetLease))
    one.take(*granted)  # it is the first of the leader's answers
    settle(one, other)
    assert one.recalled and call not in wire.answers
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    assert isinstance(wire.answers[call], (m.Found, m.Removed)) and one.holder.mode(INO) == LEASE_NONE


def lower(one: Mount) -> m.ReturnLeases:
    one.holder.pause([INO])
    assert not one.holder.may_buffer(INO)
    body = one.holder.lower([INO], [INO])
    assert body is not None and one.holder.mode(INO) == LEASE_READ
    return body


def test_a_write_lease_that_is_given_back_goes_on_to_be_read_under():
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    one.settle()
    epoch, grant = one.holder.may_buffer(INO), one.holder.grant(INO)
    body = lower(one)
    one.send(body)
    settle(one, other)
    machine = cluster.voters["n1"].replica.machine
    assert (1, INO) not in dict(machine.write_leases(b"", 100)[0]) and one.holder.grant(INO) == grant
    recalls = len(one.recalled)
    wire, call = asks(cluster, 9, m.GetAttr(1, INO))
    settle(one, other)
    assert call in wire.answers and len(one.recalled) == recalls, "a question waits for nobody now"
    one.slow = True
    other.get(LEASE_WRITE)
    settle(one, other)
    assert one.recalled and other.holder.mode(INO) == LEASE_NONE, "what it reads under is recalled like any read lease"
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    other.settle()
    assert other.holder.mode(INO) == LEASE_WRITE and one.holder.mode(INO) == LEASE_NONE
    one.send(body)  # a copy that comes late ends nothing
    settle(one, other)
    assert machine.write_lease(1, INO)[0] == other.session
    assert other.holder.may_buffer(INO) > epoch


def test_a_lease_asked_for_behind_its_return_is_a_new_one():
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    one.settle()
    epoch = one.holder.may_buffer(INO)
    one.send(lower(one))
    one.get(LEASE_WRITE)
    settle(one, other)
    one.settle()
    assert one.holder.may_buffer(INO) == epoch + 1, "the old epoch was ended"
    assert cluster.voters["n1"].replica.machine.write_lease(1, INO) == (one.session, epoch + 1)


@pytest.mark.parametrize("mode", [LEASE_READ, LEASE_NONE])
@pytest.mark.parametrize("first", [True, False])
def test_a_recall_and_the_return_of_its_lease_cross(mode, first):
    _, one, other = two()
    one.get(LEASE_WRITE)
    one.settle()
    body = lower(one) if first else None
    other.get(LEASE_READ if mode == LEASE_READ else LEASE_WRITE)
    one.slow = True
    settle(one, other)
    if body is not None:
        one.send(body)
    else:
        one.holder.pause([INO])
        assert one.holder.lower([INO], [INO]) is None and one.holder.mode(INO) == LEASE_WRITE, "it is being recalled"
    while one.recalled:
        one.recalled.pop()()
        one.flush()
        settle(one, other)
    one.flush()
    settle(one, other)
    other.settle()
    assert other.holder.mode(INO) == (LEASE_READ if mode == LEASE_READ else LEASE_WRITE)
    assert one.holder.mode(INO) == mode


def test_a_lease_whose_answer_was_given_up_is_known_when_it_is_applied():
    """The leader may have to say that an outcome is unknown, and the entry is committed after all."""
    cluster, one, other = two()
    log = cluster.voters["n1"].log
    log.auto = False
    one.get(LEASE_WRITE)
    cluster.turn()
    leader = cluster.voters["n1"].leader
    for request in leader._proposals.take_all():  # as in _run_batch, where the log says Unavailable
        request.answer(m.Failed(errno.EAGAIN, "", True))
    log.auto = True
    cluster.turn()
    wire, call = asks(cluster, 9, m.GetAttr(1, INO))
    cluster.turn()
    assert call not in wire.answers
    settle(one, other)
    assert call in wire.answers


def test_an_inode_that_is_taken_back_and_forth_is_contested_until_it_is_quiet():
    cluster, one, other = two()
    mounts = [one, other]
    for turn in range(30):
        taker = mounts[turn % 2]
        taker.get(LEASE_WRITE)
        settle(one, other)
        if taker.holder.mode(INO) != LEASE_WRITE:
            break
        cluster.advance(0.01)
    reply = taker.wire.ask(m.GetLease(taker.session, taker.epoch, 1, INO, LEASE_WRITE, 0))
    assert 4 < turn < 20 and isinstance(reply, m.Contested) and 0 < reply.pause_ms <= CONTEST_QUIET_MS
    figures = cluster.voters["n1"].leader.figures()
    assert figures["lease_contested_inodes"] == figures["lease_contests"] == 1 and figures["lease_recalls"] > 2
    for _ in range(10):  # both write through: nothing is recalled, and nothing waits
        cluster.advance(0.1)
        for mount in mounts:
            step = c.SetAttr(1, INO, c.SET_SIZE, size=0)
            mount.unique = getattr(mount, "unique", 1000) + 1
            assert isinstance(mount.wire.ask(m.Propose(mount.unique, mount.session, mount.epoch, [], step)), m.Found)
            assert isinstance(mount.wire.ask(m.GetLease(mount.session, mount.epoch, 1, INO, LEASE_READ, 0)), m.Contested)
    cluster.advance(CONTEST_QUIET_MS_MAX / 1000)
    one.get(LEASE_READ)
    other.get(LEASE_READ)
    settle(one, other)
    assert one.holder.mode(INO) == other.holder.mode(INO) == LEASE_READ, "nobody writes any more"


def test_leases_that_ended_with_their_inode_are_forgotten_and_there_is_a_bound_for_each_session(monkeypatch):
    monkeypatch.setattr("awsomefsd.meta.server.leases.lease_grants.LEASES_PER_SESSION_MAX", 2)
    cluster, one, other = two()
    figures = cluster.voters["n1"].leader.figures
    made = []
    for number in range(4):
        command = c.Create(1, 1, b"t%d" % number, 0o100644, 0, 0, lease=True)
        made.append(one.wire.ask(m.Propose(20 + number, one.session, one.epoch, [], command)).leased is not None)
    assert made == [True, True, False, False] and figures()["leases_write"] == 2
    assert one.wire.ask(m.GetLease(one.session, one.epoch, 1, 5, LEASE_WRITE, 0)).errno == errno.ENOLCK
    assert isinstance(other.wire.ask(m.GetLease(other.session, other.epoch, 1, 5, LEASE_WRITE, 0)), m.Leased)
    for number in range(2):
        one.wire.ask(m.Propose(30 + number, one.session, one.epoch, [], c.Unlink(1, 1, b"t%d" % number)))
    for _ in range(3):
        cluster.advance(1)
        cluster.turn()
    assert figures()["leases_write"] == 1, "the other one's"
    assert isinstance(one.wire.ask(m.GetLease(one.session, one.epoch, 1, 6, LEASE_WRITE, 0)), m.Leased)


def conflicts(mounts: list[Mount], inos: range) -> list[int]:
    """Inodes that one may write while another may read or write them, now."""
    bad = []
    for ino in inos:
        modes = sorted(mount.holder.mode(ino) for mount in mounts)
        if modes[-1] == LEASE_WRITE and modes[-2] != LEASE_NONE:
            bad.append(ino)
    return bad


def test_leases_never_conflict_in_true_time(seed):
    """Random requests, delays, reordered answers, slow recall handlers, silent mounts and leaders that change."""
    rng = random.Random(seed)
    cluster = Cluster()
    mounts = [Mount(cluster, number) for number in (1, 2, 3)]
    for number in range(3):
        mounts[0].send(m.Propose(7 + number, mounts[0].session, mounts[0].epoch, [], c.Create(1, 1, b"%d" % number, 0o100644, 0, 0)))
    settle(*mounts)
    silent: dict[int, int] = {}
    granted = 0
    for _ in range(1_500):
        cluster.advance(rng.random() * 0.15)
        roll = rng.random()
        mount = rng.choice(mounts)
        if roll < 0.006:
            node = rng.choice(list(cluster.voters))
            cluster.lead(node)
        elif roll < 0.012:
            silent[mount.mount] = cluster.now + int(rng.random() * 20e9)
        mount.slow = rng.random() < 0.3
        for each in mounts:
            if silent.get(each.mount, 0) > cluster.now:
                continue
            leading = next(name for name, voter in cluster.voters.items() if voter.log.leading)
            if each.wire is None or each.wire.voter is not cluster.voters[leading] or each.term != cluster.term or rng.random() < 0.01:
                if rng.random() < 0.3 and each.connect(leading):
                    each.greet()
                continue
            if each.lease.poll(cluster.now) == "renew":
                each.renew()
            if rng.random() < 0.2:
                each.get(rng.choice((LEASE_READ, LEASE_WRITE)), rng.randrange(2, 5))
            if rng.random() < 0.03:
                each.send(each.holder.release([rng.randrange(2, 5)]))
            if each.recalled and rng.random() < 0.2:
                each.recalled.pop(rng.randrange(len(each.recalled)))()
                each.flush()
            for key in each.arrivals():
                if rng.random() < 0.5:
                    each.take(*key)
                    assert conflicts(mounts, range(2, 5)) == []
        cluster.turn()
        assert conflicts(mounts, range(2, 5)) == []
        granted += any(mount.holder.mode(ino) == LEASE_WRITE for mount in mounts for ino in range(2, 5))
    assert granted > 50, "otherwise this shows nothing"
