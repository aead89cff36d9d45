"""Mounts of one volume on two nodes that buffer data under write leases (data_leased.py, idle_leases.py)."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import LEASE_IDLE_LOOKS
from awsomefsd.base.types import LEASE_NONE, LEASE_READ, LEASE_WRITE, LOCK_POSIX, ROOT_INO, Lock
from awsomefsd.base.wait import Signal, block_on
from awsomefsd.io.file.file_data import FileState
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.api.context import SetAttrIn
from awsomefsd.vfs.session.idle_leases import IdleLeases
from awsomefsd.vfs.vfs import Vfs
from awsomefsd.worker import session_change
from tests.rigs.mount_without_kernel import BIG, LIMIT_S, Held, Noticing, Started, error_of, failing, until
from tests.rigs.sharing_nodes import Sharing, append, sound, two_nodes

MANY = 60


class Leased(Sharing):
    caches = True
    ended = 0  # the session that was ended last

    def start(self, *repeat: Callable[[Vfs], Any], exited: bool = True) -> Any:
        with patch.object(session_change, "SESSION_SELF_FENCE_MS", 0):  # no kernel was promised anything by the predecessor
            return super().start(*repeat, exited=exited)

    def holds(self, ino: int) -> int:
        mode: int = self.worker.caches.leases._holder.mode(ino)  # type: ignore[union-attr]
        return mode

    def end_session(self) -> None:
        """At once, whatever is left of its lease."""
        assert self.host.service is not None
        state = self.worker.memory.control.state
        self.ended = state.session  # its worker may hear of it from any answer, and have a new one at once
        reply = self.host.service.propose(c.EndSession(state.session, state.epoch, True), 60)
        assert not isinstance(reply, m.Failed), reply


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Leased]]:
    yield from two_nodes(Leased, tmp_path, held_clock=True)


def test_data_is_held_back_and_seen_at_once_by_the_other(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"hello")
    assert one.holds(ino) == LEASE_WRITE and one.mount.buffered.dirty.dirty_bytes == 5
    assert one.attr(ino).size == 5 and one.read(ino, fh, 0, 99) == b"hello"
    shown = one.attr(ino)
    there = two.open(ino)
    seen = two.attr(ino)
    assert (seen.size, seen.mtime_ns) == (5, shown.mtime_ns) and two.read(ino, there, 0, 99) == b"hello"
    assert not one.mount.buffered.dirty.dirty_bytes, "it was committed before the other was told"
    one.write(ino, fh, 5, b" there")
    assert two.read(ino, there, 0, 99) == b"hello there" == one.read(ino, fh, 0, 99)
    two.write(ino, there, 0, b"J")
    assert one.read(ino, fh, 0, 99) == b"Jello there" and one.attr(ino).mtime_ns > shown.mtime_ns
    sound(nodes)


def made_anew_under_a_question(one: Leased, two: Leased, moment: str) -> tuple[int, int]:
    """(inode, handle) of a file that `two` makes anew, and shorter, when `one` asks for its layout the next time."""
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"a" * 3 * BIG)
    one.fsync(ino, fh)
    there = two.open(ino)
    one.mount.known_file(ino).extents.forget()  # as with too many of them in memory
    gate = one.gate()

    def make_anew(body: Any) -> Any:
        if not isinstance(body, m.GetLayout):
            return None
        gate.on_ask = None
        answer = Held(one.worker.client.ask(body)) if moment == "after the answer" else None
        if answer is not None:
            answer.start(lambda _value, _error: None)
            assert answer.answered.wait(LIMIT_S)
        two.truncate(ino, 0, there)
        two.write(ino, there, 0, b"b" * BIG)
        two.fsync(ino, there)
        if answer is None:
            return None
        told = Signal()
        told.fire(*answer.outcome)
        return told

    gate.on_ask = make_anew
    return ino, fh


@pytest.mark.parametrize("moment", ["before the question", "after the answer"])
def test_a_read_that_loses_its_lease_shows_one_moment(nodes: list[Leased], moment: str) -> None:
    """The size was told under the lease; the layout that is asked for may be of a file that another node has made anew since."""
    one, two = nodes
    ino, fh = made_anew_under_a_question(one, two, moment)
    seen = one.read(ino, fh, 0, 4 * BIG)
    assert one.mount.metadata.on_ask is None, "the layout was asked for"
    assert seen in (b"a" * 3 * BIG, b"b" * BIG), (len(seen), seen[:1], seen[-1:])
    assert one.read(ino, fh, 0, 4 * BIG) == b"b" * BIG
    sound(nodes)


@pytest.mark.parametrize("moment", ["before the question", "after the answer"])
def test_a_look_for_a_hole_that_loses_its_lease_shows_one_moment(nodes: list[Leased], moment: str) -> None:
    one, two = nodes
    ino, fh = made_anew_under_a_question(one, two, moment)
    try:
        found = one.call("lseek", ino, fh, 2 * BIG, os.SEEK_HOLE)
    except FsError as err:
        found = -err.errno
    assert one.mount.metadata.on_ask is None, "the layout was asked for"
    assert found in (3 * BIG, -errno.ENXIO), found
    sound(nodes)


def test_a_handle_of_a_clean_file_outlives_its_session_and_shows_what_is_there(nodes: list[Leased]) -> None:
    """Decision 104: nothing that it was promised is lost."""
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"old")
    one.call("fsync", ino, fh, False)
    assert one.read(ino, fh, 0, 9) == b"old"
    before = one.worker.memory.control.state.session
    one.end_session()
    there = two.open(ino)
    two.write(ino, there, 0, b"newer")
    one.worker.client._keeper.doubt()
    until(lambda: one.worker.memory.control.state.session != before and one.mount.session.lease.left_ns() > 0)
    assert one.read(ino, fh, 0, 9) == b"newer" and one.attr(ino).size == 5
    one.write(ino, fh, 5, b"!")
    assert two.read(ino, there, 0, 9) == b"newer!"
    sound(nodes)


@pytest.mark.parametrize("session_lost", [False, True])
def test_a_mount_whose_node_was_removed_answers_eio_and_ends(nodes: list[Leased], session_lost: bool) -> None:
    """The leader may have ended the session before it refuses to talk."""
    one, two = nodes
    locked, fh = one.create(b"locked")
    two.call("setlk", locked, two.open(locked), Lock(LOCK_POSIX, 7, 1, 1, 0, 99), False)
    waiting = Started(one.vfs.setlk(one.ctx(), locked, fh, Lock(LOCK_POSIX, 8, 1, 1, 0, 99), True))
    ino, held = one.create(b"f")
    one.write(ino, held, 0, b"held back")
    if session_lost:
        one.end_session()
        one.worker.client._keeper.doubt()
    one.worker.client._events.removed("node one was removed from this cluster")
    assert error_of(waiting.result) == errno.EIO
    for call in (lambda: one.lookup(b"f"), lambda: one.write(ino, held, 9, b"more"), lambda: one.call("fsync", ino, held, False)):
        assert error_of(call) == errno.EIO
    until(lambda: not one.mount.buffered.dirty.dirty_bytes)
    assert [path.read_bytes() for path in (one.directory / "conflicts").glob("*/*")] == [b"held back"]
    one.unmount()


def test_a_file_with_a_time_that_no_record_can_say_is_written(nodes: list[Leased], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write moves the mtime to now, as everywhere after utimensat(2); and each later one moves it on."""
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"a")
    one.fsync(ino, fh)
    two.call("setattr", ino, None, SetAttrIn(c.SET_MTIME, mtime_ns=10_413_792_000 * 10**9))  # the year 2300
    assert one.attr(ino).mtime_ns == 10_413_792_000 * 10**9
    left = one.mount.buffered.reservation.left_bytes
    one.write(ino, fh, 0, b"b")
    one.fsync(ino, fh)
    first = two.attr(ino).mtime_ns
    one.write(ino, fh, 0, b"c")
    one.fsync(ino, fh)
    assert first < two.attr(ino).mtime_ns < 1 << 62
    assert abs(left - one.mount.buffered.reservation.left_bytes) < BIG, "what the commits took"
    with monkeypatch.context() as patch:
        patch.setattr(one.mount.buffered.dirty, "append_write", lambda *_, **__: failing()())
        left = one.mount.buffered.reservation.left_bytes
        assert error_of(one.write, ino, fh, 0, b"d") == errno.EIO
        assert one.mount.buffered.reservation.left_bytes == left
    sound(nodes)


@pytest.mark.parametrize("meanwhile", ["the state is forgotten", "the lease goes and comes back"])
def test_a_write_that_was_refused_for_no_want_of_room_does_not_wait_for_room(
    nodes: list[Leased], monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Nothing is dirty, so nobody will ever make room."""
    one, _ = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"a")
    one.fsync(ino, fh)
    state = one.mount.buffered.files.get(ino)
    token, real, refused = state.token, FileState.store, []

    def store(self: FileState, *args: Any, **kwargs: Any) -> bool:
        """Another thread does that just here."""
        if self is not state or refused:
            return real(self, *args, **kwargs)
        refused.append(True)
        if meanwhile == "the state is forgotten":
            one.mount.buffered.files.forget(state)
            return real(self, *args, **kwargs)
        state.let_go()
        stored = real(self, *args, **kwargs)
        with state.lock:
            state.token = token
        return stored

    reservation, first = one.mount.buffered.reservation, []
    spend = reservation.spend

    def no_space_once(need: int, make: Any) -> bool:
        """The quick way of a write does not wait."""
        if not first:
            first.append(True)
            return False
        done: bool = spend(need, make)
        return done

    monkeypatch.setattr(FileState, "store", store)
    monkeypatch.setattr(reservation, "spend", no_space_once)
    assert one.begin("write", ino, fh, 0, memoryview(b"b"), 0).result(15) == 1
    assert refused and one.read(ino, fh, 0, 9) == b"b"


def test_two_nodes_write_one_file_in_turn_and_every_byte_is_right(nodes: list[Leased], seed: int) -> None:
    dice, expected = random.Random(seed), bytearray(20_000)
    ino, fh = nodes[0].create(b"f")
    handles = [fh, nodes[1].open(ino)]
    nodes[0].truncate(ino, len(expected))
    for turn in range(MANY):
        number = dice.randrange(2)
        for _ in range(dice.randrange(3)):
            at, data = dice.randrange(len(expected) - 500), dice.randbytes(dice.randrange(1, 500))
            nodes[number].write(ino, handles[number], at, data)
            expected[at : at + len(data)] = data
        if dice.random() < 0.3:
            size = dice.randrange(10_000, 20_000)
            nodes[number].truncate(ino, size)
            nodes[number].truncate(ino, len(expected))
            expected[size:] = bytes(len(expected) - size)
        reader = dice.randrange(2)
        assert nodes[reader].read(ino, handles[reader], 0, 30_000) == bytes(expected), (turn, number, reader)
    sound(nodes)


def test_both_nodes_write_at_once_and_end(nodes: list[Leased]) -> None:
    ino, fh = nodes[0].create(b"f")
    handles = [fh, nodes[1].open(ino)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(MANY):
                nodes[number].write(ino, handles[number], (2 * step + number) * 100, b"%d" % number * 100)
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not errors and not any(thread.is_alive() for thread in threads)
    expected = (b"0" * 100 + b"1" * 100) * MANY
    assert nodes[0].read(ino, handles[0], 0, 1 << 20) == expected == nodes[1].read(ino, handles[1], 0, 1 << 20)
    sound(nodes)


@pytest.mark.parametrize("last", ["name", "handle"])
def test_what_was_written_to_a_file_that_another_node_has_open_outlives_name_and_handle(nodes: list[Leased], last: str) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    there = two.open(ino)
    one.write(ino, fh, 0, b"hello")
    if last == "name":
        one.close_file(ino, fh)
        one.call("unlink", ROOT_INO, b"f")
    else:
        two.call("unlink", ROOT_INO, b"f")
        one.write(ino, fh, 5, b" there")
        one.close_file(ino, fh)
    assert two.read(ino, there, 0, 99) == (b"hello" if last == "name" else b"hello there")
    assert two.call("getattr", ino, there).size == (5 if last == "name" else 11)
    two.write(ino, there, 0, b"J")
    assert two.read(ino, there, 0, 5) == b"Jello"
    two.close_file(ino, there)
    until(lambda: not one.mount.buffered.dirty.dirty_bytes)
    sound(nodes)


def test_what_was_written_to_a_file_that_is_gone_reaches_no_device(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"x" * BIG)
    one.worker.data.flusher.pause(True)
    one.close_file(ino, fh)
    one.call("unlink", ROOT_INO, b"f")
    until(lambda: not one.mount.buffered.dirty.dirty_bytes)
    assert error_of(two.attr, ino) == errno.ENOENT
    one.worker.data.flusher.pause(False)
    sound(nodes)


def test_appends_are_all_there(nodes: list[Leased]) -> None:
    ino, _ = nodes[0].create(b"log")
    lines = [[b"%d-%d\n" % (n, i) for i in range(MANY)] for n in (0, 1)]

    def work(number: int) -> None:
        fh = nodes[number].open(ino, os.O_WRONLY | os.O_APPEND)
        for line in lines[number]:
            assert append(nodes[number], ino, fh, line) == len(line)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    got = nodes[0].content(ino).splitlines(keepends=True)
    assert [line for line in got if line[:1] == b"0"] == lines[0] and [line for line in got if line[:1] == b"1"] == lines[1]
    sound(nodes)


def test_an_append_goes_to_the_end_whatever_the_kernel_believes(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f", flags=os.O_RDWR | os.O_APPEND)
    append(one, ino, fh, b"a")
    append(one, ino, fh, b"b")
    assert one.mount.buffered.dirty.dirty_bytes == 2
    assert two.content(ino) == b"ab"
    append(two, ino, two.open(ino), b"c")
    append(one, ino, fh, b"d")
    assert one.content(ino) == b"abcd" == two.content(ino)
    sound(nodes)


def test_a_truncation_and_ranges_meet_held_data_in_order(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    there = two.open(ino)
    one.write(ino, fh, 0, b"x" * BIG)
    two.truncate(ino, 10)
    assert one.attr(ino).size == 10 and one.read(ino, fh, 0, BIG) == b"x" * 10
    one.write(ino, fh, 10, b"y" * 10)
    one.truncate(ino, 0)
    one.write(ino, fh, 0, b"new")
    one.call("flush", ino, fh, 0)
    assert not one.mount.buffered.dirty.dirty_bytes, "what follows a truncation to nothing is flushed by close"
    one.write(ino, fh, 100, b"tail")
    two.call("fallocate", ino, there, 3, 0, 2)
    assert one.read(ino, fh, 0, 200) == b"\0\0w" + bytes(97) + b"tail"
    one.write(ino, fh, 0, b"N")
    target, to = two.create(b"g")
    two.write(target, to, 0, b"12345")
    assert two.call("lseek", ino, there, 0, os.SEEK_DATA) == 0 and two.read(ino, there, 0, 3) == b"N\0w"
    two.write(target, to, 0, b"12345" * BIG)
    assert one.call("copy_file_range", target, 5, ino, fh, 0, 5, 0) == 5
    assert two.read(ino, there, 0, 6) == b"12345\0"
    sound(nodes)


def test_a_rename_over_a_name_shows_the_new_content_held_back_elsewhere(nodes: list[Leased]) -> None:
    one, two = nodes
    one.create(b"f")
    ino, fh = one.create(b"tmp")
    one.write(ino, fh, 0, b"new" * 3_000)
    two.call("rename", ROOT_INO, b"tmp", ROOT_INO, b"f", 0)
    assert not one.mount.buffered.dirty.dirty_bytes
    assert two.content(two.lookup(b"f").ino) == b"new" * 3_000
    sound(nodes)


def test_a_killed_worker_loses_nothing_it_acknowledged(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    other, other_fh = one.create(b"g")
    one.write(ino, fh, 0, b"held")
    one.write(other, other_fh, 0, b"z" * BIG)
    one.kill()
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(two.content(ino)))
    reader.start()  # its question recalls a lease that nobody can give up now
    one.start()
    reader.join(LIMIT_S)
    assert got == [b"held"] and two.content(other) == b"z" * BIG
    one.write(ino, fh, 4, b" on")
    assert two.content(ino) == b"held on"
    sound(nodes)


def test_committed_and_not_marked_clean_is_not_laid_over_what_came_later(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"old!")
    one.fsync(ino, fh)
    one.write(ino, fh, 0, b"mine")
    one.mount.buffered.dirty.mark_clean = lambda records: None  # the worker dies behind its commit
    one.fsync(ino, fh)
    one.restart()
    there = two.open(ino)
    two.write(ino, there, 0, b"ours")
    one.restart()
    assert one.read(ino, fh, 0, 9) == b"ours" == two.read(ino, there, 0, 9)
    sound(nodes)


def test_a_write_that_went_through_is_not_held_back_a_second_time(nodes: list[Leased]) -> None:
    """Killed between the entry and the answer; the other node has written since."""
    one, two = nodes
    ino, fh = one.create(b"f")
    assert two.content(ino) == b"" and one.holds(ino) == LEASE_READ
    one.vfs.policy._contested[ino] = float("inf")
    one.write(ino, fh, 0, b"AAAA", unique=1_000)
    assert not one.mount.buffered.dirty.dirty_bytes
    there = two.open(ino)
    two.write(ino, there, 0, b"BBBB")
    two.fsync(ino, there)
    one.unanswered = [1_000]
    assert one.restart(lambda vfs: vfs.write(one.ctx(1_000), ino, fh, 0, memoryview(b"AAAA"), 0)) == [4]
    assert two.read(ino, there, 0, 9) == b"BBBB" == one.read(ino, fh, 0, 9)
    sound(nodes)


@contextmanager
def unheard(node: Leased) -> Iterator[None]:
    """A worker that hears nothing of its session, which ends meanwhile: else its next renewal may come before what others do here."""
    client, noticed = node.worker.client, threading.Event()
    events, client._events = client._events, Noticing(noticed)
    try:
        yield
    finally:
        client._events = events
        if noticed.is_set():
            node.worker.sessions.lost()


def lose(node: Leased) -> None:
    node.worker.client._keeper.doubt()
    until(lambda: node.worker.memory.control.state.session != node.ended and not node.worker.sessions._busy.locked())


def test_what_others_did_not_touch_goes_on_under_a_new_session(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    other, other_fh = one.create(b"g")
    for number, handle in ((ino, fh), (other, other_fh)):
        one.write(number, handle, 0, b"held back")
    one.worker.data.flusher.pause(True)
    with unheard(one):
        one.end_session()
        there = two.open(other)
        two.write(other, there, 0, b"THEIRS")
    lose(one)
    assert error_of(one.write, other, other_fh, 0, b"x") == errno.EIO == error_of(one.fsync, other, other_fh)
    one.fsync(ino, fh)
    assert two.content(ino) == b"held back" and two.content(other) == b"THEIRS"
    assert one.counter("files_put_aside") == 1
    kept = [path.read_bytes() for path in (one.directory / "conflicts").glob("*/*")]
    assert kept == [b"held back"]
    one.close_file(other, other_fh)
    again = one.open(other)
    one.write(other, again, 6, b"!")
    assert two.content(other) == b"THEIRS!"
    one.write(ino, fh, 9, b", and on")
    assert two.content(ino) == b"held back, and on"
    sound(nodes)


def test_a_worker_that_dies_after_its_session_was_replaced_leaves_what_its_successor_can_take_up(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"held back")
    one.worker.data.flusher.pause(True)
    one.worker.data.flusher.pause = lambda paused: None  # type: ignore[method-assign]
    one.end_session()
    lose(one)
    assert one.mount.buffered.dirty.dirty_bytes == 9
    one.restart()
    assert two.content(ino) == b"held back" == one.content(ino)
    sound(nodes)


def test_a_worker_that_was_dead_while_its_session_ended_asks_file_by_file(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    other, other_fh = one.create(b"g")
    one.write(ino, fh, 0, b"held back")
    one.write(other, other_fh, 0, b"held back")
    one.kill()
    one.end_session()
    there = two.open(other)
    two.write(other, there, 0, b"THEIRS")
    two.fsync(other, there)
    one.start()
    assert two.content(ino) == b"held back" and two.content(other) == b"THEIRS"
    assert error_of(one.fsync, other, other_fh) == errno.EIO
    sound(nodes)


def test_a_successor_takes_no_space_for_records_of_a_file_that_is_gone(nodes: list[Leased]) -> None:
    one, _ = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"x" * BIG)
    one.worker.data.flusher.pause(True)
    one.call("unlink", ROOT_INO, b"f")
    one.close_file(ino, fh)
    one.vfs.orphans.tell_gathered()
    until(lambda: not one.mount.session.opens.orphans())  # it has been told, and answered
    assert one.mount.buffered.dirty.dirty_bytes == BIG, "nobody has dropped them here"
    one.restart()
    assert one.mount.buffered.dirty.dirty_bytes == 0
    assert one.mount.buffered.reservation.left_bytes == one.volume().reserved_bytes


def test_a_full_volume_is_told_by_write(nodes: list[Leased]) -> None:
    one, _ = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"x")
    gate = one.gate()
    full = {"on": True}

    def no_room(command: Any, unique: int) -> Any:
        if not full["on"] or not isinstance(command, c.Reserve) or command.bytes <= 0:
            return None
        signal = Signal()
        signal.fire(None, FsError(errno.ENOSPC))
        return signal

    gate.on_propose = no_room
    one.mount.buffered.reservation._proposer = gate
    one.mount.buffered.reservation.set_left(0)
    assert error_of(one.write, ino, fh, 0, b"y" * BIG) == errno.ENOSPC
    full["on"] = False
    one.write(ino, fh, 0, b"y" * BIG)
    assert one.content(ino) == b"y" * BIG


def test_setuid_goes_before_the_bytes(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o4755))
    assert one.call("write", ino, fh, 0, memoryview(b"x"), 4) == 1
    assert two.attr(ino).mode & 0o7777 == 0o755
    sound(nodes)


def test_an_unmount_leaves_nothing_behind(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"last")
    one.unmount()
    assert two.content(ino) == b"last"
    there = two.open(ino)
    two.write(ino, there, 0, b"L")
    assert two.holds(ino) == LEASE_WRITE and one.holds(ino) == LEASE_NONE
    two.unmount()
    one.check()


def test_a_contested_file_is_written_through(nodes: list[Leased]) -> None:
    """Both go on changing it: the leader grants nothing for a while, and nothing waits."""
    one, two = nodes
    ino, fh = one.create(b"f")
    there = two.open(ino)
    for turn in range(12):
        one.clock.advance(0.001)
        one.write(ino, fh, turn, b"a")
        one.clock.advance(0.001)
        two.write(ino, there, 50 + turn, b"b")
    assert one.vfs.policy._contested or two.vfs.policy._contested
    assert one.read(ino, fh, 0, 99) == b"a" * 12 + bytes(38) + b"b" * 12 == two.read(ino, there, 0, 99)
    sound(nodes)


def figure(node: Leased, name: str) -> int:
    return int(block_on(node.worker.client.ask(m.GetStatus())).figures[name])


def test_write_leases_of_closed_files_are_given_back_before_another_node_asks(nodes: list[Leased]) -> None:
    one, two = nodes
    made = [one.create(b"%d" % number) for number in range(8)]
    for ino, fh in made:
        one.write(ino, fh, 0, b"data")
    (still_open, _), (dirty, dirty_fh), *closed = made
    one.close_file(dirty, dirty_fh)
    for ino, fh in closed:
        one.fsync(ino, fh)
        one.close_file(ino, fh)
    one.worker.data.flusher.pause(True)
    idle = IdleLeases(one.mount, one.worker.caches.leases)  # type: ignore[arg-type]
    for _ in range(LEASE_IDLE_LOOKS + 2):
        idle.poll()
    assert one.holds(still_open) == one.holds(dirty) == LEASE_WRITE
    assert [one.holds(ino) for ino, _ in closed] == [LEASE_READ] * len(closed)
    until(lambda: figure(one, "leases_write") == 2)
    before = figure(one, "lease_recalls")
    assert all(two.attr(ino).size == 4 and two.content(ino) == b"data" for ino, _ in closed)
    assert figure(one, "lease_recalls") == before, "nobody had to be asked"
    one.worker.data.flusher.pause(False)
    assert two.content(dirty) == b"data" == two.content(still_open)
    ino = closed[0][0]
    one.write(ino, one.open(ino), 4, b" more")
    assert one.holds(ino) == LEASE_WRITE and one.mount.buffered.dirty.dirty_bytes == 5 and two.content(ino) == b"data more"
    sound(nodes)


def test_leases_are_given_back_while_the_file_is_written(nodes: list[Leased]) -> None:
    """Each write either comes before the look and keeps the lease, or asks for it anew; nothing is lost and nothing is laid twice."""
    one, two = nodes
    ino, fh = one.create(b"f")
    there = two.open(ino)
    ended = threading.Event()
    leases, idle = one.worker.caches.leases, IdleLeases(one.mount, one.worker.caches.leases)  # type: ignore[arg-type]
    given_back = []

    def give_back() -> None:
        assert leases is not None
        while not ended.is_set():
            leases.lower([ino], idle._clean)
            given_back.append(one.holds(ino) != LEASE_WRITE)

    thread = threading.Thread(target=give_back)
    thread.start()
    try:
        for number in range(120):
            append(one, ino, fh, b"%04d\n" % number)
            if number % 3 == 0:
                one.fsync(ino, fh)
            if number % 20 == 0:
                append(two, ino, there, b"two.\n")
            if number % 7 == 0:
                assert len(two.read(ino, there, 0, 9_999)) == one.attr(ino).size
    finally:
        ended.set()
        thread.join()
    lines = two.read(ino, there, 0, 9_999).split()
    assert [line for line in lines if line != b"two."] == [b"%04d" % number for number in range(120)] and lines.count(b"two.") == 6
    assert any(given_back) and one.counter("files_put_aside") == 0
    sound(nodes)


def test_a_file_that_is_gone_with_what_was_buffered_of_it_shows_no_size(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"x" * 100)
    assert one.attr(ino).size == 100
    two.call("unlink", ROOT_INO, b"f")
    one.attr(ino)
    one.write(ino, fh, 100, b"y" * 100)
    one.close_file(ino, fh)
    for _ in range(2):  # the second look hears that it is gone
        for node in nodes:
            block_on(node.vfs.orphans.release_unopened(node.worker.client.session), LIMIT_S)
    assert error_of(one.attr, ino) == errno.ENOENT
