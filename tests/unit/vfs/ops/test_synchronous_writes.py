"""O_SYNC, O_DSYNC, RWF_DSYNC and the mount option `sync`: a WRITE that says so is committed when it is answered.

The kernel sends an FSYNC behind a cached write(2) only.  After direct I/O (every open on a shared mount, and asynchronous I/O on any) the
flag in the WRITE is all that comes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GeneratorType
from typing import Any

import pytest

from awsomefsd.base.wait import Steps
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.vfs import Vfs
from tests.rigs.mount_without_kernel import BIG, VOLUME, Rig, error_of, failing
from tests.rigs.sharing_nodes import Sharing
from tests.unit.vfs.ops.test_buffered_writes import Leased

KINDS: dict[str, type[Rig]] = {"exclusive": Rig, "leased": Leased, "cache=none": Sharing}
FLAGS = [os.O_SYNC, os.O_DSYNC, os.O_DSYNC | os.O_APPEND]
NAMES = ["O_SYNC", "O_DSYNC", "O_DSYNC and O_APPEND"]


@pytest.fixture(params=list(KINDS))
def r(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made = KINDS[request.param](tmp_path)
    made.hold_lease_clock()
    try:
        made.start()
        yield made
    finally:
        made.close()


def writing(r: Rig, ino: int, fh: int, offset: int, data: bytes, flags: int, unique: int) -> Callable[[Vfs], Any]:
    def write(vfs: Vfs) -> Any:
        return vfs.write(r.ctx(unique, open_flags=os.O_RDWR | flags), ino, fh, offset, memoryview(data), 0)

    return write


def committed_size(r: Rig, ino: int) -> int:
    """What everybody would see if this machine died now.  Nothing is left to commit: the question would recall the lease, and so flush."""
    assert not r.mount.buffered.dirty.dirty_bytes, "it was answered before it was committed"
    assert r.host.service is not None
    found = r.host.service.query(m.GetAttr(VOLUME, ino))
    assert isinstance(found, m.Found)
    return found.attr.size


@pytest.mark.parametrize("flags", FLAGS, ids=NAMES)
@pytest.mark.parametrize("length", [15, BIG])
def test_a_synchronous_write_is_committed_when_it_returns(r: Rig, length: int, flags: int) -> None:
    ino, fh = r.create(b"f", flags=os.O_RDWR | flags)
    flushes = r.device.flushes
    r.write(ino, fh, 0, b"x" * length, flags=flags)
    assert committed_size(r, ino) == length
    assert length < BIG or r.device.flushes > flushes


@pytest.mark.parametrize("flags", FLAGS, ids=NAMES)
def test_it_commits_what_the_file_had_buffered_before(r: Rig, flags: int) -> None:
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"a" * BIG)
    r.write(ino, fh, BIG, b"b", flags=flags)
    assert committed_size(r, ino) == BIG + 1


def test_one_that_a_dead_worker_had_stored_is_committed_before_its_repetition_is_answered(
    r: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"x" * BIG, unique=777_778)  # its record is there; the answer was not given
    monkeypatch.setattr("awsomefsd.worker.takeover.WorkerTakeover._flush_recovered", _adopt_only)

    def again(vfs: Vfs) -> Any:
        written = yield from steps(writing(r, ino, fh, 0, b"x" * BIG, os.O_DSYNC, 777_778)(vfs))
        return written, r.mount.buffered.dirty.dirty_bytes

    (answer,) = r.restart(again)
    assert answer == (BIG, 0) and committed_size(r, ino) == BIG


def steps(result: Any) -> Steps:
    return (yield from result) if isinstance(result, GeneratorType) else result


def _adopt_only(self: Any, records: list[Any]) -> None:
    """In the place of a first flush that the device refused: what was found stays dirty."""
    if self._mount.caches.leases is None:
        for record in records:
            self._adopt(record)


def test_a_device_that_fails_is_told_by_the_write(r: Rig) -> None:
    ino, fh = r.create(b"f")
    r.device.on_flush = failing()
    try:
        assert error_of(lambda: r.write(ino, fh, 0, b"x" * BIG, flags=os.O_DSYNC)) == errno.EIO
    finally:
        r.device.on_flush = lambda: None


def test_a_write_without_the_flag_does_not_wait_for_the_device(r: Rig) -> None:
    ino, fh = r.create(b"f")
    flushes = r.device.flushes
    r.write(ino, fh, 0, b"x" * BIG, flags=0)
    if not isinstance(r, Sharing) or r.caches:
        assert r.device.flushes == flushes and r.mount.buffered.dirty.dirty_bytes == BIG
