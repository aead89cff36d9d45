"""MAP_SHARED on shared mounts, of files that nobody else writes.  Kernels before FUSE 7.39 need pages for it (mapped_pages.py)."""

from __future__ import annotations

import errno
import mmap
import os
import sqlite3
from pathlib import Path

import pytest

from buildtools.nodes import await_true
from tests.shared.rig import MAIN, MAPPINGS, WAIT_S

SIZE = 3 * 4_096
pytestmark = pytest.mark.skipif(MAIN == "uncached" and not MAPPINGS, reason="without leases nobody knows who writes")


def test_stores_and_writes_are_seen_by_all(places: list[Path]) -> None:
    one, two, _ = (place / "f" for place in places)
    one.write_bytes(b"a" * SIZE)
    with one.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as stored:
        stored[:4] = b"mine"
        stored.flush()
        assert os.pread(file.fileno(), 4, 0) == b"mine"
        with two.open("rb") as other, mmap.mmap(other.fileno(), SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as seen:
            assert seen[:5] == b"minea" == os.pread(other.fileno(), 5, 0)
            os.pwrite(file.fileno(), b"more", 4)
            assert os.pread(other.fileno(), 8, 0) == b"minemore" and stored[4:8] == b"more", "read(2) asks each time"
            with open(one, "ab") as longer:
                longer.write(b"end")
            assert os.pread(other.fileno(), 9, SIZE) == b"end" == os.pread(file.fileno(), 9, SIZE)
            if not MAPPINGS:  # elsewhere a mapping keeps what it has (docs/CONSISTENCY.md)
                await_true("the mapping to ask again", lambda: seen[4:8] == b"more", WAIT_S)
            os.utime(one, ns=(1, 1))
            os.pwrite(file.fileno(), b"last", 0)
            os.utime(one, ns=(1, 1))
            assert os.pread(other.fileno(), 4, 0) == b"last"
            two.chmod(0o600)
            os.pwrite(file.fileno(), b"LAST", 0)
            two.chmod(0o640)
            assert os.pread(other.fileno(), 4, 0) == b"LAST", "SETATTR's answer has the time of the write"


def test_a_database_in_wal_mode(places: list[Path]) -> None:
    """Its -shm file is mapped by every connection; on one node after the other."""
    for number, place in enumerate(places[:2]):
        first, second = (sqlite3.connect(place / "base", timeout=WAIT_S) for _ in range(2))
        assert first.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        first.execute("create table if not exists t (x)")
        for value in range(20):
            with first if value % 2 else second as writing:
                writing.execute("insert into t values (?)", (value,))
        counted = [base.execute("select count(*) from t").fetchone() for base in (first, second)]
        assert counted == [(20 * (number + 1),)] * 2
        first.close()
        second.close()


@pytest.mark.skipif(MAPPINGS, reason="this kernel maps files that are open for direct I/O")
def test_appending_descriptors_are_not_mapped_on_old_kernels(places: list[Path]) -> None:
    path = places[0] / "log"
    path.write_bytes(b"x" * SIZE)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        with pytest.raises(OSError) as caught:
            mmap.mmap(fd, SIZE)
        assert caught.value.errno == errno.ENODEV
    finally:
        os.close(fd)
