"""Buffered data and the lease that speaks for it, over the death of workers, the end of sessions and leases that are given up."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.types import LEASE_READ, LEASE_WRITE
from awsomefsd.base.wait import block_on
from awsomefsd.io.file import flusher as flusher_module
from awsomefsd.io.file.dirty_log import LeaseToken
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.client import lease_cache
from awsomefsd.meta.machine import commits
from awsomefsd.vfs.session import lease_recovery
from awsomefsd.worker import unmount
from tests.rigs.mount_without_kernel import BIG, LIMIT_S, VOLUME, error_of, until
from tests.rigs.sharing_nodes import two_nodes
from tests.unit.vfs.ops.test_buffered_writes import Leased, lose, sound, unheard


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Leased]]:
    yield from two_nodes(Leased, tmp_path, held_clock=True)


def conflicts(node: Leased) -> list[bytes]:
    """The bytes that were stored as conflicts."""
    return sorted(path.read_bytes() for path in (node.directory / "conflicts").glob("*/*"))


# --- leases that a successor adopts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("committed_before", [False, True])
@pytest.mark.parametrize("records", ["of this build", "without a number of changes"])
def test_what_a_successor_buffers_never_replaces_what_another_node_wrote_since(
    nodes: list[Leased], committed_before: bool, records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database's node is replaced by an upgrade, and cut off later; its standby has fsynced meanwhile.

    Builds before this one left records in memory that name a lease and no number of changes.
    """
    one, two = nodes
    ino, fh = one.create(b"f")
    if committed_before:
        one.write(ino, fh, 0, b"......")
        one.fsync(ino, fh)
    if records != "of this build":
        state_store = lease_recovery.FileState.store

        def store(state: lease_recovery.FileState, *args: object, **kw: object) -> bool:
            state.token = state.token and LeaseToken(state.token.session, state.token.lease, 0)
            return state_store(state, *args, **kw)  # type: ignore[arg-type]

        monkeypatch.setattr(lease_recovery.FileState, "store", store)
    one.write(ino, fh, 0, b"OLD")
    one.kill()
    monkeypatch.undo()
    one.start()
    one.write(ino, fh, 0, b"OLD")
    assert one.holds(ino) == LEASE_WRITE and one.mount.buffered.files.get(ino).newest().token.known
    with unheard(one):
        one.end_session()
        there = two.open(ino)
        two.write(ino, there, 0, b"newer and fsynced")
        two.fsync(ino, there)
    lose(one)
    assert error_of(one.fsync, ino, fh) == errno.EIO
    one.flush()
    assert two.read(ino, there, 0, 99) == b"newer and fsynced" and conflicts(one) == [b"OLD"]
    sound(nodes)


def test_data_of_an_ended_session_that_names_no_number_of_changes_is_a_conflict(nodes: list[Leased]) -> None:
    """Left by an older build: nobody can say whether others have changed the file since."""
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"OLD")
    one.worker.data.flusher.pause(True)
    newest = one.mount.buffered.files.get(ino).newest()
    newest.token = newest.token._replace(known=0)
    with unheard(one):
        one.end_session()
        there = two.open(ino)
        two.write(ino, there, 0, b"newer and fsynced")
        two.fsync(ino, there)
    lose(one)
    assert error_of(one.fsync, ino, fh) == errno.EIO
    assert two.read(ino, there, 0, 99) == b"newer and fsynced" and conflicts(one) == [b"OLD"]
    sound(nodes)


def test_the_question_of_a_new_session_names_what_its_records_knew(nodes: list[Leased]) -> None:
    """Whatever else was asked about this file or others meanwhile: an answer that came since would make it look untouched."""
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"OLD")
    one.worker.data.flusher.pause(True)
    with unheard(one):
        one.end_session()
        there = two.open(ino)
        two.write(ino, there, 0, b"newer and fsynced")
        two.fsync(ino, there)
        leases = one.worker.caches.leases
        assert leases is not None
        want_knowing = leases.want_knowing

        def asked_besides(ino: int, mode: int, known: int) -> object:
            asked = want_knowing(ino, mode, known)
            leases.cover(ino)
            until(lambda: leases._holder.grant(ino) and ino not in leases._asked)
            with leases._lock:  # the answer is taken up
                return asked

        leases.want_knowing = asked_besides  # type: ignore[method-assign, assignment]
    lose(one)
    assert error_of(one.fsync, ino, fh) == errno.EIO
    assert two.read(ino, there, 0, 99) == b"newer and fsynced" and conflicts(one) == [b"OLD"]
    sound(nodes)


# --- recalls and refused commits ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the thread that is killed
def test_a_recall_is_answered_when_the_records_are_clean(nodes: list[Leased], monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is killed at the failpoint dirty.clean.before, while another node asks for the file.

    Else the successor would find a dirty record of a lease that has ended, and take committed data for a conflict.
    """
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"first")
    dies, reached = threading.Event(), threading.Event()
    flusher = one.worker.data.flusher

    def killed(name: str) -> None:
        if name == "dirty.clean.before" and threading.current_thread() is flusher._thread._thread:
            reached.set()
            assert dies.wait(LIMIT_S)
            raise SystemExit

    def leave(batch: Any) -> None:
        """As for an answer that is no plain success: while the thread of answers takes one up, it hears of no recall."""
        with flusher._cond:
            batch.done.set()
            flusher._cond.notify()

    monkeypatch.setattr(flusher_module, "hit", killed)
    monkeypatch.setattr(flusher, "_answered", leave)
    one.begin("fsync", ino, fh, False)
    assert reached.wait(LIMIT_S)
    written = threading.Event()
    writer = threading.Thread(target=lambda: (two.write(ino, two.open(ino), 0, b"SECOND"), written.set()))
    writer.start()
    until(lambda: written.is_set() or any(request.patient for request in flusher._requests))
    assert not written.is_set(), "the recall was answered while a record was dirty"
    one.worker.client.close()
    dies.set()
    one.kill()
    monkeypatch.undo()
    one.start()
    writer.join(LIMIT_S)
    assert one.counter("files_put_aside") == 0
    assert two.content(ino) == b"SECOND" == one.read(ino, fh, 0, 99)
    sound(nodes)


def end_lease(node: Leased, ino: int) -> None:
    """Ends the write lease by an entry of which its worker does not hear."""
    epoch = node.worker.caches.leases.may_buffer(ino)  # type: ignore[union-attr]
    unique = node.worker.memory.control.next_background_unique()
    block_on(node.worker.client.propose(c.ReleaseLease(VOLUME, ino, epoch), unique), LIMIT_S)
    node.worker.client.ack(unique)


def test_a_lease_that_a_refused_commit_shows_to_have_ended_is_not_used_any_more(nodes: list[Leased]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"first")
    end_lease(one, ino)
    assert error_of(one.fsync, ino, fh) == errno.EIO
    assert one.worker.caches.leases.may_buffer(ino) == 0 and conflicts(one) == [b"first"]  # type: ignore[union-attr]
    again = one.open(ino)
    one.write(ino, again, 0, b"third")
    assert two.content(ino) == b"third"
    one.fsync(ino, again)
    assert one.counter("files_put_aside") == 1 and conflicts(one) == [b"first"]
    sound(nodes)


def test_what_is_written_while_older_data_becomes_a_conflict_is_kept(nodes: list[Leased]) -> None:
    """Through a new handle, which has lost nothing: a full state directory holds the conflict up for long."""
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"old data")
    end_lease(one, ino)
    stored, go_on = threading.Event(), threading.Event()
    store = one.worker.conflicts._store

    def slow(records: list[Any]) -> str:
        done = store(records)
        stored.set()
        assert go_on.wait(LIMIT_S)
        return done

    one.worker.conflicts._store = slow
    first = one.begin("fsync", ino, fh, False)
    assert stored.wait(LIMIT_S)
    again = one.open(ino)
    written = one.begin("write", ino, again, 0, memoryview(b"brand new"), 0)
    second = one.begin("fsync", ino, again, False)
    go_on.set()
    assert written.result() == 9
    second.result()
    assert error_of(first.result) == errno.EIO
    one.fsync(ino, again)
    assert one.read(ino, again, 0, 99) == b"brand new" == two.content(ino) and conflicts(one) == [b"old data"]
    sound(nodes)


def test_new_data_does_not_speak_for_what_is_dirty_under_an_ended_lease(nodes: list[Leased]) -> None:
    """The newest record of a file counts for all: under a new lease the old bytes would be laid over what others wrote in between."""
    one, two = nodes
    ino, fh = one.create(b"f")
    two.file(b"g")
    one.write(ino, fh, 0, b"OLD BYTES OF ONE" + bytes(BIG))
    one.worker.data.flusher.pause(True)
    end_lease(one, ino)
    one.worker.caches.leases.note_ended(ino, one.mount.buffered.files.get(ino).lease)  # type: ignore[union-attr]
    there = two.open(ino)
    two.write(ino, there, 0, b"NEWER, OF TWO...")
    two.fsync(ino, there)
    writing = one.begin("write", ino, fh, BIG, memoryview(b"z"), 0)
    one.worker.data.flusher.pause(False)
    assert error_of(writing.result) == errno.EIO == error_of(one.fsync, ino, fh)
    assert two.read(ino, there, 0, 16) == b"NEWER, OF TWO..." and len(conflicts(one)) == 1
    sound(nodes)


# --- leases that are given up -------------------------------------------------------------------------------------------------------


def test_a_lease_that_became_one_to_write_is_not_given_up_with_the_oldest(nodes: list[Leased], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes
    monkeypatch.setattr(lease_cache, "LEASES_KEPT_MAX", 32)
    inos = [two.file(b"%d" % number, b"x") for number in range(60)]
    victim = inos[0]
    leases = one.worker.caches.leases
    assert leases is not None
    fh = one.open(victim)
    one.attr(victim)
    assert one.holds(victim) == LEASE_READ
    reached, go_on = threading.Event(), threading.Event()
    release = leases._release

    def slow(chosen: list[int]) -> None:
        reached.set()
        assert victim in chosen and go_on.wait(LIMIT_S)
        release(chosen)

    leases._release = slow  # type: ignore[method-assign]
    for ino in inos[1:]:
        one.open(ino)
    assert reached.wait(LIMIT_S)
    leases._release = release  # type: ignore[method-assign]
    one.write(victim, fh, 0, b"acknowledged")
    assert one.holds(victim) == LEASE_WRITE
    go_on.set()
    until(lambda: not leases._evicting)
    assert one.holds(victim) == LEASE_WRITE
    there = two.open(victim)
    two.write(victim, there, 0, b"A")
    one.write(victim, fh, 5_000, b"z")
    one.fsync(victim, fh)
    assert two.read(victim, there, 0, 12) == b"Acknowledged" and conflicts(one) == []
    sound(nodes)


# --- what is told of conflicts ------------------------------------------------------------------------------------------------------


def test_a_flush_of_the_mount_tells_of_conflicts_once(nodes: list[Leased]) -> None:
    """Nothing is left to be flushed then, and a program that closed its file before hears of nothing else.  A successor tells it, too."""
    one, _ = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"first")
    end_lease(one, ino)
    one.close_file(ino, fh)
    block_on(one.worker.data.flusher.drained(ino), LIMIT_S)
    one.restart()
    unmount.flush_all(one.mount, one.worker.conflicts, tell=False)  # as before an unmount, or before another worker takes over
    assert error_of(unmount.flush_all, one.mount, one.worker.conflicts, True) == errno.EIO
    unmount.flush_all(one.mount, one.worker.conflicts, tell=True)
    sound(nodes)


def test_a_file_with_too_many_extents_becomes_a_conflict_and_the_mount_ends(nodes: list[Leased], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes
    monkeypatch.setattr(commits, "EXTENTS_PER_INODE_MAX", 4)
    ino, fh = one.create(b"f")
    other, other_fh = one.create(b"g")
    for number in range(8):
        one.write(ino, fh, number * BIG, b"x" * 5_000)
    one.write(other, other_fh, 0, b"sound")
    assert error_of(one.fsync, ino, fh) == errno.EFBIG
    until(lambda: one.counter("files_put_aside"))
    assert error_of(one.fsync, ino, fh) == errno.EIO and conflicts(one) == [b"x" * 5_000] * 8
    assert two.content(other) == b"sound"
    sound(nodes)


# --- requests that are executed again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaths", [1, 2])
@pytest.mark.parametrize("other", ["asks for nothing", "appends"])
def test_an_append_that_was_committed_before_it_was_answered_is_there_once(nodes: list[Leased], deaths: int, other: str) -> None:
    """Its reader was descheduled while age, size, somebody's fsync or a recall committed the record; then the worker dies."""
    one, two = nodes
    ino, fh = one.create(b"log")
    one.write(ino, fh, 0, b"1\n", flags=os.O_APPEND)
    one.fsync(ino, fh)
    ctx = one.ctx(open_flags=os.O_APPEND)
    assert one.vfs.write(ctx, ino, fh, 0, memoryview(b"2\n"), 0) == 2  # and nobody is told
    one.fsync(ino, fh)
    wanted = b"1\n2\n"
    if other == "appends":
        there = two.open(ino)
        two.write(ino, there, 0, b"3\n", flags=os.O_APPEND)
        two.fsync(ino, there)
        wanted += b"3\n"
    one.unanswered = [ctx.unique]
    for _ in range(deaths - 1):
        one.restart()  # it dies before it has repeated the request
    assert one.restart(lambda vfs: vfs.write(ctx, ino, fh, 0, memoryview(b"2\n"), 0)) == [2]
    assert one.content(ino) == wanted
    one.vfs.replied(ctx.unique)
    one.flush()
    until(lambda: not one.mount.buffered.dirty.used_bytes)
    sound(nodes)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_write_that_was_committed_before_it_was_answered_is_not_laid_over_what_came_since(nodes: list[Leased], deaths: int) -> None:
    """The other node has seen it, and has written to the same place since."""
    one, two = nodes
    ino, fh = one.create(b"f")
    ctx = one.ctx()
    one.write(ino, fh, 0, b"old")
    assert one.vfs.write(ctx, ino, fh, 0, memoryview(b"mid"), 0) == 3
    there = two.open(ino)
    assert two.read(ino, there, 0, 9) == b"mid"
    two.write(ino, there, 0, b"new")
    two.fsync(ino, there)
    one.unanswered = [ctx.unique]
    for _ in range(deaths - 1):
        one.restart()
    assert one.restart(lambda vfs: vfs.write(ctx, ino, fh, 0, memoryview(b"mid"), 0)) == [3]
    assert two.read(ino, there, 0, 9) == b"new" == one.content(ino)
    sound(nodes)
