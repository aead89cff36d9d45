"""Truncations, holes and commits of one file that overlap in time: what a worker remembers afterwards is what the service says."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.api.context import SetAttrIn
from tests.rigs.mount_without_kernel import BIG, VOLUME, After, Held, Rig, error_of, rig, until

MIB = 1 << 20
PUNCH = c.FALLOC_KEEP_SIZE | c.FALLOC_PUNCH_HOLE


def between(r: Rig, kind: type[Any], act: Callable[[], None]) -> None:
    """`act` runs once, when the vfs has decided on a command of this kind and not sent it yet."""
    gate = r.gate()
    done: list[bool] = []

    def hook(command: Any, unique: int) -> None:
        if isinstance(command, kind) and not done:
            done.append(True)
            act()

    gate.on_propose = hook


def committed_not_settled(r: Rig, write: Callable[[], None]) -> tuple[Callable[[], None], threading.Event]:
    """A write whose Commit is answered, while the flusher has not taken the answer up until the event is set."""
    flusher = r.worker.data.flusher
    begun, go = threading.Event(), threading.Event()
    finish = flusher._finish

    def slow(batch: Any) -> None:
        begun.set()
        assert go.wait(60)
        finish(batch)

    def leave(batch: Any) -> None:
        """As for an answer that is no plain success; such a one is taken up before the next answer is received."""
        with flusher._cond:
            batch.done.set()
            flusher._cond.notify()

    def act() -> None:
        flusher._finish, flusher._answered = slow, leave
        write()
        flusher.kick()
        assert begun.wait(60)

    return act, go


def same_after_forgetting(r: Rig, ino: int) -> bytes:
    r.flush()
    seen = r.content(ino)
    r.restart()
    assert r.content(ino) == seen
    r.check()
    return seen


def test_a_write_beside_a_truncation_keeps_the_size(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"a" * 100_000)
        r.flush()
        between(r, c.SetAttr, lambda: r.write(ino, fh, 100_000, b"b" * 10_000))
        r.truncate(ino, 50_000)
        same_after_forgetting(r, ino)


def test_a_commit_that_is_taken_up_after_a_truncation_brings_nothing_back(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"a" * 100_000)
        r.flush()
        act, go = committed_not_settled(r, lambda: r.write(ino, fh, 100_000, b"b" * 10_000))
        between(r, c.SetAttr, act)
        r.truncate(ino, 50_000)
        go.set()
        r.flush()
        r.truncate(ino, 200_000)
        assert same_after_forgetting(r, ino) == b"a" * 50_000 + bytes(150_000)


@pytest.mark.parametrize("size", [0, 5_000])
def test_a_layout_that_was_asked_for_before_a_truncation_and_told_behind_it_is_not_used(tmp_path: Path, size: int) -> None:
    """As when the question had to be sent again over a new connection, before the truncation that it was sent behind."""
    old = b"a" * 9_000
    with rig(tmp_path) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, old)
        r.fsync(ino, fh)
        r.mount.known_file(ino).extents.forget()
        r.write(ino, fh, 8_000, b"b" * 2_000)
        gate, asked, cut = r.gate(), [], []

        def on_ask(body: Any) -> Any:
            if type(body) is not m.GetLayout:
                return None
            asked.append(After(r.worker.client.ask(body)))
            if len(asked) > 1:
                cut[0].release()  # the answers to what is sent from now on come behind that of the truncation
                asked[-1].release()
            return asked[-1]

        def on_propose(command: Any, unique: int) -> Any:
            if type(command) is not c.SetAttr:
                return None
            cut.append(Held(r.worker.client.propose(command, unique)))
            return cut[0]

        gate.on_ask, gate.on_propose = on_ask, on_propose
        reading = r.begin("read", ino, fh, 0, 20_000)
        until(lambda: asked and asked[0].begun.is_set())
        cutting = r.begin("setattr", ino, fh, SetAttrIn(c.SET_SIZE, size=size))
        until(lambda: cut and cut[0].answered.is_set())
        asked[0].release()
        found = b"".join(map(bytes, reading.result(10)))
        cut[0].release()
        cutting.result(10)
        assert found in (old[:8_000] + b"b" * 2_000, old[:size])


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_a_commit_that_is_taken_up_after_a_hole_does_not_fill_it(tmp_path: Path, size: int) -> None:
    with rig(tmp_path) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"a" * size)
        r.flush()
        act, go = committed_not_settled(r, lambda: r.write(ino, fh, 0, b"b" * 500))
        between(r, c.Fallocate, act)
        r.call("fallocate", ino, fh, PUNCH, 0, size)
        go.set()
        assert same_after_forgetting(r, ino) == bytes(size)


def test_a_commit_that_is_taken_up_after_a_copy_does_not_undo_it(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        other, other_fh = r.create(b"g")
        r.write(other, other_fh, 0, b"c" * 100_000)
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"a" * 100_000)
        r.flush()
        act, go = committed_not_settled(r, lambda: r.write(ino, fh, 0, b"b" * 5_000))
        between(r, c.CopyRange, act)
        assert r.call("copy_file_range", other, 0, ino, fh, 0, 100_000, 0) == 100_000
        go.set()
        assert same_after_forgetting(r, ino) == b"c" * 100_000


class SessionEnds:
    """In front of the client for the reservation: the session ends when a command of this kind is about to be proposed, once."""

    def __init__(self, r: Rig, wanted: Callable[[Any], bool]) -> None:
        self._r = r
        self._wanted = wanted
        self.ended = 0

    def propose(self, command: Any, unique: int, *under: Any) -> Any:
        if not self.ended and self._wanted(command):
            self.ended += 1
            self._r.end_session()
        return self._r.worker.client.propose(command, unique, *under)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._r.worker.client, name)


def test_fallocate_outlives_a_session_that_ends_while_space_is_given_back(tmp_path: Path) -> None:
    with rig(tmp_path, quota_bytes=20 * MIB) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"x" * 10_000)
        r.flush()
        block_on(r.mount.buffered.reservation.refill(10 * MIB))  # so much that there is no room without it
        ends = r.mount.buffered.reservation._proposer = SessionEnds(r, lambda command: isinstance(command, c.Reserve) and command.bytes < 0)
        r.call("fallocate", ino, fh, 0, 0, 15 * MIB)
        assert ends.ended and r.attr(ino).size == 15 * MIB
        r.write(ino, fh, 0, b"y" * 5_000)
        r.fsync(ino, fh)
        r.check()


def test_a_write_outlives_a_session_that_ends_while_kept_space_is_drawn(tmp_path: Path) -> None:
    with rig(tmp_path, quota_bytes=12 * MIB) as r:
        ino, fh = r.create(b"f")
        r.call("fallocate", ino, fh, 0, 0, 4 * MIB)
        other, other_fh = r.create(b"other")
        with contextlib.suppress(FsError):
            for at in range(0, 64 * MIB, MIB // 4):
                r.write(other, other_fh, at, b"o" * (MIB // 4))
        r.flush()
        ends = r.mount.buffered.reservation._proposer = SessionEnds(r, lambda command: isinstance(command, c.Draw))
        for at in range(0, 4 * MIB, MIB // 4):
            r.write(ino, fh, at, b"k" * (MIB // 4))
        assert ends.ended
        r.fsync(ino, fh)
        assert r.content(ino) == b"k" * (4 * MIB)
        r.check()


class InDoubt:
    """The request goes out and is executed; then the session ends, and of the answer is left that the session has ended."""

    def __init__(self, r: Rig, what: Any) -> None:
        self._r = r
        self._what = what

    def start(self, resume: Any) -> None:
        def came(_value: Any, _error: Any) -> None:
            threading.Thread(target=self._end, args=(resume,), daemon=True).start()

        self._what.start(came)

    def _end(self, resume: Any) -> None:
        self._r.end_session()
        unique = self._r.mount.uniques.next_background_unique()
        noticed = self._r.worker.client.propose(c.Reserve(VOLUME, 0, 0), unique)
        noticed.start(lambda _value, _error: resume(None, FsError(errno.ESTALE, "the session has ended")))


def in_doubt(r: Rig, kind: type[Any]) -> None:
    gate = r.gate()
    done: list[bool] = []

    def hook(command: Any, unique: int) -> Any:
        if isinstance(command, kind) and not done:
            done.append(True)
            return InDoubt(r, r.worker.client.propose(command, unique))
        return None

    gate.on_propose = hook


def test_a_file_without_a_name_is_there_although_its_session_ended(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        in_doubt(r, c.Tmpfile)
        attr, opened = r.call("tmpfile", 1, 0o600, os.O_RDWR)
        r.write(attr.ino, opened.fh, 0, b"x" * 10_000)
        r.fsync(attr.ino, opened.fh)
        r.call("link", attr.ino, 1, b"named")
        assert r.content(r.lookup(b"named").ino) == b"x" * 10_000
        r.check()


def test_an_open_file_whose_last_name_went_with_the_session_says_so(tmp_path: Path) -> None:
    with rig(tmp_path) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"x" * 10_000)
        r.fsync(ino, fh)
        in_doubt(r, c.Unlink)
        r.call("unlink", 1, b"f")
        for call in (lambda: r.write(ino, fh, 0, b"y"), lambda: r.read(ino, fh, 0, 10), lambda: r.fsync(ino, fh)):
            assert error_of(call) == errno.EIO
        r.restart()
        assert error_of(r.fsync, ino, fh) == errno.EIO
        r.check()


# --- records on both sides of a truncation ------------------------------------------------------------------------------------------------


def truncations_held(r: Rig) -> list[Held]:
    """Keeps the answers of truncations, which become entries at once; they come into the list."""
    gate = r.gate()
    held: list[Held] = []

    def hook(command: Any, unique: int) -> Any:
        if not isinstance(command, c.SetAttr):
            return None
        held.append(Held(r.worker.client.propose(command, unique)))
        return held[0]

    gate.on_propose = hook
    return held


@pytest.mark.parametrize("killed", [False, True])
def test_a_write_behind_a_truncation_brings_nothing_back(tmp_path: Path, killed: bool) -> None:
    """As asynchronous direct I/O does it: old data, the truncation's entry, and new data, before the truncation is answered."""
    with rig(tmp_path) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"a" * BIG)
        held = truncations_held(r)
        truncation = r.begin("setattr", ino, None, SetAttrIn(c.SET_SIZE, size=0))
        unique = r.unique
        assert held[0].answered.wait(60)
        r.write(ino, fh, 3, b"b")
        if killed:
            change = SetAttrIn(c.SET_SIZE, size=0)
            r.restart(lambda vfs: vfs.setattr(r.ctx(unique), ino, None, change))
        else:
            held[0].release()
            truncation.result()
        assert same_after_forgetting(r, ino) == b"\0\0\0b"


def test_a_batch_ends_where_a_truncation_was(tmp_path: Path) -> None:
    """What was written while the truncation waited for a flush, and what was written behind its entry, wait together to be flushed."""
    with rig(tmp_path) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"a" * BIG)
        act, go = committed_not_settled(r, lambda: None)
        act()
        held = truncations_held(r)
        truncation = r.begin("setattr", ino, None, SetAttrIn(c.SET_SIZE, size=10))
        r.write(ino, fh, 0, b"c" * BIG)
        r.worker.data.flusher.pause(True)
        go.set()
        until(lambda: held)
        assert held[0].answered.wait(60)
        r.write(ino, fh, 3, b"b")
        r.worker.data.flusher.pause(False)
        r.flush()
        held[0].release()
        truncation.result()
        assert same_after_forgetting(r, ino) == b"cccbcccccc"


@pytest.mark.parametrize("size", [0, 10, 200_000])
def test_a_truncation_by_path_beside_a_batch_whose_device_fails(tmp_path: Path, size: int) -> None:
    """The truncation is told of the failure, and changes nothing; so is the open handle, once.  The batch is written when the device works,
    and what the next truncation cuts stays cut."""
    with rig(tmp_path) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"a" * BIG)
        r.flush()
        r.write(ino, fh, 0, b"c" * BIG)

        def fail(_offset: int, _length: int) -> None:
            r.worker.data.flusher.pause(True)  # the next try waits
            raise OSError(errno.EIO, "the device fails")

        r.device.on_write = fail
        r.worker.data.flusher.kick()
        state = r.mount.buffered.files.get(ino)
        assert state is not None
        until(lambda: state.error is not None and not state.in_flight)
        assert error_of(r.truncate, ino, size) == errno.EIO and r.attr(ino).size == BIG
        r.device.on_write = lambda _offset, _length: None
        truncation = r.begin("setattr", ino, None, SetAttrIn(c.SET_SIZE, size=size))  # the batch is written again beside it
        r.worker.data.flusher.pause(False)
        truncation.result()
        assert error_of(r.fsync, ino, fh) == errno.EIO
        r.fsync(ino, fh)
        r.write(ino, fh, 3, b"b")
        wanted = bytearray((b"c" * BIG)[:size].ljust(max(size, 4), b"\0"))
        wanted[3:4] = b"b"
        assert same_after_forgetting(r, ino) == wanted
