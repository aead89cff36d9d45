"""Parked requests and the open-file table, cut between any two stores of random histories."""

from __future__ import annotations

import errno
import os
import random
import struct
from functools import partial

import pytest

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt, FsError
from awsomefsd.base.types import RESEND_BIT
from awsomefsd.fuse import parked_requests
from awsomefsd.fuse.parked_requests import ParkArea, ParkEntry, block_bytes
from awsomefsd.fuse.slots import DONE, EXECUTING
from awsomefsd.vfs.state import open_files
from awsomefsd.vfs.state.open_files import KIND_DIRECTORY, KIND_FILE, OpenTable
from tests.conftest import SEED
from tests.rigs.shared_memory_cuts import cuts, record

KIB = 1024
PARK_MEM = parked_requests.required_bytes(24 * KIB)
OPENS_MEM = open_files.required_bytes(16)


def request(unique: int, body: bytes = b"") -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), 31, unique, 1, 0, 0, 0, 0, 0) + body


# --- park --------------------------------------------------------------------------------------------------------------------


def parked(state: bytes) -> dict[int, tuple[bytes, int, bytes]]:
    """unique to (request, deaths, reply) as a successor sees it."""
    area = ParkArea(bytearray(state))
    found = {}
    for entry in area.entries():
        assert entry.is_intact and entry.state in (EXECUTING, DONE)
        found[entry.unique] = (bytes(entry.request()), entry.deaths, entry.reply() if entry.state == DONE else b"")
    assert len(found) == len(area)
    return found


def test_a_parked_request_comes_back() -> None:
    mem = bytearray(PARK_MEM)
    area = ParkArea(mem, True, recall_bytes=8 * KIB)
    assert area.formatted
    first = area.park(request(7 | RESEND_BIT, b"x" * 3000))
    second = area.park(request(3))
    assert first is not None and second is not None and first.unique == 7
    first.add_death()
    assert second.store_reply(b"r" * 512) and not first.store_reply(b"r" * 513)
    again = ParkArea(mem)
    assert not again.formatted
    assert [entry.unique for entry in again.entries()] == [7, 3], "in the order of parking"
    one, two = again.entries()
    assert (one.state, one.deaths, two.state, two.reply()) == (EXECUTING, 1, DONE, b"r" * 512)
    one.free()
    two.free()
    assert len(again) == 0 and again.used_bytes == 0 and parked(bytes(mem)) == {}


def test_an_area_of_before_goes_on_as_it_was() -> None:
    """Its blocks carry a constant where those of today have a checksum of their place and size."""
    mem = bytearray(PARK_MEM)
    area = ParkArea(mem, True, recall_bytes=8 * KIB)
    assert area.park(request(7, b"x" * 3000)) is not None
    words = shm.words(area.view)
    words[shm.PAGE_BYTES // 8] = 4 * KIB | 0x5041_524B << 32
    end, recall_bytes, _ = shm.read_header(area.view, parked_requests.MAGIC, parked_requests.VERSION, "park area") or (0, 0, 0)
    shm.write_header(area.view, parked_requests.MAGIC, parked_requests.VERSION, (end, recall_bytes, 0))
    old = ParkArea(mem)
    assert [entry.unique for entry in old.entries()] == [7] and old.park(request(9)) is not None
    assert words[(shm.PAGE_BYTES + 4 * KIB) // 8] >> 32 == 0x5041_524B
    assert [entry.unique for entry in ParkArea(mem).entries()] == [7, 9]


def test_a_parked_request_that_says_free_is_damaged() -> None:
    mem = bytearray(PARK_MEM)
    entry = ParkArea(mem, True, recall_bytes=0).park(request(7))
    assert entry is not None
    entry._words[1] &= ~0xFF
    (found,) = ParkArea(mem).entries()
    assert not found.is_intact and found.unique == 7


def test_room_for_recalls_is_kept() -> None:
    area = ParkArea(bytearray(PARK_MEM), True, recall_bytes=8 * KIB)
    entries: list[ParkEntry] = []
    while (entry := area.park(request(len(entries) + 1))) is not None:
        entries.append(entry)
    assert len(entries) == 16
    entries[3].free()  # fragments of the rest do not matter
    assert area.park(request(50, b"x" * 2000)) is None
    kept = [area.park(request(60 + i, b"x" * 3000), recall=True) for i in range(3)]
    assert [entry is not None for entry in kept] == [True, True, False]
    with pytest.raises(ValueError):
        area.park(request(1, bytes(30 * KIB)))


def test_neighbours_are_merged_and_split() -> None:
    mem = bytearray(PARK_MEM)
    area = ParkArea(mem, True, recall_bytes=0)
    small = [area.park(request(i + 1)) for i in range(24)]
    assert None not in small and area.park(request(99)) is None
    for entry in small[2:20]:
        assert entry is not None
        entry.free()
    large = area.park(request(100, b"L" * 7000))
    assert large is not None and large.size == 8 * KIB
    while area.park(request(200)) is not None:
        pass
    assert len(area) == 6 + 1 + 10
    assert len(ParkArea(mem).entries()) == 17


@pytest.mark.parametrize("round_", range(3))
def test_park_history_cut_anywhere(round_: int) -> None:
    rng = random.Random(SEED * 10 + round_)
    mem = bytearray(PARK_MEM)
    area = ParkArea(mem, True, recall_bytes=4 * KIB)
    live: list[ParkEntry] = []
    checked = 0
    for unique in range(1, 90):
        before = parked(bytes(mem))
        choice = rng.random()
        if choice < 0.5 or not live:
            raw = request(unique, rng.randbytes(rng.choice((0, 30, 900, 3000))))
            tape = record(mem, lambda raw=raw: live.append(area.park(raw, recall=True)))  # type: ignore[arg-type]
            if live[-1] is None:
                live.pop()
        elif choice < 0.7:
            entry, reply = rng.choice(live), rng.randbytes(rng.randrange(1, 400))
            if entry.state == DONE:
                continue
            tape = record(mem, lambda entry=entry, reply=reply: entry.store_reply(reply))
        elif choice < 0.8:
            tape = record(mem, rng.choice(live).add_death)
        else:
            tape = record(mem, live.pop(rng.randrange(len(live))).free)
        after = parked(bytes(mem))
        for state in cuts(tape):
            checked += 1
            assert parked(state) in (before, after), f"seed {SEED}, step {unique}"
    assert checked > 500
    successor = ParkArea(mem)  # what is free after all that is really usable
    for entry in successor.entries():
        entry.free()
    assert successor.park(request(1, bytes(16 * KIB - 700))) is not None


def test_what_an_application_wrote_never_reads_as_a_block() -> None:
    """An emptied area starts again over old bytes; here all of them look like the header of a live block."""
    forged = struct.pack("<QQ", KIB | 0x5041_524B << 32, EXECUTING | 100 << 32) * (4000 // 16)
    mem = bytearray(PARK_MEM)
    area = ParkArea(mem, True, recall_bytes=4 * KIB)
    old = [area.park(request(unique)[:40] + bytes(8) + forged, recall=True) for unique in range(1, 3)]
    for entry in old:
        assert entry is not None
        entry.free()
    for unique in range(3, 9):
        before = parked(bytes(mem))
        tape = record(mem, partial(area.park, request(unique, b"new")))
        after = parked(bytes(mem))
        assert len(after) == len(before) + 1
        for state in cuts(tape):
            assert parked(state) in (before, after)


def test_a_damaged_parked_request_is_named_not_executed() -> None:
    mem = bytearray(PARK_MEM)
    area = ParkArea(mem, True, recall_bytes=0)
    area.park(request(5, b"abcdef"))
    mem[mem.index(b"abcdef")] ^= 1
    (entry,) = ParkArea(mem).entries()
    assert entry.unique == 5 and not entry.is_intact
    shm.words(memoryview(mem))[shm.PAGE_BYTES // 8] = 12345
    with pytest.raises(Corrupt):
        ParkArea(mem)


def test_an_empty_area_gives_its_pages_back() -> None:
    fd = shm.create_memfd("park", parked_requests.required_bytes(16 * 1024 * KIB))
    try:
        area = ParkArea(shm.map_memfd(fd), True, recall_bytes=0)
        entries = [area.park(request(i + 1, bytes(1024 * KIB))) for i in range(8)]
        assert os.fstat(fd).st_blocks * 512 > 8 * 1024 * KIB
        for entry in entries:
            assert entry is not None
            entry.free()
        assert os.fstat(fd).st_blocks * 512 <= parked_requests.KEEP_BYTES + 2 * shm.PAGE_BYTES
        assert area.park(request(1)) is not None and block_bytes(40) == KIB
    finally:
        os.close(fd)


# --- open files ----------------------------------------------------------------------------------------------------------------


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
    assert not table.lost(), "one that never had an epoch is nobody's loss"
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
    again.epoch = 6
    assert again.lost() == {old, b} and len(again) == 3 and again.count(2) == 1 and again.orphans() == [78]
    assert again.renew(6, lambda file: False) == {old, a, b}, "also a session that a dead worker had begun to take up"
    third = OpenTable(mem)
    third.epoch = 6
    assert third.lost() == {old, a, b}


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
    mem = bytearray(PARK_MEM)
    ParkArea(mem, True, recall_bytes=4 * KIB).park(request(1))
    for state in cuts(record(mem, lambda: ParkArea(mem, True, recall_bytes=4 * KIB))):
        assert len(ParkArea(bytearray(state), recall_bytes=4 * KIB)) in (0, 1)
    assert len(ParkArea(mem)) == 0
