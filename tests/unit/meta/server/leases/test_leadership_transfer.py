"""A transfer of the leadership that comes to nothing: the leader leads on in its term, and nothing that belongs to it begins again."""

from __future__ import annotations

from awsomefsd.base.limits import BATCH_ENTRIES_MAX
from awsomefsd.base.types import LEASE_NONE, LEASE_READ, LEASE_WRITE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.unit.meta.server.leader_group import Cluster
from tests.unit.meta.server.leases.test_lease_table import INO, Mount, settle, two


def create(opened: m.SessionOpened | Mount, unique: int, name: bytes) -> m.Propose:
    return m.Propose(unique, opened.session, opened.epoch, [], c.Create(1, 1, name, 0o100644, 0, 0))


def made(cluster: Cluster) -> list[bytes]:
    return [entry.command.name for entry in cluster.entries if isinstance(entry.command, c.Create)]


def pass_time(cluster: Cluster, seconds: float, *mounts: Mount) -> None:
    for _ in range(int(seconds * 4)):
        cluster.advance(0.25)
        for mount in mounts:
            if mount.lease.poll(cluster.now) == "renew":
                mount.renew()
        settle(*mounts)


def test_sessions_that_share_live_on_and_nobody_has_to_report_again() -> None:
    cluster, one, other = two()
    other.get(LEASE_READ)
    pass_time(cluster, 10, one, other)
    log = cluster.voters["n1"].log
    log.handing_over = True
    one.send(create(one, 77, b"x"))
    pass_time(cluster, 1, one, other)
    assert b"x" not in made(cluster), "nothing is taken while the leadership is being handed over"
    log.handing_over = False  # the heir did not answer in time
    pass_time(cluster, 30, one, other)
    assert made(cluster).count(b"x") == 1
    one.get(LEASE_WRITE)
    pass_time(cluster, 1, one, other)
    assert one.holder.mode(INO) == LEASE_WRITE and other.holder.mode(INO) == LEASE_NONE, "no change waits for a report"
    assert [entry.command for entry in cluster.entries if isinstance(entry.command, c.EndSession)] == []


def test_what_was_asked_meanwhile_is_executed_once_by_who_leads_afterwards() -> None:
    cluster = Cluster()
    wire = cluster.wire("n1")
    opened = wire.open()
    cluster.voters["n1"].log.handing_over = True
    given_up = wire.send(create(opened, 10, b"a"))
    wire.voter.turn()
    wire.voter.turn()
    assert given_up not in wire.answers, "nobody knows yet who leads"
    cluster.voters["n1"].log.handing_over = False
    wire.voter.turn()
    assert wire.answers[given_up].created

    cluster.voters["n1"].log.handing_over = True
    taken_over = wire.send(create(opened, 11, b"b"))
    wire.voter.turn()
    cluster.lead("n2")
    assert wire.answers[taken_over] == m.NotLeader("n2", "/n2")
    assert cluster.wire("n2").ask(create(opened, 11, b"b")).created
    assert made(cluster) == [b"a", b"b"]


def test_what_was_proposed_before_is_answered_and_what_is_asked_meanwhile_is_bounded() -> None:
    cluster = Cluster()
    wire = cluster.wire("n1")
    opened = wire.open()
    log = cluster.voters["n1"].log
    log.auto = False
    before = wire.send(create(opened, 10, b"a"))
    wire.voter.turn()
    log.handing_over = True
    log.commit()
    wire.voter.turn()
    assert wire.answers[before].created, "it was in the log"
    for _ in range(BATCH_ENTRIES_MAX):
        assert not wire.voter.leader.is_full
        wire.send(m.Propose(20 + wire.calls, opened.session, opened.epoch, [], c.SetAttr(1, 1, 0)))
        wire.voter.turn()
    assert wire.voter.leader.is_full
    log.handing_over, log.auto = False, True
    wire.voter.turn()
    assert not wire.voter.leader.is_full


def test_waiting_locks_and_ends_of_sessions_wait_for_the_outcome() -> None:
    cluster = Cluster()
    wire = cluster.wire("n1")
    opened = wire.open()
    log = cluster.voters["n1"].log
    log.handing_over = True
    lock = wire.send(m.WaitLock(10, opened.session, opened.epoch, [], c.SetLock(1, 1, 0, 5, 1, 1, 0, 9)))
    wire.voter.turn()
    for _ in range(30):  # the worker is gone: its session is to be ended, once
        cluster.advance(1)
        wire.voter.turn()
    assert lock not in wire.answers
    log.handing_over = False
    wire.voter.turn()
    wire.voter.turn()
    assert lock in wire.answers
    assert len([entry for entry in cluster.entries if isinstance(entry.command, c.EndSession)]) == 1
