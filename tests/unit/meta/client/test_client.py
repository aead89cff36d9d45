"""The metadata client: outstanding requests over reconnects, acknowledgements, the lease, and how light its import is."""

from __future__ import annotations

import errno
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from awsomefsd.base.codec import encode
from awsomefsd.base.errors import FsError, ProtocolError, Unavailable
from awsomefsd.base.frames import FrameReader, frame
from awsomefsd.base.limits import NS_PER_MS, SESSION_SELF_FENCE_MS
from awsomefsd.base.types import Lock, VolumeInfo
from awsomefsd.base.wait import Signal, block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client import client as client_module
from awsomefsd.meta.client import core
from awsomefsd.meta.client.client import MetaClient, decode_answer
from awsomefsd.meta.client.session_events import IgnoredEvents
from awsomefsd.meta.client.session_renewer import SessionRenewer
from awsomefsd.meta.server import proposals
from tests.rigs.metadata_service import Clock, host

ROOT = Path(__file__).resolve().parents[4]
OPEN = c.OpenSession(5, 1, "node", "boot", 1)


def make(name: bytes) -> c.Create:
    return c.Create(1, 1, name, 0o100644, 0, 0)


@pytest.fixture
def clients():
    made: list[MetaClient] = []

    def connect(path, mount=5, events=IgnoredEvents(), **options) -> MetaClient:
        made.append(MetaClient(path, mount, **options))
        made[-1].start(events)
        return made[-1]

    yield connect
    for client in made:
        client.close()


class Told(IgnoredEvents):
    """Remembers a loss and a fencing."""

    def __init__(self) -> None:
        self.is_lost, self.is_fenced = threading.Event(), threading.Event()

    def lost(self) -> None:
        self.is_lost.set()

    def fenced(self) -> None:
        self.is_fenced.set()


class Script:
    """A service that does what a test says: takes requests, answers those it wants, breaks connections."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.listener.settimeout(60)
        self.sock: socket.socket | None = None

    def accept(self) -> None:
        self.sock, _ = self.listener.accept()
        self.sock.settimeout(60)
        self.reader = FrameReader()
        self.pending: list[m.RequestEnvelope] = []
        hello = self.take()
        assert isinstance(hello.body, m.Hello)
        self.answer(hello.call, m.Welcome(m.PROTOCOL_VERSION, "cluster", 1))

    def take(self) -> m.RequestEnvelope:
        import msgspec

        while not self.pending:
            data = self.sock.recv(1 << 20)
            assert data, "the client closed"
            self.pending += [msgspec.msgpack.decode(raw, type=m.RequestEnvelope) for raw in self.reader.feed(data)]
        return self.pending.pop(0)

    def answer(self, call: int, reply: m.Reply) -> None:
        self.sock.sendall(frame(encode(m.Answer(call, reply))))

    def hang_up(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
        self.listener.close()


@pytest.fixture
def script(tmp_path):
    made = Script(tmp_path / "meta.sock")
    yield made
    made.close()


def ask(client: MetaClient, body: m.Body) -> Signal:
    signal = Signal()
    client.submit(body, signal.fire)
    return signal


# --- over a real service ---------------------------------------------------------------------------------------------------
def test_requests_of_many_threads_over_crashes_of_the_service(tmp_path, clients):
    with host(tmp_path) as node:
        client = clients(node.socket_path)
        client.start_session(OPEN, 60)
        failed: list[BaseException] = []

        def work(thread: int) -> None:
            try:
                for number in range(60):
                    unique = 1000 + thread * 100 + number
                    reply = block_on(client.propose(make(b"%d" % unique), unique), 60)
                    assert reply.created, reply
                    client.ack(unique)
            except BaseException as err:
                failed.append(err)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for number in range(4):
            client.call(m.Follow(20 + 40 * number, 1, 10_000), 60)  # until the log has come so far
            node.crash()
            node.start()
        for thread in threads:
            thread.join()
        client.call(m.GetStatus(), 60)  # over the last connection
        assert not failed and client.reconnects >= 5
        entries = [entry for entry in node.log() if isinstance(entry.command, c.Create)]
        assert len({entry.unique for entry in entries}) == 240
        assert node.replica.machine.results_held(5) < 240 + 5, "acknowledgements travel with later proposals"


def test_errors_come_as_fserror_and_calls_as_replies(tmp_path, clients):
    with host(tmp_path) as node:
        client = clients(node.socket_path)
        with pytest.raises(FsError) as caught:
            client.call(m.Lookup(1, 1, b"none"), 60)
        assert caught.value.errno == errno.ENOENT
        assert client.call(m.GetAttr(1, 1), 60).attr.ino == 1
        assert client.cluster_uuid


def test_a_wait_for_a_lock_over_a_crash_and_its_cancellation(tmp_path, clients):
    with host(tmp_path) as node:
        client = clients(node.socket_path)
        client.start_session(OPEN, 60)
        ino = block_on(client.propose(make(b"f"), 100), 60).attr.ino

        def lock(owner: int, kind: int = 1) -> c.SetLock:
            return c.SetLock(1, ino, 0, owner, 1, kind, 0, 9)

        block_on(client.propose(lock(1), 101), 60)
        granted, cancelled = Signal(), Signal()
        client.wait_lock(lock(2), 102).start(granted.fire)
        client.wait_lock(lock(3), 103).start(cancelled.fire)
        client.call(m.GetStatus(), 60)
        node.crash()
        client.cancel(103)
        node.start()
        with pytest.raises(FsError) as caught:
            block_on(cancelled, 60)
        assert caught.value.errno == errno.EINTR
        block_on(client.propose(lock(1, kind=2), 104), 60)
        assert block_on(granted, 60) == m.Done()
        assert client.call(m.TestLock(1, ino, Lock(0, 7, 0, 1, 0, 1)), 60).lock.owner == 2


def test_refused_proposals_are_sent_again_with_the_acks_that_make_room(tmp_path, clients, monkeypatch):
    monkeypatch.setattr(proposals, "RESULTS_PER_MOUNT_MAX", 8)
    monkeypatch.setattr(proposals, "BATCH_ENTRIES_MAX", 4)
    with host(tmp_path) as node:
        client = clients(node.socket_path)
        client.start_session(OPEN, 60)
        signals = []
        for unique in range(100, 130):
            signal = Signal()

            def done(reply, error, unique=unique, signal=signal):
                client.ack(unique)
                signal.fire(reply, error)

            client.propose(make(b"%d" % unique), unique).start(done)
            signals.append(signal)
        assert all(block_on(signal, 60).created for signal in signals)
        assert node.figures()["admission_refused"] > 0


def test_the_session_is_lost_when_the_leader_has_ended_it(tmp_path, clients):
    told = Told()
    with host(tmp_path) as node:
        client = clients(node.socket_path, events=told)
        opened = client.start_session(OPEN, 60)
        assert 0 < client.lease_left_ns() <= client_module.clock.boot_ns()
        node.service.propose(c.EndSession(opened.session, opened.epoch, True), 60)
        with pytest.raises(FsError) as caught:
            block_on(client.propose(make(b"late"), 100), 60)
        assert caught.value.errno == errno.ESTALE
        assert told.is_lost.wait(60) and client.lease_left_ns() == 0 and not told.is_fenced.is_set()
        again = client.start_session(OPEN, 60)
        assert again.session != opened.session and client.lease_left_ns() > 0


def test_ending_the_session_is_no_loss(tmp_path, clients):
    told = Told()
    with host(tmp_path) as node:
        client = clients(node.socket_path, renew_ms=1, events=told)
        opened = client.start_session(OPEN, 60)
        assert block_on(client.propose(c.EndSession(opened.session, opened.epoch, True), 100), 60) == m.Done()
        client.call(m.GetStatus(), 60)
        assert not told.is_lost.is_set() and client.lease_left_ns() == 0


# --- against a script --------------------------------------------------------------------------------------------------------
def test_what_has_no_answer_is_sent_again_in_order_with_the_same_ids(tmp_path, script, clients):
    client = clients(tmp_path / "meta.sock")
    script.accept()
    client.ack_inherited(1)
    signals = [Signal() for _ in range(3)]
    for unique, signal in enumerate(signals, 10):
        client.propose(make(b"x"), unique).start(signal.fire)
    first = [script.take() for _ in range(3)]
    assert [request.body.unique for request in first] == [10, 11, 12] and first[0].body.acks == [1]
    script.answer(first[1].call, m.Done())
    assert block_on(signals[1], 60) == m.Done()
    script.hang_up()
    late = ask(client, m.GetStatus())
    script.accept()
    second = [script.take() for _ in range(3)]
    assert [request.body for request in second[:2]] == [first[0].body, first[2].body]
    for request in second:
        script.answer(request.call, m.Done())
    for signal in (signals[0], signals[2], late):
        assert block_on(signal, 60) == m.Done()


def test_an_opening_that_lost_its_answer_is_the_same_request(tmp_path, script, clients):
    client = clients(tmp_path / "meta.sock")
    with pytest.raises(Unavailable):
        client.start_session(OPEN, 0.01)
    script.accept()
    first = script.take()
    script.hang_up()
    script.accept()
    second = script.take()
    assert first.body == second.body and first.body.unique
    volume = VolumeInfo(1, "u", "v", 0, 0, 0, 0)
    script.answer(second.call, m.SessionOpened(3, 4, False, True, 10_000, volume))
    opened = client.start_session(OPEN, 60)
    assert opened.changed_by_others and (client.session, client.epoch) == (3, 4)


def test_inflight_is_bounded_and_the_rest_waits_in_order(tmp_path, script, clients, monkeypatch):
    monkeypatch.setattr(core, "RPC_INFLIGHT_MAX", 4)
    monkeypatch.setattr(core, "CLIENT_QUEUED_MAX", 6)
    client = clients(tmp_path / "meta.sock")
    script.accept()
    signals = [ask(client, m.GetAttr(1, number)) for number in range(10)]
    over = ask(client, m.GetAttr(1, 99))
    with pytest.raises(Unavailable):
        block_on(over, 60)
    for number in range(10):
        request = script.take()
        assert request.body.ino == number
        if number < 4:
            assert not script.pending or number < 3
        script.answer(request.call, m.Done())
    assert [block_on(signal, 60) for signal in signals] == [m.Done()] * 10


def test_a_request_with_a_later_deadline_wakes_no_thread(tmp_path, script, clients):
    """The sending thread looks at the first deadline anyway; an earlier one has to wake it."""
    client = clients(tmp_path / "meta.sock")
    script.accept()
    client.submit(m.GetVolumes(), Signal().fire, 100_000)
    looks = client._looks_ns
    while looks is None:  # until the sending thread waits for that deadline
        time.sleep(0.001)
        looks = client._looks_ns
    notified, notify = [], client._unsent_ready.notify_all

    def notify_all() -> None:
        notified.append(threading.get_ident())
        notify()

    client._unsent_ready.notify_all = notify_all
    client.submit(m.GetVolumes(), Signal().fire, 200_000)
    assert threading.get_ident() not in notified
    client.submit(m.GetVolumes(), Signal().fire, 50_000)
    assert threading.get_ident() in notified


def test_a_service_that_does_not_read_blocks_no_submitter(tmp_path, script, clients):
    client = clients(tmp_path / "meta.sock")
    script.accept()
    signals = [ask(client, m.Propose(number, 0, 0, [], c.SetXattr(1, 1, b"user.x", bytes(60_000)))) for number in range(1, 101)]
    for number in range(1, 101):  # 6 MB were queued before the first was read
        request = script.take()
        assert request.body.unique == number
        script.answer(request.call, m.Done())
    assert all(block_on(signal, 60) == m.Done() for signal in signals)


def test_garbage_from_the_service_costs_a_connection(tmp_path, script, clients):
    client = clients(tmp_path / "meta.sock")
    script.accept()
    signal = ask(client, m.GetStatus())
    script.take()
    script.sock.sendall(frame(b"\xc1garbage"))
    script.accept()
    script.answer(script.take().call, m.Done())
    assert block_on(signal, 60) == m.Done()


def test_what_a_continuation_raises_counts_as_the_death_of_its_thread(tmp_path, script, clients, monkeypatch):
    """Whoever waits behind it would wait for ever.  A worker ends by that (worker/process.py); the client goes on elsewhere."""
    died: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_value))
    client = clients(tmp_path / "meta.sock")
    script.accept()
    bug = RuntimeError("a bug")

    def broken(_reply, _error):
        raise bug

    client.submit(m.GetStatus(), broken)
    script.answer(script.take().call, m.Status({}))
    signal = ask(client, m.GetStatus())
    script.answer(script.take().call, m.Status({"x": 1}))
    assert block_on(signal, 60) == m.Status({"x": 1}) and died == [bug]


def test_close_ends_what_is_outstanding(tmp_path, clients):
    client = clients(tmp_path / "nobody.sock")
    signal = ask(client, m.GetStatus())
    client.close()
    with pytest.raises(Unavailable):
        block_on(signal, 60)
    with pytest.raises(Unavailable):
        client.call(m.GetStatus(), 60)


def test_answer_decoder_fuzz(seed):
    rng = random.Random(seed)
    good = encode(m.Answer(2, m.Failed(5, "detail")))
    for _ in range(3000):
        raw = bytearray(good if rng.random() < 0.7 else rng.randbytes(rng.randrange(60)))
        for _ in range(rng.randrange(4)):
            if raw:
                raw[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            decode_answer(bytes(raw))
        except ProtocolError:
            pass


# --- the lease -----------------------------------------------------------------------------------------------------------------
class Renewer:
    """What a SessionRenewer submits to, with the answers in the test's hand."""

    session, epoch = 3, 4

    def __init__(self) -> None:
        self.renewals: list = []
        self.submitted = threading.Semaphore(0)

    def seen_index(self) -> int:
        return 17

    def submit(self, body, resume) -> None:
        self.renewals.append((body, resume))
        self.submitted.release()


def test_the_lease_counts_from_the_sending_and_ends_before_the_leader_acts():
    clock, renewer = Clock(), Renewer()
    events: list[str] = []
    told = threading.Semaphore(0)

    def notify(event: str) -> None:
        events.append(event)
        told.release()

    keeper = SessionRenewer(renewer, clock, notify, wall_ns=clock, renew_ms=3_000, fence_ms=6_666)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    try:
        keeper.begin(clock())
        clock.advance(3)
        keeper.wake()
        assert renewer.submitted.acquire(timeout=60)
        body, resume = renewer.renewals.pop()
        assert body == m.Renew(3, 4, 17)
        clock.advance(3)
        resume(m.Done(), None)
        assert told.acquire(timeout=60) and events == ["renewed"]
        assert keeper.left_ns() == 3_666_000_000, "counted from when it was sent"
        assert renewer.submitted.acquire(timeout=60), "an old renewal is followed by a new one at once"
        _, resume = renewer.renewals.pop()
        clock.advance(4)
        keeper.wake()
        assert told.acquire(timeout=60) and events == ["renewed", "fenced"] and keeper.left_ns() == 0
        resume(m.Done(), None)
        assert told.acquire(timeout=60) and events[-1] == "renewed" and keeper.left_ns() > 0
        assert renewer.submitted.acquire(timeout=60)
        _, resume = renewer.renewals.pop()
        resume(None, FsError(errno.ESTALE))
        assert told.acquire(timeout=60) and events[-1] == "lost" and keeper.left_ns() == 0
    finally:
        keeper.stop()
        thread.join()


@pytest.mark.parametrize("jump_s", [60, -60])
def test_a_clock_that_was_set_may_have_stood_still_before_so_the_lease_is_not_trusted(jump_s):
    """A hypervisor pauses the machine with all its clocks; afterwards somebody sets the one that people see."""
    boot, wall, renewer = Clock(), Clock(), Renewer()
    told = threading.Semaphore(0)
    keeper = SessionRenewer(renewer, boot, lambda event: told.release(), wall_ns=wall)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    try:
        keeper.begin(boot())
        boot.advance(3)
        wall.advance(3)
        keeper.wake()
        assert renewer.submitted.acquire(timeout=60), "this one is on its way before the pause"
        assert keeper.left_ns() > 0
        wall.advance(jump_s)
        assert keeper.left_ns() == 0, "whoever asks first sees it"
        assert renewer.submitted.acquire(timeout=60), "and it is renewed at once"
        (_, before), (_, after) = renewer.renewals
        before(m.Done(), None)
        assert keeper.left_ns() == 0, "it says nothing about the time since it was sent"
        boot.advance(1)
        wall.advance(1)
        after(m.Done(), None)
        assert told.acquire(timeout=60) and 0 < keeper.left_ns() < SESSION_SELF_FENCE_MS * NS_PER_MS
        assert keeper.jumps == 1
    finally:
        keeper.stop()
        thread.join()


def test_a_clock_that_is_corrected_slowly_is_trusted():
    boot, wall = Clock(), Clock()
    keeper = SessionRenewer(Renewer(), boot, lambda event: None, wall_ns=wall)
    keeper.begin(boot())
    for _ in range(50):
        keeper.begin(boot())
        boot.advance(1)
        wall.advance(1.1)
        assert keeper.left_ns() > 0
        keeper._compare_clocks()
    assert keeper.jumps == 0


@pytest.mark.parametrize("what", ["stopped, or asleep", "running"])
def test_a_stop_of_the_process_or_a_suspend_is_counted(what):
    """CLOCK_BOOTTIME goes on in both; no thread of the worker has to have run since."""
    boot = Clock()
    keeper = SessionRenewer(Renewer(), boot, lambda event: None, wall_ns=boot)
    keeper.begin(boot())
    boot.advance(60 if what != "running" else 1)
    assert (keeper.left_ns() > 0) == (what == "running")


def test_the_import_is_light():
    heavy = ("trio", "grpc", "pydantic", "lmdb", "awsomefsd.meta.log.journal", "awsomefsd.meta.machine.machine")
    code = f"import sys, awsomefsd.meta.client.client; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"
