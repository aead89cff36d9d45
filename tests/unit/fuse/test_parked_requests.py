"""Parked requests, cut between any two stores of random histories."""

from __future__ import annotations

import os
import random
import struct
from functools import partial

import pytest

from awsomefsd.base import shm
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.types import RESEND_BIT
from awsomefsd.fuse import parked_requests
from awsomefsd.fuse.parked_requests import ParkArea, ParkEntry, block_bytes
from awsomefsd.fuse.slots import DONE, EXECUTING
from tests.conftest import SEED
from tests.rigs.shared_memory_cuts import cuts, record

KIB = 1024
PARK_MEM = parked_requests.required_bytes(24 * KIB)


def request(unique: int, body: bytes = b"") -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), 31, unique, 1, 0, 0, 0, 0, 0) + body


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
    kept = [area.park(request(60 + i, b"x" * 3000), reserve=True) for i in range(3)]
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
            tape = record(mem, lambda raw=raw: live.append(area.park(raw, reserve=True)))  # type: ignore[arg-type]
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
    old = [area.park(request(unique)[:40] + bytes(8) + forged, reserve=True) for unique in range(1, 3)]
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


def test_formatting_of_the_park_area_may_stop_anywhere() -> None:
    mem = bytearray(PARK_MEM)
    ParkArea(mem, True, recall_bytes=4 * KIB).park(request(1))
    for state in cuts(record(mem, lambda: ParkArea(mem, True, recall_bytes=4 * KIB))):
        assert len(ParkArea(bytearray(state), recall_bytes=4 * KIB)) in (0, 1)
    assert len(ParkArea(mem)) == 0
