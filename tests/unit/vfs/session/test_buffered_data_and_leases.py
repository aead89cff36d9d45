"""Buffered data and the lease that speaks for it, over the death of workers, the end of sessions and leases that are given up."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.types import LEASE_WRITE
from awsomefsd.io.file.dirty_log import LeaseToken
from awsomefsd.vfs.session import lease_recovery
from tests.rigs.mount_without_kernel import error_of, until
from tests.unit.vfs.ops.test_buffered_writes import Leased, lose, sound
from tests.unit.vfs.ops.test_data_shared import FIRST


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Leased]]:
    first = Leased(tmp_path)
    first.hold_lease_clock()
    second = Leased(tmp_path, first, FIRST + 1)
    try:
        first.start()
        second.start()
        yield [first, second]
    finally:
        second.close()
        first.close()


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

