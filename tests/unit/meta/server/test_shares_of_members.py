"""What one member may make the leader keep has bounds, and takes nothing from the others: leases, waiting requests, connections, frames."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.codec import encode
from awsomefsd.base.frames import frame
from awsomefsd.base.limits import LEASE_WAITERS_PER_MOUNT_MAX, LEASES_HELD_MAX, LOCK_WAITERS_PER_MOUNT_MAX, NS_PER_MS, SESSION_TTL_MS
from awsomefsd.base.tls import PeerIdentity
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.server import connections
from awsomefsd.meta.server.leases import lease_grants
from awsomefsd.meta.server.leases.key_queues import KeyQueues
from awsomefsd.meta.server.leases.lease_table import LeaseTable
from awsomefsd.meta.server.request import Request, Silent
from awsomefsd.meta.server.shares import Shares
from awsomefsd.meta.server.waiters import LockWaiters, Waiter

SESSION = 3


def test_a_report_of_more_than_any_session_is_granted_counts_as_none() -> None:
    table = LeaseTable(7)
    table.begin({SESSION: (1, 30)}, lambda key: (0, 0), 0)
    assert not table.report(SESSION, 7, range(2, LEASES_HELD_MAX + 3))
    assert table.figures(0)["leases_read"] == 0
    assert table.overdue(SESSION_TTL_MS * NS_PER_MS) == [SESSION], "it has not reported, so it is renewed no more"
    assert table.report(SESSION, 7, range(2, 5)) and table.figures(0)["leases_read"] == 3


def test_leases_that_are_lowered_again_and_again_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_grants, "LEASES_PER_SESSION_MAX", 4)
    monkeypatch.setattr(lease_grants, "LEASES_HELD_MAX", 8)
    table = LeaseTable(7)
    table.open_session(SESSION, 1, 30)
    for ino in range(100):
        if table.grants.is_full(SESSION):
            break
        table.grants.set_writer(SESSION, (1, ino), 1)
        assert table.lower(SESSION, (1, ino), 1)
        table.grants.remove_writer((1, ino))
    assert table.figures(0)["leases_read"] == 8
    assert table.grants.grant_read(SESSION, (1, 200)) is None


# --- requests that wait ---------------------------------------------------------------------------------------------------------
def lock(mount: int, unique: int, ino: int) -> Waiter:
    command = c.SetLock(1, ino, 0, 1, 1, 1, 0, 9)
    return Waiter(Request(Silent(mount), 1, m.WaitLock(unique, 1, 1, [], command)), command)


def test_a_mount_that_waits_for_many_locks_leaves_places_to_the_others() -> None:
    waiters = LockWaiters()
    parked = [waiters.park(lock(1, unique, unique)) for unique in range(1, LOCK_WAITERS_PER_MOUNT_MAX + 2)]
    assert parked.count(False) == 1 and not parked[-1]
    assert waiters.park(lock(2, 1, 5))
    assert waiters.park(lock(1, 7, 7)), "the same request takes its old place"
    waiters.remove(1, 9)
    assert waiters.park(lock(1, 1 << 20, 5)), "and one that has ended gives its place back"
    waiters.take_all()
    assert len(waiters) == 0 and waiters.park(lock(1, 1, 1))


def test_an_id_that_is_used_for_two_locks_waits_once() -> None:
    """Both waited, only one was ever ended, and the other one was proposed again and again."""
    waiters = LockWaiters()
    assert waiters.park(lock(1, 5, 10)) and waiters.park(lock(1, 5, 11))
    assert len(waiters) == 1 and [waiter.key for [waiter] in waiters.take_retries()] == [(1, 11)]
    waiters.remove(1, 5)
    waiters.mark_all_unlocked()
    assert len(waiters) == 0 and waiters.take_retries() == []


def test_a_mount_that_waits_for_many_leases_leaves_places_to_the_others() -> None:
    queues = KeyQueues()

    def park(mount: int, ino: int) -> bool:
        return queues.park((1, ino), Request(Silent(mount), 1, m.GetStatus()))

    for end in (queues.take_all, lambda: queues.keep_if(lambda request: False), lambda: (queues.wake_volume(1), queues.take_woken())):
        parked = [park(1, ino) for ino in range(LEASE_WAITERS_PER_MOUNT_MAX + 1)]
        assert parked.count(False) == 1 and not parked[-1] and park(2, 5)
        assert queues.waiting_count == LEASE_WAITERS_PER_MOUNT_MAX + 1
        end()
        assert queues.waiting_count == 0


def test_shares_have_a_bound_in_all() -> None:
    shares = Shares(2, 5)
    assert [shares.take(mount) for mount in (1, 1, 1, 2, 2, 3, 4)] == [True, True, False, True, True, True, False]
    shares.give_back(1)
    assert shares.take(4) and shares.count == 5


# --- connections ----------------------------------------------------------------------------------------------------------------
class Rig:
    def __init__(self) -> None:
        self.now_ns = 1
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.connections = connections.Connections(self.listener, self.wake_fd, lambda: self.now_ns)
        self.ours: list[socket.socket] = []

    def adopt(self, node: str) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.ours.append(ours)
        ours.sendall(frame(encode(m.RequestEnvelope(1, m.Hello(1, 0)))))
        wire: Any = SimpleNamespace(sock=theirs, identity=PeerIdentity(node, "node"), close=theirs.close)
        self.connections.adopt(wire)
        for void in self.connections.take_void():
            self.connections.close(void)
        return ours

    def of(self, node: str) -> list[connections.ClientConnection]:
        return [one for one in self.connections.remote() if one.who is not None and one.who.node == node]

    def greeted(self, node: str) -> tuple[socket.socket, connections.ClientConnection]:
        ours = self.adopt(node)
        [one] = self.of(node)
        assert self.connections.next_request(one) is not None
        return ours, one

    def turn(self) -> list[connections.ClientConnection]:
        """Reads what came, starts nothing, and returns what is to be dropped."""
        self.connections.wait(0)
        return self.connections.poll_slow()

    def close(self) -> None:
        self.connections.close_all()
        os.close(self.wake_fd)
        for ours in self.ours:
            ours.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_a_node_with_too_many_connections_takes_none_from_the_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 8)
    for _ in range(20):
        rig.adopt("leaking")
    oldest = rig.of("leaking")[0]
    for _ in range(4):
        rig.adopt("honest")
    assert len(rig.of("honest")) == len(rig.of("leaking")) == 4
    rig.adopt("leaking")
    rig.adopt("honest")
    assert len(rig.of("honest")) == len(rig.of("leaking")) == 4, "nobody gets more than its part of a full house"
    rig.adopt("third")
    assert len(rig.of("third")) == 1 and not oldest.closed, "what lasts longest is ended last"


def test_connections_of_other_nodes_leave_those_of_this_host_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 4)
    monkeypatch.setattr(connections, "peer_of", lambda sock: SimpleNamespace(uid=0, pid=1))
    for number in range(9):
        rig.adopt(f"node {number % 3}")
    local = [socket.create_connection(rig.listener.getsockname()) for _ in range(6)]
    rig.ours += local
    rig.connections.wait(1_000)
    assert rig.connections.figures()["connections"] == 8


def test_a_frame_that_was_begun_has_a_deadline(rig: Rig) -> None:
    begun, one = rig.greeted("a")
    rig.greeted("b")
    begun.sendall((1 << 20).to_bytes(4, "little"))
    assert rig.turn() == []
    late = connections.FRAME_MS_MAX * NS_PER_MS + 1
    rig.now_ns += late // 2
    begun.sendall(bytes(100))
    assert rig.turn() == []
    rig.now_ns += late // 2 + 1
    assert rig.turn() == [one], "bytes alone are no progress, and whoever asks nothing waits for ever"


def test_what_the_service_does_not_read_is_not_late(rig: Rig) -> None:
    ours, one = rig.greeted("a")
    status = frame(encode(m.RequestEnvelope(2, m.GetStatus())))
    ours.sendall(status + status[:5])
    late = connections.FRAME_MS_MAX * NS_PER_MS + 1
    assert rig.turn() == []
    rig.now_ns += late
    assert rig.turn() == [], "a request waits here, so nothing is read"
    assert rig.connections.next_request(one) is not None
    assert rig.connections.poll_slow() == []
    ours.sendall(status[5:])
    rig.turn()
    assert rig.connections.next_request(one) is not None
    rig.now_ns += late
    assert rig.turn() == []
