"""A worker that lost its session proves that its own writes have drained, and not before they have (worker/quarantine_proof.py)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base import worker_locks
from awsomefsd.meta.api.messages.devices import GetQuarantine, Quarantine
from awsomefsd.worker.quarantine_proof import QuarantineProof
from tests.rigs.mount_without_kernel import Started, until
from tests.rigs.sharing_nodes import Sharing, append


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Sharing]:
    made = Sharing(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def quarantined(node: Sharing) -> list[int]:
    assert node.host.service is not None
    told = node.host.service.query(GetQuarantine())
    assert isinstance(told, Quarantine)
    return [one.session for one in told.sessions]


class Slow:
    """A device whose next write hangs until `go`."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._write = device.pwritev
        self.begun, self.go = threading.Event(), threading.Event()
        device.pwritev = self.pwritev

    def pwritev(self, buffers: Any, offset: int) -> None:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go.wait(60)
        self._write(buffers, offset)


def test_a_quarantine_lasts_as_long_as_a_write_is_on_its_way(one: Sharing) -> None:
    ino, fh = one.create(b"f")
    append(one, ino, fh, b"before")
    lost = one.worker.client.session
    slow = Slow(one.device)
    try:
        ctx = one.ctx()
        writing = Started(one.vfs.write(ctx, ino, fh, 6, memoryview(b" late"), 0))
        assert slow.begun.wait(60)
        one.end_session()
        one.worker.client._keeper.doubt()
        until(lambda: one.worker.memory.control.state.session != lost and one.mount.session.lease.left_ns() > 0)
        assert quarantined(one) == [lost], "the write of the old session is on its way, and the new one is served"
    finally:
        slow.go.set()
    until(lambda: not quarantined(one))
    assert writing.result() == 5 and one.content(ino) == b"before late"
    one.close_file(ino, fh)
    one.unmount()
    one.check()


def test_nothing_is_said_for_a_predecessor_that_may_still_write(tmp_path: Path) -> None:
    proposed: list[Any] = []
    ending = threading.Event()
    before = worker_locks.hold(tmp_path, 5, 1)
    proof = QuarantineProof(str(tmp_path), 5, 2, lambda: None, proposed.append, ending)
    prove = threading.Thread(target=proof._prove, args=(7,))
    prove.start()
    prove.join(0.3)
    assert prove.is_alive() and not proposed
    ending.set()
    prove.join(60)
    assert not proposed
    del before
    ending.clear()
    proof._prove(7)
    assert [one.session for one in proposed] == [7]
