"""Results that the service holds: each is acknowledged once nobody needs it, and nothing else is; what is sent again arrives whole."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from awsomefsd.base.types import BACKGROUND_BIT
from awsomefsd.base.wait import block_on
from awsomefsd.io.file.reservation import Reservation
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.server import proposals
from tests.rigs.machine_driver import Drive
from tests.rigs.metadata_service import MIB, host
from tests.unit.meta.client.test_client import OPEN, Script, make

WAIT_S = 60


class Uniques:
    def __init__(self) -> None:
        self.last = BACKGROUND_BIT

    def next_background_unique(self) -> int:
        self.last += 1
        return self.last


@pytest.fixture
def few_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "RESULTS_PER_MOUNT_MAX", 64)


@pytest.mark.usefixtures("few_results")
def test_replies_that_made_no_entry_are_not_acknowledged(tmp_path: Path) -> None:
    """A million opens and closes between two changes: their acknowledgements must not stand in the way of those that make room."""
    with host(tmp_path) as node:
        client = MetaClient(node.socket_path, 5)
        client.start()
        client.start_session(OPEN, WAIT_S)
        for unique in range(1 << 40, (1 << 40) + 700 * 512):
            client.ack(unique)
        for unique in range(1, 700):
            block_on(client.propose(make(b"%d" % unique), unique), WAIT_S)
            client.ack(unique)
        assert client._core.acks_waiting < 10
        assert max(len(entry.acks) for entry in node.log()) < 10
        client.close()


@pytest.mark.usefixtures("few_results")
def test_reservations_leave_no_results(tmp_path: Path) -> None:
    """Refused ones neither: a full device is asked again and again."""
    with host(tmp_path) as node:
        client = MetaClient(node.socket_path, 5)
        client.start()
        client.start_session(OPEN, WAIT_S)
        reservation = Reservation(1, client, Uniques())
        for _ in range(100):
            with pytest.raises(Exception) as refused:
                block_on(reservation.refill(1 << 40), WAIT_S)
            assert getattr(refused.value, "errno", None) == errno.ENOSPC
        client.close()


def test_what_a_dead_worker_asked_for_on_its_own_behalf_leaves_no_results() -> None:
    """Its successor never repeats that, so nobody would ever acknowledge it."""
    drive = Drive()
    drive.volume = drive.ok(c.CreateVolume("v", "u")).number
    opened = drive.ok(c.OpenSession(5, drive.volume, "n", "b", 1), mount=5, unique=BACKGROUND_BIT | 1 << 61)
    about = {"mount": 5, "session": opened.session, "epoch": opened.epoch}
    drive.apply(c.Reserve(drive.volume, MIB, 1), unique=BACKGROUND_BIT | 1, **about)
    drive.apply(c.Create(drive.volume, 1, b"a", 0o100644, 0, 0), unique=2, **about)
    assert drive.machine.results_held(5) == 3
    drive.apply(c.OpenSession(5, drive.volume, "n", "b", 2), unique=BACKGROUND_BIT | 1 << 61 | 1, mount=5, session=0, epoch=0)
    assert drive.machine.results_held(5) == 2, "the one of the kernel's request, and that of the opening"
    assert drive.machine.stored_result(5, 2) is not None


def test_a_large_request_that_is_sent_again_later_arrives_whole(tmp_path: Path) -> None:
    """It does not fit the socket, and it is the sender's own thread that sends it: nobody else would wake it."""
    script = Script(tmp_path / "meta.sock")
    client = MetaClient(tmp_path / "meta.sock", 5)
    client.start()
    script.accept()
    script.sock.settimeout(WAIT_S)
    large = c.Commit(1, [c.InodeCommit(10, 1, 1, 1, 0, [], [(0, bytes(MIB))])], 0, [])
    signal = []
    client.submit(m.Propose(9, 0, 0, [], large), lambda reply, error: signal.append((reply, error)))
    script.answer(script.take().call, m.Failed(errno.EAGAIN, "later", True))
    again = script.take()
    assert again.body.unique == 9
    script.hang_up()
    client.close()
