"""What several voters need of the journal: terms of entries, a log that begins behind a snapshot, and its crash windows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from awsomefsd.meta.log import format as form
from awsomefsd.meta.log.disk import OsDisk
from awsomefsd.meta.log.journal import Dropped, Journal, JournalFull
from awsomefsd.meta.log.terms import Terms

CLUSTER, NODE, INCARNATION = b"c" * 16, b"n" * 16, b"i" * 16
GOLDEN = Path(__file__).parents[3] / "golden"


class Killed(BaseException):
    """The process ends here."""


class KillingDisk(OsDisk):
    """Ends the process before its n-th change of the disk (the preparation of spare files not counted)."""

    def __init__(self) -> None:
        self.left = -1
        self.done: list[str] = []

    def _count(self, what: str) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.done.append(what)

    def beside(self, work):
        left, self.left = self.left, -1
        work()
        self.left = left
        return lambda: None

    def pwrite(self, fd, data, offset):
        self._count("write")
        super().pwrite(fd, data, offset)

    def fdatasync(self, fd):
        self._count("sync")
        super().fdatasync(fd)

    def rename(self, old, new):
        self._count("rename")
        super().rename(old, new)

    def unlink(self, path):
        self._count("unlink")
        super().unlink(path)

    def sync_directory(self, path):
        self._count("sync directory")
        super().sync_directory(path)


def opened(directory: Path, disk: OsDisk | None = None, create: bool = True) -> Journal:
    return Journal.open(directory, CLUSTER, NODE, create=create, incarnation=INCARNATION, file_bytes=16 << 10, disk=disk or OsDisk())


def terms_of(journal: Journal) -> list[int | None]:
    return [journal.term_of(index) for index in range(journal.first_index - 1, journal.last_index + 1)]


def test_terms_against_a_plain_list(seed):
    rng = random.Random(seed)
    for _ in range(200):
        base = rng.randrange(5)
        plain = {base: 3}
        terms, last, term = Terms(base, 3), base, 3
        for _ in range(60):
            move = rng.randrange(10)
            if move < 6:
                term += rng.random() < 0.3
                last += 1
                plain[last] = term
                terms.append(last, term)
            elif move < 8:
                last = rng.randint(base, last)
                plain = {index: value for index, value in plain.items() if index <= last}
                terms.truncate_after(last)
            else:
                base = rng.randint(base, last)
                plain = {index: value for index, value in plain.items() if index >= base}
                terms.drop_before(base)
            assert {index: terms.of(index) for index in range(last + 3) if terms.of(index) is not None} == plain


def test_terms_survive_reopening_dropping_and_truncation(tmp_path):
    journal = opened(tmp_path)
    expected = {0: 0}
    for number in range(1, 60):
        term = 1 + number // 10
        journal.append(term, [bytes(900)])
        expected[number] = term
    journal.sync()
    journal.truncate_after(45)
    journal.append(9, [b"other"])
    journal.sync()
    expected = {index: term for index, term in expected.items() if index <= 45} | {46: 9}
    journal.drop_before(30)
    assert 10 < journal.first_index <= 30
    for _ in range(2):
        assert terms_of(journal) == [expected[index] for index in range(journal.first_index - 1, 47)]
        assert journal.term_of(journal.first_index - 2) is None and journal.term_of(47) is None
        journal.close()
        journal = opened(tmp_path, create=False)
    journal.close()


def test_truncation_to_behind_the_oldest_file(tmp_path):
    """The file that had the last entry is dropped; its term is in the truncation's record."""
    journal = opened(tmp_path)
    for number in range(1, 21):
        journal.append(2 if number <= 10 else 3, [bytes(900)])
    journal.sync()
    second = journal._files[1].first
    journal.truncate_after(5)
    journal.append(7, [b"six"])
    journal.sync()
    journal.drop_before(6)
    assert second > 6 and journal.first_index == 6
    journal.close()
    journal = opened(tmp_path, create=False)
    assert terms_of(journal) == [2, 7] and journal.read(6) == [b"six"]
    journal.close()


def test_reset_begins_behind_a_snapshot(tmp_path):
    journal = opened(tmp_path)
    journal.set_hard_state(4, b"vote")
    for _ in range(40):
        journal.append(4, [bytes(900)])
    journal.sync()
    journal.reset_to(1_000, 6)
    for _ in range(2):
        assert (journal.first_index, journal.last_index, journal.term, journal.vote) == (1_001, 1_000, 4, b"vote")
        assert (journal.term_of(1_000), journal.term_of(40), journal.read(1_001)) == (6, None, [])
        with pytest.raises(Dropped):
            journal.read(1_000)
        journal.close()
        journal = opened(tmp_path, create=False)
    journal.append(6, [b"next"])
    journal.sync()
    journal.close()
    journal = opened(tmp_path, create=False)
    assert (journal.read(1_001), terms_of(journal)) == ([b"next"], [6, 6])
    journal.close()


def test_reset_killed_at_every_step(tmp_path):
    """The old log whole, or the new one; never anything else, and the vote is kept."""
    outcomes = []
    for step in range(100):
        directory = tmp_path / str(step)
        directory.mkdir()
        disk = KillingDisk()
        journal = opened(directory, disk)
        journal.set_hard_state(5, b"vote")
        for _ in range(40):
            journal.append(5, [bytes(900)])
        journal.sync()
        disk.left, disk.done = step, []
        try:
            journal.reset_to(77, 3)
            finished = True
        except Killed:
            finished = False
        disk.left = -1
        journal.close()
        journal = opened(directory, create=False)
        assert (journal.term, journal.vote) == (5, b"vote")
        state = (journal.first_index, journal.last_index, journal.term_of(journal.last_index))
        assert state in ((1, 40, 5), (78, 77, 3))
        journal.append(6, [b"goes on"])
        journal.sync()
        assert journal.read(journal.last_index) == [b"goes on"]
        journal.close()
        outcomes.append(state)
        assert ("rename" in disk.done) == (state[1] == 77)
        assert "rename" not in disk.done or disk.done[: disk.done.index("rename")].count("sync") == 1, "durable before it is named"
        if finished:
            break
    assert finished and {(1, 40, 5), (78, 77, 3)} == set(outcomes)


def test_reset_without_room_changes_nothing(tmp_path):
    class Full(OsDisk):
        full = False

        def open(self, path, flags):
            if self.full and path.endswith("spare"):
                raise OSError(28, "no space")
            return super().open(path, flags)

    disk = Full()
    journal = opened(tmp_path, disk)
    for _ in range(20):  # the prepared file is in use
        journal.append(1, [bytes(900)])
    journal.sync()
    journal._spare()
    disk.full = True
    journal._spare_error = OSError(28, "no space")
    with pytest.raises(JournalFull):
        journal.reset_to(50, 2)
    disk.full = False
    assert journal.last_index == 20
    journal.reset_to(50, 2)
    assert journal.last_index == 50
    journal.close()


def test_a_bad_end_is_told(tmp_path):
    journal = opened(tmp_path)
    journal.append(1, [b"kept"])
    journal.sync()
    journal.append(1, [b"torn" * 10])
    end, path = journal._end, journal._files[-1].path
    journal.close()
    raw = bytearray(Path(path).read_bytes())
    raw[end - 5] ^= 1
    Path(path).write_bytes(raw)
    journal = opened(tmp_path, create=False)
    assert journal.torn and journal.last_index == 1
    journal.close()
    journal = opened(tmp_path, create=False)
    assert not journal.torn, "it was overwritten"
    journal.close()


def test_files_of_version_1_are_read():
    raw = (GOLDEN / "journal_v1.bin").read_bytes()
    block = raw[:128].ljust(form.HEADER_BYTES, b"\0")
    header, seed = form.unpack_header(block, "golden", writing=False)  # it has made-up feature bits
    assert (header.number, header.first_index, header.compat, header.previous_term, header.flags) == (7, 1001, 1, 1, 0)
    record = form.unpack_record(raw[128:], 0, seed, 4096)
    assert record is not None and record.kind == form.HARD_STATE and record.term == 3
