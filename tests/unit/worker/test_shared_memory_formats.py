"""Layouts of the shared areas: golden dumps that an upgrade must still read, and a fuzz of everything that reads them.

Dumps are text, one line per 16 bytes that are not all zero, so that a change of the format shows in a diff.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.fuse import parked_requests, slots
from awsomefsd.fuse.control_area import CONTROL_BYTES, ControlArea, Negotiated, Suspect
from awsomefsd.fuse.parked_requests import ParkArea
from awsomefsd.fuse.slots import DONE, SlotArea
from awsomefsd.io.file.dirty_log import ALONE, DirtyLog, LeaseToken, required_bytes
from awsomefsd.io.file.op_log import OpLog
from awsomefsd.vfs.state import open_files
from awsomefsd.vfs.state.open_files import OpenTable
from tests.conftest import SEED

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
REQUEST = struct.pack("<IIQQIIIHH", 56, 31, 0x0102, 1, 1000, 100, 77, 0, 0) + b"sixteen bytes .."


def control_memory() -> bytearray:
    mem = bytearray(CONTROL_BYTES)
    control = ControlArea(mem, fresh=True)
    control.update(mount=1 << 62, dirty_log=77, volume=3, negotiated=Negotiated(45, 1 << 40, 1 << 20, 1 << 17, 12, 9, 256, 1))
    control.update(session=8, epoch=9, workers=2, suspects=[Suspect(258, 1, 16)])
    control.next_background_unique()
    control.counter("fuse_requests").add(5)
    return mem


def control_check(mem: bytearray) -> None:
    control = ControlArea(mem)
    state = control.state
    assert (state.mount, state.dirty_log, state.volume, state.session, state.epoch, state.workers) == (1 << 62, 77, 3, 8, 9, 2)
    assert state.negotiated == Negotiated(45, 1 << 40, 1 << 20, 1 << 17, 12, 9, 256, 1) and state.suspects == [Suspect(258, 1, 16)]
    assert control.counters() == {"fuse_requests": 5} and control.next_background_unique() == (1 << 62) + 1025


def slots_memory() -> bytearray:
    mem = bytearray(slots.required_bytes(2, 4096))
    area = SlotArea(mem, 2, 4096, fresh=True)
    for slot in area:
        slot.begin_read()
        slot.read_buffer[: len(REQUEST)] = REQUEST
        slot.start(len(REQUEST))
    area[0].seal()
    area[0].add_death()
    area[1].store_reply(b"stored reply")
    return mem


def slots_check(mem: bytearray) -> None:
    first, second = SlotArea(mem, 2, 4096)
    assert first.request() == REQUEST and first.deaths == 1 and first.is_intact
    first.payload[0] ^= 1
    assert first.is_intact, "behind the request"
    first.head[50] ^= 1
    assert not first.is_intact
    assert second.state == DONE and second.reply() == b"stored reply"


def park_memory() -> bytearray:
    mem = bytearray(parked_requests.required_bytes(16 * 1024))
    area = ParkArea(mem, fresh=True, recall_bytes=4096)
    first, second, third = (area.park(REQUEST) for _ in range(3))
    assert first is not None and second is not None and third is not None
    first.free()
    second.add_death()
    third.store_reply(b"stored reply")
    return mem


def park_check(mem: bytearray) -> None:
    second, third = ParkArea(mem).entries()
    assert second.is_intact and second.request() == REQUEST and (second.unique, second.deaths) == (0x0102, 1)
    assert third.is_intact and third.state == DONE and third.reply() == b"stored reply"


def opens_memory() -> bytearray:
    mem = bytearray(open_files.required_bytes(16))
    table = OpenTable(mem, fresh=True)
    table.close(table.open(5, os.O_RDONLY, 1))
    table._compact()
    table.epoch = 9
    table.open(6, os.O_RDWR, 258)
    table.epoch = 0
    table.close(table.open(7, os.O_RDONLY, 259))
    table.open(1, os.O_DIRECTORY, 260)
    return mem


def opens_check(mem: bytearray) -> None:
    table = OpenTable(mem)
    assert [tuple(file) for file in table] == [(2, 6, os.O_RDWR, 0, 258, 9), (4, 1, os.O_DIRECTORY, 1, 260, 0)]
    assert table.open(1, 0, 300) == 5


def dirty_memory() -> bytearray:
    mem = bytearray(required_bytes(8192))
    log = DirtyLog(mem, 77, fresh=True, recall_bytes=1024)
    first = log.append_write(5, 4096, b"first", 258, 1_700_000_000_000_000_000, 3)
    log.append_write(6, 0, b"second", 259, -1, 4)
    log._ring.reserve(7, 0, 10, 260, 0, 0, False)
    third = log.append_write(8, 1, b"third", 261, 0, 0)
    assert first is not None and third is not None
    log.append_write(9, 2, b"fourth", 263, 5, 0, token=LeaseToken(11, 12, 13))
    log.mark_clean([first, third])
    for unique in (258, 261):
        log.answered(unique)
    return mem


def dirty_check(mem: bytearray) -> None:
    log = DirtyLog(mem, 77, recall_bytes=1024)
    record, leased = log.recover()
    assert (record.sequence, record.ino, record.offset, record.unique, record.time_ns, record.generation) == (2, 6, 0, 259, -1, 4)
    assert record.data == b"second" and record.token == ALONE and log.last_sequence == 5
    assert leased.data == b"fourth" and leased.token == LeaseToken(11, 12, 13)
    third = log.find_unique(261)
    assert third is not None and not third.is_dirty and log.find_unique(260) is None


def logs_memory() -> bytearray:
    """The dirty log of version 3 with the op log beside it, which is a memfd of its own."""
    mem = bytearray(required_bytes(4096) * 2)
    half = len(mem) // 2
    dirty = DirtyLog(memoryview(mem)[:half], 77, fresh=True, recall_bytes=1024, with_ops=True)
    ops = OpLog(memoryview(mem)[half:], dirty, fresh=True, recall_bytes=1024)
    assert ops.begin()
    ops.store(b"first", 258, 1_700_000_000_000_000_000)
    dirty.append_write(6, 0, b"data", 259, -1, 4)
    second, third = ops.store(b"second", 260, -1, after=2), ops.store(b"third", 261, 0)
    ops._ring.reserve(0, 0, 10, 262, 0, 0, False)
    ops.store(b"fifth", 0, 7)
    assert second is not None and third is not None
    ops.put_aside([third])
    ops.applied(1)
    ops.answered(258)
    return mem


def logs_check(mem: bytearray) -> None:
    half = len(mem) // 2
    with pytest.raises(FormatTooNew, match="dirty log: version 3"):
        DirtyLog(memoryview(mem)[:half], 77, recall_bytes=1024)
    dirty = DirtyLog(memoryview(mem)[:half], 77, recall_bytes=1024, with_ops=True)
    ops = OpLog(memoryview(mem)[half:], dirty, recall_bytes=1024)
    second, third, fifth = ops.recover([260])
    assert (second.sequence, second.unique, second.after, second.time_ns, second.data) == (3, 260, 2, -1, b"second")
    assert not second.answered and third.aside and third.answered and (fifth.sequence, fifth.data) == (6, b"fifth")
    assert ops.find_unique(260) is second and ops.find_unique(262) is None and dirty.last_sequence == 6
    assert [bytes(one.data) for one in dirty.recover()] == [b"data"]


AREAS: dict[str, tuple[Callable[[], bytearray], Callable[[bytearray], None]]] = {
    "control": (control_memory, control_check),
    "slots": (slots_memory, slots_check),
    "park": (park_memory, park_check),
    "opens": (opens_memory, opens_check),
    "dirty": (dirty_memory, dirty_check),
    "ops": (logs_memory, logs_check),
}


def dump(mem: bytearray) -> str:
    lines = [f"{len(mem):#x} bytes"]
    for at in range(0, len(mem), 16):
        if any(mem[at : at + 16]):
            lines.append(f"{at:06x}  {mem[at : at + 8].hex(' ')}  {mem[at + 8 : at + 16].hex(' ')}")
    return "\n".join(lines) + "\n"


def undump(text: str) -> bytearray:
    first, *lines = text.splitlines()
    mem = bytearray(int(first.split()[0], 16))
    for line in lines:
        at, _, rest = line.partition("  ")
        mem[int(at, 16) : int(at, 16) + 16] = bytes.fromhex(rest)
    return mem


@pytest.mark.parametrize("name", AREAS)
def test_layout_is_the_golden_one(name: str) -> None:
    make, check = AREAS[name]
    path = GOLDEN / f"shm_{name}.txt"
    text = dump(make())
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text(), "the layout changed: raise its VERSION, keep reading the old one, then AWSOMEFSD_UPDATE_GOLDEN=1"
    check(undump(path.read_text()))


def read_all(name: str, mem: bytearray) -> None:
    """Everything that a successor reads of an area."""
    if name == "control":
        control = ControlArea(mem)
        control.counters()
        control.next_background_unique()
    elif name == "slots":
        read_slots(SlotArea(mem, 2, 4096))
    elif name == "park":
        read_park(ParkArea(mem))
    elif name == "opens":
        table = OpenTable(mem)
        table.close(table.open(9, 0, 999))
    elif name == "ops":
        read_ops(mem)
    else:
        log = DirtyLog(mem, 77, recall_bytes=1024)
        records = log.recover()
        for record in records:
            assert len(record.data) == record.length
        log.append_write(1, 1, b"more", 1, 1, 1, recall=True)
        log.mark_clean(records)
        log.mark_clean([error.record for error in log.corrupt])


def read_ops(mem: bytearray) -> None:
    half = len(mem) // 2
    dirty = DirtyLog(memoryview(mem)[:half], 77, recall_bytes=1024, with_ops=True)
    ops = OpLog(memoryview(mem)[half:], dirty, recall_bytes=1024)
    found = ops.recover(None)
    ops.requests_repeated()
    if ops.is_begun:
        ops.store(b"more", 1, 1, recall=True)
    ops.put_aside([one for one in found if one.damaged])
    ops.cleansed(found)
    ops.applied(1 << 62)


def read_slots(area: SlotArea) -> None:
    for slot in area:
        for read in (lambda slot=slot: slot.state, slot.request, slot.reply, slot.add_death):
            attempt(read)


def read_park(area: ParkArea) -> None:
    for entry in area.entries():
        if entry.is_intact:
            bytes(entry.request())
        attempt(entry.reply)
        entry.free()


def attempt(read: Callable[[], Any]) -> None:
    try:
        read()
    except (Corrupt, FormatTooNew):
        pass


@pytest.mark.parametrize("name", AREAS)
def test_damage_raises_only_what_is_documented(name: str) -> None:
    rng = random.Random(SEED)
    good = AREAS[name][0]()
    used = [at for at, byte in enumerate(good) if byte]
    for _ in range(400):
        mem = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = min(rng.choice(used) + rng.randrange(-3, 4), len(mem) - 8)
            if rng.random() < 0.7:
                mem[at] ^= 1 << rng.randrange(8)
            else:
                mem[at : at + 8] = rng.choice((bytes(8), b"\xff" * 8, rng.randbytes(8)))
        attempt(lambda mem=mem: read_all(name, mem))
    for size in (0, 10, 4096, len(good)):
        mem = bytearray(rng.randbytes(size))
        attempt(lambda mem=mem: read_all(name, mem))
        mem[:64] = good[:64][:size]
        attempt(lambda mem=mem: read_all(name, mem))
