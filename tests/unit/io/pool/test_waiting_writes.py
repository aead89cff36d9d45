"""Who writes through waits for mirrors that are away, and is told nothing wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Fenced, FsError, Unavailable
from awsomefsd.base.wait import Signal, block_on
from awsomefsd.io.file.patience import Patience
from awsomefsd.io.file.write_through import Write, WriteThrough
from awsomefsd.io.segment.writer import Piece, Written
from tests.rigs.machine_driver import sound
from tests.rigs.patience import patient  # noqa: F401 - the fixture
from tests.rigs.segment_servers import until
from tests.rigs.served_pool import ServedPool


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ServedPool]:
    made = ServedPool(tmp_path)
    yield made
    made.close()


class Shared:
    """A mount that writes through to the pool; `failures` counts what could not be written."""

    def __init__(self, pool: ServedPool, patience: Patience) -> None:
        self.pool, self.writer, self.ino, self.size, self.failures = pool, pool.writer(), pool.drive.create(b"f"), 0, 0
        self._write = self.writer.write
        self.writer.write = self.counted  # type: ignore[method-assign]
        self.through = WriteThrough(pool.drive.volume, self.writer)
        self.through.wait_for_mirrors(patience)
        self.through.start()

    def counted(self, pieces: list[Piece]) -> Written:
        try:
            return self._write(pieces)
        except Exception:
            self.failures += 1
            raise

    def propose(self, command: Any, unique: int, token: tuple[int, int]) -> Signal:
        """Of a metadata service that is there."""
        drive, decided = self.pool.drive, Signal()
        if token == (drive.session, drive.epoch):
            decided.fire(drive.ok(command))
        else:
            decided.fire(None, FsError(errno.ESTALE))
        return decided

    def write(self, length: int) -> Signal:
        drive = self.pool.drive
        one = Write(drive.index + 1_000, self.ino, self.size, memoryview(os.urandom(length)), (drive.session, drive.epoch))
        self.size += length
        done: Signal = self.through.write(one, self)  # type: ignore[arg-type,assignment]
        return done


@pytest.fixture
def made(pool: ServedPool) -> Iterator[list[Shared]]:
    """Those that were made; their threads end."""
    shared: list[Shared] = []
    yield shared
    for one in shared:
        one.through.stop()


def test_a_write_waits_for_mirrors(pool: ServedPool, made: list[Shared]) -> None:
    made.append(shared := Shared(pool, Patience(None)))
    block_on(shared.write(5_000), 60)
    for served in pool.cluster.nodes[1:]:
        served.server.stop()
    waiting = [shared.write(5_000), shared.write(6_000)]
    until(lambda: shared.failures >= 3)
    assert not any(one.done for one in waiting)
    until(lambda: shared.through.undecided.acquire(blocking=False))  # segments can be given back between two tries
    shared.through.undecided.release()
    for served in pool.cluster.nodes[1:]:
        served.start()
    assert block_on(waiting[1], 60).attr.size == shared.size
    block_on(waiting[0], 60)
    sound(pool.drive)


def test_with_errors_wanted_it_waits_as_long_as_a_session_lives(pool: ServedPool, made: list[Shared]) -> None:
    now = [0]
    made.append(shared := Shared(pool, Patience(10, lambda: now[0])))
    for served in pool.cluster.nodes[1:]:
        served.server.stop()
    waiting = shared.write(5_000)
    until(lambda: shared.failures >= 2)
    assert not waiting.done
    now[0] = 10_000_000
    with pytest.raises(FsError) as caught:
        block_on(waiting, 60)
    assert caught.value.errno == errno.ETIMEDOUT


def test_the_end_of_a_session_ends_the_wait(pool: ServedPool, made: list[Shared]) -> None:
    made.append(shared := Shared(pool, Patience(None)))
    for served in pool.cluster.nodes[1:]:
        served.server.stop()
    waiting = shared.write(5_000)
    until(lambda: shared.failures >= 1)
    shared.writer.abandon()
    pool.end_session()
    for served in pool.cluster.nodes[1:]:
        served.start()
    with pytest.raises((FsError, Fenced)) as caught:
        block_on(waiting, 60)
    assert isinstance(caught.value, Fenced) or caught.value.errno == errno.ESTALE


def test_patience() -> None:
    now = [0]
    for limit in (None, 10):
        patience = Patience(limit, lambda: now[0])
        assert patience.told(Unavailable("x")) is None
        now[0] += 9_000_000
        assert patience.told(OSError(5, "x")) is None
        now[0] += 1_000_000
        told = patience.told(OSError(5, "x"))
        assert told is None if limit is None else told is not None and told.errno == errno.ETIMEDOUT
        patience.written()
        assert patience.told(OSError(5, "x")) is None, "another outage"
        full = FsError(errno.ENOSPC)
        assert patience.told(full) is full, "nobody waits for room"
