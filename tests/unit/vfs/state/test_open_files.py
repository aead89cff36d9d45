"""The table of open files: the same handles for a successor, over compactions and over cuts between any two stores."""

from __future__ import annotations

import errno
import os
import random

import pytest

from awsomefsd.base import shm
from awsomefsd.base.errors import FsError
from awsomefsd.vfs.state import open_files
from awsomefsd.vfs.state.open_files import KIND_DIRECTORY, KIND_FILE, OpenTable
from tests.conftest import SEED
from tests.rigs.shared_memory_cuts import cuts, record

OPENS_MEM = open_files.required_bytes(16)


def test_handles_are_the_same_for_a_successor() -> None:
    mem = bytearray(OPENS_MEM)
    table = OpenTable(mem, True)
    a = table.open(5, os.O_RDWR, 100)
    table.epoch = 9
    b = table.open(5, os.O_RDONLY | os.O_DIRECTORY, 101)
    assert table.open(5, os.O_RDWR, 100) == a, "a re-executed OPEN"
    again = OpenTable(mem)
    assert list(again) == list(table) and len(again) == 2 and again.count(5) == 2 and again.count(6) == 0
    assert again.find_unique(100) == a and again.find_unique(102) is None
    file = again.get(b)
    assert file is not None and (file.kind, file.flags & os.O_DIRECTORY, file.epoch) == (KIND_DIRECTORY, os.O_DIRECTORY, 9)
    assert again.get(a) is not None and again.get(a).kind == KIND_FILE  # type: ignore[union-attr]
    closed = again.close(b)
    assert closed == file and again.close(b) is None and again.find_unique(101) is None
    c = OpenTable(mem).open(7, 0, 103)
    assert c > b, "the highest handle is not used again after its close"


def test_sessions_and_orphans_are_remembered_over_compactions() -> None:
    mem = bytearray(OPENS_MEM)
    table = OpenTable(mem, True)
    old, table.epoch = table.open(1, 0, 1), 5
    a, b = table.open(2, 0, 2), table.open(3, 0, 3)
    assert not table.take_over(5), "one that never had an epoch is nobody's loss"
    assert table.renew(6, lambda file: file.fh == a) == {old, b}
    table.orphaned(77)
    table.orphaned(78)
    table.orphan_ended(77)
    for unique in range(10, 4000):
        table.close(table.open(9, 0, unique))
        if unique % 1000 == 0:
            table = OpenTable(mem)
            table.epoch = 6
    assert shm.words(memoryview(mem))[8] > 1, "a compaction"
    again = OpenTable(mem)
    assert again.take_over(6) == {old, b} and len(again) == 3 and again.count(2) == 1 and again.orphans() == [78]
    assert again.renew(6, lambda file: False) == {old, a, b}, "also a session that a dead worker had begun to take up"
    third = OpenTable(mem)
    assert third.take_over(6) == {old, a, b}


def test_too_many_open_files() -> None:
    table = OpenTable(bytearray(OPENS_MEM), True)
    table.files_max = 3
    handles = [table.open(i, 0, i + 1) for i in range(3)]
    with pytest.raises(FsError) as caught:
        table.open(9, 0, 99)
    assert caught.value.errno == errno.ENFILE
    table.close(handles[0])
    assert table.open(9, 0, 99) == 4


def test_handles_never_come_back_over_compactions() -> None:
    mem = bytearray(OPENS_MEM)
    table = OpenTable(mem, True)
    given = {table.open(1, 0, 1)}
    for unique in range(2, 8000):
        fh = table.open(unique % 7, 0, unique)
        assert fh not in given
        given.add(fh)
        table.close(fh)
        if unique % 1013 == 0:
            table = OpenTable(mem)
    assert shm.words(memoryview(mem))[8] > 3, "several compactions"
    assert [file.fh for file in OpenTable(mem)] == [1]


def observe_opens(state: bytes) -> tuple[object, int]:
    table = OpenTable(bytearray(state))
    return sorted(table), table.open(999, 0, 10**9)  # the next handle is part of what must not go back


def test_open_history_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "SLACK_RECORDS", 6)
    rng = random.Random(SEED)
    mem = bytearray(open_files.required_bytes(8))
    table = OpenTable(mem, True)
    checked = 0
    for unique in range(1, 160):
        before, next_before = observe_opens(bytes(mem))
        files = list(table)
        if files and (rng.random() < 0.48 or len(files) > 6):
            fh = rng.choice(files).fh
            tape = record(mem, lambda fh=fh: table.close(fh))
        else:
            tape = record(mem, lambda unique=unique: table.open(rng.randrange(5), os.O_RDWR, unique))
        after, next_after = observe_opens(bytes(mem))
        for state in cuts(tape):
            checked += 1
            found, next_fh = observe_opens(state)
            assert (found == before and next_fh >= next_before) or (found == after and next_fh >= next_after), f"seed {SEED}, step {unique}"
    assert checked > 1000 and shm.words(memoryview(mem))[8] > 3


def test_formatting_may_stop_anywhere() -> None:
    mem = bytearray(OPENS_MEM)
    for state in cuts(record(mem, lambda: OpenTable(mem, True))):
        assert list(OpenTable(bytearray(state))) == []
    old = OpenTable(mem)
    old.open(1, 2, 3)
    for state in cuts(record(mem, lambda: OpenTable(mem, True))):
        assert len(OpenTable(bytearray(state))) in (0, 1)
    assert len(OpenTable(mem)) == 0
