"""Two mounts of one volume that share it: each sees at once what the other has done, without any cache (data_through.py)."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.types import LOCK_POSIX, ROOT_INO, Lock
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.api.context import CachePolicy, SetAttrIn
from tests.rigs.mount_without_kernel import BIG, LIMIT_S, VOLUME, After, Rig, Started, error_of, until
from tests.rigs.sharing_nodes import Sharing, append, sound, two_nodes


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Sharing]]:
    yield from two_nodes(Sharing, tmp_path, held_clock=True)


def test_each_change_is_seen_on_the_other_node_at_once(nodes: list[Sharing]) -> None:
    one, two = nodes
    assert error_of(two.lookup, b"f") == errno.ENOENT
    ino, fh = one.create(b"f")
    assert two.lookup(b"f").ino == ino and two.listdir() == {b"f": ino} == two.listdir(plus=True)
    there = two.open(ino)
    one.write(ino, fh, 0, b"hello")
    assert two.read(ino, there, 0, 100) == b"hello" and two.attr(ino).size == 5
    before = one.attr(ino)
    two.write(ino, there, 3, b"p!" + bytes(3))
    after = one.attr(ino)
    assert after.size == 8 and after.mtime_ns > before.mtime_ns and one.read(ino, fh, 0, 100) == b"help!\0\0\0"
    two.truncate(ino, 2)
    assert one.read(ino, fh, 0, 100) == b"he" and one.read(ino, fh, 2, 5) == b""
    one.write(ino, fh, BIG, b"end")
    assert two.read(ino, there, 0, BIG + 9) == b"he" + bytes(BIG - 2) + b"end"
    assert two.call("lseek", ino, there, 0, os.SEEK_DATA) == 0 and two.call("lseek", ino, there, 2, os.SEEK_HOLE) == 2
    one.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    assert two.attr(ino).mode & 0o777 == 0o600
    two.call("setxattr", ino, b"user.a", b"x", 0)
    assert one.call("getxattr", ino, b"user.a") == b"x"
    two.call("rename", ROOT_INO, b"f", ROOT_INO, b"g", 0)
    assert error_of(one.lookup, b"f") == errno.ENOENT and one.lookup(b"g").ino == ino
    one.close_file(ino, fh)
    two.close_file(ino, there)
    sound(nodes)


def test_the_kernel_is_told_to_keep_nothing(nodes: list[Sharing]) -> None:
    one, two = nodes
    attr, opened = one.call("create", ROOT_INO, b"f", 0o644, os.O_RDWR)
    assert opened.cache == CachePolicy.DIRECT == two.call("open", attr.ino, os.O_RDONLY).cache
    assert one.vfs.ttl_ns() == 0


def test_appends_of_both_nodes_are_all_there(nodes: list[Sharing], seed: int) -> None:
    dice = random.Random(seed)
    ino, _ = nodes[0].create(b"log")
    lines = [[b"%d-%d-" % (n, i) + b"x" * dice.randrange(300) + b"\n" for i in range(40)] for n in (0, 1)]

    def work(number: int) -> None:
        fh = nodes[number].open(ino, os.O_WRONLY | os.O_APPEND)
        for line in lines[number]:
            assert append(nodes[number], ino, fh, line) == len(line)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = nodes[0].content(ino)
    assert found == nodes[1].content(ino)
    got = found.splitlines(keepends=True)
    assert [line for line in got if line.startswith(b"0-")] == lines[0] and [line for line in got if line.startswith(b"1-")] == lines[1]
    assert len(got) == 80
    sound(nodes)


def test_a_write_is_committed_when_it_is_answered_and_repeated_once(nodes: list[Sharing]) -> None:
    """Killed after the entry and before the answer, while the other node has written since: the repetition changes nothing."""
    one, two = nodes
    ino, fh = one.create(b"f")
    append(one, ino, fh, b"A" * 10, unique=1_000)
    assert not one.mount.buffered.dirty.dirty_bytes
    there = two.open(ino)
    two.write(ino, there, 0, b"B" * 10)

    def again(vfs: object) -> object:
        ctx = one.ctx(1_000)
        ctx.open_flags = os.O_APPEND
        return vfs.write(ctx, ino, fh, 0, memoryview(b"A" * 10), 0)  # type: ignore[attr-defined]

    one.unanswered = [1_000]
    assert one.restart(again) == [10]
    assert two.read(ino, there, 0, 99) == b"B" * 10 == one.read(ino, fh, 0, 99)
    one.unanswered = [1_002]
    assert append(one, ino, fh, b"C", unique=1_002) == 1
    sound(nodes)


def test_a_file_that_loses_its_name_elsewhere_stays_while_it_is_open(nodes: list[Sharing]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"kept")
    two.call("unlink", ROOT_INO, b"f")
    inodes = one.volume().used_inodes
    block_on(one.vfs.orphans.release_unopened(one.worker.client.session), LIMIT_S)
    block_on(two.vfs.orphans.release_unopened(two.worker.client.session), LIMIT_S)
    assert error_of(two.lookup, b"f") == errno.ENOENT and error_of(two.open, ino) == errno.ENOENT
    one.write(ino, fh, 4, b"!")
    assert one.read(ino, fh, 0, 9) == b"kept!" and one.attr(ino).nlink == 0
    one.close_file(ino, fh)
    until(lambda: one.volume().used_inodes == inodes - 1)
    sound(nodes)


def test_what_nobody_has_open_goes_soon(nodes: list[Sharing]) -> None:
    one, two = nodes
    before = one.volume().used_inodes
    one.file(b"f", b"x" * BIG)
    ino, fh = two.create(b"g")
    one.call("rename", ROOT_INO, b"f", ROOT_INO, b"g", 0)  # over a file that is open on the other node
    assert two.read(ino, fh, 0, 9) == b""
    two.close_file(ino, fh)
    two.call("unlink", ROOT_INO, b"g")
    directory = one.mkdir(b"d")
    two.call("rmdir", ROOT_INO, b"d")
    until(lambda: one.volume().used_inodes == before)
    assert error_of(one.attr, directory) == errno.ENOENT
    sound(nodes)


def test_locks_exclude_and_wake_across_nodes(nodes: list[Sharing]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    there = two.open(ino)
    held = Lock(LOCK_POSIX, 7, 1, 1, 0, 99)
    one.call("setlk", ino, fh, held, False)
    assert error_of(two.call, "setlk", ino, there, held, False) == errno.EAGAIN  # the same owner's number, of another node
    assert two.call("getlk", ino, there, held) is not None
    waiting = two.begin("setlk", ino, there, held, True)
    one.call("setlk", ino, fh, Lock(LOCK_POSIX, 7, 1, 2, 0, 99), False)
    waiting.result()
    assert error_of(one.call, "setlk", ino, fh, held, False) == errno.EAGAIN
    waiting = one.begin("setlk", ino, fh, held, True)
    two.unmount()  # its locks end with its session
    waiting.result()
    one.unmount()
    one.check()


def test_inline_data_of_another_kind_of_mount_is_taken_over(tmp_path: Path) -> None:
    first = Rig(tmp_path)
    try:
        first.start()
        ino = first.file(b"f", b"inline")
        first.unmount()
        two = Sharing(tmp_path, first)
        two.start()
        fh = two.open(ino)
        two.write(ino, fh, 2, b"XY")
        append(two, ino, fh, b"more")
        assert two.read(ino, fh, 0, 99) == b"inXYnemore"
        two.call("fallocate", ino, fh, 0, 0, 100)
        assert two.attr(ino).size == 100
        two.unmount()
        two.close()
        first.check()
    finally:
        first.close()


def test_a_write_goes_on_under_a_new_session(nodes: list[Sharing]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    append(one, ino, fh, b"a")
    gate = one.gate()
    before = one.worker.memory.control.state.session
    held: list[After] = []

    def hold(command: object, unique: int) -> object:
        if not isinstance(command, c.WriteData) or held:
            return None
        held.append(After(one.worker.client.propose(command, unique)))
        return held[0]

    gate.on_propose = hold
    ctx = one.ctx()
    ctx.open_flags = os.O_APPEND
    written = Started(one.vfs.write(ctx, ino, fh, 0, memoryview(b"b"), 0))
    until(lambda: held and held[0].begun.is_set())
    one.end_session()
    held[0].release()
    one.worker.client._keeper.doubt()
    until(lambda: one.worker.memory.control.state.session != before and one.mount.session.lease.left_ns() > 0)
    assert written.result() == 1
    assert two.content(ino) == b"ab"


def test_a_write_that_waited_for_the_device_is_for_the_session_it_began_in(nodes: list[Sharing]) -> None:
    """Under a lock that went with the old session it would lay its bytes over what others have written since."""
    one, two = nodes
    ino, fh = one.create(b"f")
    there = two.open(ino)
    one.call("setlk", ino, fh, Lock(LOCK_POSIX, 7, 1, 1, 0, 99), False)
    assert one.worker.data.through is not None
    write, reached, go = one.worker.data.through._writer.write, threading.Event(), threading.Event()

    def held(pieces: object) -> object:
        reached.set()
        assert go.wait(LIMIT_S)
        return write(pieces)  # type: ignore[arg-type]

    one.worker.data.through._writer.write = held  # type: ignore[assignment, method-assign]
    before = one.worker.memory.control.state.session
    written = Started(one.vfs.write(one.ctx(), ino, fh, 0, memoryview(b"old"), 0))
    assert reached.wait(LIMIT_S)
    one.end_session()
    two.write(ino, there, 0, b"new")
    one.worker.client._keeper.doubt()
    until(lambda: one.worker.memory.control.state.session != before and one.mount.session.lease.left_ns() > 0)
    go.set()
    assert error_of(written.result) == errno.EIO
    assert two.content(ino) == b"new"


def test_a_change_of_a_file_whose_lock_went_with_the_session_is_not_carried_out(nodes: list[Sharing]) -> None:
    """It was on its way when the session ended: others have the file by now."""
    one, two = nodes
    ino, _ = one.create(b"f")
    two.write(ino, two.open(ino), 0, b"new")
    source, _ = one.create(b"source")
    two.write(source, two.open(source), 0, b"x" * BIG)
    changes: list[Callable[[int], object]] = [
        lambda fh: one.call("setattr", ino, fh, SetAttrIn(c.SET_SIZE, size=1)),
        lambda fh: one.call("fallocate", ino, fh, 0, 0, BIG),
        lambda fh: one.call("copy_file_range", source, 0, ino, fh, 0, BIG, 0),
    ]
    for change in changes:
        fh = one.open(ino)
        one.call("setlk", ino, fh, Lock(LOCK_POSIX, 7, 1, 1, 0, 99), False)
        one.end_session()  # nobody here knows before the change is refused
        assert error_of(change, fh) == errno.EIO
        assert two.content(ino) == b"new"
        one.close_file(ino, fh)
    one.call("setattr", ino, one.open(ino), SetAttrIn(c.SET_SIZE, size=1))
    one.end_session()
    unlocked = one.open(ino)
    one.call("setattr", ino, unlocked, SetAttrIn(c.SET_SIZE, size=2))
    assert two.content(ino) == b"n\0", "without a lock it goes on under the next session"


def test_a_failing_device_is_an_error_of_the_write(nodes: list[Sharing]) -> None:
    one, _ = nodes
    ino, fh = one.create(b"f")

    def fail(pieces: object) -> object:
        raise OSError(errno.EIO, "the device says no")

    write, one.worker.data.through._writer.write = one.worker.data.through._writer.write, fail  # type: ignore[method-assign, union-attr]
    assert error_of(one.write, ino, fh, 0, b"x") == errno.EIO
    one.worker.data.through._writer.write = write  # type: ignore[method-assign, union-attr]
    one.write(ino, fh, 0, b"y")
    assert one.read(ino, fh, 0, 9) == b"y"


def test_a_write_that_fails_gives_its_space_back_whatever_the_error(nodes: list[Sharing], monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, bytes(BIG))
    left = one.mount.buffered.reservation.left_bytes

    def missing(*_: object) -> None:
        raise Unavailable("device 1 is not there")

    monkeypatch.setattr(one.worker.data.writer, "write", missing)
    for _ in range(3):
        assert error_of(one.write, ino, fh, 0, bytes(BIG)) == errno.EAGAIN, "Unavailable: the kernel is told EIO"
    assert one.mount.buffered.reservation.left_bytes == left


def test_a_volume_is_held_whole_or_shared(nodes: list[Sharing]) -> None:
    service = nodes[0].host.service
    assert service is not None
    whole = service.propose(c.OpenSession(9, VOLUME, "node9", "boot", 1), 70)
    assert isinstance(whole, m.Failed) and whole.errno == errno.EBUSY
