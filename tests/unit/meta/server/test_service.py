"""The metadata service over its socket: durability over crashes, group commit, exactly once, sessions, locks, bounds."""

from __future__ import annotations

import errno
import os
import random
import tracemalloc
from typing import get_args

import pytest

from awsomefsd.base.codec import encode
from awsomefsd.base.errors import Corrupt, Refused, Unavailable
from awsomefsd.base.frames import frame
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import Lock
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.replica.checkpoint_progress import CheckpointProgress
from awsomefsd.meta.server import connections, proposals
from awsomefsd.meta.server import leader as leader_module
from awsomefsd.meta.server.request import Request
from awsomefsd.meta.server.session_clock import Renewals
from awsomefsd.meta.server.waiters import LockWaiters, Waiter
from buildtools.nodes import await_true
from tests.rigs.metadata_service import CLUSTER, DEVICE, Clock, Host, Wire, create, host


def lookup(name: bytes) -> m.Lookup:
    return m.Lookup(1, 1, name)


def set_lock(opened: m.SessionOpened, unique: int, ino: int, owner: int, kind: int = 1, end: int = 99) -> m.Propose:
    return m.Propose(unique, opened.session, opened.epoch, [], c.SetLock(1, ino, 0, owner, 1, kind, 0, end))


def wait_lock(opened: m.SessionOpened, unique: int, ino: int, owner: int, kind: int = 1) -> m.WaitLock:
    return m.WaitLock(unique, opened.session, opened.epoch, [], c.SetLock(1, ino, 0, owner, 1, kind, 0, 99))


# --- durability -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("commit_entries", [7, 2_000])
def test_what_was_acknowledged_survives_a_crash(tmp_path, commit_entries):
    with host(tmp_path, replica_options={"commit_entries": commit_entries}) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        done = 0
        for round_ in range(4):
            for number in range(10):
                name = b"%d-%d" % (round_, number)
                assert wire.ask(create(opened, 100 + done, name)).created
                done += 1
            node.crash()
            wire.close()
            node.start()
            wire = Wire(node.socket_path)
            for number in range(10):
                assert isinstance(wire.ask(lookup(b"%d-%d" % (round_, number))), m.Found)
        assert node.figures()["replayed"] > 0
        wire.close()


def test_a_clean_stop_leaves_nothing_to_replay(tmp_path):
    with host(tmp_path) as node:
        stamp = node.log()[-1].stamp
        node.service.stop()
        node.start()
        assert node.figures()["replayed"] == 0
        node.service.propose(c.RegisterReader("r", 0), 60)
        last = node.log()[-1]
        assert last.stamp > stamp and last.site == 7


def test_a_failed_sync_ends_the_service_and_nobody_is_told_that_it_worked(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        node.disk.fail = True
        wire.send(create(opened, 10, b"lost"))
        assert wire.closed()
        block_on(node.service.failed, 60)
        assert isinstance(node.service.error, Exception)
        with pytest.raises(Unavailable):
            node.service.query(m.GetStatus())
        node.service.stop()
        node.start()
        wire = Wire(node.socket_path)
        assert wire.ask(create(opened, 10, b"lost")).created, "committed once, whether the first try reached the disk or not"
        wire.close()


def test_store_and_journal_must_fit(tmp_path):
    with host(tmp_path) as node:
        node.service.stop()
        journal = node.directory / "meta" / "journal"
        journal.rename(node.directory / "elsewhere")
        with pytest.raises(Corrupt, match="journal is gone"):
            node.start()
        journal.rmdir()
        (node.directory / "elsewhere").rename(journal)
        node.start()
        with pytest.raises(Refused, match="another process"):
            Host(tmp_path).start()
        assert node.figures()["applied"] == 3


def test_a_full_map_is_nobodys_result(tmp_path):
    with host(tmp_path, replica_options={"map_bytes_min": 1 << 20, "commit_entries": 40}) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        made = wire.ask(create(opened, 10, b"big"))
        for number in range(60):
            value = bytes([number]) * 60_000
            made = wire.ask(create(opened, 100 + number, b"f%d" % number))
            command = c.SetXattr(1, made.attr.ino, b"user.x", value)
            reply = wire.ask(m.Propose(1000 + number, opened.session, opened.epoch, [], command))
            assert not isinstance(reply, m.Failed)
        await_true("the map has grown", lambda: node.figures()["store_map_grown"] >= 1, 60)
        assert node.figures()["replayed"] == 0
        ino = wire.ask(lookup(b"f7")).attr.ino
        assert wire.ask(m.GetXattr(1, ino, b"user.x")).data == bytes([7]) * 60_000
        wire.close()


# --- group commit, exactly once ---------------------------------------------------------------------------------------------
def test_many_proposals_share_a_sync(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        syncs = node.figures()["journal_syncs"]
        wire.send(*(create(opened, 100 + number, b"%d" % number) for number in range(300)))
        answers = wire.receive(300)
        assert sorted(answer.call for answer in answers) == sorted({answer.call for answer in answers})
        assert all(answer.reply.created for answer in answers)
        assert node.figures()["journal_syncs"] - syncs < 60
        wire.close()


def test_more_than_a_batch_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "BATCH_ENTRIES_MAX", 16)
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        wire.send(*(create(opened, 100 + number, b"%d" % number) for number in range(200)))
        assert all(answer.reply.created for answer in wire.receive(200))
        figures = node.figures()
        assert figures["batches"] >= 200 / 16
        wire.close()


def test_exactly_once_over_connections_and_crashes(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        for number in range(10):
            wire.send(create(opened, 100 + number, b"%d" % number))
            wire.close()  # before the answer
            if number % 3 == 2:
                node.crash()
                node.start()
            wire = Wire(node.socket_path)
            reply = wire.ask(create(opened, 100 + number, b"%d" % number))
            assert isinstance(reply, m.Found) and reply.created, reply
            assert wire.ask(create(opened, 100 + number, b"%d" % number)) == reply
        assert wire.ask(create(opened, 500, b"3", acks=[103])) == m.Failed(errno.EEXIST)
        wire.close()


def test_admission_bounds_results_and_acks_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "RESULTS_PER_MOUNT_MAX", 10)
    monkeypatch.setattr(proposals, "BATCH_ENTRIES_MAX", 8)
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        wire.send(*(create(opened, 100 + number, b"%d" % number) for number in range(20)))
        replies = [answer.reply for answer in sorted(wire.receive(20), key=lambda answer: answer.call)]
        refused = [reply for reply in replies if isinstance(reply, m.Failed)]
        assert len(refused) == 11 and all(reply.retry and reply.errno == errno.EAGAIN for reply in refused)
        assert wire.ask(create(opened, 100, b"0")).created, "a stored result is given out although nothing is admitted"
        assert wire.ask(create(opened, 200, b"more", acks=[100, 101])).created
        assert node.figures()["admission_refused"] == 11
        wire.close()


def test_no_room_for_a_journal_file_is_answered_with_retry(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        journal = node.replica.log._journal
        full, journal._make_room = journal._make_room, lambda length: (_ for _ in ()).throw(leader_module.Unavailable("full"))
        reply = wire.ask(create(opened, 100, b"a"))
        assert isinstance(reply, m.Failed) and reply.retry
        journal._make_room = full
        assert wire.ask(create(opened, 100, b"a")).created
        wire.close()


# --- sessions -----------------------------------------------------------------------------------------------------------------
def test_a_session_that_is_not_renewed_ends(tmp_path):
    clock = Clock()
    with host(tmp_path, boot_ns=clock) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        for _ in range(8):
            clock.advance(2)
            assert wire.ask(m.Renew(opened.session, opened.epoch, 0)) == m.Done()
            wire.ask(m.GetStatus())
        for _ in range(6):
            clock.advance(2)
            wire.ask(m.GetStatus())
            wire.ask(m.GetStatus())  # the turn of the first has looked at the clock before this is answered: no step passes for a jump
        assert node.figures()["sessions_expired"] == 1
        reply = wire.ask(m.Renew(opened.session, opened.epoch, 0))
        assert isinstance(reply, m.Failed) and reply.errno == errno.ESTALE
        reply = wire.ask(create(opened, 50, b"late"))
        assert isinstance(reply, m.Failed) and reply.errno == errno.ESTALE
        assert any(isinstance(entry.command, c.EndSession) for entry in node.log())
        wire.close()


def test_a_restarted_service_grants_a_full_ttl(tmp_path):
    clock = Clock()
    with host(tmp_path, boot_ns=clock) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        clock.advance(9)
        node.crash()
        node.start()
        wire = Wire(node.socket_path)
        for _ in range(4):
            clock.advance(2)
            wire.ask(m.GetStatus())
        assert wire.ask(m.Renew(opened.session, opened.epoch, 0)) == m.Done()
        wire.close()


def test_renewals_after_a_jump_of_the_clock():
    second = 1_000_000_000
    renewals = Renewals()
    renewals.update({1: 11, 2: 12}, 0)
    assert renewals.take_expired(second) == []
    assert renewals.take_expired(100 * second) == [], "the service was paused: renewals may wait unread"
    assert renewals.jumps == 1
    for now in range(102, 110, 2):
        assert renewals.take_expired(now * second) == []
    assert renewals.renew(2, 12, 0, 109 * second) and not renewals.renew(2, 13, 0, 109 * second)
    assert renewals.take_expired(110 * second) == [(1, 11)]


def test_safe_index_is_what_every_session_has_passed():
    renewals = Renewals()
    assert renewals.safe_index(42) == 42
    renewals.update({1: 11}, 0)
    assert renewals.safe_index(42) == 0, "a session from before the restart has not said what it uses"
    renewals.renew(1, 11, 40, 0)
    renewals.update({1: 11, 2: 12}, 0)
    renewals.note_opened(2, False, 41, 0)
    assert renewals.safe_index(42) == 40
    renewals.renew(1, 11, 39, 0)
    assert renewals.safe_index(42) == 40
    renewals.update({2: 12}, 0)
    assert renewals.safe_index(42) == 41


def test_the_service_stamps_safe_index(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        wire.ask(m.Renew(opened.session, opened.epoch, 4))
        reply = wire.ask(m.Propose(9, opened.session, opened.epoch, [], c.LeaseSegments(1, 1 << 40)))
        assert len(reply.segments) == 1
        assert node.log()[-1].command.safe_index == 4
        wire.close()


def test_what_the_device_does_not_hold_is_not_safe(tmp_path):
    index = CheckpointProgress(3)
    with host(tmp_path, checkpoint_progress=index) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        wire.ask(m.Renew(opened.session, opened.epoch, 4))
        wire.ask(m.Propose(9, opened.session, opened.epoch, [], c.LeaseSegments(1, 1 << 40)))
        assert node.log()[-1].command.safe_index == 3 and index.wanted.is_set(), "and the tail is wanted at once"
        index.durable = 1 << 40
        wire.ask(m.Propose(10, opened.session, opened.epoch, [], c.LeaseSegments(1, 1 << 40)))
        assert node.log()[-1].command.safe_index == 4, "the sessions count as well"
        wire.close()


# --- locks that wait -----------------------------------------------------------------------------------------------------------
def test_waiters_are_granted_in_order(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        ino = wire.ask(create(opened, 10, b"f")).attr.ino
        assert wire.ask(set_lock(opened, 11, ino, owner=1)) == m.Done()
        waits = wire.send(*(wait_lock(opened, 20 + owner, ino, owner) for owner in range(2, 6)))
        while node.figures()["lock_waiters"] != 4:
            pass  # they are taken up in one of the next turns
        for number, call in enumerate(waits):
            wire.send(set_lock(opened, 30 + number, ino, owner=1 + number, kind=2))
            answers = wire.receive(2)
            assert [answer.reply for answer in answers] == [m.Done(), m.Done()]
            assert answers[1].call == call
        assert node.figures()["lock_waiters"] == 0
        wire.close()


def test_readers_are_granted_together_and_a_wait_without_conflict_at_once(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        ino = wire.ask(create(opened, 10, b"f")).attr.ino
        assert wire.ask(wait_lock(opened, 11, ino, owner=1)) == m.Done()
        wire.send(*(wait_lock(opened, 20 + owner, ino, owner, kind=0) for owner in range(2, 6)))
        wire.send(set_lock(opened, 30, ino, owner=1, kind=2))
        assert [answer.reply for answer in wire.receive(5)] == [m.Done()] * 5
        wire.close()


def test_a_wait_is_cancelled_resent_and_ends_with_its_session(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        ino = wire.ask(create(opened, 10, b"f")).attr.ino
        wire.ask(set_lock(opened, 11, ino, owner=1))
        wire.send(wait_lock(opened, 20, ino, owner=2), m.Cancel(20))
        assert wire.receive()[0].reply.errno == errno.EINTR
        wire.send(m.Cancel(20), wait_lock(opened, 21, ino, owner=2))
        wire.ask(m.GetStatus())
        wire.close()
        wire = Wire(node.socket_path)
        while node.figures()["lock_waiters"]:
            pass  # the service sees the end of the old connection in one of its next turns
        (call,) = wire.send(wait_lock(opened, 21, ino, owner=2))
        wire.send(set_lock(opened, 12, ino, owner=1, kind=2))
        granted = wire.receive(2)[1]
        assert (granted.call, granted.reply) == (call, m.Done())
        assert wire.ask(wait_lock(opened, 21, ino, owner=2)) == m.Done(), "granted already"
        assert wire.ask(m.TestLock(1, ino, Lock(0, 9, 0, 1, 0, 5))).lock.owner == 2
        wire.send(wait_lock(opened, 22, ino, owner=3))
        wire.send(m.Propose(40, 0, 0, [], c.EndSession(opened.session, opened.epoch, True)))
        assert {type(answer.reply): answer.reply for answer in wire.receive(2)}[m.Failed].errno == errno.ESTALE
        wire.close()


def test_waiters_of_an_inode_are_bounded():
    class Asker:
        mount = 1

        def answer(self, call, reply):
            raise AssertionError

    waiters = LockWaiters(per_inode_max=2)
    asker = Asker()
    command = c.SetLock(1, 5, 0, 1, 1, 1, 0, 9)
    parked = [waiters.park(Waiter(Request(asker, 1, m.WaitLock(unique, 1, 1, [], command)), command)) for unique in (1, 2, 3, 2)]
    assert parked == [True, True, False, True] and len(waiters) == 2
    assert len(waiters.take_retries()[0]) == 2 and waiters.take_retries() == []
    waiters.drop_origin(asker)
    assert len(waiters) == 0


# --- the wire ------------------------------------------------------------------------------------------------------------------
def test_greeting(tmp_path):
    with host(tmp_path) as node:
        stranger = Wire(node.socket_path, greet=False)
        reply = stranger.ask(m.Hello(0, 1))
        assert isinstance(reply, m.Failed) and reply.errno == errno.EPROTONOSUPPORT and stranger.closed()
        rude = Wire(node.socket_path, greet=False)
        rude.send(m.GetStatus())
        assert rude.closed()
        assert os.stat(node.socket_path).st_mode & 0o777 == 0o600
        assert node.figures()["protocol_errors"] == 1


def test_fuzzed_frames_drop_the_connection_and_nothing_else(tmp_path, seed):
    rng = random.Random(seed)
    good = connections.encode(m.RequestEnvelope(2, m.Lookup(1, 1, b"name")))
    with host(tmp_path) as node:
        keeper = Wire(node.socket_path)
        for _ in range(60):
            wire = Wire(node.socket_path)
            raw = bytearray(good if rng.random() < 0.7 else rng.randbytes(rng.randrange(1, 60)))
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            length = len(raw) if rng.random() < 0.8 else rng.randrange(1 << 32)
            try:
                wire.sock.sendall(length.to_bytes(4, "little") + raw)
                wire.sock.shutdown(1)
                wire.closed()
            except OSError:
                pass
            wire.close()
            assert isinstance(keeper.ask(m.GetStatus()), m.Status)
        assert not node.service.failed.done and node.figures()["protocol_errors"] > 0
        keeper.close()


def test_request_decoder_fuzz(seed):
    rng = random.Random(seed)
    good = connections.encode(m.RequestEnvelope(2, m.Propose(1, 2, 3, [4], c.CreateVolume("name", "uuid"))))
    for _ in range(3000):
        raw = bytearray(good if rng.random() < 0.8 else rng.randbytes(rng.randrange(80)))
        for _ in range(rng.randrange(4)):
            if raw:
                raw[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            connections.decode_request(bytes(raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.3 else raw))
        except connections.ProtocolError:
            pass


def test_a_client_that_does_not_read_holds_up_only_itself(tmp_path):
    with host(tmp_path) as node:
        slow, other = Wire(node.socket_path, mount=6), Wire(node.socket_path)
        opened = other.open_session()
        made = other.ask(create(opened, 10, b"f"))
        other.ask(m.Propose(11, opened.session, opened.epoch, [], c.SetXattr(1, made.attr.ino, b"user.x", bytes(60_000))))
        slow.sock.settimeout(0.2)
        sent = 0
        try:
            while sent < 20_000:  # answers of 1.2 GB, if nothing stopped it
                slow.send(*[m.GetXattr(1, made.attr.ino, b"user.x")] * 100)
                sent += 100
        except TimeoutError:
            pass
        connection = next(one for one in node_connections(node) if one.mount == 6)
        assert len(connection._buffer) <= connections.OUT_PAUSE_BYTES + (4 << 20)
        assert isinstance(other.ask(m.GetStatus()), m.Status)
        slow.sock.settimeout(60)
        assert len(slow.receive(300)) == 300
        slow.close()
        other.close()


def node_connections(node: Host) -> list[connections.ClientConnection]:
    import gc

    return [one for one in gc.get_objects() if isinstance(one, connections.ClientConnection) and not one.closed]


def test_an_oversized_command_is_refused(tmp_path):
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        command = c.SetXattr(1, 1, b"user.x", bytes(2 << 20))
        reply = wire.ask(m.Propose(9, opened.session, opened.epoch, [], command))
        assert isinstance(reply, m.Failed) and reply.errno == errno.EMSGSIZE
        wire.close()


def test_the_commands_of_raft_itself_are_refused(tmp_path):
    with host(tmp_path) as node:
        before = node.figures()["last_index"]
        for command in (c.NoOp(), c.ChangeMembership(Membership([Member("intruder", "journal", True)]))):
            reply = node.service.propose(command, 60)
            assert isinstance(reply, m.Failed) and "not for clients" in reply.detail
        assert node.figures()["last_index"] == before


def test_the_daemons_own_requests_are_checked_too(tmp_path):
    with host(tmp_path) as node:
        for command in (c.SetVolume(1 << 40), c.AdvanceReader("r", 1 << 70), c.CreateVolume("n", "x" * (3 << 20))):
            reply = node.service.propose(command, 60)
            assert isinstance(reply, m.Failed) and reply.errno in (errno.EINVAL, errno.EMSGSIZE)
        assert node.figures()["last_index"] == 3


def test_a_number_that_cannot_be_is_an_error_of_its_request_alone(tmp_path):
    """A connection that ended for it would only bring it again, and hold up everything else for ever."""
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        opened = wire.open_session()
        command = c.SetAttr(1, 1, c.SET_SIZE, size=1 << 63)
        reply = wire.ask(m.Propose(9, opened.session, opened.epoch, [], command))
        assert isinstance(reply, m.Failed) and reply.errno == errno.EINVAL
        assert isinstance(wire.ask(m.GetStatus()), m.Status)
        wire.close()


def test_devices_get_the_paths_of_this_node(tmp_path):
    with host(tmp_path, device_paths={DEVICE: "/dev/somewhere"}) as node:
        assert node.service.query(m.GetDevices()).devices[0].path == "/dev/somewhere"


def test_figures(tmp_path):
    with host(tmp_path) as node:
        figures = node.figures()
        for name in ("entries", "journal_syncs", "batches", "store_commit_ms_max", "store_map_use_percent", "sessions", "first_index"):
            assert name in figures
        assert figures["last_index"] == figures["applied"] == 3
        node.service.copy_store(tmp_path / "copy.mdb")
        assert (tmp_path / "copy.mdb").stat().st_size > 0


def every_body() -> list[m.Body]:
    """Each request and each command, with small numbers in it."""
    import typing

    bodies: list[m.Body] = []
    for type_ in typing.get_args(m.Body):
        if type_ not in (m.Propose, m.WaitLock, m.Hello):
            bodies.append(filled(type_))
    bodies += [m.Propose(0, 1, 1, [], filled(type_)) for type_ in typing.get_args(c.AnyCommand)]
    return [*bodies, m.WaitLock(7, 1, 1, [], filled(c.SetLock))]


def filled(type_):
    import typing

    values = []
    for name, hint in typing.get_type_hints(type_).items():
        if name not in type_.__struct_fields__:
            continue
        origin = typing.get_origin(hint)
        if hint is Lock:
            values.append(Lock(0, 1, 1, 1, 0, 9))
        elif origin is list:
            inner = typing.get_args(hint)[0]
            plain = [1] if typing.get_origin(inner) is list else {bytes: b"bytes", str: "text"}.get(inner, 1)
            values.append([] if typing.get_origin(inner) is tuple else [filled(inner)] if hasattr(inner, "__struct_fields__") else [plain])
        elif origin is tuple:
            values.append(tuple(1 for _ in typing.get_args(hint)))
        elif origin is dict:
            values.append({})
        elif type(None) in typing.get_args(hint):
            values.append(None)
        elif origin is typing.Union:
            values.append(filled(typing.get_args(hint)[0]))
        elif hasattr(hint, "__struct_fields__"):
            values.append(filled(hint))
        else:
            values.append({int: 1, str: "text", bytes: b"bytes", bool: True}.get(hint, 1))
    return type_(*values)


def test_a_level_that_the_leaders_build_does_not_know_is_refused(tmp_path):
    """RaiseLevel asks the rows of nodes only, and a node that is alone may have none: its next entry would end the service for good."""
    with host(tmp_path) as node:
        wire = Wire(node.socket_path, mount=0)
        for command in (c.RaiseLevel(LEVEL + 1), c.Init(CLUSTER, 7, LEVEL + 1)):
            reply = wire.ask(m.Propose(0, 0, 0, [], command))
            assert isinstance(reply, m.Failed) and f"levels up to {LEVEL}" in reply.detail, command
        assert wire.ask(m.Propose(0, 0, 0, [], c.RaiseLevel(LEVEL))) == m.Done()
        node.crash()
        node.start()
        assert node.service.query(m.GetStatus()).figures["level"] == LEVEL


def test_no_request_with_wild_values_ends_the_service(tmp_path, seed):
    """What is in the log is applied at every start; so nothing may get there that `apply` trips over."""
    rng = random.Random(seed)
    numbers = [0, 1, 2, -1, 255, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    wild = [*numbers, b"", b"x" * 600, b"a/b", b"\0", "", "x" * 600, "é" * 300]
    bodies = every_body()
    with host(tmp_path) as node:
        wire = Wire(node.socket_path, mount=0)
        for _ in range(1500):
            raw = with_wild_leaves(rng.choice(bodies), rng, wild)
            try:
                wire.calls += 1
                body = connections.encode([wire.calls, raw])
                wire.sock.sendall(len(body).to_bytes(4, "little") + body)
                if raw[0] in (25, 26) or not wire.receive():  # Cancel has no answer, Follow may have none for long
                    raise ConnectionResetError
            except OSError:
                wire.close()
                wire = Wire(node.socket_path, mount=0)
            assert not node.service.failed.done, raw
        node.crash()
        node.start()
        node.service.query(m.GetStatus())


def with_wild_leaves(body: m.Body, rng: random.Random, wild: list) -> list:
    """The msgpack arrays of a body, with one or two leaves replaced."""
    import msgspec

    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(body))
    for _ in range(rng.randrange(1, 3)):
        at = raw
        while True:
            place = rng.randrange(1 if at is raw else 0, len(at)) if len(at) > 1 or at is not raw else None
            if place is None:
                break
            if isinstance(at[place], list) and at[place]:
                at = at[place]
                continue
            same = [value for value in wild if type(value) is type(at[place])]
            if same and not (at is not raw and place == 0 and isinstance(at[0], int) and rng.random() < 0.9):
                at[place] = rng.choice(same)
            break
    return raw


def test_a_successor_voids_what_its_predecessor_had_sent(tmp_path):
    """Unread requests of a dead worker must not be executed after its successor has repeated and acknowledged them."""
    with host(tmp_path) as node:
        predecessor, successor, other = Wire(node.socket_path), Wire(node.socket_path), Wire(node.socket_path, mount=6)
        predecessor.open_session()
        opening = m.Propose(2, 0, 0, [], c.OpenSession(5, 1, "node", "boot", 2))
        assert isinstance(successor.ask(opening), m.SessionOpened)
        assert predecessor.closed()
        assert isinstance(other.ask(m.GetStatus()), m.Status)
        assert isinstance(successor.ask(m.GetStatus()), m.Status)


def test_what_workers_report_is_kept_while_they_are_connected(tmp_path):
    with host(tmp_path) as node:
        worker, tool = Wire(node.socket_path), Wire(node.socket_path, mount=0)
        assert worker.ask(m.Report({"fuse_read": 3})) == m.Done()
        assert worker.ask(m.Report({"fuse_read": 4})) == m.Done()
        tool.ask(m.Report({"of": 1}))  # no mount: nobody's figures
        assert tool.ask(m.GetReports()) == m.Reports({5: {"fuse_read": 4}})
        worker.close()
        while tool.ask(m.GetReports()) != m.Reports({}):
            pass


def test_a_request_of_a_newer_build_is_refused_and_the_connection_goes_on(tmp_path):
    """A worker that was started from newer files would otherwise connect and send it again for ever."""
    with host(tmp_path) as node:
        wire = Wire(node.socket_path)
        between = next(tag for tag in range(1, 200) if tag not in {one.__struct_config__.tag for one in get_args(m.Body)})
        propose = m.Propose.__struct_config__.tag
        for body in ([9_999, "a request"], [between, 5], [propose, 7, 0, 0, [], [9_999, "a command"]]):
            wire.sock.sendall(frame(encode([7, body])))
            (answer,) = wire.receive()
            assert answer.call == 7 and isinstance(answer.reply, m.Failed) and answer.reply.errno == errno.EOPNOTSUPP
            assert "restart the daemon" in answer.reply.detail
            assert isinstance(wire.ask(m.GetStatus()), m.Status)
        wire.sock.sendall(frame(encode([8, [1, 2, 3, 4, 5]])))
        assert wire.closed()


def test_requests_of_a_newer_build_come_in_numbers(tmp_path):
    """As many as one receive may bring are answered one after the other, and the service goes on."""
    with host(tmp_path) as node:
        wire, count = Wire(node.socket_path), 2_000
        wire.sock.sendall(frame(encode([7, [9_999]])) * count)
        while count > 0:
            answers = wire.receive()
            assert answers and not node.service.failed.done
            assert {answer.reply.errno for answer in answers} == {errno.EOPNOTSUPP}
            count -= len(answers)
        assert isinstance(wire.ask(m.GetStatus()), m.Status)


def test_a_request_of_a_newer_build_may_be_large():
    """The metadata thread makes no objects of what it refuses: of 4 MiB of empty lists these would take 300 MB and seconds."""
    for body in ([9_999, *[[]] * 100_000], [m.Propose.__struct_config__.tag, 7, 0, 0, [], [9_999, [[]] * 100_000]]):
        raw = encode([7, body])
        tracemalloc.start()
        try:
            call, rest = connections._decode_envelope(raw)
            assert call == 7 and connections._is_newer(rest)
            assert tracemalloc.get_traced_memory()[1] < 2 * len(raw)
        finally:
            tracemalloc.stop()
