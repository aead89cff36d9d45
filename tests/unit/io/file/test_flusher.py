"""The flusher in a whole mount: refusals, failing devices, requests that end without a flush, and batches in a row."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.limits import MIB, RESULTS_PER_MOUNT_MAX
from awsomefsd.base.types import ROOT_INO
from awsomefsd.base.wait import block_on
from awsomefsd.io.file import flusher
from awsomefsd.io.file.flusher import record_space
from awsomefsd.io.file.patience import Patience
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.api.context import SetAttrIn
from tests.rigs.mount_without_kernel import BIG, LIMIT_S, After, Held, Rig, Started, error_of, failing, finish, rig, until


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def refuse(command: c.Commit, ino: int) -> None:
    """Make the machine refuse one inode of a commit, as for a shape that is not believed."""
    for step in command.inodes:
        if step.ino == ino:
            step.extents, step.inline = [], [(1 << 20, b"x")]


def first_commit(r: Rig, then: Any) -> Any:
    """Calls `then(command)` for the first Commit; what it returns takes the place of the request."""
    seen: list[c.Commit] = []
    gate = r.gate()

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, c.Commit) and not seen:
            seen.append(command)
            return then(command, unique)
        return None

    gate.on_propose = on_propose
    return gate


# --- refusals -------------------------------------------------------------------------------------------------------------
def test_a_refused_file_is_flushed_again(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    first_commit(r, lambda command, _: refuse(command, ino))
    r.fsync(ino, fh)
    r.restart()
    assert r.content(ino) == b"a" * BIG


def test_a_refused_file_loses_nothing_to_the_batch_behind_it(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch of a file must not overtake the first, whose inode was refused."""
    monkeypatch.setattr(flusher, "BATCH_BYTES_MAX", BIG)
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    r.fsync(ino, fh)
    held: list[Held] = []

    def later(command: c.Commit, unique: int) -> Held:
        refuse(command, ino)
        held.append(Held(r.worker.client.propose(command, unique)))
        return held[0]

    first_commit(r, later)
    r.write(ino, fh, 0, b"b" * BIG)
    r.write(ino, fh, BIG, b"c" * BIG)
    writes = len(r.device.writes)
    done = r.begin("fsync", ino, fh, False)
    until(lambda: len(r.device.writes) >= writes + 2)  # the second batch is on the device, its commit waits for the first
    held[0].release()
    done.result()
    assert r.content(ino) == b"b" * BIG + b"c" * BIG
    r.restart()
    assert r.content(ino) == b"b" * BIG + b"c" * BIG


def test_a_truncation_to_nothing_ends_although_what_was_in_flight_is_refused(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    held: list[Held] = []

    def later(command: c.Commit, unique: int) -> Held:
        refuse(command, ino)
        held.append(Held(r.worker.client.propose(command, unique)))
        return held[0]

    first_commit(r, later)
    sync = r.begin("fsync", ino, fh, False)
    until(lambda: bool(held))
    cut = Started(r.vfs.setattr(r.ctx(), ino, None, r_set_size(0)))
    held[0].release()
    assert cut.result().size == 0
    sync.result()
    assert r.content(ino) == b""


def r_set_size(size: int) -> SetAttrIn:
    return SetAttrIn(c.SET_SIZE, size=size)


# --- what is gone before it is flushed ------------------------------------------------------------------------------------
def test_a_flush_of_a_file_that_is_removed_meanwhile_ends(r: Rig) -> None:
    ino = r.file(b"a", b"a" * BIG)
    r.worker.data.flusher.pause(True)
    done = Started(_op(r.worker.data.flusher.flush_all()))
    r.call("unlink", ROOT_INO, b"a")
    r.worker.data.flusher.pause(False)
    done.result()
    before = time.thread_time()
    assert r.worker.data.flusher._thread.is_alive()
    r.file(b"b", b"b" * BIG)
    r.flush()
    assert time.thread_time() - before < 5
    assert r.mount.buffered.files.get(ino) is None


def _op(wait: Any) -> Any:
    return (yield wait)


def test_a_removed_file_does_not_stop_the_flush_of_others(r: Rig) -> None:
    """Its shape is asked for when nobody knows it any more."""
    ino = r.file(b"a", b"a" * 100)
    r.restart()
    fh = r.open(ino)
    r.write(ino, fh, 0, b"a" * BIG)
    r.close_file(ino, fh)
    other = r.file(b"b", b"b" * BIG)
    gate = r.gate()
    held: list[After] = []

    def on_ask(body: Any) -> Any:
        if isinstance(body, m.GetLayout) and body.ino == ino and not held:
            held.append(After(r.worker.client.ask(body)))
            return held[0]
        return None

    gate.on_ask = on_ask
    done = Started(_op(r.worker.data.flusher.flush_all()))
    until(lambda: bool(held) and held[0].begun.is_set())
    r.call("unlink", ROOT_INO, b"a")
    held[0].release()
    done.result()
    fh = r.open(other)
    r.fsync(other, fh)
    r.restart()
    assert r.content(other) == b"b" * BIG


def test_a_refused_file_that_is_removed_leaves_the_flusher_alive(r: Rig) -> None:
    ino = r.file(b"a", b"a" * BIG)
    held: list[Held] = []

    def later(command: c.Commit, unique: int) -> Held:
        refuse(command, ino)
        held.append(Held(r.worker.client.propose(command, unique)))
        return held[0]

    first_commit(r, later)
    done = Started(_op(r.worker.data.flusher.flush_all()))
    until(lambda: bool(held) and held[0].answered.is_set())
    r.call("unlink", ROOT_INO, b"a")
    held[0].release()
    done.result()
    other = r.file(b"b", b"b" * BIG)
    r.flush()
    r.restart()
    assert r.content(other) == b"b" * BIG
    assert error_of(r.lookup, b"a") == errno.ENOENT


def test_dirty_data_of_a_removed_file_gives_its_reservation_back(r: Rig) -> None:
    r.file(b"warm", b"w")
    r.flush()
    left = r.mount.buffered.reservation.left_bytes
    for at in range(20):
        r.file(b"a", bytes([at]) * BIG)
        r.call("unlink", ROOT_INO, b"a")
    assert r.mount.buffered.reservation.left_bytes == left
    assert r.mount.buffered.dirty.dirty_bytes == 0


# --- failing devices ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hook", ["on_write", "on_flush"])
def test_fsync_reports_a_failed_write_once_and_the_data_stays(r: Rig, hook: str) -> None:
    good = getattr(r.device, hook)
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    setattr(r.device, hook, failing())
    assert error_of(r.fsync, ino, fh) == errno.EIO
    assert r.read(ino, fh, 0, BIG) == b"a" * BIG
    setattr(r.device, hook, good)
    until(lambda: _synced(r, ino, fh))
    assert r.mount.buffered.files.get(ino).error is None
    r.fsync(ino, fh)
    r.restart()
    assert r.content(ino) == b"a" * BIG


def test_who_waits_for_mirrors_is_told_of_no_failure(r: Rig) -> None:
    """With on-lease-loss=error ETIMEDOUT after a while, who waits for room too; the data stays."""
    now, tries, good = [0], [0], r.device.on_write
    r.mount.buffered.flusher.wait_for_mirrors(Patience(10, lambda: now[0]))

    def away(*_: Any) -> None:
        tries[0] += 1
        raise OSError(errno.EIO, "no mirror")

    r.device.on_write = away
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    waiting = Started(_op(r.mount.buffered.flusher.flush(ino)))
    until(lambda: tries[0] >= 3)
    assert not waiting.ended.is_set()
    room = Started(_op(r.mount.buffered.flusher.room()))
    now[0] = 20_000_000
    for one in (waiting, room):
        assert error_of(one.result) == errno.ETIMEDOUT
    r.device.on_write = good
    until(lambda: _synced(r, ino, fh))
    r.restart()
    assert r.content(ino) == b"a" * BIG


def test_mirrors_that_are_back_are_no_error_to_who_waits_for_room(r: Rig) -> None:
    """The file still has the error, which its own fsync is told."""
    good, flusher_ = r.device.on_write, r.mount.buffered.flusher
    flusher_.wait_for_mirrors(Patience(0))
    r.device.on_write = failing()
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    flusher_.kick()
    state = r.mount.buffered.files.get(ino)
    until(lambda: state.error is not None)
    flusher_.pause(True)
    until(lambda: not flusher_._driven)
    told: list[Error | None] = []

    def watch(_value: Any, error: Any) -> None:
        told.append(error)
        flusher_.room().start(watch)

    flusher_.room().start(watch)
    r.device.on_write = good
    flusher_.pause(False)
    until(lambda: not state.dirty and told)
    r.file(b"b", b"b" * BIG)
    r.flush()  # all that was announced of the first is told
    assert not any(told), told
    assert error_of(r.fsync, ino, fh) == errno.ETIMEDOUT
    r.fsync(ino, fh)


def test_small_files_that_ask_no_mirror_do_not_end_the_patience_with_those_that_fail(r: Rig) -> None:
    now, flusher_ = [0], r.mount.buffered.flusher
    flusher_.wait_for_mirrors(Patience(10, lambda: now[0]))
    r.device.on_write = failing()
    small, small_fh = r.create(b"small")
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    waiting = Started(_op(flusher_.flush(ino)))
    Started(_op(flusher_.room())).result()
    flusher_.pause(True)
    state = r.mount.buffered.files.get(ino)
    state.held = True  # as while it is truncated: the next batch is of the other alone
    r.write(small, small_fh, 0, b"b" * 100)
    flusher_.pause(False)
    r.fsync(small, small_fh)
    now[0] = 20_000_000
    state.held = False
    assert error_of(waiting.result) == errno.ETIMEDOUT


def test_a_device_that_takes_too_long_is_no_error_to_who_waits_for_room(r: Rig) -> None:
    """Block devices tell ETIMEDOUT too.  A write waits until they are well, as for any other error."""
    good, r.device.on_write = r.device.on_write, failing(errno.ETIMEDOUT)
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    room = Started(_op(r.mount.buffered.flusher.room()))
    assert error_of(r.flush) == errno.ETIMEDOUT
    room.result()
    r.device.on_write = good
    until(lambda: _synced(r, ino, fh))
    assert r.content(ino) == b"a" * BIG


def _synced(r: Rig, ino: int, fh: int) -> bool:
    """One more EIO is due if a retry failed between the report and the end of the trouble."""
    try:
        r.fsync(ino, fh)
    except FsError:
        return False
    return True


def _failed(r: Rig, ino: int, fh: int) -> None:
    """A flush has failed, was tried again with success, and nobody has been told."""
    good, r.device.on_write = r.device.on_write, failing()
    r.write(ino, fh, 0, b"a" * BIG)
    assert error_of(r.flush) == errno.EIO
    r.device.on_write = good
    until(lambda: not r.mount.buffered.files.get(ino).dirty)


def test_a_failed_flush_is_told_once_to_each_open_handle(r: Rig) -> None:
    ino, first = r.create(b"a")
    unseen = r.open(ino)
    _failed(r, ino, first)
    second = r.open(ino)  # nobody has been told
    assert error_of(r.fsync, ino, second) == errno.EIO
    later = r.open(ino)  # somebody has
    r.fsync(ino, later)
    r.fsync(ino, second)
    assert error_of(r.fsync, ino, first) == errno.EIO
    r.fsync(ino, first)
    r.close_file(ino, unseen)
    assert not r.mount.session.late_errors, "a closed handle is told nothing"


def test_an_fsync_beside_the_one_that_is_told_does_not_miss_the_error(r: Rig) -> None:
    """Between the taking of the error and the telling of the others the file looked clean, and free of errors."""
    ino, first = r.create(b"a")
    second = r.open(ino)
    _failed(r, ino, first)
    session, tell, beside = r.mount.session, r.mount.session.flush_failed, list[Any]()

    def telling(failed: int, error: Error) -> None:
        beside.append(r.request("fsync", r.ctx(), ino, second, False))
        tell(failed, error)

    session.flush_failed = telling  # type: ignore[method-assign]
    assert error_of(r.fsync, ino, first) == errno.EIO
    assert beside[0] is not None, "the second fsync has something to wait for"
    assert error_of(finish, beside[0]) == errno.EIO


def test_an_error_of_which_nobody_was_told_is_told_to_the_next_that_opens(r: Rig) -> None:
    ino, fh = r.create(b"a")
    _failed(r, ino, fh)
    r.close_file(ino, fh)
    again = r.open(ino)
    assert error_of(r.fsync, ino, again) == errno.EIO
    r.fsync(ino, again)
    r.close_file(ino, again)
    r.fsync(ino, r.open(ino))
    assert not r.mount.session.late_errors


def test_a_change_by_path_that_meets_the_error_takes_it_from_no_handle(r: Rig) -> None:
    ino, fh = r.create(b"a")
    _failed(r, ino, fh)
    with pytest.raises(FsError):
        block_on(r.mount.buffered.flusher.flush(ino))
    assert error_of(r.fsync, ino, fh) == errno.EIO
    r.fsync(ino, fh)


def test_a_handle_that_was_not_told_hears_of_what_fails_under_the_next_worker(r: Rig) -> None:
    ino, first = r.create(b"a")
    second = r.open(ino)
    good, r.device.on_write = r.device.on_write, failing()
    r.write(ino, first, 0, b"a" * BIG)
    assert error_of(r.fsync, ino, first) == errno.EIO
    r.restart()
    assert error_of(r.fsync, ino, second) == errno.EIO
    r.device.on_write = good
    until(lambda: _synced(r, ino, first) and _synced(r, ino, second))
    assert r.content(ino) == b"a" * BIG


def test_an_error_of_a_file_is_told_by_its_own_fsync_whoever_else_asked_for_a_flush(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"a" * BIG)
    good, r.device.on_write = r.device.on_write, failing()
    assert error_of(r.flush) == errno.EIO
    r.device.on_write = good
    assert error_of(r.fsync, ino, fh) == errno.EIO
    r.fsync(ino, fh)


def test_a_failing_device_does_not_use_up_the_reservation(r: Rig) -> None:
    r.file(b"warm", b"w" * BIG)
    r.flush()
    before = r.mount.buffered.reservation.left_bytes
    ino, fh = r.create(b"a")
    good, r.device.on_write = r.device.on_write, failing()
    r.write(ino, fh, 0, b"a" * BIG)
    assert error_of(r.fsync, ino, fh) == errno.EIO
    assert r.mount.buffered.reservation.left_bytes == before - record_space(BIG)
    r.device.on_write = good
    until(lambda: _synced(r, ino, fh))
    assert r.mount.buffered.reservation.left_bytes == r.volume().reserved_bytes


# --- batches in a row -----------------------------------------------------------------------------------------------------
def test_from_inline_to_extents_with_batches_in_a_row(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher, "BATCH_BYTES_MAX", 1000)
    ino, fh = r.create(b"a")
    expected = bytearray()
    for at in range(30):
        piece = bytes([at + 1]) * 700
        offset = at * 350
        r.write(ino, fh, offset, piece)
        expected[offset : offset + 700] = piece
        if at % 3 == 0:
            r.worker.data.flusher.kick()
    r.fsync(ino, fh)
    assert r.read(ino, fh, 0, MIB) == bytes(expected)
    r.restart()
    assert r.content(ino) == bytes(expected)


def test_a_later_batch_waits_for_one_that_failed(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher, "BATCH_BYTES_MAX", BIG)
    ino, fh = r.create(b"a")
    for at in range(4):
        r.write(ino, fh, 0, bytes([at + 65]) * BIG)
    first_commit(r, lambda command, unique: _fail())
    assert error_of(r.fsync, ino, fh) == errno.EIO
    until(lambda: _synced(r, ino, fh))
    r.restart()
    assert r.content(ino) == b"D" * BIG


def _fail() -> After:
    wait = After(None)
    wait.release(None, FsError(errno.EIO))
    return wait


# --- results that are kept for us -----------------------------------------------------------------------------------------
def test_reservations_are_acknowledged(r: Rig) -> None:
    """Results nobody acknowledges fill the table of this mount, and then nothing is answered any more."""
    before = held_results(r)
    for _ in range(50):
        with contextlib.suppress(FsError):  # at the end ENOSPC, a result like any other
            block_on(r.mount.buffered.reservation.refill(r.mount.buffered.reservation.left_bytes + 1), LIMIT_S)
    for name in (b"a", b"b"):
        r.file(name)
    assert held_results(r) <= before + 5


def test_a_full_device_does_not_stop_the_mount(r: Rig) -> None:
    r.host.service.propose(c.SetVolume(1, quota_bytes=10_000), 60)  # type: ignore[union-attr]
    r.mount.buffered.reservation.set_left(0)
    ino, fh = r.create(b"a")
    before = held_results(r)
    for _ in range(30):
        assert error_of(r.write, ino, fh, 0, b"x" * 100_000) == errno.EDQUOT
    r.file(b"b")
    assert held_results(r) <= before + 5 < RESULTS_PER_MOUNT_MAX


def held_results(r: Rig) -> int:
    return r.host.replica.machine.results_held(r.worker.mount_id)


def test_opening_with_truncation_through_create_leaves_no_result(r: Rig) -> None:
    r.file(b"a", b"a")
    before = held_results(r)
    for _ in range(20):
        attr, opened = r.call("create", ROOT_INO, b"a", 0o644, os.O_RDWR | os.O_TRUNC)
        r.close_file(attr.ino, opened.fh)
    r.file(b"b")
    assert held_results(r) <= before + 5


def test_nothing_of_a_batch_is_proposed_under_a_session_that_came_after_it_was_taken(r: Rig) -> None:
    """Its records may be in the conflict directory by then."""
    ino = r.file(b"a", b"a" * 100)
    r.restart()
    fh = r.open(ino)
    r.write(ino, fh, 50, b"b" * 100)
    seen: list[c.Commit] = []
    gate = r.gate()
    plan = r.worker.data.flusher._plan
    inside, go = threading.Event(), threading.Event()

    def slow(part: Any) -> None:
        plan(part)
        inside.set()
        assert go.wait(LIMIT_S)

    r.worker.data.flusher._plan = slow  # type: ignore[method-assign]
    gate.on_propose = lambda command, _: seen.append(command) if isinstance(command, c.Commit) else None
    done = r.begin("fsync", ino, fh, False)
    assert inside.wait(LIMIT_S)
    r.worker.data.flusher.pause(True)
    r.worker.data.flusher.pause(False)
    go.set()
    done.result()
    assert len(seen) == 1, "the batch of before was dropped, its records went out again"


def test_small_appends_share_few_commits(r: Rig) -> None:
    """A log of short lines is one run: it must not cost a commit, a device flush and a journal sync for every 170 of them."""
    ino, fh = r.create(b"log")
    line = b"a line of a log\n"
    for number in range(3_000):
        r.write(ino, fh, number * len(line), line)
    before = r.worker.data.flusher.batches
    r.call("fsync", ino, fh, False)
    assert r.worker.data.flusher.batches - before <= 3
    assert r.read(ino, fh, 0, 3_000 * len(line)) == line * 3_000


def test_what_was_written_before_the_clock_was_set_back_is_flushed_by_age(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is a day to come; only an fsync would have flushed it until then."""
    ino, fh = r.create(b"a")
    real_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + 86_400_000_000_000)
    r.write(ino, fh, 0, b"a" * BIG)
    monkeypatch.undo()
    until(lambda: r.mount.buffered.dirty.dirty_bytes == 0)


class Ending(list[Any]):
    """Records of which the first becomes clean while somebody sets out to look at the last."""

    def __reversed__(self) -> Iterator[Any]:
        found = super().__reversed__()
        del self[0]
        return found


def test_a_drain_that_begins_as_other_records_become_clean_waits_for_the_last(r: Rig) -> None:
    """Whoever is asked to give up a write lease would answer, and what was held back behind those records could be committed no more."""
    ino, fh = r.create(b"a")
    r.worker.data.flusher.pause(True)
    r.write(ino, fh, 0, b"a" * BIG)
    r.write(ino, fh, BIG, b"b" * BIG)
    state = r.worker.data.files.get(ino)
    assert state is not None
    state.dirty = Ending(state.dirty)
    ended: list[Any] = []
    for waiting in (r.worker.data.flusher.drained(ino), r.worker.data.flusher.flush_all()):
        waiting.start(lambda value, error: ended.append(error))
    assert not ended
    r.worker.data.flusher.pause(False)
    until(lambda: ended == [None, None])
    assert not state.dirty and r.content(ino) == b"a" * BIG + b"b" * BIG
