"""Bytes through the vfs: what is read over what is dirty, truncation, space, the end of files, and bad devices."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import FILE_BYTES_MAX, INLINE_BYTES_MAX, MIB
from awsomefsd.base.types import ROOT_INO
from awsomefsd.io.file import file_data
from awsomefsd.io.file.damaged_reads import DamagedReads
from awsomefsd.io.file.flusher import record_space
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine import queries
from awsomefsd.vfs.api.context import SetAttrIn
from awsomefsd.vfs.ops.writing import WRITE_KILL_SUIDGID
from tests.rigs.mount_without_kernel import BIG, Held, Rig, error_of, failing, rig, until


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


# --- what is read ---------------------------------------------------------------------------------------------------------
def test_reads_show_dirty_data_over_committed_exactly(r: Rig, seed: int) -> None:
    rng = random.Random(seed)
    ino, fh = r.create(b"a")
    expected = bytearray()
    for step in range(150):
        offset, length = rng.randrange(60_000), rng.randrange(1, 9_000)
        data = rng.randbytes(length)
        r.write(ino, fh, offset, data)
        if len(expected) < offset:
            expected += bytes(offset - len(expected))
        expected[offset : offset + length] = data
        if rng.random() < 0.2:
            r.fsync(ino, fh)
        if rng.random() < 0.1:
            r.worker.data.flusher.kick()
        start, size = rng.randrange(70_000), rng.randrange(1, 70_000)
        assert r.read(ino, fh, start, size) == expected[start : start + size], f"step {step}"
    assert r.attr(ino).size == len(expected)
    r.restart()
    assert r.content(ino) == bytes(expected)


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES_MAX - 1, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, MIB])
def test_files_of_every_kind_of_size(r: Rig, size: int) -> None:
    data = random.Random(size).randbytes(size)
    ino = r.file(b"a", data)
    assert r.content(ino) == data
    r.flush()
    assert r.content(ino) == data
    r.restart()
    assert r.content(ino) == data and r.attr(ino).size == size


def test_a_file_of_very_many_extents_is_read(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "LAYOUT_EXTENTS_MAX", 8)
    ino, fh = r.create(b"a")
    expected = bytearray(200 * 100)
    for at in range(200):
        r.write(ino, fh, at * 100, bytes([at + 1]))
        expected[at * 100] = at + 1
    r.write(ino, fh, 200 * 100 - 1, b"e")
    expected[-1:] = b"e"
    r.fsync(ino, fh)
    r.restart()
    assert r.content(ino) == bytes(expected)


# --- truncation -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [100, 3 * INLINE_BYTES_MAX])
@pytest.mark.parametrize("flushed", [False, True])
def test_what_was_cut_off_reads_as_zeros_when_the_file_grows_again(r: Rig, length: int, flushed: bool) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * length)
    if flushed:
        r.fsync(ino, fh)
    for size in (length // 2, length, 0, length * 2):
        assert r.truncate(ino, size).size == size
    expected = bytes(length * 2)
    assert r.read(ino, fh, 0, MIB) == expected
    r.write(ino, fh, 10, b"b")
    r.restart()
    assert r.content(ino) == expected[:10] + b"b" + expected[11:]


def test_a_kill_after_a_truncation_does_not_bring_dirty_data_back(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    gate = r.gate()
    held: list[Held] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, c.SetAttr):
            held.append(Held(r.worker.client.propose(command, unique)))
            return held[0]
        return None

    gate.on_propose = on_propose
    ctx = r.ctx()
    r.begin("setattr", ino, None, SetAttrIn(c.SET_SIZE, size=0))
    assert held[0].answered.wait(60)
    r.kill()
    r.start(lambda vfs: vfs.setattr(r.ctx(ctx.unique + 2), ino, None, SetAttrIn(c.SET_SIZE, size=0)))
    assert r.attr(ino).size == 0 and r.content(ino) == b""


def test_a_truncation_meets_a_state_that_was_forgotten_meanwhile(r: Rig) -> None:
    """Eviction may take a clean file while its truncation is under way."""
    ino = r.file(b"a", b"a" * BIG)
    r.flush()
    assert len(r.content(ino)) == BIG
    gate = r.gate()
    held: list[Held] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, c.SetAttr):
            held.append(Held(r.worker.client.propose(command, unique)))
            return held[0]
        return None

    gate.on_propose = on_propose
    cut = r.begin("setattr", ino, None, SetAttrIn(c.SET_SIZE, size=5))
    assert held[0].answered.wait(60)
    r.mount.buffered.files.forget_clean()
    assert len(r.content(ino)) == BIG
    held[0].release()
    cut.result()
    assert r.content(ino) == b"aaaaa"


def test_a_write_meets_a_state_that_was_forgotten_meanwhile(r: Rig) -> None:
    """Another thread may evict a clean file between a writer's look at the table and its record."""
    r.file(b"warm", b"w")  # from here on the reservation holds something
    ino, fh = r.create(b"a")
    find = r.mount.buffered.files.state
    raced: list[int] = []

    def state(attr: Any) -> file_data.FileState:
        found: file_data.FileState = find(attr)
        if not raced:
            raced.append(1)
            r.mount.buffered.files.forget_clean()
        return found

    r.mount.buffered.files.state = state
    r.write(ino, fh, 0, b"a" * BIG)
    r.mount.buffered.files.state = find
    assert r.read(ino, fh, 0, MIB) == b"a" * BIG
    r.flush()
    assert r.mount.buffered.dirty.dirty_bytes == 0


def test_write_then_utimens_then_flush_keeps_the_time(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    r.call("setattr", ino, fh, SetAttrIn(c.SET_MTIME, mtime_ns=123))
    assert r.attr(ino).mtime_ns == 123
    r.fsync(ino, fh)
    assert r.attr(ino).mtime_ns == 123
    r.restart()
    assert r.attr(ino).mtime_ns == 123
    r.write(ino, fh, 0, b"b")
    assert r.attr(ino).mtime_ns > 123


def test_stat_that_meets_a_commit_shows_the_size_after_the_write(r: Rig) -> None:
    """The commit is taken up between the look at the attributes and the look at what is dirty."""
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * 120)
    r.flush()
    r.write(ino, fh, 120, b"y" * 26)
    names, look = r.mount.caches.names, r.mount.caches.names.attr

    def overtaken(number: int) -> Any:
        attr = look(number)
        names.attr = look
        r.flush()
        return attr

    names.attr = overtaken
    assert r.attr(ino).size == 146


# --- bounds and space -----------------------------------------------------------------------------------------------------
def test_a_write_to_a_directory_is_refused_and_leaves_nothing_to_flush(r: Rig) -> None:
    """No kernel asks for it; a record that no commit takes would be flushed for ever, and with it every later fsync would wait."""
    before = r.mount.buffered.reservation.left_bytes
    assert error_of(lambda: r.write(ROOT_INO, 1, 0, b"bytes")) == errno.EINVAL
    assert r.mount.buffered.dirty.dirty_bytes == 0
    assert r.mount.buffered.reservation.left_bytes == before


@pytest.mark.parametrize("known", [True, False])
def test_a_write_beyond_the_largest_file_is_refused_and_poisons_nothing(r: Rig, known: bool) -> None:
    ino, fh = r.create(b"a")
    if not known:
        r.mount.caches.names.clear()
    assert error_of(r.write, ino, fh, FILE_BYTES_MAX - 1, b"ab") == errno.EFBIG
    r.write(ino, fh, 0, b"fine")
    r.fsync(ino, fh)


def test_a_full_device_says_enospc_at_write_and_takes_data_again_after_a_removal(tmp_path: Path) -> None:
    with rig(tmp_path, segments=12) as r:
        written = fill(r, errno.ENOSPC)
        assert written > 4 * MIB
        r.flush()
        for name in list(r.listdir()):
            if name != b"f0":
                r.call("unlink", ROOT_INO, name)
        until(lambda: _writes(r))
        r.flush()
        first = r.lookup(b"f0").ino
        assert r.content(first) == bytes([0]) * 300_000
        balanced(r)
        r.unmount()
        r.check()


def test_a_quota_says_edquot_at_write_and_takes_data_again_after_a_removal(tmp_path: Path) -> None:
    with rig(tmp_path, quota_bytes=3 * MIB) as r:
        assert 2 * MIB < fill(r, errno.EDQUOT) <= 3 * MIB
        r.flush()
        assert r.volume().used_bytes <= 3 * MIB
        r.call("unlink", ROOT_INO, b"f0")
        until(lambda: _writes(r))
        balanced(r)


def test_who_has_no_room_is_told_so_and_not_what_failed_of_other_files(tmp_path: Path) -> None:
    with rig(tmp_path, quota_bytes=3 * MIB) as r:
        r.file(b"other", bytes(BIG))
        r.device.on_write = failing()
        assert 2 * MIB < fill(r, errno.EDQUOT) <= 3 * MIB


def fill(r: Rig, number: int) -> int:
    """Files of 300,000 bytes until `number`; how many bytes were acknowledged."""
    for at in range(1_000):
        ino, fh = r.create(b"f%d" % at)
        try:
            r.write(ino, fh, 0, bytes([at % 251]) * 300_000)
        except FsError as err:
            if err.errno != number:
                raise
            return at * 300_000
        finally:
            r.close_file(ino, fh)
    raise AssertionError("it never ends")


def _writes(r: Rig) -> bool:
    ino, fh = r.create(b"again", flags=os.O_RDWR)
    try:
        r.write(ino, fh, 0, b"x" * 100_000)
    except FsError:
        return False
    finally:
        r.close_file(ino, fh)
    return True


def balanced(r: Rig) -> None:
    """What this worker may still promise, and what dirty records hold, is what the leader has on its books."""
    r.flush()
    assert r.mount.buffered.dirty.dirty_bytes == 0
    assert r.mount.buffered.reservation.left_bytes == r.volume().reserved_bytes


def test_reservations_always_add_up(r: Rig, seed: int) -> None:
    rng = random.Random(seed)
    open_files: list[tuple[int, int]] = []
    for step in range(200):
        kind = rng.randrange(8)
        if kind < 3 or not open_files:
            open_files.append(r.create(b"f%d" % step))
        ino, fh = rng.choice(open_files)
        if kind < 6:
            r.write(ino, fh, rng.randrange(100_000), rng.randbytes(rng.choice([10, 5_000, 100_000])))
        elif kind == 6:
            r.truncate(ino, rng.choice([0, 0, 10, 50_000]))
        else:
            names = r.listdir()
            if not names:
                continue
            name = rng.choice(sorted(names))
            r.call("unlink", ROOT_INO, name)
            if rng.random() < 0.5:
                for other in [one for one in open_files if one[0] == names[name]]:
                    r.close_file(*other)
                    open_files.remove(other)
        if rng.random() < 0.05:
            r.restart()
        if rng.random() < 0.1:
            balanced(r)
    for one in open_files:
        r.close_file(*one)
    balanced(r)
    r.unmount()
    assert r.volume().reserved_bytes == 0
    r.check()


def emptied(r: Rig, through_handle: bool) -> tuple[int, int]:
    """A committed file that a program has opened, truncated to nothing, and not written yet: (inode, handle)."""
    ino = r.file(b"f", b"old content")
    r.flush()
    fh = r.open(ino, os.O_WRONLY | (0 if through_handle else os.O_TRUNC))
    if through_handle:
        r.truncate(ino, 0, fh)
    return ino, fh


@pytest.mark.parametrize("through_handle", [False, True], ids=["O_TRUNC", "ftruncate"])
@pytest.mark.parametrize("between", ["nothing", "takeover", "eviction", "two closes"])
def test_close_commits_what_was_written_behind_a_truncation_to_nothing(r: Rig, between: str, through_handle: bool) -> None:
    ino, fh = emptied(r, through_handle)
    if between == "takeover":
        r.restart()
    elif between == "eviction":
        r.mount.buffered.files.forget_clean()
    elif between == "two closes":
        r.call("flush", ino, fh, 0)
    r.write(ino, fh, 0, b"new content")
    assert r.mount.buffered.dirty.dirty_bytes
    r.call("flush", ino, fh, 0)
    assert not r.mount.buffered.dirty.dirty_bytes
    r.write(ino, fh, 0, b"NEW")
    r.call("flush", ino, fh, 0)
    assert r.mount.buffered.dirty.dirty_bytes, "the first close only"


def test_a_close_whose_commit_fails_leaves_it_to_the_next_one(r: Rig) -> None:
    ino, fh = emptied(r, False)
    r.write(ino, fh, 0, b"n" * BIG)
    r.device.on_flush = failing()
    assert error_of(r.call, "flush", ino, fh, 0) == errno.EIO
    r.device.on_flush = lambda: None
    r.call("flush", ino, fh, 0)
    assert not r.mount.buffered.dirty.dirty_bytes


def test_files_that_were_emptied_are_remembered_within_a_bound(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.vfs.state.rewrites.REMEMBERED_MAX", 4)
    ino, fh = emptied(r, False)
    for number in range(20):
        r.truncate(r.file(b"%d" % number, b"x"), 0)
    assert len(r.mount.session.rewrites._inos) <= 6
    r.write(ino, fh, 0, b"new content")
    r.call("flush", ino, fh, 0)
    assert not r.mount.buffered.dirty.dirty_bytes, "one that is open is not forgotten"


def test_a_write_that_fails_gives_its_reservation_back(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"a")
    left = r.mount.buffered.reservation.left_bytes
    with monkeypatch.context() as patch:
        patch.setattr(r.mount.buffered.dirty, "append_write", lambda *_, **__: failing()())
        assert error_of(r.write, ino, fh, 0, b"b") == errno.EIO
    assert r.mount.buffered.reservation.left_bytes == left
    r.flush()
    balanced(r)


def test_fallocate_of_a_small_file_with_a_time_that_no_record_can_say(r: Rig) -> None:
    ino = r.file(b"f", b"small")
    r.flush()
    r.call("setattr", ino, None, SetAttrIn(c.SET_MTIME, mtime_ns=10_413_792_000 * 10**9))  # the year 2300
    fh = r.open(ino)
    r.call("fallocate", ino, fh, 0, 0, 1 << 20)
    assert r.attr(ino).size == 1 << 20 and r.read(ino, fh, 0, 9) == b"small\0\0\0\0"


def test_a_kill_after_a_removal_gives_the_reservation_of_its_dirty_data_back(r: Rig) -> None:
    r.file(b"a", b"a" * BIG)
    r.kill()
    r.host.service.propose(c.Unlink(1, ROOT_INO, b"a"), 60)  # type: ignore[union-attr]
    r.start()
    balanced(r)


# --- files without names --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("forgotten", [False, True])
def test_a_removed_open_file_lives_until_its_last_close(r: Rig, killed: bool, forgotten: bool) -> None:
    ino, fh = r.create(b"a")
    other = r.open(ino)
    r.write(ino, fh, 0, b"a" * BIG)
    r.call("unlink", ROOT_INO, b"a")
    if killed:
        r.restart()
    r.write(ino, other, BIG, b"b")
    assert r.read(ino, fh, 0, MIB) == b"a" * BIG + b"b"
    r.fsync(ino, fh)
    r.close_file(ino, fh)
    assert r.read(ino, other, 0, MIB) == b"a" * BIG + b"b"
    if forgotten:
        r.mount.caches.names.clear()
    r.close_file(ino, other)
    until(lambda: r.volume().used_bytes == 0)
    assert r.volume().used_inodes == 1
    balanced(r)


def test_dirty_data_of_a_removed_file_that_is_closed_after_a_takeover_is_dropped(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.call("unlink", ROOT_INO, b"a")
    r.restart()
    r.write(ino, fh, 0, b"a" * BIG)
    r.mount.caches.names.clear()
    r.close_file(ino, fh)
    until(lambda: r.volume().used_inodes == 1)
    balanced(r)


# --- bad devices ----------------------------------------------------------------------------------------------------------
def test_wrong_bytes_are_an_error_and_counted(r: Rig) -> None:
    ino = r.file(b"a", b"a" * BIG)
    r.flush()
    (offset, length) = r.device.writes[-1]
    for at in range(offset, offset + length, 64):
        r.device.content[at] ^= 1
    fh = r.open(ino)
    assert error_of(r.read, ino, fh, 0, MIB) == errno.EIO
    assert r.counter("corrupt_reads") == 1
    until(lambda: bool(DamagedReads(r.directory).all()))
    [met] = DamagedReads(r.directory).all()
    assert (met.ino, met.offset, met.path, bool(met.what)) == (ino, 0, "/a", True), "the daemon shows the file and the place"
    r.write(ino, fh, 0, b"b" * BIG)  # overwritten, it is good again
    assert r.read(ino, fh, 0, MIB) == b"b" * BIG
    r.fsync(ino, fh)
    assert r.read(ino, fh, 0, MIB) == b"b" * BIG


def test_a_device_that_cannot_be_read_is_an_error_and_nothing_is_remembered_of_it(r: Rig) -> None:
    ino = r.file(b"a", b"a" * BIG)
    r.flush()
    fh = r.open(ino)
    good, r.device.on_read = r.device.on_read, failing()
    assert error_of(r.read, ino, fh, 0, MIB) == errno.EIO
    r.device.on_read = good
    assert r.read(ino, fh, 0, MIB) == b"a" * BIG


def test_kill_suidgid_comes_before_the_bytes(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.call("setattr", ino, fh, SetAttrIn(c.SET_MODE, mode=0o6755))
    assert r.call("write", ino, fh, 0, memoryview(b"x"), WRITE_KILL_SUIDGID) == 1
    assert r.attr(ino).mode & 0o7777 == 0o755


def test_setgid_without_group_execute_goes_with_a_strangers_write_only(r: Rig) -> None:
    ino, fh = r.create(b"a")
    write = ("write", ino, fh, 0, memoryview(b"x"), WRITE_KILL_SUIDGID)
    for gid, left in ((0, 0o2644), (4_242, 0o644)):  # the rig's callers are of group 0
        r.call("setattr", ino, fh, SetAttrIn(c.SET_MODE | c.SET_GID, mode=0o2644, gid=gid))
        assert r.call(*write) == 1 and r.attr(ino).mode & 0o7777 == left
    r.call("setattr", ino, fh, SetAttrIn(c.SET_MODE, mode=0o2644))
    r.call("setattr", ino, fh, SetAttrIn(c.SET_SIZE | c.SET_KILL_SUIDGID, size=0))
    assert r.attr(ino).mode & 0o7777 == 0o644


def test_record_space_covers_what_a_flush_consumes(r: Rig) -> None:
    r.file(b"warm", b"w" * BIG)
    r.flush()
    for length in (1, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 70_000, MIB):
        before = r.mount.buffered.reservation.left_bytes
        r.file(b"f%d" % length, b"x" * length)
        assert r.mount.buffered.reservation.left_bytes == before - record_space(length)
        r.flush()
        assert r.mount.buffered.reservation.left_bytes >= before - record_space(length)
    assert isinstance(r.host.service.query(m.GetStatFs(1)), m.StatFsReply)  # type: ignore[union-attr]
