"""The flusher's corners: requests whose records went another way, files that end on their way, refusals, and threads that meet."""

from __future__ import annotations

import contextlib
import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from awsomefsd.base import shm
from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.types import Attr, Extent
from awsomefsd.base.wait import Errand, Resume, Wait, block_on
from awsomefsd.io.file import file_data
from awsomefsd.io.file.dirty_log import DirtyLog, required_bytes
from awsomefsd.io.file.file_data import FileState, FileTable
from awsomefsd.io.file.flusher import REFUSALS_MAX, Flusher, _Request
from awsomefsd.io.segment.writer import Piece, Written
from awsomefsd.meta.api.commands import Commit
from awsomefsd.meta.api.messages import Committed

WAIT_S = 60


def attr(ino: int, size: int = 0, stored: int = 0, inline: bool = True) -> Attr:
    return Attr(ino, 0o100644, 1, 0, 0, 0, size, stored, 0, 0, 0, 0, inline, 0)


class Service:
    """Answers commits as `refuse` says (ino -> errno), or raises what `fail` holds; `gate` holds answers back."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.refuse: dict[int, int] = {}
        self.fail: list[BaseException] = []
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Event()

    def propose(self, command: Commit, unique: int) -> Wait:
        service = self

        class Answer:
            def start(self, resume: Resume) -> None:
                threading.Thread(target=service._answer, args=(command, resume), daemon=True).start()

        return Answer()

    def _answer(self, command: Commit, resume: Resume) -> None:
        self.commits.append(command)
        self.arrived.set()
        assert self.gate.wait(WAIT_S)
        if self.fail:
            resume(None, self.fail.pop())
        else:
            resume(Committed([self.refuse.pop(step.ino, 0) for step in command.inodes], [None] * len(command.inodes)), None)

    def ack(self, unique: int) -> None:
        pass


class Rig:
    """Dirty log, file table and flusher over a device that takes everything."""

    def __init__(self) -> None:
        self.dirty = DirtyLog(bytearray(required_bytes(1 << 20)), 7, True, recall_bytes=shm.PAGE_BYTES)
        self.files = FileTable(1, self.dirty, None, lambda *_: None)  # type: ignore[arg-type]
        self.service = Service()
        self.refresh: Callable[[int], None] = lambda ino: None
        self.sequence = 0
        self.given_up: list[int] = []
        self.during_write: list[Callable[[], None]] = []
        uniques = iter(range(1, 1 << 40))
        self.flusher = Flusher(
            self.files, self.dirty, self, self.service, self, type("U", (), {"next_background_unique": lambda _: next(uniques)})(),
        )  # type: ignore[arg-type]  # fmt: skip

    def write(self, pieces: list[Piece]) -> Written:
        while self.during_write:
            self.during_write.pop()()
        extents = []
        for piece in pieces:
            self.sequence += 1
            extents.append([Extent(piece.file_offset, piece.length, 1, 1, self.sequence, 0, 64, 0)])
        return Written(extents, [], 0)

    def report_again(self, written: Written) -> None:
        pass

    def start(self) -> None:
        self.flusher.start(self)

    def refresh_layout(self, ino: int) -> None:
        self.refresh(ino)

    def committed(self, attr: Attr, repeated: bool) -> None:
        pass

    def lease_lost(self, state: FileState) -> None:
        pass

    def refused_for_good(self, state: FileState, errno_: int) -> None:
        self.given_up.append(errno_)
        self.files.drop(state.ino)

    def error_told(self, ino: int, error: Error) -> None:
        pass

    def idle(self) -> None:
        pass

    def write_failed(self) -> None:
        pass

    def give_back(self, unused_bytes: int) -> None:
        pass

    def store(self, ino: int, data: bytes = b"x" * 5000, offset: int = 0, **about: Any) -> FileState:
        state = self.files.state(attr(ino, **about))
        assert state.store(self.dirty, offset, memoryview(data), 0, time.time_ns())
        return state


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.service.gate.set()
    if made.flusher._thread.is_alive():
        made.flusher.stop()


def test_a_request_that_comes_when_its_records_are_committed_already_is_answered(rig: Rig) -> None:
    """fsync looks at the file, then puts its request in the list; the commit may end in between."""
    rig.start()
    state = rig.store(10)
    target = state.dirty[-1].sequence
    block_on(rig.flusher.flush(10), WAIT_S)
    late = rig.flusher.flush_all()  # a Signal to hang the late request on
    late = type(late)()
    rig.flusher._request(_Request(10, target, late))
    block_on(late, WAIT_S)


def test_flush_all_ends_when_what_was_dirty_is_removed(rig: Rig) -> None:
    state = rig.store(10)
    state.held = True  # a truncation to nothing is on its way
    rig.start()
    waiting = rig.flusher.flush_all()
    with pytest.raises(TimeoutError):
        block_on(waiting, 0.1)
    rig.files.discard(10)
    state.held = False
    block_on(waiting, WAIT_S)


def test_a_truncation_goes_on_when_the_batch_in_flight_meets_the_end_of_the_session(rig: Rig) -> None:
    """Held records are not flushed again, so the truncation must not wait for their commit."""
    state = rig.store(10)
    rig.service.gate.clear()
    rig.service.fail.append(FsError(errno.ESTALE, "the session has ended"))
    rig.start()
    flushed = rig.flusher.flush_all()
    assert rig.service.arrived.wait(WAIT_S)
    state.held = True
    waiting = rig.flusher.flush(10, in_flight_only=True)
    rig.service.gate.set()
    block_on(waiting, WAIT_S)
    with pytest.raises(TimeoutError):
        block_on(flushed, 0.1)  # but whoever wants the data flushed waits for it
    state.held = False
    block_on(flushed, WAIT_S)


def test_a_file_that_ends_while_its_layout_is_asked_for_does_not_stop_the_others(rig: Rig) -> None:
    def gone(ino: int) -> None:
        raise FsError(errno.ENOENT)

    rig.refresh = gone
    rig.store(10, offset=90, size=100, stored=100)  # small until now, its inline data not known here
    rig.service.refuse[10] = errno.ENOENT
    rig.store(11)
    rig.start()
    block_on(rig.flusher.flush(11), WAIT_S)
    block_on(rig.flusher.flush_all(), WAIT_S)
    assert rig.dirty.dirty_bytes == 0


def test_the_flusher_outlives_a_refused_file_whose_layout_cannot_be_had(rig: Rig) -> None:
    def fails(ino: int) -> None:
        raise FsError(errno.ENOENT)

    rig.refresh = fails
    rig.store(10)
    rig.service.refuse[10] = errno.ESTALE
    rig.start()
    block_on(rig.flusher.flush_all(), WAIT_S)
    assert len(rig.service.commits) == 2


def test_a_later_batch_does_not_overtake_a_refused_one(rig: Rig) -> None:
    """The machine ignores what is older than the newest committed sequence: records of a refused file go before later ones."""
    first = rig.store(10, inline=False)
    older = first.dirty[0].sequence

    def write_more() -> None:
        rig.store(10, offset=5000, inline=False)
        rig.flusher.kick()

    rig.during_write.append(write_more)
    rig.service.refuse[10] = errno.EFBIG
    rig.start()
    rig.flusher.kick()
    deadline = time.monotonic() + WAIT_S
    while not first.error and time.monotonic() < deadline:
        time.sleep(0.001)
    newer = first.dirty[1].sequence
    rig.flusher.kick()
    while first.dirty and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not first.dirty and first.in_flight == 0
    committed = [step.sequence for commit in rig.service.commits[1:] for step in commit.inodes]
    assert sum(extent.length for commit in rig.service.commits[1:] for step in commit.inodes for extent in step.extents) == 10_000
    assert committed in ([newer], [older, newer])


def test_files_that_lose_their_records_while_the_flusher_looks_do_not_end_it(rig: Rig) -> None:
    """Truncations and removals take records out on other threads, between any two steps of the flusher's look."""

    class Vanishing(list[Any]):
        """As the flusher may see it: something is in it, and then nothing."""

        def __bool__(self) -> bool:
            return True

    state = rig.store(10)
    rig.files.discard(10)
    state.dirty = Vanishing()
    assert [found.ino for found in rig.flusher._choose()] in ([], [10])
    rig.flusher._kicked = True
    assert [found.ino for found in rig.flusher._choose()] in ([], [10])
    rig.flusher.flush_all()
    rig.flusher._announce()


class Watched(FileState):
    """A state that calls `between` after each look at its error that others may follow at once with one of their own."""

    __slots__ = ()
    between: Callable[[], None]

    @property
    def error(self) -> Any:
        found = FileState.error.__get__(self)  # type: ignore[attr-defined]
        if found is not None and not self.lock.locked():
            Watched.between()
        return found

    @error.setter
    def error(self, value: Any) -> None:
        FileState.error.__set__(self, value)  # type: ignore[attr-defined]


def test_an_error_that_another_fsync_takes_in_between_is_no_success(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads call fsync on a file whose flush fails: neither may say 0 while the data is dirty."""
    monkeypatch.setattr(file_data, "FileState", Watched)
    state = rig.store(10)
    others: list[Wait] = []
    Watched.between = lambda: others.append(rig.flusher.flush(10)) if not others else None
    rig.service.fail = [FsError(errno.EIO)]
    waiting = rig.flusher.flush(10)
    rig.start()
    with pytest.raises(FsError):
        block_on(waiting, WAIT_S)
    rig.flusher.stop()
    for other in others:
        with pytest.raises(FsError):
            block_on(other, WAIT_S)
    assert state.dirty


class Always(dict[int, int]):
    def pop(self, key: int, default: int = 0) -> int:  # type: ignore[override]
        return self.get(key, default)


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EINVAL])
def test_a_commit_that_is_refused_for_good_ends(rig: Rig, number: int) -> None:
    rig.store(10)
    rig.store(11)
    rig.service.refuse = Always({10: number})
    rig.start()
    for _ in range(REFUSALS_MAX):  # the last one finds nothing any more
        with contextlib.suppress(FsError):
            block_on(rig.flusher.flush_all(), WAIT_S)
    block_on(rig.flusher.drained(10), WAIT_S)
    assert rig.given_up == [number] and not rig.dirty.dirty_bytes


def test_a_commit_for_which_there_is_no_room_is_never_given_up(rig: Rig) -> None:
    rig.store(10)
    rig.service.refuse = Always({10: errno.ENOSPC})
    rig.start()
    for _ in range(3 * REFUSALS_MAX):
        with pytest.raises(FsError):
            block_on(rig.flusher.flush(10), WAIT_S)
    rig.service.refuse.clear()
    block_on(rig.flusher.drained(10), WAIT_S)
    assert not rig.given_up and not rig.dirty.dirty_bytes


# --- who drives -----------------------------------------------------------------------------------------------------------


def errand(rig: Rig, ino: int) -> tuple[Errand, list[int]]:
    """A flush that the caller is going to do, and a list that gets the thread on which it ends."""
    waiting, ended = rig.flusher.flush(ino), list[int]()
    assert isinstance(waiting, Errand)
    waiting.claim()
    waiting.start(lambda value, error: ended.append(threading.get_ident()))
    return waiting, ended


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_who_is_asked_for_a_flush_writes_and_who_receives_the_answer_ends_it(rig: Rig) -> None:
    """No other thread is woken: a flush that the caller drives begins no batch of the flusher's own."""
    rig.start()
    state, threads = rig.store(10), list[int]()
    rig.during_write.append(lambda: threads.append(threading.get_ident()))
    waiting, ended = errand(rig, 10)
    waiting.run()
    until(lambda: ended)
    assert threads == [threading.get_ident()]
    assert ended[0] not in (threading.get_ident(), rig.flusher._thread._thread.ident)
    assert not state.dirty and rig.flusher._proposed is None and not rig.flusher._driven


def test_who_drives_says_so_before_it_blocks_and_who_leaves_it_to_others_does_not(rig: Rig) -> None:
    rig.start()
    rig.store(10)
    said: list[str] = []

    def come() -> None:
        said.append("written")
        rig.store(11)
        waiting, _ = errand(rig, 11)
        waiting.run(lambda: said.append("the second blocks"))

    rig.during_write.append(come)
    waiting, ended = errand(rig, 10)
    waiting.run(lambda: said.append("blocks"))
    until(lambda: ended)
    assert said[:2] == ["blocks", "written"] and "the second blocks" not in said


def test_an_unclaimed_flush_is_the_threads(rig: Rig) -> None:
    rig.start()
    rig.store(10)
    threads = list[int]()
    rig.during_write.append(lambda: threads.append(threading.get_ident()))
    block_on(rig.flusher.flush(10), WAIT_S)
    assert threads == [rig.flusher._thread._thread.ident]


def test_flushes_that_come_while_one_drives_are_done_by_that_one_together(rig: Rig) -> None:
    """Ten callers, two batches: nobody waits for the device but the first."""
    rig.start()
    rig.store(10)
    others: list[list[int]] = []

    def come() -> None:
        for ino in range(11, 20):
            rig.store(ino)
            waiting, ended = errand(rig, ino)
            waiting.run()  # returns at once
            others.append(ended)

    rig.during_write.append(come)
    first, ended = errand(rig, 10)
    first.run()
    until(lambda: ended and all(others))
    assert len(others) == 9
    assert [len(commit.inodes) for commit in rig.service.commits] == [1, 9]


def test_what_is_asked_between_the_last_look_and_the_leaving_is_done(rig: Rig) -> None:
    """Who drives has found nothing; then another one asks, and leaves it to who drives."""
    rig.start()
    rig.store(10)
    leave, late = rig.flusher._leave, list[list[int]]()

    def leaving(asked: int | None) -> bool:
        if not late:
            rig.store(11)
            waiting, ended = errand(rig, 11)
            late.append(ended)
            waiting.run()
        return leave(asked)

    rig.flusher._leave = leaving  # type: ignore[method-assign]
    waiting, ended = errand(rig, 10)
    waiting.run()
    until(lambda: ended and late[0])
    assert not rig.flusher._driven


def test_an_answer_that_is_no_plain_success_is_taken_up_by_the_thread(rig: Rig) -> None:
    """It may block; the thread that receives answers may not."""
    rig.start()
    rig.store(10)
    rig.service.refuse[10] = errno.ENOLCK
    threads = list[int]()
    rig.lease_lost = lambda state: (threads.append(threading.get_ident()), rig.files.drop(state.ino))  # type: ignore[method-assign, assignment]
    waiting, ended = errand(rig, 10)
    waiting.run()
    until(lambda: ended)
    assert threads == [rig.flusher._thread._thread.ident]


def test_a_failed_flush_of_a_caller_is_tried_again_by_the_thread(rig: Rig) -> None:
    def fails() -> None:
        raise OSError(errno.EIO, "the device is gone")

    rig.start()
    state = rig.store(10)
    rig.during_write.append(fails)
    waiting, ended = errand(rig, 10)
    waiting.run()
    with pytest.raises(FsError):
        block_on(waiting, WAIT_S)
    assert ended == [threading.get_ident()], "the caller is told by itself"
    until(lambda: not state.dirty)
    assert len(rig.service.commits) == 1


def test_a_batch_behind_one_that_failed_is_told_the_same_error(rig: Rig) -> None:
    """Its bytes are on the device, and its Commit may not overtake the one that failed."""
    rig.start()
    rig.service.gate.clear()
    rig.service.fail.append(FsError(errno.EIO, "no"))
    rig.store(10)
    first, _ = errand(rig, 10)
    first.run()
    assert rig.service.arrived.wait(WAIT_S)
    rig.store(11)
    second, _ = errand(rig, 11)
    rig.during_write.append(rig.service.gate.set)
    second.run()
    for waiting in (first, second):
        with pytest.raises(FsError) as told:
            block_on(waiting, WAIT_S)
        assert told.value.errno == errno.EIO
    block_on(rig.flusher.drained(11), WAIT_S)


def test_a_caller_flushes_nothing_while_there_is_no_session(rig: Rig) -> None:
    rig.start()
    rig.flusher.pause(True)
    state = rig.store(10)
    waiting, ended = errand(rig, 10)
    waiting.run()
    assert state.dirty and not ended and not rig.service.commits
    rig.flusher.pause(False)
    until(lambda: ended)


def test_a_stop_waits_for_the_batch_of_a_caller(rig: Rig) -> None:
    rig.start()
    rig.store(10)
    rig.service.gate.clear()
    waiting, ended = errand(rig, 10)
    waiting.run()
    assert rig.service.arrived.wait(WAIT_S)
    stopping = threading.Thread(target=rig.flusher.stop)
    stopping.start()
    until(lambda: rig.flusher._thread.stopping)
    assert rig.flusher._thread.is_alive() and not ended
    rig.service.gate.set()
    stopping.join(WAIT_S)
    assert not stopping.is_alive() and ended


def test_the_thread_looks_once_while_what_it_proposed_is_not_answered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be no leader for long: it would take a whole core, and the interpreter from all other threads."""
    rig.start()
    rig.store(10)
    rig.service.gate.clear()
    looks, waits = list[None](), threading.Event()
    look, wait = rig.flusher._next_batch, rig.flusher._cond.wait

    def waiting(timeout: float | None = None) -> bool:
        if rig.service.arrived.is_set():
            waits.set()
        return wait(timeout)

    def looking() -> Any:
        looks.append(None)
        assert len(looks) < 20, "it never waits"
        return look()

    monkeypatch.setattr(rig.flusher, "_next_batch", looking)
    monkeypatch.setattr(rig.flusher._cond, "wait", waiting)
    first = rig.flusher.flush_all()
    assert rig.service.arrived.wait(WAIT_S) and waits.wait(WAIT_S)
    rig.store(11)
    written = threading.Event()
    rig.during_write.append(written.set)
    second = rig.flusher.flush_all()
    assert written.wait(WAIT_S), "what is asked for meanwhile goes to the device already"
    rig.service.gate.set()
    block_on(first, WAIT_S)
    block_on(second, WAIT_S)
    assert len(rig.service.commits) == 2


def test_a_bug_in_who_waits_for_a_batch_ends_the_worker(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who were to be resumed after it would wait for ever; a successor repeats their requests."""
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: died.set() if args.thread.name == "flusher" else None)

    def fails(_value: Any, _error: BaseException | None) -> None:
        raise RuntimeError("a bug")

    rig.start()
    rig.store(10)
    first, second = rig.flusher.flush(10), rig.flusher.flush(10)
    assert isinstance(first, Errand) and isinstance(second, Errand)
    first.claim()
    first.start(fails)
    second.claim()
    second.start(lambda value, error: None)
    first.run()
    assert died.wait(WAIT_S), "an exception is logged where answers are received, and all goes on"


@pytest.mark.timeout(1_200)
def test_callers_and_refusals_in_any_order_lose_no_flush(rig: Rig, seed: int) -> None:
    """Each flush ends, and then what it waited for is committed or its error is told."""
    rig.start()
    rng = random.Random(seed)
    failed: list[BaseException] = []

    def work(mine: random.Random, ino: int) -> None:
        try:
            for at in range(60):
                state = rig.store(ino, offset=5000 * at, inline=False)
                target = state.dirty[-1].sequence
                if mine.random() < 0.1:
                    rig.service.refuse[ino] = mine.choice([errno.ESTALE, errno.ENOENT, errno.ENOSPC])
                if mine.random() < 0.05:
                    rig.flusher.kick()
                waiting = rig.flusher.flush(ino)
                if mine.random() < 0.7:
                    waiting.claim()
                done = threading.Event()
                outcome: list[BaseException | None] = []
                waiting.start(lambda value, error, done=done, outcome=outcome: (outcome.append(error), done.set()))
                if waiting._mine:
                    waiting.run()
                assert done.wait(WAIT_S), f"a flush does not end: {ino} {at}"
                assert outcome[0] is not None or all(record.sequence > target for record in list(state.dirty))
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=work, args=(random.Random(rng.random()), 10 + number)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not failed, failed
