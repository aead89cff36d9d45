"""Areas of checkpoints on a device in memory: golden bytes, a cut at every write, old areas in the same segments, rot; and the entries."""

from __future__ import annotations

import errno
import io
import os
import random
import uuid
from pathlib import Path

import pytest

from awsomefsd.base.errors import Corrupt, FormatTooNew, FsError
from awsomefsd.base.limits import BLOCK_BYTES, MIB
from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_METADATA, SegmentInfo
from awsomefsd.io.collect import checkpoint_format as form
from awsomefsd.io.collect.checkpoint_area import Area, AreaReader, AreaWriter, FoundCheckpoints, checkpoints_of, scan_device
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.device.superblock import Superblock
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.replica.checkpoint_progress import OFF, CheckpointProgress
from awsomefsd.meta.state import keys, rows
from tests.conftest import SEED
from tests.rigs.machine_driver import Drive

GOLDEN = Path(__file__).parents[3] / "golden"
CLUSTER, DEVICE, NODE = (
    "11111111-1111-1111-1111-111111111111",
    "22222222-2222-2222-2222-222222222222",
    "33333333" + "-3333" * 3 + "-333333333333",
)
SUPERBLOCK = Superblock(CLUSTER, DEVICE, 10 * MIB, MIB, 8, 0)
SEGMENTS = [SegmentInfo(number, 1, 1, number * MIB, MIB, SEGMENT_METADATA, 0) for number in range(1, 9)]


def device() -> MemoryDevice:
    made = MemoryDevice(10 * MIB)
    made.write_once = False
    return made


def header(area: int, number: int = 1, term: int = 1, version: int = form.VERSION, flags: int = 0) -> form.AreaHeader:
    ids = [uuid.UUID(text).bytes for text in (CLUSTER, DEVICE, NODE)]
    return form.AreaHeader(ids[0], ids[1], ids[2], bytes([area]) * 16, 0, 0, 0, number, term, 10, 5, version, 0, flags)


def write(on: MemoryDevice, area: int, segments: list[SegmentInfo], copy: bytes, index: int, batches: list[list[bytes]]) -> AreaWriter:
    writer = AreaWriter(on, segments, header(area, area))
    for start in range(0, len(copy), 300_000):
        writer.add(copy[start : start + 300_000])
    writer.complete(index, 1, 7)
    for batch in batches:
        writer.append(batch, index + 1, 1, 8)
        index += len(batch)
    return writer


def best(on: MemoryDevice) -> tuple[Area, FoundCheckpoints] | None:
    found = scan_device(on, SUPERBLOCK)
    areas = checkpoints_of(on, found)
    return (areas[0], found) if areas else None


def restored(on: MemoryDevice, area: Area, found: FoundCheckpoints) -> tuple[bytes, list[bytes]]:
    file = io.BytesIO()
    entries = [entry for batch in AreaReader(on, found.areas[area.header.area]).restore(file) for entry in batch]
    return file.getvalue(), entries


@pytest.mark.parametrize(
    ("name", "area"), [("checkpoint.bin", header(9, version=1)), ("checkpoint_v2.bin", header(9, version=2, flags=form.SEVERAL))]
)
def test_golden(name: str, area: form.AreaHeader) -> None:
    record = form.CheckpointRecord(form.TAIL, form.END, 3, 11, 12, 1, 99, form.pack_entries([b"one", b"two"]))
    complete = form.CheckpointRecord(form.COMPLETE, form.END, 2, 0, 10, 1, 98, form.pack_complete(100, 50, bytes(16)))
    raw = form.pack_area(area) + form.pack_record(area.area, complete) + form.pack_record(area.area, record)
    path = GOLDEN / name
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN") == "1":
        path.write_bytes(raw)
    assert raw == path.read_bytes(), "the format of checkpoints on disk has changed"
    assert form.unpack_area(raw) == area and form.unpack_record(area.area, raw[2 * BLOCK_BYTES :], 3) == record
    assert form.unpack_record(area.area, raw[2 * BLOCK_BYTES :], 4) is None, "another place in the row"
    assert form.unpack_record(bytes(16), raw[2 * BLOCK_BYTES :], 3) is None, "of another area"


def test_a_later_version_is_refused_and_rot_is_no_header() -> None:
    later = header(1, version=form.VERSION + 1)
    with pytest.raises(FormatTooNew):
        form.unpack_area(form.pack_area(later))
    raw = bytearray(form.pack_area(header(1)))
    for place in random.Random(SEED).sample(range(BLOCK_BYTES), 200):
        raw[place] ^= 4
        assert form.unpack_area(raw) is None
        raw[place] ^= 4


def test_copy_and_tail_come_back_over_many_segments(seed: int) -> None:
    choose = random.Random(seed)
    copy = choose.randbytes(2_300_000)
    batches = [[choose.randbytes(choose.randrange(1, 90_000)) for _ in range(choose.randrange(1, 6))] for _ in range(6)]
    on = device()
    write(on, 1, SEGMENTS[:5], copy, 10, batches)
    area, found = best(on) or pytest.fail("no checkpoint")
    assert (area.index, area.last, area.term) == (10, 10 + sum(map(len, batches)), 1)
    assert restored(on, area, found) == (copy, [entry for batch in batches for entry in batch])


def test_what_is_appended_while_the_copy_is_written_follows_it(seed: int) -> None:
    """Batches among the pieces of the copy; the copy has the first entries of them already, and ends within a batch."""
    choose = random.Random(seed)
    copy = choose.randbytes(1_700_000)
    entries = [choose.randbytes(choose.randrange(1, 60_000)) for _ in range(40)]  # 1 to 40
    on = device()
    writer = AreaWriter(on, SEGMENTS, header(1))
    last = 0

    def append(count: int) -> None:
        nonlocal last
        writer.append(entries[last : last + count], last + 1, 1, 8)
        last += count

    for start in range(0, len(copy), 170_000):
        append(choose.randrange(1, 4))
        assert best(on) is None
        writer.add(copy[start : start + 170_000])
    has = choose.randrange(1, last)
    writer.complete(has, 1, 7)
    area, found = best(on) or pytest.fail("no checkpoint")
    assert (area.index, area.last) == (has, last)
    append(40 - last)
    area, found = best(on) or pytest.fail("no checkpoint")
    assert (area.index, area.last) == (has, 40)
    raw, batches = restored(on, area, found)
    assert raw == copy and batches == entries[40 - len(batches) :] and len(batches) >= 40 - has


def test_a_gap_between_copy_and_tail_ends_the_tail(seed: int) -> None:
    on = device()
    writer = AreaWriter(on, SEGMENTS[:3], header(1))
    writer.append([b"eleven"], 11, 1, 8)
    writer.add(random.Random(seed).randbytes(5_000))
    writer.complete(8, 1, 7)
    area, found = best(on) or pytest.fail("no checkpoint")
    assert (area.index, area.last, restored(on, area, found)[1]) == (8, 8, [])


def test_the_version_of_the_last_landing_has_no_early_tail() -> None:
    on = device()
    writer = AreaWriter(on, SEGMENTS[:3], header(1, version=form.WITHOUT_EARLY_TAIL))
    assert not writer.takes_early_tail
    with pytest.raises(AssertionError):
        writer.append([b"one"], 1, 1, 8)
    writer.add(b"copy")
    writer.complete(1, 1, 7)
    writer.append([b"two"], 2, 1, 8)
    area, found = best(on) or pytest.fail("no checkpoint")
    assert area.last == 2 and restored(on, area, found) == (b"copy", [b"two"])


def test_a_full_area_refuses_a_batch_whole(seed: int) -> None:
    on = device()
    writer = write(on, 1, SEGMENTS[:1], b"copy", 10, [])
    entry = random.Random(seed).randbytes(400_000)
    writer.append([entry], 11, 1, 8)
    writer.append([entry], 12, 1, 8)
    writes = len(on.writes)
    with pytest.raises(FsError) as refused:
        writer.append([entry], 13, 1, 8)
    assert refused.value.errno == errno.ENOSPC and len(on.writes) == writes
    writer.extend(SEGMENTS[1:2])
    writer.append([entry], 13, 1, 8)
    area, found = best(on) or pytest.fail("no checkpoint")
    assert area.last == 13 and restored(on, area, found)[1] == [entry] * 3


def test_the_copy_is_synced_before_its_last_record_is_written_and_that_and_each_batch_before_they_are_promised(seed: int) -> None:
    on, events = device(), list[str]()
    on.on_write, on.on_flush = lambda _offset, _length: events.append("write"), lambda: events.append("flush")
    writer = AreaWriter(on, SEGMENTS, header(1))
    writer.add(random.Random(seed).randbytes(700_000))
    assert "flush" not in events
    writer.complete(10, 1, 7)
    assert events.pop() == "flush" and events[-2:] == ["flush", "write"]
    writer.append([b"entry"], 11, 1, 8)
    assert events[-2:] == ["write", "flush"]


def test_cut_at_every_write(seed: int) -> None:
    """Two generations, the second in segments that held an earlier one; after each write the power goes, with torn and lost blocks."""
    choose = random.Random(seed)
    copies = [choose.randbytes(700_000) for _ in range(3)]
    cuts: list[tuple[MemoryDevice, int]] = []
    on = device()
    promised = 0

    def cut(_offset: int = 0, _length: int = 0) -> None:
        cuts.append((on.crash(), promised))
        cuts.append((on.crash(lambda _block: choose.random() < 0.5), promised))

    on.on_write, on.on_flush = cut, cut
    entries = {index: choose.randbytes(3_000) for index in range(1, 40)}
    for generation, base in enumerate((0, 10, 20)):
        writer = AreaWriter(on, SEGMENTS[2 * (generation % 2) : 2 * (generation % 2) + 2], header(generation + 1, generation + 1))
        writer.add(copies[generation])
        writer.complete(base, 1, 7)
        promised = max(promised, base)
        for index in range(base + 1, base + 13, 3):  # two entries more than the next copy begins with
            writer.append([entries[place] for place in range(index, index + 3)], index, 1, 8)
            promised = max(promised, index + 2)
    assert len(cuts) > 60
    for after, least in cuts:
        found = best(after)
        if found is None:
            assert least == 0
            continue
        area, starts = found
        assert area.last >= least, "what was promised is there"
        copy, tail = restored(after, area, starts)
        assert copy == copies[area.header.number - 1] and area.index == 10 * (area.header.number - 1)
        assert tail == [entries[index] for index in range(area.index + 1, area.last + 1)]


def test_every_flipped_bit_costs_the_end_and_nothing_else(seed: int) -> None:
    choose = random.Random(seed)
    copy, batches = choose.randbytes(100_000), [[choose.randbytes(50)] for _ in range(20)]
    on = device()
    write(on, 1, SEGMENTS[:1], copy, 10, batches)
    used = max(offset + length for offset, length in on.writes)
    for _ in range(300):
        place, bit = choose.randrange(MIB, used), 1 << choose.randrange(8)
        on.content[place] ^= bit
        found = best(on)
        if found is not None:
            stored, tail = restored(on, *found)
            assert stored == copy and tail == [entry for batch in batches for entry in batch][: len(tail)]
            assert found[0].last == 10 + len(tail)
        on.content[place] ^= bit
    area, starts = best(on) or pytest.fail("no checkpoint")
    assert area.last == 30
    on.content[used - 3 * BLOCK_BYTES + 70] ^= 1
    on.content[MIB + 2 * BLOCK_BYTES] ^= 1
    with pytest.raises(Corrupt):
        restored(on, area, starts)


# --- the entries ------------------------------------------------------------------------------------------------------------------
def host(drive: Drive, command: c.Command) -> m.Reply:
    return drive.ok(command, mount=0, session=0, epoch=0)


def sound(drive: Drive) -> None:
    drive.machine.flush()
    assert check(drive.txn) == []


def test_the_metadata_keeps_segments_and_gives_them_back() -> None:
    drive = Drive()
    kept = host(drive, c.KeepSegments(1, 3, 0)).segments
    assert [info.state for info in kept] == [SEGMENT_METADATA] * 3
    assert drive.ask(m.GetOwnSegments()).segments == kept
    sound(drive)
    assert drive.errno(c.KeepSegments(1, 6, 0)) == errno.EDQUOT, "never more than one in eight"
    assert drive.errno(c.KeepSegments(2, 1, 0)) == errno.EINVAL
    assert drive.errno(c.DropSegments([60])) == errno.EINVAL
    host(drive, c.DropSegments([kept[0].segment]))
    assert drive.ask(m.GetSegments([kept[0].segment])).segments[0].state == SEGMENT_FREE
    sound(drive)
    drive.make_volume()
    drive.open()
    for command in (c.KeepSegments(1, 1, 0), c.DropSegments([kept[1].segment]), c.Recover(0, "a worker")):
        assert drive.errno(command) == errno.EPERM, "not a mount's business"


def test_kept_segments_are_not_taken_from_what_is_promised() -> None:
    drive = Drive()
    drive.make_volume()
    drive.open()
    while True:
        granted = drive.apply(c.Reserve(drive.volume, 16 * MIB, 1))
        if isinstance(granted, m.Failed):
            break
    assert drive.errno(c.KeepSegments(1, 1, 0), mount=0, session=0, epoch=0) == errno.ENOSPC


def test_a_recovery_ends_everybody_and_never_hands_out_a_number_twice() -> None:
    drive = Drive()
    drive.make_volume()
    opened = drive.open()
    (segment,) = drive.lease()
    file = drive.create(b"f")
    drive.write(segment, file, 0, 5_000)
    host(drive, c.RegisterReader("r", 1))
    host(drive, c.Recover(5 << 32, "test"))
    sound(drive)
    assert drive.ask(m.GetSessions()).sessions == []
    assert drive.errno(c.LeaseSegments(1, 0)) == errno.ESTALE
    again = drive.open(mount=8)
    assert again.session >= 1 << 32 and again.epoch >= 1 << 32 and opened.session < again.session
    assert drive.lease()[0].incarnation == (6 << 32) + 1, "above what was found on the device"
    assert drive.create(b"g") > file + (1 << 23)
    host(drive, c.Recover(0, "test"))
    drive.open(mount=9)
    assert drive.lease()[0].incarnation == (7 << 32) + 1, "and above an earlier recovery's"
    drive.machine.flush()
    cluster = rows.CLUSTER.loads(drive.txn.rows[keys.cluster()])
    assert (cluster.readers, cluster.incarnation_base) == (0, 7 << 32)


def test_what_may_be_leased_again_and_what_the_journal_keeps() -> None:
    index = CheckpointProgress()
    assert (index.safe_index(50), index.kept_from(50)) == (50, 50), "no checkpoints: no bound"
    index.durable, index.hold, index.holding = 30, 20, True
    assert (index.safe_index(50), index.kept_from(50)) == (30, 20)
    assert index.wanted.is_set(), "somebody wants segments: the tail is written at once"
    assert index.kept_from(10**9) == 10**9, "not without bound"
    index.wanted.clear()
    index.durable = 50
    assert index.safe_index(50) == 50 and not index.wanted.is_set()
    index.durable = OFF
    assert index.safe_index(60) == 60


class _Counting(MemoryDevice):
    """The copy counts for nothing before its last record is durable, which may lie in the same physical block."""

    def flush(self) -> None:
        super().flush()
        if self.flushes == 1:
            self.flushed_blocks.clear()


@pytest.mark.parametrize("physical", [4_096, 16_384, 65_536])
def test_a_physical_block_that_holds_a_durable_part_is_never_written_again(physical: int, seed: int) -> None:
    """The device in memory asserts it: a power cut would tear the checkpoint, or a batch that a rebuilt node must have."""
    choose = random.Random(seed)
    for round_ in range(6):
        copy = choose.randbytes(choose.choice([10, 5_000, MIB - 20_000 + choose.randrange(16_000), 1_900_000]))
        batches = [[choose.randbytes(choose.choice([1, 3_000, 60_000]))] for _ in range(12)]
        on = _Counting(10 * MIB, physical_block_bytes=physical)
        write(on, 1, SEGMENTS, copy, 10, batches)
        area, found = best(on) or pytest.fail(f"no checkpoint in round {round_}")
        assert restored(on, area, found) == (copy, [entry for batch in batches for entry in batch])
