"""The journal: what it keeps over crashes of every kind, and what it refuses to call a torn write."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from awsomefsd.base.errors import Corrupt, FormatTooNew, Refused
from awsomefsd.meta.log import format as form
from awsomefsd.meta.log.disk import OsDisk
from awsomefsd.meta.log.journal import Dropped, Journal, JournalFailed, JournalFull

CLUSTER, NODE, INCARNATION = b"c" * 16, b"n" * 16, b"i" * 16
FILE_BYTES = 64 * 1024
GOLDEN = Path(__file__).parents[3] / "golden"


class FaultyDisk(OsDisk):
    """Counts syncs, records writes, and fails on demand."""

    def __init__(self) -> None:
        self.syncs = 0
        self.writes: list[tuple[int, int, int]] = []
        self.fail_sync = self.fail_write = False
        self.fail_open_of = ""

    def open(self, path: str, flags: int) -> int:
        if self.fail_open_of and path.endswith(self.fail_open_of):
            raise OSError(28, "no space")
        return super().open(path, flags)

    def pwrite(self, fd, data, offset) -> None:
        if self.fail_write:
            raise OSError(5, "write")
        self.writes.append((fd, offset, len(data)))
        super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        if self.fail_sync:
            raise OSError(5, "sync")
        self.syncs += 1
        super().fdatasync(fd)


def open_journal(directory: Path, create: bool = True, **options) -> Journal:
    options.setdefault("file_bytes", FILE_BYTES)
    return Journal.open(directory, CLUSTER, NODE, create=create, incarnation=INCARNATION, **options)


def newest(directory: Path) -> Path:
    return max(directory.glob("*.journal"))


def entries_of(journal: Journal) -> list[bytes]:
    found: list[bytes] = []
    while page := journal.read(journal.first_index + len(found), 100):
        found += page
    return found


def written(directory: Path, batches: list[list[bytes]], **options) -> int:
    """A journal with these batches, closed; returns where its records end."""
    journal = open_journal(directory, **options)
    for batch in batches:
        journal.append(1, batch)
        journal.sync()
    end = journal._end
    journal.close()
    return end


def test_what_was_synced_is_read_again(tmp_path):
    batches = [[b"one"], [b"two", b"three" * 100, b""], [b"four"]]
    written(tmp_path, batches)
    journal = open_journal(tmp_path, create=False)
    assert (journal.first_index, journal.last_index, journal.incarnation) == (1, 5, INCARNATION)
    assert entries_of(journal) == [entry for batch in batches for entry in batch]
    assert journal.read(3, 1) == [b"three" * 100]
    assert journal.read(6) == []
    journal.append(1, [b"five"])
    journal.sync()
    journal.close()
    journal = open_journal(tmp_path, create=False)
    assert journal.read(6) == [b"five"]
    journal.close()


def test_a_batch_is_one_write_and_one_sync(tmp_path):
    disk = FaultyDisk()
    journal = open_journal(tmp_path, disk=disk)
    journal._spare()
    disk.writes.clear()
    syncs = disk.syncs
    journal.append(1, [b"entry %d" % number for number in range(200)])
    journal.sync()
    assert len(disk.writes) == 1 and disk.syncs == syncs + 1
    journal.sync()
    assert disk.syncs == syncs + 1, "nothing new, nothing to sync"
    journal.close()


def test_many_files_and_drop(tmp_path):
    journal = open_journal(tmp_path)
    journal.set_hard_state(3, b"v" * 16)
    expected = []
    for number in range(60):
        batch = [b"%d-%d" % (number, part) + bytes(500) for part in range(10)]
        journal.append(3, batch)
        journal.sync()
        expected += batch
    assert len(list(tmp_path.glob("*.journal"))) > 4
    assert entries_of(journal) == expected
    journal.drop_before(301)
    assert 1 < journal.first_index <= 301
    with pytest.raises(Dropped):
        journal.read(1)
    journal.close()
    journal = open_journal(tmp_path, create=False)
    assert entries_of(journal) == expected[journal.first_index - 1 :]
    assert (journal.term, journal.vote) == (3, b"v" * 16), "the hard state outlives the file it was written to"
    journal.drop_before(10_000)
    assert len(list(tmp_path.glob("*.journal"))) == 1
    assert journal.read(journal.first_index)[0] == expected[journal.first_index - 1]
    journal.close()


def test_truncate_survives_reopening(tmp_path):
    journal = open_journal(tmp_path)
    for number in range(300):
        journal.append(1, [b"old %d" % number + bytes(900)])
    journal.sync()
    journal.truncate_after(10)
    journal.append(2, [b"new"])
    journal.sync()
    for _ in range(2):
        assert (journal.last_index, journal.read(11)) == (11, [b"new"])
        assert journal.read(10)[0].startswith(b"old 9")
        journal.close()
        journal = open_journal(tmp_path, create=False)
    journal.close()


def test_torn_at_every_byte(tmp_path):
    """The last batch cut at each offset: all before it is there, of it a whole front, and appending goes on."""
    source = tmp_path / "source"
    source.mkdir()
    first_end = written(source, [[b"kept one", b"kept two"]])
    journal = open_journal(source, create=False)
    journal.append(1, [b"torn-1", b"torn--2", b"torn---3"])
    journal.sync()
    end = journal._end
    journal.close()
    whole = newest(source).read_bytes()
    for cut in range(first_end, end):
        directory = tmp_path / "cut"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(source, directory)
        newest(directory).write_bytes(whole[:cut] + bytes(len(whole) - cut))
        journal = open_journal(directory, create=False)
        found = entries_of(journal)
        assert found == [b"kept one", b"kept two", b"torn-1", b"torn--2", b"torn---3"][: len(found)] and len(found) >= 2, cut
        journal.append(1, [b"after"])
        journal.sync()
        journal.close()
        journal = open_journal(directory, create=False)
        assert entries_of(journal) == [*found, b"after"], cut
        journal.close()


def test_a_batch_that_lost_its_front_is_torn_not_corrupt(tmp_path):
    """Later pages of one unsynced write may reach the disk without the earlier ones; and they must never come back."""
    first_end = written(tmp_path, [[b"kept"], [b"x" * 3000, b"y" * 3000, b"z" * 40]])
    with newest(tmp_path).open("r+b") as file:
        file.seek(first_end := first_end - sum(form.record_bytes(length) for length in (3000, 3000, 40)))
        file.write(bytes(100))
    journal = open_journal(tmp_path, create=False)
    assert entries_of(journal) == [b"kept"]
    journal.append(1, [b"X" * 3000])
    journal.sync()
    journal.close()
    journal = open_journal(tmp_path, create=False)
    assert entries_of(journal) == [b"kept", b"X" * 3000], "the torn batch's second entry fits behind and must not be taken up"
    journal.close()


def test_power_cuts_keep_what_was_synced(tmp_path, seed):
    """Of the writes since the last sync any sectors may have reached the disk; then the next life goes on, and is cut again."""
    rng = random.Random(seed)
    directory = tmp_path / "life-0"
    directory.mkdir()
    synced: list[bytes] = []
    for life in range(1, 25):
        journal = open_journal(directory, create=life == 1)
        found = entries_of(journal)
        assert found[: len(synced)] == synced, "nothing that was synced is lost"
        synced = found
        for _ in range(rng.randrange(4)):
            batch = [rng.randbytes(rng.randrange(1500)) for _ in range(rng.randrange(1, 8))]
            journal.append(1, batch)
            journal.sync()
            synced = synced + batch
        before = {path.name: path.read_bytes() for path in directory.glob("*.journal")}
        journal.append(1, [rng.randbytes(rng.randrange(1500)) for _ in range(rng.randrange(1, 8))])
        journal.close()
        next_life = tmp_path / f"life-{life}"
        next_life.mkdir()
        for path in directory.glob("*.journal"):
            after = path.read_bytes()
            old = before.get(path.name, after)
            sectors = [(old, after)[rng.random() < 0.5][at : at + 512] for at in range(0, len(after), 512)]
            (next_life / path.name).write_bytes(b"".join(sectors))
        shutil.rmtree(directory)
        directory = next_life


def test_a_flipped_bit_in_the_middle_is_corrupt(tmp_path, seed):
    rng = random.Random(seed)
    source = tmp_path / "source"
    source.mkdir()
    end = written(source, [[b"entry %d" % number] for number in range(20)])
    whole = newest(source).read_bytes()
    last = end - form.record_bytes(len(b"entry 19"))
    header = form._HEADER.size + form._CRC.size
    for _ in range(150):
        place, bit = rng.randrange(0, last), 1 << rng.randrange(8)
        if header <= place < form.HEADER_BYTES:  # padding of the header block says nothing
            continue
        damaged = bytearray(whole)
        damaged[place] ^= bit
        newest(source).write_bytes(damaged)
        if any(place in range(start, start + form.RECORD_BYTES + size) for start, size in _records(whole, end)) or place < header:
            with pytest.raises((Corrupt, Refused, FormatTooNew)):
                open_journal(source, create=False)
        else:
            open_journal(source, create=False).close()  # padding of a payload


def _records(raw: bytes, end: int) -> list[tuple[int, int]]:
    _, seed = form.unpack_header(raw, "test")
    position, found = form.HEADER_BYTES, []
    while position < end:
        record = form.unpack_record(raw, position, seed, position)
        found.append((position, len(record.payload)))
        position = record.end
    return found


def test_damage_before_the_last_file_is_corrupt_even_at_its_end(tmp_path):
    journal = open_journal(tmp_path)
    while len(journal._files) < 3:
        journal.append(1, [bytes(2000)])
        journal.sync()
    end = journal._files[1].end
    path = journal._files[1].path
    journal.close()
    raw = bytearray(Path(path).read_bytes())
    raw[end - 1000] ^= 1
    Path(path).write_bytes(raw)
    with pytest.raises(Corrupt, match="later file"):
        open_journal(tmp_path, create=False)
    raw[end - form.record_bytes(2000) :] = bytes(len(raw) - end + form.record_bytes(2000))
    Path(path).write_bytes(raw)
    with pytest.raises(Corrupt, match="begins with entry"):
        open_journal(tmp_path, create=False)
    Path(path).unlink()
    with pytest.raises(Corrupt, match="missing"):
        open_journal(tmp_path, create=False)


def test_records_of_another_file_or_place_do_not_pass():
    header = form.FileHeader(CLUSTER, NODE, INCARNATION, 1, 1)
    _, seed = form.pack_header(header)
    record = form.pack_record(seed, 4096, 4096, form.ENTRY, 1, 1, b"payload")
    assert form.unpack_record(record, 0, seed, 4096).payload == b"payload"
    assert form.unpack_record(record, 0, seed, 4104) is None
    for other in (header._replace(number=2), header._replace(incarnation=b"j" * 16)):
        assert form.unpack_record(record, 0, form.pack_header(other)[1], 4096) is None


def test_a_failed_sync_is_final(tmp_path):
    disk = FaultyDisk()
    journal = open_journal(tmp_path, disk=disk)
    journal._spare()
    journal.append(1, [b"lost"])
    disk.fail_sync = True
    with pytest.raises(JournalFailed):
        journal.sync()
    disk.fail_sync = False
    with pytest.raises(AssertionError):
        journal.sync()
    journal.close()


def test_no_room_for_the_next_file_is_not_fatal(tmp_path):
    disk = FaultyDisk()
    journal = open_journal(tmp_path, disk=disk)
    journal._spare()
    journal.append(1, [bytes(20_000)])
    journal.sync()
    (tmp_path / "spare").unlink()
    journal._spare_error = OSError(28, "no space")
    disk.fail_open_of = "spare"
    big = bytes(50_000)
    with pytest.raises(JournalFull):
        journal.append(1, [big])
    assert journal.last_index == 1
    disk.fail_open_of = ""
    journal.append(1, [big])
    journal.sync()
    assert journal.read(2) == [big]
    journal.close()


def test_identity(tmp_path):
    written(tmp_path, [[b"x"]])
    with pytest.raises(Refused):
        Journal.open(tmp_path, b"d" * 16, NODE, create=False, file_bytes=FILE_BYTES)
    first = open_journal(tmp_path, create=False)
    with pytest.raises(Refused, match="another process"):
        open_journal(tmp_path, create=False)
    first.close()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Corrupt, match="gone"):
        open_journal(empty, create=False)
    assert list(empty.iterdir()) == []
    block, _ = form.pack_header(form.FileHeader(CLUSTER, NODE, INCARNATION, 1, 1, incompat=1))
    with pytest.raises(FormatTooNew):
        form.unpack_header(block, "x")


def test_a_leftover_spare_is_not_used(tmp_path):
    written(tmp_path, [[b"x"]])
    (tmp_path / "spare").write_bytes(newest(tmp_path).read_bytes())
    journal = open_journal(tmp_path, create=False)
    journal._spare()
    assert (tmp_path / "spare").read_bytes() == bytes(FILE_BYTES)
    journal.close()


def test_golden_bytes():
    block, seed = form.pack_header(form.FileHeader(bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48)), 7, 1001, 1, 2, 0))
    fresh = block[:144] + form.pack_record(seed, 4096, 4096, form.HARD_STATE, 0, 3, bytes(range(16)))
    fresh += form.pack_record(seed, 4152, 4096, form.ENTRY, 1001, 3, b"entry")
    fresh += form.pack_record(seed, 4200, 4096, form.TRUNCATE, 1000, 3, b"")
    path = GOLDEN / "journal.bin"
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN"):
        path.write_bytes(fresh)
    assert path.read_bytes() == fresh


def test_fuzz_decoder(seed):
    rng = random.Random(seed)
    block, file_seed = form.pack_header(form.FileHeader(CLUSTER, NODE, INCARNATION, 1, 1))
    good = form.pack_record(file_seed, 0, 0, form.ENTRY, 1, 1, b"payload of an entry")
    for _ in range(3000):
        raw = bytearray(rng.choice((good, block, rng.randbytes(rng.randrange(200)))))
        for _ in range(rng.randrange(3)):
            if raw:
                raw[rng.randrange(len(raw))] = rng.randrange(256)
        raw = raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.3 else raw
        record = form.unpack_record(raw, 0, file_seed, 0)
        assert record is None or record.payload == b"payload of an entry"
        form.proof_of_damage(raw, 0, file_seed)
        try:
            form.unpack_header(raw, "fuzz")
        except (Corrupt, FormatTooNew):
            pass


@pytest.mark.parametrize("zeros", [0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 300_000])
@pytest.mark.parametrize("front", [b"", b"abc", b"a\0b" + bytes(70_000) + b"c"])
def test_the_zeros_behind_the_records_are_left_out(front, zeros):
    raw = front + bytes(zeros)
    for start in (0, len(front) // 2, len(front), len(raw)):
        assert form.without_zeros(raw, start) == raw[start:].rstrip(b"\0")
