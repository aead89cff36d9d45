"""Where names are delegated a question waits for what the holder of a directory has decided, and what records make is held."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import LEASE_NONE, LEASE_READ, LEASE_WRITE, NAMES_DELEGATED
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from tests.unit.meta.server.leader_group import Cluster
from tests.unit.meta.server.leases.test_lease_table import INO, Mount, asks, settle, two
from tests.unit.meta.server.leases.test_looks import SHOWN

ROOT, LOG = 1, 1 << 63
DIRECTORY = 0o040755


def host(cluster: Cluster, command: Any) -> m.Reply | None:
    reply = cluster.wire("n1", 0).ask(m.Propose(0, 0, 0, [], command))
    assert not isinstance(reply, m.Failed), reply
    return reply


def delegated() -> tuple[Cluster, Mount, Mount]:
    """File INO in the root, of a volume whose mounts may decide names."""
    cluster, one, other = two()
    host(cluster, c.RaiseLevel(LEVEL))
    host(cluster, c.SetNames(1, NAMES_DELEGATED))
    settle(one, other)
    return cluster, one, other


class Decider:
    """What a mount decides under its leases, and sends."""

    def __init__(self, one: Mount) -> None:
        self.one = one
        granted = one.wire.ask(m.Propose(50, one.session, one.epoch, [], c.GrantInodes(1, 8, 0)))
        assert isinstance(granted, m.InodesGranted), granted
        self.number, self.sequence, self.unique = granted.first, 0, 60

    def make(self, name: bytes, parent: int = ROOT, mode: int = 0o100644) -> c.DecidedRecord:
        self.number += 1
        return self._record(c.Create(1, parent, name, mode, 0, 0), [0], self.number - 1)

    def unlink(self, name: bytes, ino: int) -> c.DecidedRecord:
        return self._record(c.Unlink(1, ROOT, name), [ino], 0)

    def _record(self, command: Any, leads_to: list[int], made: int) -> c.DecidedRecord:
        self.sequence += 1
        return c.DecidedRecord(self.sequence, self.sequence, self.one.cluster.now, command, 0, leads_to, 0, made)

    def ship(self, *records: c.DecidedRecord) -> None:
        one, first = self.one, records[0].sequence
        self.unique += 1
        reply = one.wire.ask(
            m.Propose(self.unique, one.session, one.epoch, [], c.Apply(1, LOG, first - 1, first, list(records), [], [], 0, 0))
        )
        assert isinstance(reply, m.Applied) and not reply.errno and reply.applied == self.sequence, reply


def holding(one: Mount, *others: Mount, ino: int = ROOT) -> Decider:
    one.get(LEASE_WRITE, ino)
    settle(one, *others)
    assert one.holder.mode(ino) == LEASE_WRITE
    return Decider(one)


BODIES = [
    m.Lookup(1, ROOT, b"f"), m.Lookup(1, ROOT, b"f", True), m.Lookup(1, ROOT, b"none"), m.ReadDir(1, ROOT, 0, 9, True),
    m.ReadDir(1, ROOT, 0, 9, False), m.GetAttr(1, ROOT), m.GetXattr(1, ROOT, b"user.a"), m.ListXattr(1, ROOT), m.GetParent(1, ROOT),
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=str)
@pytest.mark.parametrize("mount", [0, 9])
@pytest.mark.parametrize("auto", [True, False], ids=["at once", "confirmed later"])
def test_a_question_about_a_directory_waits_for_what_its_holder_has_decided(body: Any, mount: int, auto: bool) -> None:
    cluster, one, other = delegated()
    decider = holding(one, other)
    log = cluster.voters["n1"].log
    one.slow, log.auto = True, auto
    wire, call = asks(cluster, mount, body)
    settle(one, other)
    log.confirmed, log.auto = log.tickets, True
    settle(one, other)
    assert one.recalled and call not in wire.answers
    decider.ship(decider.make(b"none"))
    settle(one, other)
    assert call not in wire.answers, "more may have been decided"
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    reply = wire.answers.pop(call)
    assert one.holder.mode(ROOT) == LEASE_READ, "what it remembers stays"
    if isinstance(body, m.Lookup):
        assert isinstance(reply, m.Found), "the name was made before the answer"
    if isinstance(body, m.ReadDir):
        assert [entry.name for entry in reply.entries] == [b"f", b"none"]
    wire, call = asks(cluster, mount, body)
    cluster.turn()
    assert call in wire.answers, "nobody holds it to change it now"


def test_the_holder_of_a_directory_is_asked_nothing_for_its_own_questions() -> None:
    cluster, one, other = delegated()
    holding(one, other)
    for body in BODIES:
        call = one.wire.send(body)
        cluster.turn()
        assert call in one.wire.answers
    assert one.holder.mode(ROOT) == LEASE_WRITE and not one.recalled


@pytest.mark.parametrize(
    "command",
    [
        c.Create(1, ROOT, b"n", 0o100644, 0, 0), c.Create(1, ROOT, b"f", 0o100644, 0, 0, open_existing=True),
        c.Tmpfile(1, ROOT, 0o600, 0, 0), c.Unlink(1, ROOT, b"f"), c.Rename(1, ROOT, b"f", ROOT, b"g"),
        c.Link(1, INO, ROOT, b"l"),
        c.SetAttr(1, ROOT, c.SET_MODE, 0o700),
        c.SetXattr(1, ROOT, b"user.a", b"v"),
    ],
    ids=str,
)  # fmt: skip
def test_a_change_by_another_waits_for_the_directory_to_be_let_go(command: Any) -> None:
    cluster, one, other = delegated()
    decider = holding(one, other)
    one.slow = True
    wire, call = asks(cluster, 2, m.Propose(90, other.session, other.epoch, [], command))
    settle(one, other)
    assert one.recalled and call not in wire.answers
    decider.ship(decider.make(b"m"))
    one.recalled.pop()()
    one.flush()
    settle(one, other)
    assert call in wire.answers and not isinstance(wire.answers[call], m.Failed)
    reads_only = isinstance(command, c.Tmpfile) or (isinstance(command, c.Create) and command.open_existing)
    assert one.holder.mode(ROOT) == (LEASE_READ if reads_only else LEASE_NONE)


def test_a_name_is_looked_up_when_its_directory_is_clear_and_not_before() -> None:
    """What the leader knows of the name may be another inode by then, or none."""
    cluster, one, other = delegated()
    decider = holding(one, other)
    one.get(LEASE_WRITE, INO)
    settle(one, other)
    one.slow = True
    wire, call = asks(cluster, 9, m.Lookup(1, ROOT, b"f", True))
    settle(one, other)
    assert one.recalled and not one.looks, "the directory first"
    decider.ship(decider.unlink(b"f", INO))
    while one.recalled:
        one.recalled.pop()()
        one.flush()
        settle(one, other)
    assert wire.answers[call].errno == errno.ENOENT


def test_a_look_at_a_file_is_no_answer_while_somebody_holds_its_directory_by_then() -> None:
    cluster, one, other = delegated()
    one.get(LEASE_WRITE, INO)
    settle(one, other)
    wire, call = asks(cluster, 9, m.Lookup(1, ROOT, b"f", True))
    settle(one, other)
    assert one.looks
    decider = holding(other, one)
    other.slow = True
    one.looks.pop()(SHOWN)
    one.flush()
    settle(one, other)
    assert call not in wire.answers and other.recalled
    assert decider.number
    other.recalled.pop()()
    other.flush()
    settle(one, other)
    while one.looks:
        one.looks.pop()(SHOWN)
        one.flush()
        settle(one, other)
    assert wire.answers[call].attr.size == SHOWN.size


def test_what_records_make_is_recalled_from_who_made_it() -> None:
    cluster, one, other = delegated()
    decider = holding(one, other)
    directory = decider.make(b"d", mode=DIRECTORY)
    inside = decider.make(b"f", directory.ino)
    decider.ship(directory, inside)
    writers = cluster.voters["n1"].leader._leases._table.grants.writers
    assert writers[1, directory.ino] == writers[1, inside.ino] == (one.session, 1)
    one.slow = True
    for ino in (directory.ino, inside.ino):
        one.holder._hold(ino, LEASE_WRITE, 1, 1)
        wire, call = asks(cluster, 9, m.GetAttr(1, ino))
        settle(one, other)
        assert one.recalled and call not in wire.answers
        one.recalled.pop()()
        one.flush()
        settle(one, other)
        assert isinstance(wire.answers[call], m.Found)


def test_a_leader_that_begins_holds_back_what_records_made_before() -> None:
    cluster, one, other = delegated()
    decider = holding(one, other)
    directory = decider.make(b"d", mode=DIRECTORY)
    decider.ship(directory)
    one.holder._hold(directory.ino, LEASE_WRITE, 1, 1)
    for voter in cluster.voters.values():
        voter.log.leading = False
    cluster.lead("n2")
    for mount in (one, other):
        assert mount.connect("n2")
        mount.greet()
    settle(one, other)
    one.slow = True
    for body in (m.ReadDir(1, directory.ino, 0, 9, False), m.Lookup(1, ROOT, b"d")):
        wire = cluster.wire("n2", 9, 1)
        call = wire.send(body)
        settle(one, other)
        assert one.recalled and call not in wire.answers
        while one.recalled:
            one.recalled.pop()()
            one.flush()
            settle(one, other)
        assert not isinstance(wire.answers[call], m.Failed)


def test_extended_attributes_recall_who_decides_names_from_before_they_were_durable() -> None:
    """A mount goes on as it began."""
    cluster, one, other = delegated()
    holding(one, other, ino=INO)
    host(cluster, c.SetNames(1, 0))
    settle(one, other)
    one.slow = True
    wire, call = asks(cluster, 9, m.GetXattr(1, INO, b"user.a"))
    settle(one, other)
    assert one.recalled and call not in wire.answers


def test_extended_attributes_recall_nobody_where_names_are_durable() -> None:
    cluster, one, other = two()
    one.get(LEASE_WRITE)
    settle(one, other)
    for body in (m.GetXattr(1, INO, b"user.a"), m.ListXattr(1, INO)):
        wire, call = asks(cluster, 9, body)
        settle(one, other)
        assert call in wire.answers
    assert one.holder.mode(INO) == LEASE_WRITE
    one.get(LEASE_WRITE, ROOT)
    settle(one, other)
    assert one.holder.mode(ROOT) == LEASE_NONE, "a directory is not leased there"
