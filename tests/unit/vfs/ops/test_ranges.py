"""fallocate, lseek and copy_file_range through a whole mount without a kernel, with kills of the worker at each point."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import block_on
from awsomefsd.io.file import flusher as flushing
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine import allocation, copy_range, filemap
from awsomefsd.vfs.api.context import SetAttrIn
from tests.rigs.mount_without_kernel import After, Held, Rig, Started, error_of, finish, rig, until

KEEP, PUNCH, ZERO = c.FALLOC_KEEP_SIZE, c.FALLOC_PUNCH_HOLE | c.FALLOC_KEEP_SIZE, c.FALLOC_ZERO_RANGE
KIB, MIB = 1 << 10, 1 << 20


def made(r: Rig, data: bytes = b"", name: bytes = b"f") -> tuple[int, int]:
    ino, fh = r.create(name)
    for at in range(0, len(data), MIB):
        r.write(ino, fh, at, data[at : at + MIB])
    return ino, fh


def map_of(r: Rig, ino: int) -> list[tuple[int, int]]:
    """(start of data, end of data), as SEEK_DATA and SEEK_HOLE tell it."""
    found, at = [], 0
    while True:
        try:
            start = r.call("lseek", ino, 0, at, os.SEEK_DATA)
        except FsError as err:
            if err.errno != errno.ENXIO:
                raise
            return found
        at = r.call("lseek", ino, 0, start, os.SEEK_HOLE)
        found.append((start, at))


# --- holes and zeros --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [3_000, 300_000])
@pytest.mark.parametrize("mode", [PUNCH, ZERO, ZERO | KEEP])
def test_what_was_written_before_is_gone_and_what_is_written_after_stays(tmp_path: Path, size: int, mode: int) -> None:
    with rig(tmp_path) as r:
        ino, fh = made(r, b"x" * size)
        r.call("fallocate", ino, fh, mode, 1_000, size - 2_000)
        r.write(ino, fh, 1_500, b"new")
        expected = b"x" * 1_000 + bytes(500) + b"new" + bytes(size - 2_503) + b"x" * 1_000
        assert r.content(ino) == expected
        r.restart()
        assert r.content(ino) == expected
        r.remount()
        assert r.content(ino) == expected and r.attr(ino).size == size
        r.check()


def test_mode_decides_over_the_size(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = made(r, b"x" * 10_000)
        r.call("fallocate", ino, fh, ZERO | KEEP, 8_000, 8_000)
        assert r.attr(ino).size == 10_000
        r.call("fallocate", ino, fh, ZERO, 9_000, 8_000)
        assert r.attr(ino).size == 17_000
        r.call("fallocate", ino, fh, 0, 100, 20_000)
        assert r.attr(ino).size == 20_100 and r.content(ino) == b"x" * 8_000 + bytes(12_100)
        r.check()


def test_errors_as_on_ext4(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = made(r, b"x")
        for mode, offset, length, number in (
            (0, 0, 0, errno.EINVAL), (0, 0, -5, errno.EINVAL), (0, -1, 5, errno.EINVAL), (0, 1 << 62, 1 << 61, errno.EFBIG),
            (2, 0, 1, errno.EOPNOTSUPP), (8, 0, 4096, errno.EOPNOTSUPP), (0x20, 0, 4096, errno.EOPNOTSUPP), (0x40, 0, 1, errno.EOPNOTSUPP),
            (ZERO | PUNCH, 0, 1, errno.EOPNOTSUPP),
        ):  # fmt: skip
            assert error_of(r.call, "fallocate", ino, fh, mode, offset, length) == number, mode
        assert error_of(r.call, "fallocate", r.mkdir(b"d"), 0, 0, 0, 1) == errno.EISDIR
        r.mount._read_only = lambda: True
        assert error_of(r.call, "fallocate", ino, fh, 0, 0, 1) == errno.EROFS


def test_bits_and_times(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = made(r, b"x" * 5_000)
        r.flush()
        for uid, mode in ((0, 0o6755), (1000, 0o755)):
            r.call("setattr", ino, None, SetAttrIn(c.SET_MODE | c.SET_MTIME, mode=0o6755, mtime_ns=5))
            finish(r.vfs.fallocate(r.ctx(uid=uid), ino, fh, PUNCH, 0, 10))
            attr = r.attr(ino)
            assert attr.mode & 0o7777 == mode and attr.mtime_ns > 5 and attr.ctime_ns >= attr.mtime_ns
        r.check()


def test_a_hole_over_more_extents_than_an_entry_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (filemap, allocation):
        monkeypatch.setattr(module, "REAP_EXTENTS_PER_ENTRY", 3)
    with rig(tmp_path) as r:
        ino, fh = made(r)
        for at in range(20):
            r.write(ino, fh, at * 10_000, b"y" * 5_000)
        r.call("fallocate", ino, fh, PUNCH, 12_000, 160_000)
        content = r.content(ino)
        assert not any(content[12_000:172_000]) and content[10_000:12_000] == b"y" * 2_000 and content[172_000:175_000] == b"y" * 3_000
        r.write(ino, fh, 50_000, b"z" * 100)
        r.call("fallocate", ino, fh, ZERO, 30_000, 100_000)
        assert not any(r.content(ino)[30_000:130_000])
        assert r.attr(ino).stored_bytes >= 100_000
        r.flush()
        r.restart()
        assert not any(r.content(ino)[12_000:172_000]) and map_of(r, ino)[-1] == (190_000, 195_000)
        r.check()


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("size", [3_000, 200_000])
def test_the_worker_dies_around_the_entry(tmp_path: Path, applied: bool, size: int) -> None:
    """The same request again, by the successor: once in effect, and a write after it stays."""
    with rig(tmp_path) as r:
        ino, fh = made(r, b"x" * size)
        gate = r.gate()
        waits: list[Any] = []

        def hold(command: Any, unique: int) -> Any:
            if not isinstance(command, c.Fallocate):
                return None
            real = r.worker.client.propose(command, unique)
            waits.append(Held(real) if applied else After(real))
            return waits[-1]

        gate.on_propose = hold
        ctx = r.ctx(9_000)
        call = Started(r.vfs.fallocate(ctx, ino, fh, PUNCH, 0, 2_000))
        event = waits_event(waits)
        assert event.wait(60)
        assert not call.ended.is_set()
        r.write(ino, fh, 100, b"meanwhile")  # no order with the call; acknowledged, so it must be explained by some order
        r.kill()
        results = r.start(lambda vfs: vfs.fallocate(r.ctx(9_000), ino, fh, PUNCH, 0, 2_000))
        assert results == [None]
        got = r.content(ino)
        if applied:  # then the write came after it
            assert got == bytes(100) + b"meanwhile" + bytes(2_000 - 109) + b"x" * (size - 2_000)
        else:
            assert got == bytes(2_000) + b"x" * (size - 2_000)
        r.write(ino, fh, 0, b"after")
        r.restart()
        assert r.content(ino)[:5] == b"after"
        r.check()


def waits_event(waits: list[Any]) -> Any:
    until(lambda: waits)
    return waits[0].answered if isinstance(waits[0], Held) else waits[0].begun


def test_a_flush_in_flight_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written while the call runs may be committed before or after the entry; the cache says what the machine says."""
    monkeypatch.setattr(flushing, "BATCH_BYTES_MAX", 6_000)
    with rig(tmp_path) as r:
        ino, fh = made(r, b"x" * 100_000)
        for round_ in range(15):
            calls = [r.begin("fallocate", ino, fh, PUNCH, 10_000, 50_000)]
            r.write(ino, fh, 20_000, bytes([round_ + 1]) * 9_000)
            r.worker.data.flusher.kick()
            calls.append(r.begin("fallocate", ino, fh, ZERO, 40_000, 10_000))
            for call in calls:
                call.result()
            seen = r.content(ino)
            assert seen[20_000:29_000] in (bytes(9_000), bytes([round_ + 1]) * 9_000)
            r.flush()
            r.mount.buffered.files.forget_clean()
            assert r.content(ino) == seen
        r.check()


# --- allocation -------------------------------------------------------------------------------------------------------------
def test_space_is_counted_and_given_back(tmp_path: Path) -> None:
    with rig(tmp_path, quota_bytes=20 * MIB) as r:
        ino, fh = made(r)
        r.call("fallocate", ino, fh, KEEP, 0, 5 * MIB)
        attr = r.attr(ino)
        assert (attr.size, attr.stored_bytes, r.volume().used_bytes) == (0, 5 * MIB, 5 * MIB)
        assert r.call("statfs", ino).bytes_free == 15 * MIB
        r.call("fallocate", ino, fh, 0, MIB, 3 * MIB)  # already there
        assert (r.attr(ino).size, r.attr(ino).stored_bytes) == (4 * MIB, 5 * MIB)
        assert r.content(ino, 5 * MIB) == bytes(4 * MIB) and map_of(r, ino) == []
        r.remount()
        fh = r.open(ino)
        r.write(ino, fh, 2 * MIB, b"d" * 8192)
        assert map_of(r, ino) == [(2 * MIB, 2 * MIB + 8192)]
        r.flush()
        assert r.attr(ino).stored_bytes == 5 * MIB and map_of(r, ino) == [(2 * MIB, 2 * MIB + 8192)]
        r.call("fallocate", ino, fh, PUNCH, 0, MIB)
        assert r.attr(ino).stored_bytes == 4 * MIB
        r.truncate(ino, 4 * MIB)  # the same size: what is kept behind the end goes
        assert r.attr(ino).stored_bytes == 3 * MIB
        r.truncate(ino, 3 * MIB)
        assert r.attr(ino).stored_bytes == 2 * MIB
        r.close_file(ino, fh)
        r.call("unlink", 1, b"f")
        r.flush()
        assert r.volume().used_bytes == 0
        r.check()


def test_a_small_file_leaves_its_inline_row(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = made(r, b"hello")
        before = r.attr(ino).mtime_ns
        r.call("fallocate", ino, fh, KEEP, 0, 64 * KIB)
        attr = r.attr(ino)
        assert not attr.inline and attr.stored_bytes == 64 * KIB and attr.size == 5 and attr.mtime_ns >= before
        assert r.content(ino) == b"hello" and map_of(r, ino) == [(0, 5)]
        r.write(ino, fh, 5, b" world")
        r.restart()
        assert r.content(ino) == b"hello world"
        assert r.mount.buffered.reservation.left_bytes <= r.volume().reserved_bytes
        r.check()


@pytest.mark.parametrize("how", ["device", "quota"])
@pytest.mark.parametrize("keep", [0, KEEP])
def test_allocated_ranges_take_writes_when_nothing_else_does(tmp_path: Path, how: str, keep: int) -> None:
    quota = 12 * MIB if how == "quota" else 0
    with rig(tmp_path, segments=40, quota_bytes=quota) as r:
        number = errno.EDQUOT if quota else errno.ENOSPC
        ino, fh = made(r)
        r.call("fallocate", ino, fh, keep, 0, 4 * MIB)
        other, other_fh = made(r, name=b"other")
        filled = 0
        with contextlib.suppress(FsError):
            while filled < 64 * MIB:
                r.write(other, other_fh, filled, b"o" * (256 * KIB))
                filled += 256 * KIB
        assert filled > 4 * MIB
        for kill in (r.restart, r.remount, lambda: None):
            kill()
        fh, other_fh = r.open(ino), r.open(other)
        assert error_of(r.write, other, other_fh, filled, b"o" * (256 * KIB)) == number
        for at in range(0, 4 * MIB, 128 * KIB):
            r.write(ino, fh, at, bytes([1 + at // (128 * KIB)]) * (128 * KIB))
            if at == MIB:
                r.restart()
            if at == 2 * MIB:
                r.fsync(ino, fh)
        r.fsync(ino, fh)
        expected = b"".join(bytes([1 + at // (128 * KIB)]) * (128 * KIB) for at in range(0, 4 * MIB, 128 * KIB))
        assert r.content(ino, 5 * MIB) == expected
        assert error_of(r.call, "fallocate", other, other_fh, 0, 0, 60 * MIB) == number
        r.call("unlink", 1, b"other")
        r.close_file(other, other_fh)
        r.flush()
        r.check()


def test_fallocate_gets_back_what_the_worker_reserved_for_nothing(tmp_path: Path) -> None:
    with rig(tmp_path, quota_bytes=20 * MIB) as r:
        ino, fh = made(r, b"x" * 10_000)
        block_on(r.mount.buffered.reservation.refill(10 * MIB))
        assert 20 * MIB - r.volume().reserved_bytes < 15 * MIB, "without it, there is no room"
        r.call("fallocate", ino, fh, 0, 0, 15 * MIB)
        assert r.attr(ino).stored_bytes == 15 * MIB
        r.check()


def test_the_hole_of_a_huge_file_is_one_question(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = made(r)
        r.write(ino, fh, (1 << 44) - 5000, b"a" * 5000)
        r.flush()
        r.restart()
        asked = []
        r.gate().on_ask = lambda body: asked.append(body) if isinstance(body, m.GetLayout) else None
        assert r.call("lseek", ino, fh, 0, os.SEEK_DATA) == (1 << 44) - 5000
        assert r.call("lseek", ino, fh, 0, os.SEEK_HOLE) == 0
        assert len(asked) <= 2


# --- lseek ------------------------------------------------------------------------------------------------------------------
def test_seek_sees_dirty_and_clean_data(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = made(r)
        r.write(ino, fh, 1 * MIB, b"a" * 4096)
        r.flush()
        r.write(ino, fh, 1 * MIB + 4096, b"b" * 4096)
        r.write(ino, fh, (1 << 40) - 1, b"c")
        for _ in range(2):
            assert map_of(r, ino) == [(MIB, MIB + 8192), ((1 << 40) - 1, 1 << 40)]
            assert r.call("lseek", ino, fh, 0, os.SEEK_HOLE) == 0
            assert r.call("lseek", ino, fh, MIB + 5, os.SEEK_DATA) == MIB + 5
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                assert error_of(r.call, "lseek", ino, fh, 1 << 40, whence) == errno.ENXIO
                assert error_of(r.call, "lseek", ino, fh, (1 << 64) - 1, whence) == errno.ENXIO
            r.restart()
        assert error_of(r.call, "lseek", ino, fh, 0, 9) == errno.EINVAL
        r.truncate(ino, 2 * MIB)
        assert error_of(r.call, "lseek", ino, fh, MIB + 8192, os.SEEK_DATA) == errno.ENXIO
        assert r.call("lseek", ino, fh, MIB, os.SEEK_HOLE) == MIB + 8192
        r.check()


def test_seek_in_small_and_empty_files(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = made(r)
        assert error_of(r.call, "lseek", ino, fh, 0, os.SEEK_DATA) == error_of(r.call, "lseek", ino, fh, 0, os.SEEK_HOLE) == errno.ENXIO
        r.write(ino, fh, 0, b"hello")
        assert r.call("lseek", ino, fh, 0, os.SEEK_HOLE) == 5
        r.truncate(ino, 100)
        assert map_of(r, ino) == [(0, 5)] and r.call("lseek", ino, fh, 50, os.SEEK_HOLE) == 50
        r.restart()
        assert map_of(r, ino) == [(0, 5)]


# --- copies by reference ----------------------------------------------------------------------------------------------------
def copy(r: Rig, ino: int, offset: int, new: int, at: int, length: int) -> int:
    copied: int = r.call("copy_file_range", ino, offset, new, 0, at, length, 0)
    return copied


def test_a_copy_moves_no_bytes(tmp_path: Path, seed: int) -> None:
    data = random.Random(seed).randbytes(300_000)
    with rig(tmp_path) as r:
        ino, fh = made(r, data)
        new, new_fh = made(r, b"", b"g")
        r.write(new, new_fh, 0, b"!" * 10_000)
        r.flush()
        before = bytes(r.device.content)
        assert copy(r, ino, 1_000, new, 5_000, 1 << 40) == 299_000
        expected = b"!" * 5_000 + data[1_000:]
        assert r.content(new) == expected
        assert r.device.content == before
        r.truncate(ino, 2_000)
        r.write(ino, fh, 0, b"changed")
        r.restart()
        assert r.content(new) == expected and r.content(ino) == b"changed" + data[7:2_000]
        assert copy(r, new, 1_000_000, ino, 0, 5) == 0
        r.call("unlink", 1, b"f")
        r.close_file(ino, fh)
        r.remount()
        assert r.content(new) == expected
        r.check()


def test_within_one_file_and_holes(tmp_path: Path, seed: int) -> None:
    data = random.Random(seed).randbytes(200_000)
    with rig(tmp_path) as r:
        ino, fh = made(r, data)
        assert copy(r, ino, 0, ino, 100_000, 50_000) == 50_000
        want = data[:100_000] + data[:50_000] + data[150_000:]
        assert r.content(ino) == want
        r.call("fallocate", ino, fh, PUNCH, 10_000, 10_000)
        assert copy(r, ino, 0, ino, 160_000, 40_000) == 40_000
        assert r.content(ino) == want[:10_000] + bytes(10_000) + want[20_000:160_000] + want[:10_000] + bytes(10_000) + want[20_000:40_000]
        assert error_of(copy, r, ino, 0, ino, 10, 100) == errno.EINVAL
        r.check()


def test_inline_data_is_copied_by_the_kernel(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, _ = made(r, b"small")
        new, _ = made(r, b"", b"g")
        assert error_of(copy, r, ino, 0, new, 0, 5) == errno.EOPNOTSUPP
        big, _ = made(r, b"x" * 9_000, b"h")
        assert error_of(copy, r, big, 0, ino, 5, 9_000) == errno.EOPNOTSUPP
        assert copy(r, big, 0, new, 0, 9_000) == 9_000 and r.content(new) == b"x" * 9_000
        r.check()


def test_copies_in_bounded_entries_and_against_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(copy_range, "PIECES_PER_COPY_MAX", 2)
    with rig(tmp_path, quota_bytes=2 * MIB) as r:
        ino, fh = made(r)
        for at in range(6):
            r.write(ino, fh, at * 20_000, bytes([at + 1]) * 10_000)
        new, _ = made(r, b"", b"g")
        at = 0
        while count := copy(r, ino, at, new, at, 1 << 30):
            assert count <= 50_000
            at += count
        assert at == 110_000 and r.content(new) == r.content(ino)
        used = r.volume().used_bytes
        assert used == 120_000
        big, _ = made(r, random.Random(seed).randbytes(MIB), b"big")
        r.flush()
        assert error_of(copy, r, big, 0, new, 0, MIB) == errno.EDQUOT
        assert r.volume().used_bytes == used + MIB
        r.check()


@pytest.mark.parametrize("applied", [False, True])
def test_the_worker_dies_around_a_copy(tmp_path: Path, applied: bool, seed: int) -> None:
    data = random.Random(seed).randbytes(100_000)
    with rig(tmp_path) as r:
        ino, fh = made(r, data)
        new, new_fh = made(r, b"", b"g")
        ctx = r.ctx(9_000)
        if applied:
            assert finish(r.vfs.copy_file_range(ctx, ino, 0, new, new_fh, 0, 100_000, 0)) == 100_000
            r.write(new, new_fh, 50, b"after")
            r.write(ino, fh, 0, b"source")
        r.kill()
        results = r.start(lambda vfs: vfs.copy_file_range(r.ctx(9_000), ino, 0, new, new_fh, 0, 100_000, 0))
        assert results == [100_000]
        assert r.content(new) == (data[:50] + b"after" + data[55:] if applied else data)
        r.check()


# --- set-ID bits --------------------------------------------------------------------------------------------------------------
def test_the_kernel_forgets_a_mode_whose_set_id_bits_went_with_a_change_of_bytes(tmp_path: Path) -> None:
    """It doubts size and times after such a change, and runs the program with the mode it knows."""
    with rig(tmp_path) as r:
        forgotten: list[int] = []
        r.mount.caches.forget_attributes = forgotten.append
        source, _ = made(r, b"y" * MIB, b"source")
        ino, fh = made(r, b"x" * MIB)

        def call(method: str, *args: Any) -> Any:
            ctx = r.ctx(uid=1)
            ctx.kill_suidgid = True
            return finish(getattr(r.vfs, method)(ctx, *args))

        changes = [
            lambda: call("write", ino, fh, 0, memoryview(b"z"), 1 << 2),
            lambda: call("fallocate", ino, fh, 0, 0, 4096),
            lambda: call("fallocate", ino, fh, KEEP, 0, 4096),
            lambda: call("fallocate", ino, fh, PUNCH, 0, 4096),
            lambda: call("fallocate", ino, fh, ZERO, 0, 4096),
            lambda: call("copy_file_range", source, 0, ino, fh, 0, 4096, 0),
            lambda: call("open", ino, os.O_WRONLY | os.O_TRUNC),
        ]
        for change in changes:
            r.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o100000 | 0o6777))
            forgotten.clear()
            change()
            assert r.attr(ino).mode & 0o7777 == 0o777 and forgotten == [ino]
            change()
            assert forgotten == [ino], "nothing changed"
