"""The end of a session with very many locks, write leases and pins: one entry ends it for everybody, and no entry does unbounded work."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import LOCK_END_MAX, LOCK_POSIX, Lock
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.check.repair import plan
from awsomefsd.meta.check.repair_txn import Hints
from awsomefsd.meta.machine import reaping, sessions
from awsomefsd.meta.machine.locks import F_WRLCK
from awsomefsd.meta.state import keys
from tests.rigs.machine_driver import Drive
from tests.rigs.memory_txn import MemTxn

COUNT = 64  # instead of REAP_EXTENTS_PER_ENTRY
FILES = 2 * COUNT + 10
ROWS_AN_ENTRY_MAX = 8 * COUNT  # a marker, the row that it points to, and what that counts in


class CountingTxn(MemTxn):
    """Counts the rows that are read or changed."""

    touched = 0

    def get(self, key: bytes) -> bytes | None:
        self.touched += 1
        return super().get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.touched += 1
        super().put(key, value)

    def delete(self, key: bytes) -> bool:
        self.touched += 1
        return super().delete(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        for pair in super().scan(start, end):
            self.touched += 1
            yield pair


class Rig:
    """A volume that two sessions share; the first has a lock on and the write lease of each of FILES files."""

    def __init__(self, level: int = LEVEL) -> None:
        self.txn = CountingTxn()
        self.drive = Drive(txn=self.txn)
        self.drive.ok(c.Init("c-uuid", 1, level))
        self.drive.make_volume()
        self.one, self.two = self.open(1, "n1"), self.open(2, "n2")
        self.inos = [self.make(number) for number in range(FILES)]

    def open(self, mount: int, node: str, **fields: Any) -> dict[str, int]:
        opened = self.drive.open(mount, node=node, shared=True, **fields)
        return {"session": opened.session, "epoch": opened.epoch, "mount": mount}

    def make(self, number: int) -> int:
        found = self.drive.ok(c.Create(1, 1, b"%d" % number, 0o100644, 0, 0, lease=True), **self.one)
        self.drive.ok(self.lock(found.attr.ino), **self.one)
        ino: int = found.attr.ino
        return ino

    def lock(self, ino: int) -> c.SetLock:
        return c.SetLock(1, ino, LOCK_POSIX, 1, 100, F_WRLCK, 0, LOCK_END_MAX)

    def apply(self, command: Any, **fields: Any) -> Any:
        """Applies an entry, which must not touch too many rows."""
        before = self.txn.touched
        reply = self.drive.apply(command, **({"session": 0, "epoch": 0, "mount": 0} | fields))
        assert self.txn.touched - before <= ROWS_AN_ENTRY_MAX, f"{command} touched {self.txn.touched - before} rows"
        return reply

    def end(self) -> None:
        assert self.apply(c.EndSession(self.one["session"], self.one["epoch"], False)) == m.Done()

    def reap(self) -> int:
        entries = 0
        while self.drive.machine.reap_pending():
            self.apply(c.Reap(COUNT))
            entries += 1
        return entries

    def leases(self) -> dict[tuple[int, int], tuple[int, int]]:
        return dict(self.drive.machine.write_leases(b"", 1_000)[0])

    def faults(self) -> list[Any]:
        self.drive.machine.flush()
        return check(self.txn)


@pytest.fixture(autouse=True)
def few_rows_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sessions, reaping):
        monkeypatch.setattr(module, "REAP_EXTENTS_PER_ENTRY", COUNT)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_end_and_each_reap_touch_a_bounded_number_of_rows(rig: Rig) -> None:
    rig.end()
    assert rig.faults() == [] and rig.drive.machine.reap_pending()
    assert rig.reap() >= 1
    assert rig.faults() == [] and not rig.leases()


def test_a_lock_and_a_write_lease_of_an_ended_session_are_over_before_their_rows_are_gone(rig: Rig) -> None:
    rig.end()
    for ino in (rig.inos[0], rig.inos[-1]):
        assert isinstance(rig.apply(c.AcquireLease(1, ino), **rig.two), m.Leased)
        wanted = Lock(LOCK_POSIX, 1, 100, F_WRLCK, 0, LOCK_END_MAX, rig.two["session"])
        assert rig.drive.ask(m.TestLock(1, ino, wanted)).lock is None
        assert rig.apply(rig.lock(ino), **rig.two) == m.Done()
    assert rig.faults() == []
    rig.reap()
    assert rig.faults() == []
    held = [ino for ino, _ in rig.drive.ask(m.GetLocks(rig.two["session"])).locks]
    assert held == sorted({rig.inos[0], rig.inos[-1]}), "what the ended session leaves is not the new owner's"
    assert rig.leases().keys() == {(1, ino) for ino in held}


def test_a_mount_comes_back_when_each_of_its_locks_is_counted_as_lost(rig: Rig) -> None:
    known = rig.drive.ok(c.AcquireLease(1, rig.inos[-1]), **rig.one).changes
    rig.end()
    again = c.OpenSession(1, 1, "n1", "b1", 2, shared=True)
    refused = rig.apply(again, mount=1)
    assert isinstance(refused, m.Failed) and refused.retry and refused.errno == errno.EAGAIN
    rig.reap()
    one = rig.open(1, "n1", worker=2)
    assert rig.drive.ok(c.AcquireLease(1, rig.inos[-1], known), **one).changed_by_others


def test_what_is_reaped_makes_no_data_of_a_later_lease_a_conflict(rig: Rig) -> None:
    """Its holder loses its session, and asks again with what it knew: nobody has changed the file since."""
    rig.end()
    ino = rig.inos[-1]
    told = rig.drive.ok(c.AcquireLease(1, ino, 1), **rig.two)
    assert told.changed_by_others, "a lock was lost there"
    rig.reap()
    assert not rig.drive.ok(c.AcquireLease(1, ino, told.changes), **rig.two).changed_by_others
    assert rig.faults() == []


def test_a_node_that_comes_back_ends_all_its_sessions_in_one_entry_of_bounded_work(rig: Rig) -> None:
    other = rig.open(3, "n1")
    for ino in rig.inos[: FILES // 2]:
        rig.drive.ok(c.ReleaseLease(1, ino, 1), **rig.one)
        rig.drive.ok(c.AcquireLease(1, ino), **other)
    opened = rig.apply(c.OpenSession(4, 1, "n1", "b2", 1, shared=True), mount=4)
    assert isinstance(opened, m.SessionOpened) and rig.faults() == []
    rig.reap()
    assert rig.faults() == [] and not rig.leases()


def test_a_file_that_goes_before_the_reaping_takes_its_rows_along(rig: Rig) -> None:
    rig.end()
    assert not isinstance(rig.apply(c.Unlink(1, 1, b"%d" % (FILES - 1)), **rig.two), m.Failed)
    assert rig.faults() == []
    rig.reap()
    assert rig.faults() == []


def test_a_repair_leaves_what_is_still_to_be_reaped(rig: Rig) -> None:
    rig.end()
    rig.drive.machine.flush()
    lost = keys.locker(rig.one["session"], 1, rig.inos[-1])
    assert rig.txn.delete(lost)
    planned = plan(rig.txn, Hints(time_ns=rig.drive.now))
    assert planned.found and not planned.remaining
    changed = {keys.kind_of(key)[2] for key in [*planned.deletes, *(key for key, _ in planned.puts)]}
    assert changed <= {keys.LOCKER, keys.LEASER}, "markers only: what Reap will end is no damage"


def test_below_level_3_one_entry_does_it_all() -> None:
    rig = Rig(level=2)
    rig.drive.ok(c.EndSession(rig.one["session"], rig.one["epoch"], False), session=0, epoch=0, mount=0)
    assert not rig.drive.machine.reap_pending() and rig.faults() == []
