"""The replica and the writer thread of its store: when a commit begins, who waits for it, and what the journal may drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica import replica as replica_module
from awsomefsd.meta.replica.overlay_store import OverlayStore
from awsomefsd.meta.replica.replica import Replica, ReplicaOptions
from awsomefsd.meta.replica.store import Store
from tests.unit.meta.replica.test_overlay_store import ALL, Writer

CLUSTER = "11111111-2222-3333-4444-555555555555"
NODE = "22222222-2222-3333-4444-555555555555"
COMMIT_ENTRIES, FILE_BYTES, LATE_NS = 10, 64 << 10, 1 << 62


class Made:
    """A single voter with small journal files.  Each life has a writer of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.replica: Any = None

    def start(self) -> Made:
        self.writer = Writer()

        def open_store(directory: Path, **_named: Any) -> OverlayStore:
            return OverlayStore(Store.open(directory, snapshot=True), beside=self.writer)

        options = ReplicaOptions(journal_file_bytes=FILE_BYTES, commit_entries=COMMIT_ENTRIES, open_store=open_store)
        self.replica = Replica.open_single(self.directory, CLUSTER, NODE, Machine, options)
        if not self.replica.machine.applied_index:
            self.apply(c.Init(CLUSTER, 1))
        return self

    def apply(self, command: Any) -> Any:
        stamp = self.replica.log.committed + 1
        self.replica.propose([c.Entry(0, 0, command.since, 0, 1, stamp, stamp, 0, 0, 0, 0, [], command)])
        ((_, reply),) = self.replica.ready()
        return reply

    def fill(self, count: int) -> None:
        """Entries, every other one of 4 KB, and refused: 32 of them fill a file of the journal.  The others make a volume."""
        for _ in range(count):
            number = self.replica.machine.applied_index
            if number % 2:
                reply = self.apply(c.CreateVolume(f"v{number}", f"uuid-{number}"))
                assert not isinstance(reply, Failed), reply
            else:
                self.apply(c.PutCa("a1", "c" * 3_900, "key", "retired"))

    @property
    def rows(self) -> list[tuple[bytes, bytes]]:
        self.replica.machine.flush()
        return list(self.replica.store.scan(*ALL))

    def crash(self) -> None:
        self.writer.begun.clear()
        self.replica.close()


def test_the_journal_keeps_what_the_store_lacks(tmp_path: Path) -> None:
    """Commits end late and a crash comes: every entry is in the store or in the journal, whatever was compacted."""
    made = Made(tmp_path).start()
    made.fill(60)
    made.replica.pass_time(LATE_NS)
    begun = made.replica.machine.applied_index
    made.fill(50)
    made.writer.end()
    made.replica.pass_time(LATE_NS)  # the first commit is durable, the next is begun
    assert made.replica.checkpoint_progress.stored == begun and made.replica.store.writing
    assert 1 < made.replica.log.first_index <= begun + 1, "something was dropped"
    made.fill(60)
    rows = made.rows
    made.crash()
    made.start()
    assert made.rows == rows
    made.crash()


def test_nobody_waits_while_the_writer_is_less_than_its_bound_behind(tmp_path):
    made = Made(tmp_path).start()
    made.fill(COMMIT_ENTRIES)
    assert made.replica.commit_due_ns() == 0
    made.replica.pass_time(0)
    for _ in range(4 * COMMIT_ENTRIES - 1):
        made.fill(1)
        assert made.replica.commit_due_ns() is None
        made.replica.pass_time(LATE_NS)
    assert not made.writer.waited and made.replica.store.writing and made.replica.commits == 0
    made.fill(1)
    assert made.replica.commit_due_ns() == 0
    made.replica.pass_time(0)
    assert made.writer.waited == 1 and made.replica.commits == 1 and made.replica.store.writing, "it waited, and the next is under way"
    made.crash()


def test_a_few_entries_are_committed_by_time(tmp_path):
    made = Made(tmp_path).start()
    made.replica.commit()
    assert made.replica.commit_due_ns() is None
    made.fill(1)
    due = made.replica.commit_due_ns()
    assert due > 0
    made.replica.pass_time(due - 1)
    assert not made.replica.store.writing
    made.replica.pass_time(due)
    assert made.replica.store.writing
    made.writer.end()
    assert made.replica.commit_due_ns() == 0, "the writer has something to tell"
    made.crash()


def test_a_failure_of_the_writer_ends_what_the_replica_does(tmp_path, monkeypatch):
    made = Made(tmp_path).start()

    def fail(*_changes: object) -> None:
        raise OSError(5, "injected")

    monkeypatch.setattr(made.replica.store.committed, "write", fail)
    made.fill(COMMIT_ENTRIES)
    made.replica.pass_time(LATE_NS)
    first = made.replica.log.first_index
    made.writer.end()
    for _ in range(2):
        with pytest.raises(OSError, match="injected"):
            made.replica.pass_time(LATE_NS)
    with pytest.raises(OSError, match="injected"):
        made.replica.commit()
    assert made.replica.log.first_index == first and made.replica.checkpoint_progress.stored == 0
    rows = made.rows
    made.crash()
    assert made.start().rows == rows
    made.crash()


def test_a_copy_is_begun_when_the_store_has_the_entry(tmp_path):
    made = Made(tmp_path).start()
    made.fill(3)
    index = made.replica.machine.applied_index
    assert not made.replica._is_stored(index) and made.replica.store.writing
    made.fill(3)
    assert not made.replica._is_stored(index)
    made.writer.end()
    made.replica.pass_time(0)
    assert made.replica._is_stored(index) and not made.replica.store.writing
    made.crash()


def test_large_values_make_a_commit_due_by_their_bytes(tmp_path, monkeypatch):
    """A few thousand attributes of 64 KiB would fill the memory before their number counts."""
    monkeypatch.setattr(replica_module, "STORE_COMMIT_BYTES", 100_000)
    made = Made(tmp_path).start()
    made.replica.commit()
    made.fill(1)
    assert made.replica.commit_due_ns() > 0
    made.replica.store.put(b"\xf0large", bytes(100_000))
    assert made.replica.commit_due_ns() == 0
    made.replica.pass_time(0)
    made.replica.store.put(b"\xf0large", bytes(300_000))
    assert made.replica.commit_due_ns() is None
    made.replica.store.put(b"\xf0large", bytes(100_000))
    assert made.replica.commit_due_ns() == 0, "and the metadata thread waits"
    made.crash()
