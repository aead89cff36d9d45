"""What the power cuts stand on, without a virtual machine: the reader of the log, the cuts, the workload and its check, the initramfs."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from random import Random

import pytest

from tests.crash.vm import kernel, replay, workload

SECTOR = replay.SECTOR
STEPS = 60


def written_log(path: Path, rows: list[tuple[int, int, bytes]]) -> None:
    """(flags, sector, data or mark), in the format of the kernel."""
    with path.open("wb") as file:
        file.write(struct.pack("<3QI", replay.MAGIC, 1, len(rows), SECTOR).ljust(SECTOR, b"\0"))
        for flags, sector, data in rows:
            mark = flags & replay.MARK
            head = replay.HEAD.pack(sector, 0 if mark else len(data) // SECTOR, flags, len(data) if mark else 0)
            file.write((head + (data if mark else b"")).ljust(SECTOR, b"\0"))
            file.write(b"" if mark else data)


def sectors(letter: bytes, count: int = 1) -> bytes:
    return letter * SECTOR * count


ROWS = [
    (replay.MARK, 0, b"start"),
    (0, 1, sectors(b"a", 2)),
    (replay.FLUSH, 0, b""),
    (replay.MARK, 0, b"begin:0:0"),
    (0, 2, sectors(b"b")),
    (replay.FLUSH, 4, b""),  # of the second image: the first stays as it is
    (replay.FUA, 4, sectors(b"c")),
    (replay.MARK, 0, b"done:0:0"),
    (replay.MARK, 0, b"end"),
]


@pytest.fixture
def disk(tmp_path):
    written_log(tmp_path / "log", ROWS)
    images = [tmp_path / "first", tmp_path / "second"]
    for image in images:
        image.write_bytes(bytes(4 * SECTOR))
    made = replay.Disk(tmp_path / "log", images)
    for entry in replay.entries(tmp_path / "log"):
        made.forward(entry)
    yield made, images
    made.close()


def test_what_was_flushed_is_there_and_the_rest_as_the_cut_says(disk):
    made, (first, second) = disk
    certain = sectors(b"\0") + sectors(b"a", 2) + sectors(b"\0")
    assert (made.begun, made.done, made.ended, made.flushes) == ({0: 1}, {0: 1}, True, [1, 1])
    assert first.read_bytes() == certain and second.read_bytes() == bytes(4 * SECTOR)
    with made.cut("dropped", Random(1)) as unflushed:
        assert unflushed == 2
        assert first.read_bytes() == certain
        assert second.read_bytes() == sectors(b"c") + bytes(3 * SECTOR), "FUA needs no flush"
    with made.cut("kept", Random(1)):
        assert first.read_bytes() == sectors(b"\0") + sectors(b"a") + sectors(b"b") + sectors(b"\0")
    assert first.read_bytes() == certain and second.read_bytes() == bytes(4 * SECTOR), "a cut is taken back"


def test_every_flush_is_cut_and_as_many_others_as_wanted(tmp_path):
    written_log(tmp_path / "log", ROWS)
    log = replay.entries(tmp_path / "log")
    assert [entry.mark for entry in log if entry.mark] == ["start", "begin:0:0", "done:0:0", "end"]
    for wanted in (3, 9):
        planned = replay.plan(log, Random(wanted), wanted)
        assert {2, 5, 6} <= set(planned) and sum(map(len, planned.values())) == wanted


def test_the_story_is_what_its_steps_do_and_its_judge_sees_what_is_missing(tmp_path, seed):
    directory = tmp_path / "0"
    workload.begin(str(directory))
    files = workload.first()

    def found() -> workload.Files:
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    for number, step in enumerate(workload.steps_of(seed, 0, STEPS)):
        before = files
        assert workload.wrong(found(), before, step) == [], "under way, nothing of it done yet"
        workload.do(step, str(directory), number)
        files = workload.after(step, before)
        assert workload.wrong(found(), files, None) == []
        assert workload.wrong(found(), before, step) == [], "under way, all of it done"
        if files != before:
            assert workload.wrong(found(), before, None) != []
    name = max(files, key=lambda one: len(files[one]))
    assert workload.wrong({key: data for key, data in files.items() if key != name}, files, None) == [
        f"{name}: no file, fsynced were {len(files[name])} bytes"
    ]
    assert workload.wrong(files | {name: files[name][:-1]}, files, None) != []


def test_modules_come_after_what_they_need(tmp_path):
    for name, needs in (("a-b", b"c"), ("c", b""), ("other", b"")):
        path = tmp_path / "lib" / "modules" / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"ELF\0license=GPL\0depends=" + needs + b"\0name=x\0")
    assert [path.stem for path in kernel.in_order(tmp_path, ("a-b", "built-in"))] == ["c", "a-b"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "busybox").write_bytes(b"program")
    kernel.initramfs(tmp_path, tmp_path / "initrd", ["true"], tmp_path)
    raw = (tmp_path / "initrd").read_bytes()
    assert raw.startswith(b"070701") and raw.count(b"070701") == 5 + 1 + 1 + 1 + 1
    assert f"/root{os.fspath(tmp_path)}".encode() in raw
