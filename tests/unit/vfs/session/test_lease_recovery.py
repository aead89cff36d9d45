"""On which thread goes on what had to wait for the lease, and sessions that are lost again while a new one is taken up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.consistency import CLOSE_TO_OPEN
from awsomefsd.base.limits import SESSION_SELF_FENCE_MS
from awsomefsd.meta.api.messages import SessionOpened
from awsomefsd.worker import session_change
from awsomefsd.worker import takeover as takeover_module
from tests.rigs.mount_without_kernel import BIG, Rig, rig, until


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def test_reads_that_waited_for_the_lease_do_not_hold_up_the_answers(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that receives answers renews the lease; a device that hangs must not keep it from the next renewal."""
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"a" * BIG)
    r.fsync(ino, fh)
    r.read(ino, fh, 0, BIG)
    readers: list[str] = []
    read_into = r.worker.data.files.read_into
    monkeypatch.setattr(
        r.worker.data.files, "read_into", lambda *args, **kw: (readers.append(threading.current_thread().name), read_into(*args, **kw))[1]
    )
    r.lease_clock.advance(SESSION_SELF_FENCE_MS / 1000 + 1)
    reading = r.begin("read", ino, fh, 0, BIG)
    assert not reading.ended.is_set()
    r.worker.client._keeper.doubt()
    assert len(reading.result()[0]) == BIG
    assert readers and all(name.startswith("io") for name in readers), readers


def test_a_session_that_is_lost_again_while_it_is_taken_up_is_replaced_again(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped twice for longer than the TTL: the second loss may be told before the first is dealt with."""
    sessions = r.worker.sessions
    first = r.worker.client.session
    opened = sessions._opened
    told: list[int] = []

    def lost_again(reply: SessionOpened) -> None:
        told.append(reply.session)
        opened(reply)
        if len(told) == 1:
            r.end_session()
            r.worker.client._keeper.doubt()
            until(lambda: not r.worker.client._keeper._core._live)

    monkeypatch.setattr(sessions, "_opened", lost_again)
    r.end_session()
    r.worker.client._keeper.doubt()
    until(lambda: len(told) == 2)
    until(lambda: r.worker.client.lease_left_ns() > 0)
    assert len({first, *told}) == 3
    r.file(b"f", b"data")
    r.flush()


class Shared(Rig):
    shared = caches = True


class SharedWithoutNames(Shared):
    """It can decide no names, as a shared mount without names=leases."""

    consistency = CLOSE_TO_OPEN


@pytest.mark.parametrize("kind", [Rig, Shared, SharedWithoutNames])
def test_a_session_that_ends_while_a_successor_takes_over_is_replaced_behind_that(
    tmp_path: Path, kind: type[Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two threads decide about the same records, and the older session comes out on top: its leases are believed, and end nothing."""
    monkeypatch.setattr(session_change, "SESSION_SELF_FENCE_MS", 0)
    with rig(tmp_path, made_by=kind) as r:
        ino, fh = r.create(b"f")
        r.flush()
        r.write(ino, fh, 0, b"acknowledged")
        r.kill()

        def ends(name: str) -> None:
            if name == "takeover.records.found":
                r.end_session()
                r.worker.client._keeper.doubt()
                until(lambda: r.worker.events._lost and not r.worker.sessions._busy.locked())

        monkeypatch.setattr(takeover_module, "hit", ends)
        r.start()
        until(lambda: r.worker.client.lease_left_ns() > 0 and not r.worker.sessions._busy.locked())
        assert r.worker.memory.control.state.session == r.worker.client.session
        assert r.mount.caches.leases is None or r.mount.caches.leases.epoch == r.worker.client.epoch
        assert r.content(ino) == b"acknowledged" and not (r.directory / "conflicts").exists(), "nobody else had the volume"
