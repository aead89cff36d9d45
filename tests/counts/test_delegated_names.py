"""What a change of names costs the cluster where its mount decides it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time

import pytest

from awsomefsd.base.limits import SHIP_GAP_MS, SHIP_RECORDS_MAX
from buildtools.leader import figures as figures_of
from buildtools.nodes import Node
from tests.conftest import MakeNode

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
CREATES = 1_000
FILES = 200
LOCKS, TRANSACTIONS = 50, 50
OTHERS = 8  # a grant of inode numbers, leases of segments, what the daemon does meanwhile


@pytest.fixture(scope="module")
def node(make_node: MakeNode) -> Node:
    made = make_node()
    made.cli("volume", "set", made.volume, "--names", "delegated")
    made.umount()
    made.mount()
    return made


def test_a_create_is_a_small_part_of_an_entry(node: Node, figures: list[str]) -> None:
    """One entry, one request and one sync for all that is collected in SHIP_GAP_MS; on a slow machine fewer creates fit into that."""
    folder = node.mountpoint / "many"
    folder.mkdir()
    os.sync()
    before, began = int(figures_of(node.run / "meta.sock")["applied"]), time.monotonic()
    for number in range(CREATES):
        os.close(os.open(folder / f"{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    took_ms = (time.monotonic() - began) * 1_000
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    entries = int(figures_of(node.run / "meta.sock")["applied"]) - before
    figures.append(f"delegated names: {entries / CREATES:.3f} entries for each of {CREATES} creates, {took_ms / CREATES:.2f} ms each")
    assert entries <= took_ms / SHIP_GAP_MS + CREATES / SHIP_RECORDS_MAX + OTHERS


def test_a_small_file_that_is_synced_is_one_entry(node: Node, figures: list[str]) -> None:
    """Its record and its bytes go together, and the journal is synced once for both; what is collected meanwhile goes along."""
    folder = node.mountpoint / "synced"
    folder.mkdir()
    os.sync()
    before = figures_of(node.run / "meta.sock")
    for number in range(FILES):
        descriptor = os.open(folder / f"{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(descriptor, bytes(4_000))
        os.fsync(descriptor)
        os.close(descriptor)
    after = figures_of(node.run / "meta.sock")
    entries, syncs = (int(after[name]) - int(before[name]) for name in ("applied", "journal_syncs"))
    figures.append(f"delegated names, a 4,000 byte file + fsync: {entries / FILES:.2f} entries, {syncs / FILES:.2f} syncs of the journal")
    assert entries <= FILES + OTHERS and syncs <= FILES + OTHERS


def test_a_lock_costs_nothing_where_the_volume_is_held_whole(node: Node) -> None:
    """The kernel keeps it (decision 412)."""
    path = node.mountpoint / "locked"
    path.write_bytes(bytes(100))
    os.sync()
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        before = int(figures_of(node.run / "meta.sock")["applied"])
        for number in range(LOCKS):
            fcntl.lockf(file, fcntl.LOCK_EX, 10, number)
            fcntl.lockf(file, fcntl.LOCK_UN, 10, number)
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.flock(file, fcntl.LOCK_UN)
        assert int(figures_of(node.run / "meta.sock")["applied"]) - before <= OTHERS


@pytest.mark.parametrize(("mode", "most"), [("delete", 6), ("wal", 1.2)])
def test_a_transaction_of_sqlite_costs_its_syncs(node: Node, figures: list[str], mode: str, most: float) -> None:
    """With a rollback journal: journal, journal's header, database, and the end of the journal."""
    os.sync()
    with contextlib.closing(sqlite3.connect(node.mountpoint / f"{mode}.db", isolation_level=None)) as db:
        db.execute(f"pragma journal_mode={mode}")
        db.execute("pragma synchronous=full")
        db.execute("create table t (k integer primary key, v blob)")
        before = figures_of(node.run / "meta.sock")
        for _ in range(TRANSACTIONS):
            db.execute("insert into t (v) values (?)", (bytes(100),))
        after = figures_of(node.run / "meta.sock")
    entries, syncs = (int(after[name]) - int(before[name]) for name in ("applied", "journal_syncs"))
    figures.append(f"sqlite, {mode}: {entries / TRANSACTIONS:.2f} entries, {syncs / TRANSACTIONS:.2f} syncs of the journal a transaction")
    assert entries <= TRANSACTIONS * most + OTHERS
