"""1,000 single bit flips, each in a copy of something sound: detected when it matters, or without effect; never a wrong byte.

Where a flip falls is a function of (seed, number), so `AWSOMEFSD_SEED` replays all of them.  Each ends in one of these classes, which are
printed: `same` (what is read is what was written), `detected` (an error, a fault of the check, or the end of the process that read it),
`repaired` (from a second copy), `tail` (the newest
batch of the journal, or update of the control area, taken for a torn one: docs/KNOWN-ISSUES.md), `figure` (a counter
for people is another).  Anything else fails the test.
"""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Corrupt, Error, FormatTooNew
from awsomefsd.base.limits import KIB, MIB
from awsomefsd.fuse.control_area import CONTROL_BYTES, ControlArea, ControlState
from awsomefsd.fuse.inherited_requests import RequestMemory
from awsomefsd.fuse.parked_requests import ParkArea
from awsomefsd.fuse.slots import DONE, EXECUTING, FREE, RECEIVED, SlotArea, required_bytes
from awsomefsd.fuse.takeover import reply_to
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.device.superblock import read_superblock
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.state import keys
from awsomefsd.vfs.state.open_files import OpenTable
from tests.unit.node.maintenance.test_scrub import CLUSTER, Ground
from tests.unit.recovery.test_fsck import Stopped

SUPERBLOCKS, SEGMENTS, JOURNAL, STORE, MEMORY = 120, 380, 120, 200, 180
assert SUPERBLOCKS + SEGMENTS + JOURNAL + STORE + MEMORY == 1_000
CHILD_S = 120


def flipped(raw: bytes | bytearray, at: int, chance: random.Random) -> bytearray:
    copy = bytearray(raw)
    copy[at] ^= 1 << chance.randrange(8)
    return copy


@pytest.fixture
def told(figures: list[str], request: pytest.FixtureRequest) -> Any:
    counts: Counter[str] = Counter()
    yield counts
    figures.append(f"{request.node.name}: {sum(counts.values())} flips, " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))


def device_of(image: bytes | bytearray) -> MemoryDevice:
    device = MemoryDevice(len(image))
    device.content[:] = image
    return device


@pytest.fixture
def image(tmp_path: Path) -> Any:
    ground = Ground(tmp_path)
    raw = ground.disk.read_bytes()
    reads = [(extent, info) for found in ground.extents.values() for extent, info in found]
    yield raw, reads
    ground.device.close()
    ground.store.close()


def test_superblocks(image: Any, seed: int, told: Counter[str]) -> None:
    raw, _ = image
    sound = read_superblock(device_of(raw), CLUSTER)
    places = [*range(4096), *range(len(raw) - MIB, len(raw) - MIB + 4096)]
    device = device_of(raw)
    for number in range(SUPERBLOCKS):
        chance = random.Random(f"{seed} superblock {number}")
        at = chance.choice(places)
        device.content[at] ^= 1 << chance.randrange(8)
        device.allow_rewrites()
        assert read_superblock(device, CLUSTER) == sound, at
        assert read_superblock(device, CLUSTER, repair=True) == sound and device.content[at] == raw[at]
        told["repaired"] += 1
    assert device.content == raw


def test_segments(image: Any, seed: int, told: Counter[str]) -> None:
    """Headers, data, padding and footers, read with a footer and without one."""
    raw, reads = image
    device = device_of(raw)
    sound = {(extent.segment, extent.sequence): read(device, extent, info) for extent, info in reads}
    info = reads[0][1]
    start, data_end = info.byte_offset, info.byte_offset + info.footer_offset
    for number in range(SEGMENTS):
        chance = random.Random(f"{seed} segment {number}")
        header = chance.choice(reads)[0].frame_offset + start
        kind = chance.randrange(4)
        at = [header + chance.randrange(256), chance.randrange(start, data_end), data_end + chance.randrange(info.footer_bytes),
              data_end + chance.randrange(256)][kind]  # fmt: skip
        before = device.content[at]
        device.content[at] ^= 1 << chance.randrange(8)
        outcomes = set()
        for extent, place in reads:
            for state in (place.state, 1):  # 1: leased, so the headers are read
                old, place.state = place.state, state
                outcome = read(device, extent, place)
                place.state = old
                assert outcome is None or outcome == sound[extent.segment, extent.sequence], f"wrong bytes: flip {number} at {at}"
                outcomes.add(outcome is None)
        told["detected" if True in outcomes else "same"] += 1
        device.content[at] = before
    assert told["detected"] > SEGMENTS // 4, "about half of the flips fall where something is read"


def read(device: MemoryDevice, extent: Any, info: Any) -> bytes | None:
    into = aligned_buffer(extent.length)
    try:
        SegmentReader({info.device: device}, lambda _: info, ChecksumCache()).read(extent, 1, 1, 0, extent.length, into)
    except (Corrupt, FormatTooNew):
        return None
    return bytes(into)


def rows_of(txn: Any) -> dict[bytes, bytes]:
    return {key: value for key, value in txn.scan(b"", b"\xff" * 8) if keys.kind_of(key)[2] != keys.CLUSTER}


def in_child(work: Callable[[], str]) -> str:
    """What `work` says, or "detected" where it raised, was ended by a signal, or (by its own alarm) did not end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            faulthandler.disable()  # that it dies is expected, and told by its status
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(CHILD_S)
            os.write(writer, work().encode())
        except NameError as err:
            os.write(writer, f"the test itself is wrong: {err}".encode())
        except BaseException:
            os.write(writer, b"detected")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    status = os.waitpid(pid, 0)[1]
    assert not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM), "it hangs"
    return said or "detected"


@pytest.fixture
def stopped(tmp_path: Path) -> Stopped:
    made = Stopped(tmp_path)
    replica = made.open()  # entries that are in the journal only
    for at in range(6):
        made.propose(replica, c.Create(1, 1, b"late%d" % at, 0o100644, 1, 1), c.SetXattr(1, 2, b"user.%d" % at, bytes(3000)))
    replica.close()
    return made


def test_journal(stopped: Stopped, seed: int, told: Counter[str], tmp_path: Path) -> None:
    replica = stopped.open()
    replica.machine.flush()
    sound = {replica.machine.applied_index: rows_of(replica.store)}
    last = replica.machine.applied_index
    replica.close()
    (file,) = (stopped.state / "meta" / "journal").glob("*.journal")  # not the spare one
    raw = file.read_bytes()
    used = len(raw.rstrip(b"\0")) + 64
    for number in range(JOURNAL):
        chance = random.Random(f"{seed} journal {number}")
        file.write_bytes(flipped(raw, chance.randrange(min(used, len(raw))), chance))
        said = in_child(lambda: replayed(stopped, sound, last))
        assert said in ("same", "detected", "tail"), (number, said)
        told[said] += 1
    file.write_bytes(raw)
    assert told["detected"] > JOURNAL // 2


def replayed(stopped: Stopped, sound: dict[int, dict[bytes, bytes]], last: int) -> str:
    replica = stopped.open()
    replica.machine.flush()
    if replica.machine.applied_index == last:
        return "same" if rows_of(replica.store) == sound[last] else "WRONG"
    return "tail" if last - 2 <= replica.machine.applied_index else f"lost to {replica.machine.applied_index} of {last}"


def test_store(stopped: Stopped, seed: int, told: Counter[str], tmp_path: Path) -> None:
    """The file of the state store: pages, keys, values, free list, meta pages.  What the check of scrub and fsck passes was there."""
    store = Store.open(stopped.state / "meta" / "store", readonly=True)
    sound = dict(store.scan(b"", b"\xff" * 8))
    store.close()
    raw = (stopped.state / "meta" / "store" / "data.mdb").read_bytes()
    copy = tmp_path / "copy"
    copy.mkdir()
    for number in range(STORE):
        chance = random.Random(f"{seed} store {number}")
        page = chance.randrange(len(raw) // 4096)
        at = page * 4096 + (chance.randrange(64) if chance.random() < 0.5 else chance.randrange(4096))  # half of them in page headers
        (copy / "data.mdb").write_bytes(flipped(raw, at, chance))
        said = in_child(lambda: checked(copy, sound))
        assert said in ("same", "detected"), (number, at, said)
        told[said] += 1
    shutil.rmtree(copy)
    assert told["detected"] > STORE // 20, "most flips fall where nothing is stored"


def checked(directory: Path, sound: dict[bytes, bytes]) -> str:
    store = Store.open(directory, readonly=True)
    if store.identity is None or check(store):
        return "detected"
    found = dict(store.scan(b"", b"\xff" * 8))
    if found == sound:
        return "same"
    older = Machine(store).applied_index  # a damaged meta page: LMDB falls back to the commit before, and the journal says what is missing
    return "detected" if older < index_of(sound) else f"WRONG: {[key.hex() for key in sound if found.get(key) != sound[key]]}"


def index_of(rows_: dict[bytes, bytes]) -> int:
    from awsomefsd.meta.state import rows

    index: int = rows.CLUSTER.loads(rows_[keys.cluster()]).applied_index
    return index


def test_memory_of_a_mount(seed: int, told: Counter[str]) -> None:
    dirty, control, opens = dirty_area(), control_area(), opens_area()
    areas = [(dirty, dirty_outcome), (control, control_outcome), (opens, opens_outcome)]
    areas += [(slots_area(), slots_outcome), (park_area(), park_outcome)]
    for number in range(MEMORY):
        chance = random.Random(f"{seed} memory {number}")
        (mem, used), outcome = areas[number % len(areas)]
        at = chance.choice(used)
        try:
            said = outcome(flipped(mem, at, chance))
        except Error:
            said = "detected"
        assert said in ("same", "detected", "tail", "figure"), (number, at, said)
        told[said] += 1
    assert told["detected"] > MEMORY // 2


def used_of(mem: bytearray) -> list[int]:
    return [at for at, value in enumerate(mem) if value]


WRITES = {at: bytes([at]) * (500 * at) for at in range(1, 9)}


def dirty_area() -> tuple[bytearray, list[int]]:
    mem = bytearray(4096 + 256 * KIB)
    log = DirtyLog(mem, 7, True, recall_bytes=64 * KIB)
    for at, data in WRITES.items():
        assert log.append_write(at, at * 4096, memoryview(data), at, 1_000 + at, 0) is not None
    return mem, used_of(mem)


def dirty_outcome(mem: bytearray) -> str:
    log = DirtyLog(mem, 7, recall_bytes=64 * KIB)
    found = {(record.ino, record.offset, record.unique): bytes(record.data) for record in log.recover()}
    wanted = {(at, at * 4096, at): data for at, data in WRITES.items()}
    if found == wanted:
        return "same"
    gone = wanted.keys() - found.keys()
    wrong = [key for key, data in found.items() if wanted.get(key) != data]
    return "detected" if not wrong and log.corrupt and len(gone) >= 1 else f"wrong {wrong} gone {gone} told {log.corrupt}"


def control_area() -> tuple[bytearray, list[int]]:
    mem = bytearray(CONTROL_BYTES)
    control = ControlArea(mem, fresh=True)
    control.update(mount=5, session=6)
    control.counter("reads").add(3)
    return mem, used_of(mem)


def control_outcome(mem: bytearray) -> str:
    control = ControlArea(mem)
    if (control.state.mount, control.state.session) != (5, 6):
        return "tail" if control.state == ControlState() else f"wrong {control.state}"
    return "same" if control.counters() == {"reads": 3} else "figure"


def opens_area() -> tuple[bytearray, list[int]]:
    mem = bytearray(4096 + 128 * KIB)
    table = OpenTable(mem, fresh=True)
    for at in range(1, 40):
        table.open(at, 0, at * 2)
    return mem, used_of(mem)


SOUND_OPENS = {(at, at, at * 2) for at in range(1, 40)}


def opens_outcome(mem: bytearray) -> str:
    found = {(file.fh, file.ino, file.unique) for file in OpenTable(mem)}
    return "same" if found == SOUND_OPENS else f"wrong {sorted(found ^ SOUND_OPENS)}"


WAITING = {unique: struct.pack("<IIQQIIIHH", 340, 16, unique, 1, 0, 0, 0, 0, 0) + bytes([unique]) * 300 for unique in (8, 10)}
STALE_REPLY = struct.pack("<IiQ", 16, 0, 6)  # of the request before in the same place


def slots_area() -> tuple[bytearray, list[int]]:
    mem = bytearray(required_bytes(2, 4096))
    for slot, raw in zip(SlotArea(mem, 2, 4096, fresh=True), WAITING.values(), strict=True):
        slot.store_reply(STALE_REPLY)
        slot.begin_read()
        slot.read_buffer[: len(raw)] = raw
        slot.start(len(raw))
        slot.seal()
    return mem, used_of(mem)


def slots_outcome(mem: bytearray) -> str:
    return waiting_outcome([*SlotArea(mem)])


def park_area() -> tuple[bytearray, list[int]]:
    mem = bytearray(4096 + 64 * KIB)
    area = ParkArea(mem, True, recall_bytes=0)
    for raw in WAITING.values():  # each in the place of an older one
        entry = area.park(raw)
        assert entry is not None and entry.store_reply(STALE_REPLY)
        entry.free()
    assert all(area.park(raw) is not None for raw in WAITING.values())
    return mem, used_of(mem)


def park_outcome(mem: bytearray) -> str:
    return waiting_outcome(ParkArea(mem).entries())


def waiting_outcome(left: Sequence[RequestMemory]) -> str:
    """As takeover.py reads them: each is executed as it was, or known to be damaged, and then its own caller is told."""
    said, found = "same", []
    for held in left:
        found.append(held.unique)
        try:
            if held.state in (RECEIVED, EXECUTING, DONE) and held.is_intact and bytes(held.request()) == WAITING.get(held.unique):
                said = "figure" if held.deaths and said == "same" else said
                if held.state == DONE:
                    reply_to(held, held.unique)
                    return f"wrong: a reply to {held.unique}"
                continue
            if held.is_intact and held.state in (FREE, RECEIVED, EXECUTING, DONE):
                return f"wrong: {held.unique} is taken for intact in state {held.state}"
        except Corrupt:
            pass
        said = "detected"
    return said if sorted(found) == [*WAITING] else f"wrong: {found}"


# --- writes that did not happen where they should have ---------------------------------------------------------------------------
def test_lost_misdirected_and_old_writes(image: Any, seed: int) -> None:
    """Intact bytes of another write have another identity: the one before at that place, or one from elsewhere."""
    raw, reads = image
    chance = random.Random(seed)
    for extent, info in reads:
        at = info.byte_offset + extent.frame_offset
        size = extent.header_bytes + extent.length
        lost = device_of(raw)
        lost.content[at : at + size] = bytes(size)
        assert read(lost, extent, info) is None, "an acknowledged write that never reached the device"
        for other, place in reads:
            if other is not extent:
                device = device_of(raw)
                source = place.byte_offset + other.frame_offset
                device.content[at : at + size] = raw[source : source + size].ljust(size, b"\0")
                assert read(device, extent, info) is None, "a write that went astray"
        old = type(info)(*(getattr(info, name) for name in info.__struct_fields__))
        old.incarnation += 1
        later = type(extent)(*(getattr(extent, name) for name in extent.__struct_fields__))
        later.incarnation += 1
        assert read(device_of(raw), later, old) is None, "the same place in an earlier life of the segment"
        later.incarnation -= 1
        later.sequence += chance.randrange(1, 100)
        assert read(device_of(raw), later, info) is None, "an earlier frame of the same segment"
