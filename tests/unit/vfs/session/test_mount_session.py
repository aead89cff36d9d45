"""Sessions that end: what goes on, what answers EIO, what is put aside; leases that run out; requests executed again."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import SESSION_SELF_FENCE_MS
from awsomefsd.base.types import LOCK_END_MAX, LOCK_FLOCK, LOCK_POSIX, ROOT_INO, TRUNCATE_BIT, Lock
from awsomefsd.base.wait import Signal, Steps, block_on
from awsomefsd.io.file.file_data import FileState
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs import vfs as vfs_module
from awsomefsd.vfs.api.context import CachePolicy, Opened, SetAttrIn
from awsomefsd.vfs.ops.namespace import NamespaceOps
from awsomefsd.vfs.ops.writing import WRITE_KILL_SUIDGID
from awsomefsd.vfs.session import conflicts as put_aside_module
from awsomefsd.vfs.session.conflicts import write_conflicts
from awsomefsd.vfs.session.mount_session import SessionLease
from tests.rigs.metadata_service import Wire
from tests.rigs.mount_without_kernel import BIG, LIMIT_S, After, Held, Noticing, Rig, Started, error_of, failing, finish, rig, until

WRITE_LOCK = Lock(LOCK_POSIX, 77, 1000, 1, 0, LOCK_END_MAX)
READ = os.O_RDONLY | os.O_NOATIME


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def replaced(r: Rig, before: int) -> None:
    """Wait until the worker has its new session and serves again."""
    r.worker.client._keeper.doubt()
    until(lambda: r.worker.memory.control.state.session != before and not r.worker.sessions._busy.locked())


def lose(r: Rig) -> None:
    before = r.worker.memory.control.state.session
    r.end_session()
    replaced(r, before)


def lose_to_another(r: Rig, *changes: Any) -> None:
    """Another mount has the volume in between, and makes these commands."""
    worker = r.worker
    before = worker.memory.control.state.session
    noticed = threading.Event()
    events, worker.client._events = worker.client._events, Noticing(noticed)
    worker.data.flusher.pause(True)
    r.end_session()
    worker.client._keeper.doubt()
    assert noticed.wait(LIMIT_S)
    another_has_it(r, *changes)
    worker.client._events = events
    worker.sessions.lost()  # once, as the client says it
    replaced(r, before)


def another_has_it(r: Rig, *changes: Any) -> None:
    """Another mount has the volume, after the session of this one was ended."""
    wire = Wire(r.host.socket_path, 99)
    opened = wire.open_session(99)
    for at, change in enumerate(changes):
        reply = wire.ask(m.Propose(100 + at, opened.session, opened.epoch, [], change))
        assert not isinstance(reply, m.Failed), reply
        if isinstance(reply, m.Committed):
            assert set(reply.errnos) == {0}
    wire.ask(m.Propose(2, opened.session, opened.epoch, [], c.EndSession(opened.session, opened.epoch, True)))
    wire.close()


def conflicts(r: Rig) -> dict[str, bytes]:
    found = {}
    for directory in sorted((r.directory / "conflicts").iterdir()):
        found |= {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    return found


@pytest.mark.parametrize("who", ["this worker", "its successor", "a successor that finds the session ended"])
def test_the_next_open_drops_the_pages_of_a_file_that_another_mount_may_have_changed(r: Rig, who: str) -> None:
    """Size and mtime may be as before, so attributes do not tell the kernel; to drop pages before serving would wait for reads."""
    ino = r.file(b"a", b"x")
    other = r.file(b"b", b"x")
    r.flush()
    served: list[int] = []
    r.worker.kernel.invalidate_all = lambda inos: served.append(r.mount.session.lease.left_ns())  # type: ignore[method-assign]
    assert r.call("open", ino, READ).cache == CachePolicy.KEEP
    if who == "a successor that finds the session ended":
        r.kill()
        r.end_session()
        r.start()
    else:
        lose_to_another(r)
        assert served == [0], "the kernel has forgotten before anything is served"
        if who == "its successor":
            r.restart()
    first, second = r.call("open", ino, READ), r.call("open", ino, os.O_RDONLY)
    assert first.cache == CachePolicy.DROP == second.cache, "nobody knows yet that the kernel has the first answer"
    r.close_file(ino, second.fh)
    assert r.call("open", ino, READ).cache == CachePolicy.DROP
    assert r.read(ino, first.fh, 0, 9) == b"x"
    assert r.call("open", ino, READ).cache == CachePolicy.KEEP
    assert r.call("open", other, READ).cache == CachePolicy.DROP
    made, opened = r.call("create", ROOT_INO, b"c", 0o644, os.O_RDWR)
    assert opened.cache == CachePolicy.KEEP == r.call("open", made.ino, READ).cache


# --- the fence is looked at again behind what was done ----------------------------------------------------------------------------
def once_lost(r: Rig, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, *changes: Any, after: bool = False) -> list[str]:
    """The thread that calls it next is stopped there, until another mount has had the volume and changed it; what then, as events."""
    real, events = getattr(place, name), []

    def stopped(*args: Any, **kw: Any) -> Any:
        if events:
            return real(*args, **kw)
        events.append("stopped")
        value = real(*args, **kw) if after else None
        lose_to_another(r, *changes)
        return value if after else real(*args, **kw)

    monkeypatch.setattr(place, name, stopped)
    return events


def test_a_read_whose_session_ends_before_its_reply_does_not_answer_from_it(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    r.fsync(ino, fh)
    stopped = once_lost(r, monkeypatch, r.mount.buffered.files, "read_into", c.SetAttr(1, ino, c.SET_SIZE, size=0), after=True)
    assert error_of(r.read, ino, fh, 0, BIG) == errno.EIO and stopped, "its handle was lost with the session"
    assert r.content(ino) == b""


@pytest.mark.parametrize("what", ["getattr", "lookup", "nothing there"])
def test_what_is_told_from_memory_is_not_of_a_session_that_ends_meanwhile(r: Rig, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    ino = r.file(b"a")
    if what == "nothing there":
        assert error_of(r.lookup, b"b") == errno.ENOENT
        made = c.Create(1, ROOT_INO, b"b", 0o100600, 0, 0)
        stopped = once_lost(r, monkeypatch, r.mount.caches.names, "find", made, after=True)
        assert r.lookup(b"b").mode == 0o100600 and stopped
        return
    change = c.SetAttr(1, ino, c.SET_MODE, mode=0o600)
    stopped = once_lost(r, monkeypatch, r.mount, "shown_from_memory", change, after=True)
    seen = r.attr(ino) if what == "getattr" else r.lookup(b"a")
    assert seen.mode & 0o777 == 0o600 and stopped


@pytest.mark.parametrize("when", ["before it is stored", "before it is acknowledged"])
def test_a_write_whose_session_ends_is_not_acknowledged(r: Rig, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """A fenced writer that wakes up: nothing of it lands over what the next one wrote, and what it had stored is put aside."""
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"before")
    r.fsync(ino, fh)
    theirs = c.SetAttr(1, ino, c.SET_MODE, mode=0o600)
    if when == "before it is stored":
        stopped = once_lost(r, monkeypatch, r.mount, "file", theirs)
    else:
        stopped = once_lost(r, monkeypatch, FileState, "store", theirs, after=True)
    assert error_of(r.write, ino, fh, 0, b"LATE") == errno.EIO and stopped
    r.flush()
    assert r.content(ino) == b"before"
    assert when == "before it is stored" or list(conflicts(r).values()) == [b"LATE"]


def test_a_write_whose_lease_runs_out_is_acknowledged_when_it_is_renewed(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"....")  # with space reserved for the next
    real = FileState.store

    def store(state: FileState, *args: Any, **kw: Any) -> bool:
        stored = real(state, *args, **kw)
        r.lease_clock.advance(SESSION_SELF_FENCE_MS / 1_000 + 1)
        return stored

    monkeypatch.setattr(FileState, "store", store)
    answer = r.vfs.write(r.ctx(), ino, fh, 0, memoryview(b"kept"), 0)
    assert answer != 4 or r.mount.session.lease.left_ns() > 0, "else it was renewed meanwhile"
    monkeypatch.undo()
    r.worker.client._keeper.doubt()
    assert finish(answer) == 4 and r.content(ino) == b"kept"


@pytest.mark.parametrize("how", ["lost", "fenced", "late", "in time"])
def test_the_kernel_forgets_what_reached_it_too_late(r: Rig, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout counts from when the kernel has the reply: the thread may have been stopped between its making and its writing."""
    ino = r.file(b"a")
    forgotten: list[tuple[list[int], bool]] = []
    r.mount.caches.tells(lambda inos, pages: forgotten.append((inos, pages)))
    ctx = r.ctx()
    ctx.nodeid = ROOT_INO
    promise = r.vfs.promise()
    attr = r.lookup(b"a")
    if how == "lost":
        lose(r)
    elif how == "fenced":
        r.worker.client._keeper.end()
    elif how == "late":
        monkeypatch.setattr(vfs_module, "boot_ns", lambda: promise[1] + vfs_module.LATE_NS + 1)
    r.vfs.delivered(promise, ctx, attr, pages=False)
    ctx.nodeid = ino
    r.vfs.delivered(promise, ctx, [b"data"], pages=True)
    assert forgotten == ([] if how == "in time" else [([ROOT_INO, ino], False), ([ino], True)])


def test_a_handle_that_nobody_was_given_is_closed(r: Rig) -> None:
    ino, fh = r.create(b"a")
    opened = r.call("open", ino, os.O_RDONLY)
    r.vfs.abandoned(opened)
    assert r.mount.session.opens.get(opened.fh) is None and r.mount.session.opens.count(ino) == 1
    r.call("unlink", ROOT_INO, b"a")
    r.vfs.abandoned((r.attr(ino), Opened(fh, CachePolicy.KEEP)))
    r.flush()
    until(lambda: r.volume().used_inodes == 1)


# --- nobody else was here -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", [b"x" * 100, b"y" * BIG])
def test_dirty_data_goes_on_when_nobody_else_had_the_volume(r: Rig, data: bytes) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, data)
    lose(r)
    assert r.read(ino, fh, 0, BIG) == data
    r.write(ino, fh, 1, b"z")
    r.fsync(ino, fh)
    expected = data[:1] + b"z" + data[2:]
    assert r.read(ino, fh, 0, BIG) == expected
    assert r.worker.kernel.forgotten
    r.restart()
    assert r.content(ino) == expected


def test_files_with_locks_answer_eio_until_closed(r: Rig) -> None:
    ino, fh = r.create(b"a")
    other, other_fh = r.create(b"b")
    r.call("setlk", ino, fh, WRITE_LOCK, False)
    r.write(ino, fh, 0, b"kept")
    lose(r)
    assert error_of(r.read, ino, fh, 0, 10) == errno.EIO
    assert error_of(r.write, ino, fh, 0, b"x") == errno.EIO
    assert error_of(r.fsync, ino, fh) == errno.EIO
    assert error_of(r.truncate, ino, 0, fh) == errno.EIO
    assert error_of(r.call, "setlk", ino, fh, WRITE_LOCK, False) == errno.EIO
    r.write(other, other_fh, 0, b"x")
    r.fsync(other, other_fh)
    r.close_file(ino, fh, WRITE_LOCK.owner)
    assert r.content(ino) == b"kept"


def test_a_file_without_a_name_answers_eio(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    r.call("unlink", ROOT_INO, b"a")
    lose(r)
    assert error_of(r.read, ino, fh, 0, 10) == errno.EIO
    r.close_file(ino, fh)
    r.flush()
    assert r.volume().used_inodes == 1
    add_up(r)


def add_up(r: Rig) -> None:
    r.flush()
    assert r.mount.buffered.dirty.dirty_bytes == 0
    assert r.mount.buffered.reservation.left_bytes == r.volume().reserved_bytes


def test_a_create_that_is_repeated_truncates_the_file_once(r: Rig) -> None:
    """Killed before the answer; another program has written behind the truncation, and its fsync has returned."""
    ino = r.file(b"a", b"old")
    ctx = r.ctx(1_000)
    finish(r.vfs.create(ctx, ROOT_INO, b"a", 0o644, os.O_RDWR | os.O_TRUNC))
    other = r.open(ino)
    r.write(ino, other, 0, b"written since")
    r.fsync(ino, other)
    r.unanswered = [ctx.unique, ctx.unique | TRUNCATE_BIT]  # as MountMemory finds it
    [(attr, opened)] = r.restart(lambda vfs: vfs.create(r.ctx(1_000), ROOT_INO, b"a", 0o644, os.O_RDWR | os.O_TRUNC))
    assert attr.size == len(b"written since") and r.read(ino, opened.fh, 0, 99) == b"written since"
    r.vfs.replied(ctx.unique)
    acknowledged(r, others=1)  # that of OpenSession, whose acknowledgement went with the repeated CREATE, which was no entry


def gone() -> Steps:
    yield from ()
    return True


def acknowledged(r: Rig, others: int = 0) -> None:
    """No result is kept for the mount but that of the request before this, and `others`."""
    for number in range(3):
        r.mkdir(b"ack%d" % number)
    assert block_on(r.worker.client.ask(m.GetStatus()), LIMIT_S).figures["results_held"] <= 1 + others


@pytest.mark.parametrize("what", ["set-ID bits", "truncation", "lock", "locks of a handle", "file without a name"])
def test_a_proposal_of_the_mount_itself_that_fails_leaves_no_result(r: Rig, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ino, fh = r.create(b"a")
    r.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o6755))
    gate = r.gate()
    failed: list[int] = []

    def fail(command: Any, unique: int) -> Any:
        """It is an entry, and its answer an error."""
        if unique < TRUNCATE_BIT:
            r.mount.session.opens.epoch += what == "file without a name"  # the session it was made under has ended
            return None
        failed.append(unique)
        done = Signal()

        def answered(_value: Any, _error: BaseException | None) -> None:
            done.fire(None, FsError(errno.EIO))

        r.worker.client.propose(command, unique).start(answered)
        return done

    if what in ("lock", "locks of a handle"):
        r.call("setlk", ino, fh, WRITE_LOCK, False)
        r.call("setlk", ino, fh, Lock(LOCK_FLOCK, 5, 1, 1, 0, LOCK_END_MAX), False)
    gate.on_propose = fail
    calls = {
        "set-ID bits": lambda: r.call("write", ino, fh, 0, memoryview(b"x"), WRITE_KILL_SUIDGID),
        "truncation": lambda: r.call("create", ROOT_INO, b"a", 0o644, os.O_RDWR | os.O_TRUNC),
        "lock": lambda: finish(r.vfs.locks._take_back(c.SetLock(1, ino, LOCK_POSIX, 77, 1, 1, 0, 9, fh))),
        "locks of a handle": lambda: r.call("release", ino, fh, 0, 0, 0),
        "file without a name": lambda: r.call("tmpfile", ROOT_INO, 0o644, os.O_RDWR),
    }
    monkeypatch.setattr(NamespaceOps, "_gone", lambda _self, _ino: gone())
    assert error_of(calls[what]) == errno.EIO and failed
    gate.on_propose = None
    acknowledged(r)


def test_the_reservation_of_dirty_data_is_made_again(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    lose(r)
    r.fsync(ino, fh)
    add_up(r)
    r.write(ino, fh, 0, b"y" * BIG)
    add_up(r)


def test_a_successor_finds_the_session_ended(r: Rig) -> None:
    ino, fh = r.create(b"a")
    other, other_fh = r.create(b"b")
    r.write(ino, fh, 0, b"x" * BIG)
    r.kill()
    r.end_session()
    r.start()
    assert error_of(r.read, ino, fh, 0, 10) == errno.EIO
    assert error_of(r.read, other, other_fh, 0, 10) == errno.EIO
    r.close_file(ino, fh)
    assert r.content(ino) == b"x" * BIG
    add_up(r)


def test_a_change_under_an_ended_session_is_made_under_the_next(r: Rig) -> None:
    before = r.worker.memory.control.state.session
    r.end_session()
    made = r.begin("mkdir", ROOT_INO, b"d", 0o755)
    written = r.begin("create", ROOT_INO, b"a", 0o644, os.O_RDWR)
    replaced(r, before)
    assert made.result().ino == r.lookup(b"d").ino
    attr, opened = written.result()
    r.write(attr.ino, opened.fh, 0, b"x")


def test_a_write_that_needs_space_while_the_session_is_replaced_goes_on(r: Rig) -> None:
    ino, fh = r.create(b"a")
    before = r.worker.memory.control.state.session
    r.mount.buffered.reservation.set_left(0)
    r.end_session()
    done = r.begin("write", ino, fh, 0, memoryview(b"x" * BIG), 0)
    replaced(r, before)
    assert done.result() == BIG
    assert r.content(ino) == b"x" * BIG


def test_a_truncation_to_nothing_with_data_in_flight_goes_on(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    gate = r.gate()
    held: list[Held] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, c.Commit) and not held:
            before.append(r.worker.memory.control.state.session)
            r.end_session()
            held.append(Held(r.worker.client.propose(command, unique)))
            return held[0]
        return None

    before: list[int] = []
    gate.on_propose = on_propose
    sync = r.begin("fsync", ino, fh, False)
    until(lambda: bool(held))
    cut = r.begin("setattr", ino, None, SetAttrIn(c.SET_SIZE, size=0))
    held[0].release()
    replaced(r, before[0])
    assert cut.result().size == 0
    sync.result()
    assert r.content(ino) == b""
    add_up(r)


def test_a_lock_that_waits_goes_on_waiting_under_the_next_session(r: Rig) -> None:
    ino, fh = r.create(b"a")
    other = r.open(ino)
    assert r.host.service is not None
    r.call("setlk", ino, fh, WRITE_LOCK, False)
    waiting = r.begin("setlk", ino, other, Lock(LOCK_POSIX, 78, 1001, 1, 0, LOCK_END_MAX), True)
    lose(r)
    assert waiting.ended.wait(LIMIT_S)
    assert getattr(waiting.error, "errno", None) == errno.EIO, "the inode had locks, so its handles are lost"


# --- another mount was here -----------------------------------------------------------------------------------------------
def test_foreign_puts_every_byte_aside(r: Rig) -> None:
    ino, fh = r.create(b"a")
    small, small_fh = r.create(b"b")
    r.fsync(ino, fh)
    r.write(ino, fh, 0, b"x" * BIG)
    r.write(ino, fh, 5, b"yy")
    r.write(small, small_fh, 0, b"small")
    r.mkdir(b"d")
    lose_to_another(r, c.Create(1, ROOT_INO, b"theirs", 0o100644, 0, 0))
    found = conflicts(r)
    by_place = {tuple(map(int, name.split("-")[:2])): data for name, data in found.items()}
    assert by_place == {(ino, 0): b"x" * BIG, (ino, 5): b"yy", (small, 0): b"small"}
    assert error_of(r.read, ino, fh, 0, 10) == errno.EIO
    r.flush()
    assert r.content(ino) == b"" and r.content(small) == b""
    assert r.lookup(b"theirs").ino
    assert set(r.listdir()) == {b"a", b"b", b"d", b"theirs"}
    add_up(r)


def test_foreign_content_is_seen(r: Rig) -> None:
    """Nothing is known any more of files that were clean here."""
    small = r.file(b"s", b"ours")
    large = r.file(b"l", b"x" * BIG)
    r.flush()
    assert r.content(small) == b"ours" and r.content(large) == b"x" * BIG
    theirs = c.Commit(1, [c.InodeCommit(small, 3, 1, 7, 1, [], [(0, b"theirs!")])], 0, [])
    lose_to_another(r, theirs, c.SetAttr(1, large, c.SET_SIZE, size=3))
    assert r.content(small) == b"theirs!"
    assert r.content(large) == b"xxx"


def test_foreign_ends_a_flush_that_waits(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    r.worker.data.flusher.pause(True)
    sync = r.begin("fsync", ino, fh, False)
    lose_to_another(r, c.Create(1, ROOT_INO, b"theirs", 0o100644, 0, 0))
    sync.ended.wait(LIMIT_S)
    assert sync.ended.is_set()


def test_a_successor_puts_aside_what_another_mount_has_overtaken(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    r.kill()
    r.end_session()
    wire = Wire(r.host.socket_path, 99)
    opened = wire.open_session(99)
    wire.ask(m.Propose(2, opened.session, opened.epoch, [], c.EndSession(opened.session, opened.epoch, True)))
    wire.close()
    r.start()
    assert list(conflicts(r).values()) == [b"x" * BIG]
    assert error_of(r.read, ino, fh, 0, 10) == errno.EIO
    assert r.content(ino) == b""
    add_up(r)


def test_an_fsync_that_waits_while_its_data_is_put_aside_is_told(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    r.worker.data.flusher.pause(True)
    waiting = r.begin("fsync", ino, fh, False)
    lose_to_another(r, c.Create(1, ROOT_INO, b"theirs", 0o100644, 0, 0))
    with pytest.raises(FsError) as told:
        waiting.result()
    assert told.value.errno == errno.EIO and list(conflicts(r).values()) == [b"x" * BIG]
    assert r.counter("files_put_aside") == 1


def test_a_lease_that_has_ended_costs_the_data_of_its_file_alone(r: Rig) -> None:
    """As the machine answers on a shared volume; the other file of the batch is committed, and a successor knows the lost handles."""
    ino, fh = r.create(b"a")
    other, other_fh = r.create(b"b")
    r.write(ino, fh, 0, b"x" * BIG)
    r.write(other, other_fh, 0, b"y" * BIG)
    gate, refused = r.gate(), Refused(ino)
    gate.on_propose = lambda command, unique: refused.answer(r, command, unique)
    assert error_of(r.fsync, ino, fh) == errno.EIO
    r.fsync(other, other_fh)
    assert list(conflicts(r).values()) == [b"x" * BIG] and r.content(other) == b"y" * BIG
    add_up(r)  # the space of what became a conflict is given back once, not by the batch as well
    assert error_of(r.write, ino, fh, 0, b"z") == errno.EIO
    r.restart()
    assert error_of(r.read, ino, fh, 0, 1) == errno.EIO and r.read(other, other_fh, 0, 1) == b"y"
    r.close_file(ino, fh)
    again = r.open(ino)
    assert r.read(ino, again, 0, 1) == b""
    r.write(ino, again, 0, b"new")
    r.fsync(ino, again)


class Refused:
    """Answers ENOLCK for one file, as if its lease had ended."""

    def __init__(self, ino: int) -> None:
        self.ino = ino

    def answer(self, r: Rig, command: Any, unique: int) -> Any:
        if not isinstance(command, c.Commit) or self.ino not in [step.ino for step in command.inodes]:
            return None
        rest = [step for step in command.inodes if step.ino != self.ino]
        reply = block_on(r.worker.client.propose(c.Commit(command.volume, rest, command.consumed_bytes, command.segments), unique), LIMIT_S)
        others = iter(zip(reply.errnos, reply.attrs, strict=True))
        pairs = [(errno.ENOLCK, None) if step.ino == self.ino else next(others) for step in command.inodes]
        signal = Signal()
        signal.fire(m.Committed([pair[0] for pair in pairs], [pair[1] for pair in pairs]))
        return signal


def test_what_cannot_be_put_aside_is_kept_until_it_can(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    tries: list[int] = []
    put_aside = r.worker.conflicts._store
    monkeypatch.setattr(put_aside_module, "RETRY_PAUSE_S", 0.01)

    def fail_twice(records: list[Any]) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "full")
        return put_aside(records)

    r.worker.conflicts._store = fail_twice
    lose_to_another(r, c.Create(1, ROOT_INO, b"theirs", 0o100644, 0, 0))
    until(lambda: not r.worker.sessions._busy.locked())
    assert list(conflicts(r).values()) == [b"x" * BIG]
    assert r.lookup(b"theirs").ino


def test_nothing_is_served_before_stock_is_taken(r: Rig) -> None:
    """A write accepted between the new session and the decision about old data would go to the conflicts, or into the new volume."""
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    put_aside = r.worker.conflicts._store
    begun: list[Any] = []

    def meanwhile(records: list[Any]) -> str:
        begun.append(r.begin("write", ino, fh, 0, memoryview(b"late"), 0))
        begun.append(r.begin("getattr", ino, None))
        assert not any(one.ended.is_set() for one in begun), "answered from what may be old"
        return put_aside(records)

    r.worker.conflicts._store = meanwhile
    lose_to_another(r, c.SetAttr(1, ino, c.SET_SIZE, size=3))
    assert error_of(begun[0].result) == errno.EIO
    assert begun[1].result().size == 3


def test_conflict_files_are_whole_although_the_system_writes_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:1000]))

    class Record:
        ino, offset, sequence, data = 2, 3, 4, memoryview(bytes(range(256)) * 20)

    path = write_conflicts(str(tmp_path / "conflicts"), 5, [Record()])
    assert (Path(path) / "2-3-4").read_bytes() == bytes(range(256)) * 20


def test_nothing_is_left_of_a_try_that_met_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try would keep the disk full, and people would find many copies, of which one is whole."""

    class Record:
        ino, offset, data = 2, 3, memoryview(bytes(100))

        def __init__(self, sequence: int) -> None:
            self.sequence = sequence

    real, left = os.write, [150]

    def write(fd: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "full")
        done = real(fd, data[: left[0]])
        left[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError):
        write_conflicts(str(tmp_path / "conflicts"), 5, [Record(1), Record(2)])
    assert list((tmp_path / "conflicts").iterdir()) == []


@pytest.mark.parametrize("who", ["this worker", "its successor"])
def test_a_file_whose_data_was_put_aside_takes_no_other_ones_place(r: Rig, who: str) -> None:
    """A rename waits for the data of its source; where that became a conflict the file is empty, and the old version would be gone."""
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"old version")
    r.fsync(ino, fh)
    new, fh = r.create(b"f.new")
    r.worker.data.flusher.pause(True)
    r.write(new, fh, 0, b"new version")
    r.close_file(new, fh)
    theirs = c.Create(1, ROOT_INO, b"theirs", 0o100644, 0, 0)
    if who == "this worker":
        renaming = r.begin("rename", ROOT_INO, b"f.new", ROOT_INO, b"f", 0)
        lose_to_another(r, theirs)
        assert error_of(renaming.result) == errno.EIO
    else:
        r.kill()
        r.end_session()
        another_has_it(r, theirs)
        (renamed,) = r.start(lambda vfs: vfs.rename(r.ctx(), ROOT_INO, b"f.new", ROOT_INO, b"f", 0))
        assert getattr(renamed, "errno", None) == errno.EIO
    assert list(conflicts(r).values()) == [b"new version"]
    assert r.content(r.lookup(b"f").ino) == b"old version"
    fh = r.open(new)  # who has heard of it, or goes on, writes it anew
    r.write(new, fh, 0, b"again")
    r.call("rename", ROOT_INO, b"f.new", ROOT_INO, b"f", 0)
    assert r.content(r.lookup(b"f").ino) == b"again"


def test_a_rename_tells_once_that_data_was_put_aside(r: Rig) -> None:
    r.file(b"f", b"old version")
    r.flush()
    r.worker.data.flusher.pause(True)
    r.file(b"f.new", b"new version")
    lose_to_another(r, c.Create(1, ROOT_INO, b"theirs", 0o100644, 0, 0))
    assert error_of(r.call, "rename", ROOT_INO, b"f.new", ROOT_INO, b"f", 0) == errno.EIO
    assert r.content(r.lookup(b"f").ino) == b"old version"
    r.call("rename", ROOT_INO, b"f.new", ROOT_INO, b"f", 0)


def test_a_file_with_an_error_that_nobody_was_told_of_is_asked_for_again(r: Rig) -> None:
    """What this mount knew of it is as old as of any other: reads would show what others have cut off."""
    ino = r.file(b"f", b"x" * BIG)
    r.device.on_write = failing()
    with pytest.raises(FsError):
        block_on(r.worker.data.flusher.flush_all(), LIMIT_S)
    r.device.on_write = lambda *_: None
    until(lambda: not r.worker.data.files.dirty_states())
    assert r.worker.data.files.get(ino).error is not None
    lose_to_another(r, c.SetAttr(1, ino, c.SET_SIZE, size=0))
    assert r.content(ino) == b""


# --- leases ---------------------------------------------------------------------------------------------------------------
def test_operations_wait_while_the_lease_has_run_out(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.lease_clock.advance(SESSION_SELF_FENCE_MS / 1000 + 1)
    assert r.vfs.ttl_ns() == 0
    waiting = [r.begin("getattr", ino, fh), r.begin("write", ino, fh, 0, memoryview(b"x"), 0), r.begin("lookup", ROOT_INO, b"a")]
    assert not any(one.ended.is_set() for one in waiting)
    r.worker.client._keeper.doubt()  # renews
    assert waiting[0].result().ino == ino
    assert waiting[1].result() == 1
    assert waiting[2].result().ino == ino
    assert r.vfs.ttl_ns() > 0


# --- the same request again -----------------------------------------------------------------------------------------------
def cut_off(r: Rig, kind: type, method: str, *args: Any, count: int = 1) -> Any:
    """Begin a request, and kill the worker when its `count`-th command of this kind is committed and not answered."""
    gate = r.gate()
    held: list[Held] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, kind):
            held.append(Held(r.worker.client.propose(command, unique)))
            return held[-1]
        return None

    gate.on_propose = on_propose
    ctx = r.ctx()
    Started(getattr(r.vfs, method)(ctx, *args))
    until(lambda: len(held) >= count)
    assert held[-1].answered.wait(LIMIT_S)
    first = held[-1].outcome
    r.kill()
    results = r.start(lambda vfs: getattr(vfs, method)(r.ctx(ctx.unique), *args))
    r.vfs.replied(ctx.unique)
    return first[0], results[0]


def test_create_again(r: Rig) -> None:
    first, (attr, opened) = cut_off(r, c.Create, "create", ROOT_INO, b"a", 0o644, os.O_RDWR | os.O_EXCL)
    assert attr.ino == first.attr.ino == r.lookup(b"a").ino
    r.write(attr.ino, opened.fh, 0, b"x")
    assert r.listdir() == {b"a": attr.ino}


def test_mkdir_again(r: Rig) -> None:
    first, attr = cut_off(r, c.Create, "mkdir", ROOT_INO, b"d", 0o755)
    assert attr.ino == first.attr.ino and r.attr(ROOT_INO).nlink == 3


@pytest.mark.parametrize("open_", [False, True])
def test_unlink_again(r: Rig, open_: bool) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    if not open_:
        r.close_file(ino, fh)
    _, result = cut_off(r, c.Unlink, "unlink", ROOT_INO, b"a")
    assert result is None
    assert error_of(r.lookup, b"a") == errno.ENOENT
    if open_:
        assert r.read(ino, fh, 0, BIG) == b"x" * BIG
        r.close_file(ino, fh)
    until(lambda: r.volume().used_inodes == 1 and r.volume().used_bytes == 0)
    add_up(r)


def test_rmdir_again(r: Rig) -> None:
    r.mkdir(b"d")
    _, result = cut_off(r, c.Rmdir, "rmdir", ROOT_INO, b"d")
    assert result is None and r.listdir() == {}


@pytest.mark.parametrize("replaces", [False, True])
def test_rename_again(r: Rig, replaces: bool) -> None:
    ino = r.file(b"a", b"new" * 100)
    if replaces:
        r.file(b"b", b"old")
    _, result = cut_off(r, c.Rename, "rename", ROOT_INO, b"a", ROOT_INO, b"b", 0)
    assert result is None
    assert r.listdir() == {b"b": ino} and r.content(ino) == b"new" * 100
    assert r.volume().used_inodes == 2


def test_a_successor_keeps_the_results_of_what_it_repeats_and_no_others(r: Rig) -> None:
    """Answered but not acknowledged at a kill: nobody asks for these again, and they took room until the unmount."""
    ctx = r.ctx()
    for number in range(20):
        finish(r.vfs.mkdir(r.ctx(), ROOT_INO, b"d%d" % number, 0o755))  # `replied` is never called: the worker dies before
    first = finish(r.vfs.mkdir(ctx, ROOT_INO, b"again", 0o755))
    results = r.host.replica.machine.results_held
    assert results(r.mount_id) >= 21
    r.unanswered = [ctx.unique]
    (again,) = r.restart(lambda vfs: vfs.mkdir(r.ctx(ctx.unique), ROOT_INO, b"again", 0o755))
    assert again.ino == first.ino, "repeated under its id: one directory, the first answer"
    assert results(r.mount_id) <= 3
    r.vfs.replied(ctx.unique)
    assert len(r.listdir()) == 21


def test_handles_that_a_session_lost_fail_in_a_successor_too(r: Rig) -> None:
    ino, locked = r.create(b"a")
    _, plain = r.create(b"b")
    r.call("setlk", ino, locked, WRITE_LOCK, False)
    lose(r)
    assert error_of(r.write, ino, locked, 0, b"x") == errno.EIO
    r.write(r.lookup(b"b").ino, plain, 0, b"y")
    r.restart()
    assert error_of(r.write, ino, locked, 0, b"x") == errno.EIO
    r.write(r.lookup(b"b").ino, plain, 1, b"z")
    r.restart()
    assert error_of(r.write, ino, locked, 0, b"x") == errno.EIO


def test_an_orphan_whose_end_nobody_heard_of_is_told_again(r: Rig) -> None:
    """The worker dies between the last close and the request behind it."""
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    r.fsync(ino, fh)
    r.call("unlink", ROOT_INO, b"a")
    r.gate().on_propose = lambda command, unique: After(None) if isinstance(command, c.ReleaseOrphan) else None
    r.close_file(ino, fh)
    assert r.volume().used_inodes == 2
    r.restart()
    until(lambda: r.volume().used_inodes == 1 and r.volume().used_bytes == 0)
    until(lambda: not r.worker.memory.opens.orphans())
    add_up(r)


def test_open_with_truncation_again(r: Rig) -> None:
    ino = r.file(b"a", b"x" * BIG)
    _, opened = cut_off(r, c.SetAttr, "open", ino, os.O_RDWR | os.O_TRUNC)
    assert r.attr(ino).size == 0 and r.content(ino) == b""
    r.write(ino, opened.fh, 0, b"y")
    assert r.content(ino) == b"y"


def test_setattr_again_does_not_undo_what_came_after(r: Rig) -> None:
    ino = r.file(b"a")
    _, attr = cut_off(r, c.SetAttr, "setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    assert attr.mode & 0o777 == 0o600 == r.attr(ino).mode & 0o777


def test_write_again_is_stored_once(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.write(ino, fh, 0, b"x" * BIG)
    unique = r.unique
    r.write(ino, fh, 5, b"y")  # later, and acknowledged
    r.kill()
    results = r.start(lambda vfs: vfs.write(r.ctx(unique), ino, fh, 0, memoryview(b"x" * BIG), 0))
    assert results == [BIG]
    assert r.content(ino) == b"x" * 5 + b"y" + b"x" * (BIG - 6)


def test_locks_survive_the_worker(r: Rig) -> None:
    ino, fh = r.create(b"a")
    other = r.open(ino)
    r.call("setlk", ino, fh, WRITE_LOCK, False)
    r.restart()
    theirs = Lock(LOCK_POSIX, 78, 1001, 1, 0, LOCK_END_MAX)
    assert error_of(r.call, "setlk", ino, other, theirs, False) == errno.EAGAIN
    r.call("flush", ino, fh, WRITE_LOCK.owner)
    r.call("setlk", ino, other, theirs, False)


# --- locks ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [LOCK_POSIX, LOCK_FLOCK])
def test_a_lock_waits_for_the_close_of_its_holder(r: Rig, kind: int) -> None:
    ino, fh = r.create(b"a")
    other = r.open(ino)
    mine, theirs = Lock(kind, 1, 10, 1, 0, LOCK_END_MAX), Lock(kind, 2, 11, 1, 0, LOCK_END_MAX)
    r.call("setlk", ino, fh, mine, False)
    assert error_of(r.call, "setlk", ino, other, theirs, False) == errno.EAGAIN
    assert r.call("getlk", ino, other, theirs).owner == 1
    waiting = r.begin("setlk", ino, other, theirs, True)
    assert not waiting.ended.is_set()
    r.close_file(ino, fh, owner=1, release_flags=2 if kind == LOCK_FLOCK else 0)
    waiting.result()
    assert r.call("getlk", ino, other, mine).owner == 2


def test_a_lock_taken_by_the_next_file_of_the_same_owner_is_not_forgotten_with_the_close_before_it(r: Rig) -> None:
    """flock's owner is the address of the kernel's file, which the next one has again; the close is repeated by a successor.  Seen in
    `build.py up`: the close asked for attributes first, then forgot the owner, and the lock was never given back."""
    ino, fh = r.create(b"a")
    lock, free = Lock(LOCK_FLOCK, 1, 10, 1, 0, LOCK_END_MAX), Lock(LOCK_FLOCK, 1, 10, 2, 0, LOCK_END_MAX)
    r.call("setlk", ino, fh, lock, False)
    r.call("setlk", ino, fh, free, False)
    later = r.open(ino)
    closed, locked = r.ctx(), r.ctx()
    finish(r.vfs.release(closed, ino, fh, 0, 2, 1))
    finish(r.vfs.setlk(locked, ino, later, lock, True))
    held: list[Held] = []

    def asked(gate: Any, body: Any) -> Any:
        if isinstance(body, m.GetAttr):
            held.append(Held(gate._client.ask(body)))
            return held[-1]
        return None

    def again(vfs: Any) -> None:
        gate = r.gate()
        gate.on_ask = lambda body: asked(gate, body)
        first = Started(vfs.release(closed, ino, fh, 0, 2, 1))
        second = Started(vfs.setlk(locked, ino, later, lock, True))
        second.result()
        for one in held:
            one.release()
        first.result()
        gate.on_ask = None

    r.kill()
    r.unanswered = [closed.unique, locked.unique]
    assert r.start(again) == [None]
    other, theirs = r.open(ino), Lock(LOCK_FLOCK, 2, 11, 1, 0, LOCK_END_MAX)
    assert error_of(r.call, "setlk", ino, other, theirs, False) == errno.EAGAIN
    r.call("setlk", ino, later, free, False)
    r.call("setlk", ino, other, theirs, False)


@pytest.mark.parametrize("remembered", [True, False])
def test_a_close_that_is_late_does_not_end_the_lock_of_the_next_file_of_the_same_owner(r: Rig, remembered: bool) -> None:
    ino, fh = r.create(b"a")
    lock, theirs = Lock(LOCK_FLOCK, 1, 10, 1, 0, LOCK_END_MAX), Lock(LOCK_FLOCK, 2, 11, 1, 0, LOCK_END_MAX)
    r.call("setlk", ino, fh, lock, False)
    later, other = r.open(ino), r.open(ino)
    r.call("setlk", ino, later, lock, False)
    if not remembered:
        r.mount.caches.names.clear()
    r.call("release", ino, fh, 0, 2, 1)
    assert error_of(r.call, "setlk", ino, other, theirs, False) == errno.EAGAIN
    r.call("release", ino, later, 0, 2, 1)
    r.call("setlk", ino, other, theirs, False)


def test_a_close_gives_up_its_locks_before_it_asks_for_anything(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.call("setlk", ino, fh, Lock(LOCK_FLOCK, 1, 10, 1, 0, LOCK_END_MAX), False)
    r.mount.caches.names.clear()
    gate, order = r.gate(), []
    gate.on_ask = lambda body: order.append(type(body))
    gate.on_propose = lambda command, _: order.append(type(command))
    r.call("release", ino, fh, 0, 2, 1)
    assert order[0] is c.SetLock and m.GetAttr in order


def test_a_signal_ends_a_wait_for_a_lock_and_leaves_no_lock(r: Rig) -> None:
    ino, fh = r.create(b"a")
    r.call("setlk", ino, fh, WRITE_LOCK, False)
    waiting = r.begin("setlk", ino, fh, Lock(LOCK_POSIX, 78, 1001, 1, 0, LOCK_END_MAX), True)
    r.vfs.interrupt(r.unique)
    assert error_of(waiting.result) == errno.EINTR
    r.call("flush", ino, fh, WRITE_LOCK.owner)
    assert r.call("getlk", ino, fh, Lock(LOCK_POSIX, 79, 1, 1, 0, LOCK_END_MAX)) is None


def test_a_file_without_locks_is_closed_without_a_request(r: Rig) -> None:
    ino, fh = r.create(b"a")
    gate = r.gate()
    asked: list[Any] = []
    gate.on_propose = lambda command, _: asked.append(command)
    r.call("flush", ino, fh, 5)
    assert asked == []


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
def test_an_fsync_through_another_handle_tells_of_data_that_was_put_aside(r: Rig, flags: int) -> None:
    """Who writes closes the file, and another one syncs it: `sync FILE` does, and databases."""
    ino, fh = r.create(b"f")
    r.flush()
    r.worker.data.flusher.pause(True)
    r.write(ino, fh, 0, b"acknowledged")
    r.close_file(ino, fh)
    lose_to_another(r, c.Create(1, ROOT_INO, b"theirs", 0o100644, 0, 0))
    assert list(conflicts(r).values()) == [b"acknowledged"]
    again = r.open(ino, flags)
    assert error_of(r.fsync, ino, again) == errno.EIO
    r.fsync(ino, again)  # it was told


def test_who_has_lost_a_handle_knows_it_and_syncs_through_the_next_one(r: Rig) -> None:
    ino, fh = r.create(b"f")
    r.flush()
    r.worker.data.flusher.pause(True)
    r.write(ino, fh, 0, b"acknowledged")
    lose_to_another(r, c.Create(1, ROOT_INO, b"theirs", 0o100644, 0, 0))
    assert error_of(r.fsync, ino, fh) == errno.EIO
    for again in (r.open(ino), r.open(ino, os.O_WRONLY | os.O_TRUNC)):
        r.write(ino, again, 0, b"again")
        r.fsync(ino, again)
    assert r.content(ino) == b"again"


def test_a_renewal_while_waits_end_with_an_error_ends_none_of_them_without() -> None:
    """A renewal of the new session is announced by another thread, just when it may be served again."""

    class Announced(SessionLease):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if (name, value) == ("_held", False) and hasattr(self, "_renewed"):
                self.announce()

    lease = Announced(lambda: 1)
    lease.hold()
    told: list[BaseException | None] = []
    lease.renewed().start(lambda _value, error: told.append(error))
    lease.announce()
    assert not told
    lease.release(FsError(errno.EIO, "recovered"))
    assert [type(error) for error in told] == [FsError]
