"""Looks: a question about what a writer shows is answered by asking it, and its lease stays (lease_recalls.py)."""

from __future__ import annotations

import random

import pytest

from awsomefsd.base.types import LEASE_NONE, LEASE_READ, LEASE_WRITE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.leases import Shown
from tests.unit.meta.server.leases.test_lease_table import INO, Cluster, Mount, Wire, asks, settle, two, value

SHOWN = Shown(100, 90, 7, 8)


def writing() -> tuple[Cluster, Mount, Mount]:
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    settle(one, other)
    return cluster, one, other


def say(one: Mount, shown: Shown | None = SHOWN) -> None:
    """Answers the oldest look that was not answered."""
    one.looks.pop(0)(shown)
    one.flush()


def size(wire: Wire, call: int) -> int:
    found = wire.answers.pop(call)
    assert isinstance(found, m.Found), found
    return found.attr.size


@pytest.mark.parametrize("body", [m.GetAttr(1, INO, True), m.Lookup(1, 1, b"f", True)], ids=lambda body: type(body).__name__)
@pytest.mark.parametrize("mount", [0, 9])
def test_the_writer_says_what_it_shows_and_keeps_its_lease(body: m.Body, mount: int) -> None:
    cluster, one, other = writing()
    entries, epoch, grant = len(cluster.entries), one.holder.may_buffer(INO), one.holder.grant(INO)
    wire, call = asks(cluster, mount, body)
    settle(one, other)
    assert call not in wire.answers and one.holder.may_buffer(INO) == epoch, "it goes on buffering while it is asked"
    say(one)
    settle(one, other)
    attr = wire.answers.pop(call).attr
    assert (attr.ino, attr.size, attr.stored_bytes, attr.mtime_ns, attr.ctime_ns, attr.mode) == (INO, 100, 90, 7, 8, 0o100644)
    assert not one.recalled and (one.holder.may_buffer(INO), one.holder.grant(INO)) == (epoch, grant)
    assert len(cluster.entries) == entries, "nothing was committed or released"
    wire, call = asks(cluster, 9, m.GetLayout(1, INO, 0, 100))
    settle(one, other)
    assert call in wire.answers and one.holder.mode(INO) == LEASE_READ, "a question for the bytes recalls it as before"


def test_an_answer_is_never_older_than_its_question_and_one_look_is_open_however_many_ask() -> None:
    cluster, one, other = writing()
    first = asks(cluster, 9, m.GetAttr(1, INO, True))
    settle(one, other)
    later = [asks(cluster, 10 + number, m.GetAttr(1, INO, True)) for number in range(50)]
    settle(one, other)
    assert len(one.looks) == 1
    say(one, Shown(1, 1, 1, 1))  # as it was before the others asked
    settle(one, other)
    assert size(*first) == 1 and not any(call in wire.answers for wire, call in later)
    assert len(one.looks) == 1
    say(one, Shown(2, 2, 2, 2))
    settle(one, other)
    assert [size(*each) for each in later] == [2] * 50 and not one.looks
    figures = cluster.voters["n1"].leader.figures()
    assert figures["lease_looks"] == 2 and figures["lease_recalls"] == 0 == figures["lease_waiters"]
    assert figures["lease_contests"] == 0


def test_a_look_that_is_told_twice_is_taken_once() -> None:
    """All open recalls are told again when there is a newer one."""
    cluster, one, other = writing()
    one.get(LEASE_READ, 1)
    settle(one, other)
    wire, call = asks(cluster, 9, m.GetAttr(1, INO, True))
    settle(one, other)
    other.send(m.Propose(8, other.session, other.epoch, [], c.Create(1, 1, b"g", 0o100644, 0, 0)))  # recalls the directory
    settle(one, other)
    assert len(one.looks) == 1
    say(one)
    settle(one, other)
    assert size(wire, call) == 100
    again, number = asks(cluster, 9, m.GetAttr(1, INO, True))
    settle(one, other)
    say(one, Shown(200, 0, 0, 0))
    settle(one, other)
    assert size(again, number) == 200 and not one.looks


def test_a_copy_of_an_answer_counts_for_no_later_look() -> None:
    """Builds before answered a look as often as they were told of it."""
    cluster, one, other = writing()
    first = asks(cluster, 9, m.GetAttr(1, INO, True))
    settle(one, other)
    one.looks[0](Shown(1, 1, 1, 1))
    copy = one.holder.replies[-1]
    one.flush()
    settle(one, other)
    assert size(*first) == 1
    one.looks.clear()
    later = asks(cluster, 9, m.GetAttr(1, INO, True))
    settle(one, other)
    one.send(copy)
    settle(one, other)
    assert later[1] not in later[0].answers
    say(one)
    settle(one, other)
    assert size(*later) == 100


@pytest.mark.parametrize("shown", [None, Shown(-1, 0, 0, 0), Shown(1 << 62, 0, 0, 0), Shown(0, 0, 1 << 65, 0)])
def test_a_writer_that_does_not_say_is_recalled_to_read(shown: Shown | None) -> None:
    """As one of a build that knows no looks: it finds that it holds no more than may stay, and answers."""
    cluster, one, other = writing()
    one.slow = True
    epoch = one.holder.may_buffer(INO)
    wire, call = asks(cluster, 9, m.GetAttr(1, INO, True))
    settle(one, other)
    say(one, shown)
    settle(one, other)
    assert one.recalled and call not in wire.answers
    one.send(value(one, b"abc", 1, epoch))
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    assert size(wire, call) == 3 and one.holder.mode(INO) == LEASE_READ


def test_a_writer_under_recall_is_not_looked_at() -> None:
    cluster, one, other = writing()
    one.slow = True
    epoch = one.holder.may_buffer(INO)
    looking = asks(cluster, 9, m.GetAttr(1, INO, True))
    settle(one, other)
    other.get(LEASE_WRITE)  # takes the place of the look
    settle(one, other)
    behind = asks(cluster, 10, m.GetAttr(1, INO, True))
    settle(one, other)
    say(one)
    settle(one, other)
    assert len(one.recalled) == 1 and not one.looks and looking[1] not in looking[0].answers
    one.send(value(one, b"abc", 1, epoch))
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    while other.looks:  # who comes first is free; the new writer shows what was committed
        say(other, Shown(3, 3, 9, 9))
        settle(one, other)
    assert size(*looking) == size(*behind) == 3 and other.holder.mode(INO) == LEASE_WRITE
    assert cluster.voters["n1"].leader.figures()["lease_waiters"] == 0


def test_a_writer_that_does_not_answer_is_ended_as_with_a_recall() -> None:
    cluster, one, other = writing()
    wire, call = asks(cluster, 9, m.GetAttr(1, INO, True))
    seconds = 0
    while call not in wire.answers and seconds < 45:
        seconds += 1
        cluster.advance(1)
        for mount in (one, other):
            if mount.lease.poll(cluster.now) == "renew":
                mount.renew()
        settle(one, other)
    assert size(wire, call) == 0 and seconds > 10 and one.holder.mode(INO) == LEASE_NONE, "what was committed"


@pytest.mark.parametrize("how", ["released", "lowered", "asked for again", "unlinked", "session ended", "name moved"])
def test_whatever_ends_the_lease_wakes_those_that_look(how: str) -> None:
    cluster, one, other = writing()
    body = m.Lookup(1, 1, b"f", True) if how == "name moved" else m.GetAttr(1, INO, True)
    wire, call = asks(cluster, 9, body)
    settle(one, other)
    if how == "released":
        one.send(m.ReleaseLeases(one.session, one.epoch, one.term, one.holder._seen, [INO]))
    elif how == "lowered":
        one.holder.pause([INO])
        one.send(one.holder.lower([INO], [INO]))
    elif how == "asked for again":
        one.get(LEASE_WRITE)
        settle(one, other)
        say(one)
    elif how == "unlinked":
        one.send(m.Propose(8, one.session, one.epoch, [], c.Unlink(1, 1, b"f")))
        for _ in range(3):
            cluster.advance(1)
            one.renew()
            other.renew()
            settle(one, other)
    elif how == "session ended":
        one.send(m.Propose(8, one.session, one.epoch, [], c.EndSession(one.session, one.epoch, True)))
    else:
        one.send(m.Propose(8, one.session, one.epoch, [], c.Rename(1, 1, b"f", 1, b"g", 0)))
        one.send(m.Propose(9, one.session, one.epoch, [], c.Create(1, 1, b"f", 0o100644, 0, 0)))
        settle(one, other)
        say(one)
    settle(one, other)
    if one.looks:
        say(one)
        settle(one, other)
    reply = wire.answers.pop(call)
    if how == "name moved":
        assert reply.attr.ino != INO and reply.attr.size == 0
    elif isinstance(reply, m.Found):
        assert reply.attr.size == (100 if how == "asked for again" else 0)
    else:
        assert how == "unlinked"
    assert cluster.voters["n1"].leader.figures()["lease_waiters"] == 0


def test_those_that_look_end_with_their_connection_or_the_leadership() -> None:
    cluster, one, other = writing()
    leader = cluster.voters["n1"].leader
    gone, lost = asks(cluster, 9, m.GetAttr(1, INO, True))
    settle(one, other)
    wire, call = asks(cluster, 10, m.GetAttr(1, INO, True))
    settle(one, other)
    leader.drop_origin(gone)
    assert leader.figures()["lease_waiters"] == 1
    say(one)
    settle(one, other)
    assert lost not in gone.answers and call not in wire.answers and len(one.looks) == 1
    cluster.lead("n2")
    assert isinstance(wire.answers.pop(call), m.NotLeader)
    say(one)
    settle(one, other)
    assert leader.figures()["lease_waiters"] == 0


def test_a_lease_that_must_disturb_no_writer_is_refused_where_there_is_one() -> None:
    _, one, other = writing()
    reply = other.wire.ask(m.GetLease(other.session, other.epoch, 1, INO, LEASE_READ, 0, True))
    assert reply == m.Contested(0)
    settle(one, other)
    assert one.holder.mode(INO) == LEASE_WRITE and not one.looks
    again = one.wire.ask(m.GetLease(one.session, one.epoch, 1, INO, LEASE_READ, 0, True))
    assert isinstance(again, m.Leased) and again.mode == LEASE_WRITE, "its own"
    free = other.wire.ask(m.GetLease(other.session, other.epoch, 1, 1, LEASE_READ, 0, True))
    assert isinstance(free, m.Leased)


def test_what_others_are_shown_is_what_was_shown_between_question_and_answer(seed: int) -> None:
    """A register: the writer's size only grows.  Random questions, delays, recalls, deaths of leaders and writers that say nothing."""
    dice = random.Random(seed)
    answered = looked = runs = 0
    while (answered <= 20 or looked <= 3) and runs < 20:
        more = _random_register(dice)
        answered, looked, runs = answered + more[0], looked + more[1], runs + 1
    assert answered > 20 and looked > 3, "otherwise this shows nothing"


def _random_register(dice: random.Random) -> tuple[int, int]:
    """Returns how many questions were answered, and how often the writer was looked at."""
    cluster = Cluster()
    mounts = [Mount(cluster, 1), Mount(cluster, 2)]
    one, other = mounts
    one.send(m.Propose(7, one.session, one.epoch, [], c.Create(1, 1, b"f", 0o100644, 0, 0)))
    settle(*mounts)
    written = committed = unique = answered = looked = 0
    waiting: dict[tuple[Wire, int], int] = {}
    for _ in range(600):
        roll, epoch = dice.random(), one.holder.may_buffer(INO)
        if roll < 0.3 and epoch:
            written += 1
        elif roll < 0.5:
            waiting[asks(cluster, 9, m.GetAttr(1, INO, True))] = written
        elif roll < 0.6 and one.looks:
            looked += 1
            say(one, Shown(written, written, 1, 1) if dice.random() < 0.9 else None)
        elif roll < 0.65:
            one.get(LEASE_WRITE)
        elif roll < 0.67:
            other.get(dice.choice((LEASE_READ, LEASE_WRITE)))
        elif roll < 0.7 and one.recalled:
            if written > committed:
                unique += 1
                held = one.holder._held[INO].epoch
                step = c.InodeCommit(INO, 1, unique, written, 5, [], [(0, bytes(written))], held)
                one.send(m.Propose(100 + unique, one.session, one.epoch, [], c.Commit(1, [step], 0, [])))
                one.settle()
                committed = written
            one.recalled.pop(0)()
            one.flush()
        one.slow = True
        while other.looks:
            say(other, Shown(committed, committed, 1, 1))
        cluster.turn()
        for mount in mounts:
            for key in mount.arrivals():
                if dice.random() < 0.7:
                    mount.take(*key)
        for key, least in list(waiting.items()):
            if key[1] in key[0].answers:
                assert least <= size(*key) <= written
                answered += 1
                del waiting[key]
    return answered, looked
