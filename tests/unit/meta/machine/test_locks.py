"""Locks in the rows: placed and split, bounded, and ended with their session."""

from __future__ import annotations

import errno
import itertools
import random

import pytest

from awsomefsd.base.limits import LOCKS_PER_INODE_MAX
from awsomefsd.base.types import LOCK_END_MAX, Lock
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine import locks
from tests.rigs.machine_driver import Drive, sound


def test_lock_placement_against_a_model(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        held: list[Lock] = []
        model: dict[tuple[int, int], int] = {}  # (owner, byte) -> type
        for _ in range(40):
            start = chance.randrange(20)
            want = Lock(0, chance.randrange(3), 1, chance.randrange(3), start, start + chance.randrange(8), 1)
            taken = {at for (owner, at), kind in model.items() if owner != want.owner and 1 in (kind, want.lock_type)}
            blocked = want.lock_type != 2 and bool(taken & set(range(want.start, want.end + 1)))
            assert (locks.conflict(held, want) is not None) == blocked
            if blocked:
                continue
            held = locks.with_lock(held, want)
            for at in range(want.start, want.end + 1):
                model.pop((want.owner, at), None)
                if want.lock_type != 2:
                    model[(want.owner, at)] = want.lock_type
            assert {(k.owner, at): k.lock_type for k in held for at in range(k.start, k.end + 1)} == model
            for a, b in itertools.combinations(held, 2):
                joined = a.owner == b.owner and a.lock_type == b.lock_type
                assert not (joined and a.start <= b.end + 1 and b.start <= a.end + 1)


def test_locks_of_a_session(drive: Drive) -> None:
    file, volume = drive.create(b"f"), drive.volume
    drive.ok(c.SetLock(volume, file, 0, 1, 10, 1, 5, 9))
    assert drive.errno(c.SetLock(volume, file, 0, 2, 11, 0, 0, 5)) == errno.EAGAIN
    drive.ok(c.SetLock(volume, file, 1, 2, 11, 1, 3, 4))  # flock is another space, and always the whole file
    way = drive.ask(m.TestLock(volume, file, Lock(0, 2, 0, 1, 0, 100, drive.session))).lock
    assert (way.pid, way.start, way.end) == (10, 5, 9)
    assert drive.ask(m.TestLock(volume, file, Lock(0, 1, 0, 1, 0, 100, drive.session))).lock is None
    kept = drive.ask(m.GetLocks(drive.session)).locks
    assert [(ino, lock.kind, lock.end) for ino, lock in kept] == [(file, 1, LOCK_END_MAX), (file, 0, 9)]
    assert drive.errno(c.SetLock(volume, 99, 0, 1, 1, 1, 0, 1)) == errno.ENOENT
    assert drive.errno(c.SetLock(volume, file, 0, 1, 1, 1, 5, 1)) == errno.EINVAL
    assert drive.errno(c.SetLock(volume, file, 0, 1, 1, 7, 0, 1)) == errno.EINVAL
    drive.machine.take_unlocked()
    drive.ok(c.SetLock(volume, file, 0, 1, 10, 2, 0, LOCK_END_MAX))
    drive.ok(c.SetLock(volume, file, 1, 2, 10, 2, 0, LOCK_END_MAX))
    assert drive.machine.take_unlocked() == {(volume, file)}
    assert drive.ask(m.GetLocks(drive.session)).locks == []
    sound(drive)


def test_lock_bound(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCKS_PER_INODE_MAX", 3)
    assert LOCKS_PER_INODE_MAX > 3
    file = drive.create(b"f")
    for at in range(3):
        drive.ok(c.SetLock(drive.volume, file, 0, 1, 1, 0, at * 10, at * 10 + 1))
    assert drive.errno(c.SetLock(drive.volume, file, 0, 1, 1, 0, 90, 91)) == errno.ENOLCK
