"""The session without a kernel: requests come over a socket pair, memory is plain bytearrays, the next worker is the next Session."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.sockets import readable
from awsomefsd.base.types import RESEND_BIT
from awsomefsd.base.wait import Errand, Prompt, Resume, Signal
from awsomefsd.fuse import abi, control_area, killed_callers, negotiate, parked_requests, slots
from awsomefsd.fuse.abi import Opcode
from awsomefsd.fuse.inherited_requests import InheritedRequests
from awsomefsd.fuse.negotiate import BACKGROUND_REQUESTS_MAX
from awsomefsd.fuse.notify import PAGE_DROPS_WAITING_MAX, Notifier
from awsomefsd.fuse.session import Overrides, Session
from awsomefsd.vfs.api.context import CachePolicy, Context, Opened
from tests.rigs.mount_without_kernel import until
from tests.unit.fuse.dict_filesystem import DictFs

PAYLOAD = 16 * 4096


def request(opcode: int, unique: int, nodeid: int = 1, body: bytes = b"") -> bytes:
    return abi.IN_HEADER.pack(40 + len(body), opcode, unique, nodeid, 1000, 1000, 77, 0, 0) + body


def mkdir(name: bytes, unique: int) -> bytes:
    return request(Opcode.MKDIR, unique, 1, abi.MKDIR_IN.pack(0o755, 0) + name + b"\0")


def read_late(unique: int) -> bytes:
    return request(Opcode.READ, unique, 2, abi.READ_IN.pack(2, 0, 4096, 0, 0, 0, 0))


class Kernel:
    """Our end of the pair, and the memory that outlives sessions."""

    def __init__(self, slot_count: int = 2, park_bytes: int = 64 * 4096, recall_bytes: int = 0) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(60)
        self.memory = {
            "control": bytearray(control_area.CONTROL_BYTES),
            "slots": bytearray(slots.required_bytes(slot_count, PAYLOAD)),
            "park": bytearray(parked_requests.required_bytes(park_bytes)),
        }
        self.slot_count, self.recall_bytes = slot_count, recall_bytes
        self.fresh = True
        self.sessions: list[Session] = []

    def session(self, fs: Any, **options: Any) -> Session:
        fresh, self.fresh = self.fresh, False
        session = Session(
            self.theirs.fileno(), fs, control_area.ControlArea(self.memory["control"], fresh=fresh),
            slots.SlotArea(self.memory["slots"], self.slot_count, PAYLOAD, fresh=fresh),
            parked_requests.ParkArea(self.memory["park"], fresh=fresh, recall_bytes=self.recall_bytes), fresh=fresh, **options,
        )  # fmt: skip
        self.sessions.append(session)
        return session

    def die(self, session: Session, *requests: bytes) -> None:
        """What a worker leaves that is killed while it executes these."""
        for slot, raw in zip(session.slots, requests, strict=False):
            slot.begin_read()
            slot.read_buffer[: len(raw)] = raw
            slot.start(len(raw))

    def ask(self, raw: bytes) -> tuple[int, int, bytes]:
        self.ours.send(raw)
        return self.answer()

    def answer(self) -> tuple[int, int, bytes]:
        """(unique, errno, body)"""
        reply = self.ours.recv(1 << 20)
        length, error, unique = abi.OUT_HEADER.unpack_from(reply)
        assert length == len(reply)
        return unique, -error, reply[16:]

    def nothing_more(self) -> bool:
        return not readable([self.ours.fileno()], 0)

    def close(self) -> None:
        self.ours.shutdown(socket.SHUT_RDWR)  # readers see the end
        for session in self.sessions:
            assert session.wait(60)
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture
def fs() -> DictFs:
    return DictFs()


def serve(kernel: Kernel, fs: Any, **options: Any) -> Session:
    session = kernel.session(fs, **options)
    session.recover()
    session.start()
    return session


def init(kernel: Kernel, minor: int = 45) -> None:
    offer = struct.pack("<IIIII44x", 7, minor, 131072, 0xFFFF_FFFF, 0xFFFF_FFFF)
    unique, error, body = kernel.ask(request(Opcode.INIT, 2, 0, offer))
    assert (unique, error) == (2, 0) and struct.unpack_from("<II", body) == (7, minor)


class Decided(Prompt):
    """Ends at once with `value` if it is told to; `parked`: how many requests were parked at each attempt and start."""

    def __init__(self, area: parked_requests.ParkArea, value: Any = None, error: Exception | None = None, *, at_once: bool = True) -> None:
        self._area, self._outcome, self._at_once = area, (value, error), at_once
        self.parked: list[tuple[str, int]] = []

    def attempt(self, resume: Resume) -> bool:
        self.parked.append(("attempt", len(self._area)))
        if self._at_once:
            resume(*self._outcome)
        return self._at_once

    def start(self, resume: Resume) -> None:
        self.parked.append(("start", len(self._area)))
        resume(*self._outcome)


def test_what_ends_at_once_is_not_parked(kernel: Kernel, fs: DictFs) -> None:
    session = serve(kernel, fs)
    area = session.park
    first, second, late = Decided(area, 1), Decided(area, None, FsError(errno.EEXIST)), Decided(area, at_once=False)

    def removes(ctx: Context, parent: int, name: bytes) -> Any:
        if name == b"late":
            yield late
            return
        assert (yield first) == 1
        if name == b"refused":
            yield second

    fs.unlink = removes  # type: ignore[method-assign]
    assert kernel.ask(request(Opcode.UNLINK, 4, 1, b"gone\0"))[:2] == (4, 0)
    assert kernel.ask(request(Opcode.UNLINK, 6, 1, b"refused\0"))[:2] == (6, errno.EEXIST)
    assert first.parked == [("attempt", 0)] * 2 and second.parked == [("attempt", 0)]
    assert kernel.ask(request(Opcode.UNLINK, 8, 1, b"late\0"))[:2] == (8, 0)
    assert late.parked == [("attempt", 0), ("start", 1)]


def test_init_is_kept_for_successors(kernel: Kernel, fs: DictFs) -> None:
    session = serve(kernel, fs, overrides=Overrides(resend=False))
    init(kernel)
    assert session.negotiated is not None and session.negotiated.minor == 45
    assert kernel.session(fs).negotiated == session.negotiated


@pytest.mark.parametrize("shared", [False, True])
def test_only_mounts_of_a_shared_volume_ask_for_locks(kernel: Kernel, fs: DictFs, shared: bool) -> None:
    """The kernel keeps the others' (decision 412)."""
    session = serve(kernel, fs, overrides=Overrides().with_locks(shared))
    init(kernel)
    assert session.negotiated is not None
    asked = session.negotiated.flags & negotiate.LOCKS
    assert asked == (negotiate.LOCKS if shared else 0)


def test_values_errors_and_unknown_opcodes(kernel: Kernel, fs: DictFs) -> None:
    first: list[bool] = []
    serve(kernel, fs, on_first_reply=lambda: first.append(True))
    assert kernel.ask(mkdir(b"a", 4))[:2] == (4, 0)
    assert kernel.ask(mkdir(b"a", 6))[:2] == (6, errno.EEXIST)
    assert kernel.ask(request(999, 8))[:2] == (8, errno.ENOSYS)
    assert kernel.ask(request(Opcode.BMAP, 10))[:2] == (10, errno.ENOSYS)
    assert kernel.ask(request(Opcode.IOCTL, 12))[:2] == (12, errno.ENOTTY)
    assert first == [True] and fs.replied_to == [4, 6]


def test_the_kernel_looks_again_for_what_is_gone(kernel: Kernel, fs: DictFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it knows by a name may be another file by now; a name that is missing is missing."""

    def gone(*_: Any) -> None:
        raise FsError(errno.ENOENT)

    serve(kernel, fs)
    fs.ttl = 0  # else a missing name is one that the kernel remembers
    for name in ("open", "opendir", "getattr", "lookup"):
        monkeypatch.setattr(fs, name, gone)
    assert kernel.ask(request(Opcode.OPEN, 4, 2, bytes(8)))[:2] == (4, errno.ESTALE)
    assert kernel.ask(request(Opcode.OPENDIR, 6, 2, bytes(8)))[:2] == (6, errno.ESTALE)
    assert kernel.ask(request(Opcode.GETATTR, 8, 2, bytes(16)))[:2] == (8, errno.ESTALE)
    assert kernel.ask(request(Opcode.LOOKUP, 10, 1, b"missing\0"))[:2] == (10, errno.ENOENT)


def test_a_device_that_is_not_there_is_eio(kernel: Kernel, fs: DictFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not EAGAIN, which says of a descriptor in blocking mode what cannot be."""

    def gone(*arguments: Any) -> None:
        raise Unavailable("device 1 is not on this node")

    monkeypatch.setattr(fs, "mkdir", gone)
    serve(kernel, fs)
    assert kernel.ask(mkdir(b"a", 4))[:2] == (4, errno.EIO)


def test_missing_name_is_cached_only_within_the_lease(kernel: Kernel, fs: DictFs) -> None:
    fs.ttl = 3_600 * abi.NSEC  # long behind anything that happens to this thread
    serve(kernel, fs)
    unique, error, body = kernel.ask(request(Opcode.LOOKUP, 4, 1, b"missing\0"))
    ino, _, seconds, _, nanoseconds = struct.unpack_from("<QQQQI", body)
    assert (unique, error, ino) == (4, 0, 0) and 0 < seconds * abi.NSEC + nanoseconds <= fs.ttl, "it began with the request"
    fs.ttl = 0
    assert kernel.ask(request(Opcode.LOOKUP, 6, 1, b"missing\0")) == (6, errno.ENOENT, b"")


def test_xattr_sizes(kernel: Kernel, fs: DictFs) -> None:
    serve(kernel, fs)
    fs.setxattr(None, 2, b"user.a", b"12345", 0)  # type: ignore[arg-type]
    get = abi.GETXATTR_IN
    assert kernel.ask(request(Opcode.GETXATTR, 4, 2, get.pack(0, 0) + b"user.a\0"))[2] == struct.pack("<II", 5, 0)
    assert kernel.ask(request(Opcode.GETXATTR, 6, 2, get.pack(4, 0) + b"user.a\0"))[1] == errno.ERANGE
    assert kernel.ask(request(Opcode.GETXATTR, 8, 2, get.pack(5, 0) + b"user.a\0"))[2] == b"12345"
    assert kernel.ask(request(Opcode.LISTXATTR, 10, 2, get.pack(100, 0)))[2] == b"user.a\0"


def test_entry_that_did_not_fit_is_forgotten(kernel: Kernel, fs: DictFs) -> None:
    serve(kernel, fs)
    room = 2 * 160 + 160 + 8  # ".", ".." and one more
    body = kernel.ask(request(Opcode.READDIRPLUS, 4, 1, abi.READ_IN.pack(1, 0, room, 0, 0, 0, 0)))[2]
    assert len(body) == 480 and body.endswith(b"sub\0\0\0\0\0")
    assert fs.forgotten == [(2, 1)]  # "wait" was asked for and not sent


def test_forget_and_batch(kernel: Kernel, fs: DictFs) -> None:
    serve(kernel, fs)
    kernel.ours.send(request(Opcode.FORGET, 4, 9, abi.FORGET_IN.pack(3)))
    kernel.ours.send(request(Opcode.BATCH_FORGET, 6, 0, struct.pack("<IIQQQQ", 2, 0, 10, 1, 11, 2)))
    kernel.ours.send(request(Opcode.BATCH_FORGET, 8, 0, struct.pack("<II", 1 << 30, 0)))  # a lie
    assert kernel.ask(request(Opcode.STATFS, 10))[:2] == (10, 0)
    while len(fs.forgotten) < 3:  # the other reader may not be done
        threading.Event().wait(0.001)
    assert sorted(fs.forgotten) == [(9, 3), (10, 1), (11, 2)]


def test_parked_requests_leave_all_readers_free(kernel: Kernel, fs: DictFs) -> None:
    session = serve(kernel, fs)
    for unique in range(4, 24, 2):
        kernel.ours.send(read_late(unique))
    assert kernel.ask(request(Opcode.STATFS, 100))[0] == 100
    while len(session.park) < 10:
        threading.Event().wait(0.001)
    fs.gate.fire()  # on this thread
    assert sorted(kernel.answer()[0] for _ in range(10)) == list(range(4, 24, 2))
    until(lambda: len(session.park) == 0)  # one that began to wait behind the gate is freed by its reader
    assert kernel.ask(read_late(102))[2] == b"0123456789"


class Errands(DictFs):
    """Its fsync is an errand, which waits for `may_end`; another thread ends it after that, and then a second one follows."""

    def __init__(self) -> None:
        super().__init__()
        self.did: list[str] = []
        self.left: list[None] = []
        self.may_end = threading.Event()

    def _errand(self) -> Errand:
        def do(blocks: Callable[[], None]) -> None:
            blocks()
            self.did.append(threading.current_thread().name)
            assert self.may_end.wait(60)
            errand.fire()

        errand = Errand(do, lambda: self.left.append(None))
        return errand

    def fsync(self, ctx: Context, ino: int, fh: int, datasync: bool) -> Any:
        return self._fsync()

    def _fsync(self) -> Any:
        yield self._errand()
        yield self._errand()


def test_a_reader_does_the_errands_of_its_request_and_another_one_reads() -> None:
    fs, kernel = Errands(), Kernel()
    try:
        session = serve(kernel, fs)
        kernel.ours.send(request(Opcode.FSYNC, 4, 2, abi.FSYNC_IN.pack(2, 0, 0)))
        while not fs.did:
            threading.Event().wait(0.001)
        assert kernel.ask(request(Opcode.STATFS, 6))[0] == 6, "the other reader has the turn"
        assert len(session.park) == 1, "a successor would find it"
        fs.may_end.set()
        assert kernel.answer()[:2] == (4, 0)
        assert len(fs.did) == 2 and set(fs.did) <= {"fuse-0", "fuse-1"} and not fs.left
    finally:
        fs.may_end.set()
        kernel.close()


def test_the_errand_of_a_request_that_a_successor_repeats_is_left_to_whom_it_belongs() -> None:
    fs, kernel = Errands(), Kernel()
    first = kernel.session(DictFs())
    kernel.die(first, request(Opcode.FSYNC, 4, 2, abi.FSYNC_IN.pack(2, 0, 0)))
    session = kernel.session(fs, previous={"signal": signal.SIGKILL})
    session.recover()
    try:
        assert fs.left == [None] and not fs.did, "the takeover waits for nobody"
    finally:
        session.start()
        kernel.close()


def test_an_errand_that_comes_when_its_reader_has_gone_on_is_left_to_whom_it_belongs() -> None:
    """The same reader serves another request, which resumes the first one: no other turn of that thread would do its errand."""

    class Late(Errands):
        gate = Signal()

        def _fsync(self) -> Any:
            yield self.gate
            yield self._errand()

        def statfs(self, ctx: Context, ino: int) -> Any:
            self.gate.fire()
            return super().statfs(ctx, ino)

    fs, kernel = Late(), Kernel(slot_count=1)
    try:
        session = serve(kernel, fs)
        kernel.ours.send(request(Opcode.FSYNC, 4, 2, abi.FSYNC_IN.pack(2, 0, 0)))
        assert kernel.ask(request(Opcode.STATFS, 6))[0] == 6
        assert fs.left == [None] and not fs.did and len(session.park) == 1
    finally:
        kernel.close()


def write_late(unique: int, offset: int, data: bytes) -> bytes:
    return request(Opcode.WRITE, unique, 2, abi.WRITE_IN.pack(2, offset, len(data), 0, 0, 0, 0) + data)


def test_waiting_writes_leave_all_readers_free(kernel: Kernel, fs: DictFs) -> None:
    """And what they write is what came with them, whatever their slots have held since."""
    session = serve(kernel, fs)
    pieces = {unique: b"%03d" % unique * 3_000 for unique in range(4, 24, 2)}
    for place, (unique, data) in enumerate(pieces.items()):
        kernel.ours.send(write_late(unique, place * 9_000, data))
    for unique in (100, 102):
        assert kernel.ask(mkdir(b"%d" % unique * 30, unique))[:2] == (unique, 0)
    while len(session.park) < 10:
        threading.Event().wait(0.001)
    assert session.control.counters()["fuse_slots_kept"] == 0
    fs.gate.fire()
    assert sorted(kernel.answer()[0] for _ in range(10)) == [*pieces]
    assert fs.data[fs.late] == b"".join(pieces.values())
    until(lambda: len(session.park) == 0)


def test_a_successor_takes_up_writes_that_wait(kernel: Kernel) -> None:
    dead = kernel.session(DictFs())
    for unique in range(4, 24, 2):
        assert dead.park.park(write_late(unique, unique - 4, b"%02d" % unique)) is not None
    session = kernel.session(fs := DictFs(), previous={"signal": signal.SIGKILL})
    session.recover()
    session.start()
    assert kernel.ask(mkdir(b"a", 100))[:2] == (100, 0)
    fs.gate.fire()
    assert sorted(kernel.answer()[0] for _ in range(10)) == list(range(4, 24, 2))
    assert fs.data[fs.late] == b"04060810121416182022"


def test_writes_cannot_take_all_of_the_park_area(fs: DictFs) -> None:
    """The area is full of writes, and a further one keeps its slot: others that wait are parked all the same."""
    kernel = Kernel(slot_count=2, park_bytes=8 * 4096, recall_bytes=2 * 4096)
    try:
        session = serve(kernel, fs)
        for unique in (4, 6):
            kernel.ours.send(write_late(unique, 0, bytes(14_000)))
        while session.control.counters()["fuse_slots_kept"] < 1:
            threading.Event().wait(0.001)
        for unique in (8, 10):
            kernel.ours.send(read_late(unique))
        assert kernel.ask(request(Opcode.STATFS, 100))[0] == 100
        fs.gate.fire()
        assert sorted(kernel.answer()[0] for _ in range(4)) == [4, 6, 8, 10]
    finally:
        kernel.close()


def test_park_area_full_is_back_pressure(fs: DictFs) -> None:
    kernel = Kernel(slot_count=2, park_bytes=4096)
    try:
        session = serve(kernel, fs)
        for unique in range(4, 16, 2):  # 4 fit the park area, one keeps a slot, one may
            kernel.ours.send(read_late(unique))
        while session.control.counters()["fuse_slots_kept"] < 2:
            threading.Event().wait(0.001)
        assert len(session.park) == 4
        fs.gate.fire()
        assert sorted(kernel.answer()[0] for _ in range(6)) == list(range(4, 16, 2))
        assert kernel.ask(request(Opcode.STATFS, 100))[0] == 100
    finally:
        kernel.close()


def test_interrupt_that_overtakes_its_request(fs: DictFs) -> None:
    kernel = Kernel(slot_count=1)
    try:
        session = serve(kernel, fs)
        lock = abi.LK_IN.pack(2, 5, 0, 9, abi.LK_WRLCK, 1, 0, 0)
        assert kernel.ask(request(Opcode.SETLK, 4, 2, lock))[:2] == (4, 0)
        kernel.ours.send(request(Opcode.INTERRUPT, 7, 0, abi.INTERRUPT_IN.pack(6 | RESEND_BIT)))
        other = abi.LK_IN.pack(2, 6, 0, 9, abi.LK_WRLCK, 1, 0, 0)
        assert kernel.ask(request(Opcode.SETLKW, 6, 2, other)) == (6, errno.EINTR, b"")
        assert fs.interrupted == [6, 6]
        kernel.ask(request(Opcode.STATFS, 8))  # by the same reader, so the request before is over
        assert len(session.park) == 0
    finally:
        kernel.close()


def test_getlk_of_nobody(kernel: Kernel, fs: DictFs) -> None:
    serve(kernel, fs)
    lock = abi.LK_IN.pack(2, 5, 0, 9, abi.LK_WRLCK, 1, 0, 0)
    assert struct.unpack_from("<QQI", kernel.ask(request(Opcode.GETLK, 4, 2, lock))[2])[2] == abi.LK_UNLCK


# --- takeover ----------------------------------------------------------------------------------------------------------------


def test_done_is_sent_again_and_not_executed(kernel: Kernel, fs: DictFs) -> None:
    dead = kernel.session(DictFs())
    kernel.die(dead, mkdir(b"a", 4))
    dead.slots[0].store_reply(abi.pack_error(4, 0))
    session = kernel.session(fs, previous={"signal": signal.SIGKILL})
    session.recover()
    assert kernel.answer() == (4, 0, b"") and fs.executed == [] and fs.replied_to == [4]
    assert [slot.state for slot in session.slots] == [slots.FREE] * 2 and kernel.nothing_more()


def test_request_being_parked_at_the_death_counts_once(kernel: Kernel, fs: DictFs) -> None:
    dead = kernel.session(DictFs())
    kernel.die(dead, mkdir(b"a", 6), mkdir(b"b", 4))
    dead.park.park(mkdir(b"a", 6))
    session = kernel.session(fs, previous={"signal": signal.SIGKILL})
    session.recover()
    assert [kernel.answer()[:2] for _ in range(2)] == [(4, 0), (6, 0)]  # in the order of arrival
    assert fs.executed == [("b", 4), ("a", 6)] and len(session.park) == 0 and kernel.nothing_more()


def test_suspects_run_alone_and_the_guilty_one_is_answered_eio(kernel: Kernel) -> None:
    kernel.die(kernel.session(DictFs()), mkdir(b"bad", 4), mkdir(b"good", 6))

    class Dies(DictFs):
        """The process would be gone: what it left is looked at by the next session."""

        def mkdir(self, ctx: Any, parent: int, name: bytes, mode: int) -> Any:
            if name == b"bad":
                raise SystemExit
            return super().mkdir(ctx, parent, name, mode)

    died = {"signal": signal.SIGSEGV}
    with pytest.raises(SystemExit):  # 1 death each; executed in order
        kernel.session(Dies(), previous=died).recover()
    alone = kernel.session(Dies(), previous=died)
    with pytest.raises(SystemExit):  # 2 deaths of both: suspects
        alone.recover()
    assert [suspect.unique for suspect in alone.control.state.suspects] == [4]
    fs = DictFs()
    last = kernel.session(fs, previous=died)
    last.recover()
    assert [kernel.answer()[:2] for _ in range(2)] == [(4, errno.EIO), (6, 0)]
    assert [name for name, _ in fs.executed] == ["good"] and last.control.state.suspects == [] and kernel.nothing_more()


def test_parked_requests_are_no_suspects_by_sigkill(kernel: Kernel) -> None:
    kernel.session(DictFs()).park.park(read_late(4))
    for _ in range(4):
        session = kernel.session(fs := DictFs(), previous={"signal": signal.SIGKILL})
        session.recover()
        assert session.park.entries()[0].deaths == 0
    fs.gate.fire()
    assert kernel.answer() == (4, 0, b"0123456789")


def test_damaged_memory_does_not_end_the_takeover(kernel: Kernel, fs: DictFs) -> None:
    dead = kernel.session(DictFs())
    entry = dead.park.park(mkdir(b"a", 4))
    assert entry is not None
    entry.request()[45] ^= 1
    kernel.die(dead, mkdir(b"b", 6))
    kernel.session(fs, previous={"signal": 9}).recover()
    assert [kernel.answer()[:2] for _ in range(2)] == [(4, errno.EIO), (6, 0)]


def test_a_request_that_changed_while_it_waited_in_its_slot_is_answered_eio(kernel: Kernel, fs: DictFs) -> None:
    """By its successor, and not executed; its caller learns it also when the damage is in its id."""
    dead = kernel.session(DictFs())
    kernel.die(dead, mkdir(b"a", 4), mkdir(b"b", 6))
    for slot in dead.slots:
        slot.seal()
    dead.slots[0].request()[41] ^= 1  # the name
    dead.slots[1].request()[8] ^= 16  # the unique
    kernel.session(fs, previous={"signal": 9}).recover()
    assert [kernel.answer()[:2] for _ in range(2)] == [(4, errno.EIO), (6, errno.EIO)]
    assert fs.executed == [] and kernel.nothing_more()


def test_a_reply_of_the_request_before_is_not_sent(kernel: Kernel, fs: DictFs) -> None:
    """A flipped state says DONE; what lies there is another request's."""
    dead = kernel.session(DictFs())
    dead.slots[0].store_reply(abi.pack_error(2, 0))
    kernel.die(dead, mkdir(b"a", 4))
    dead.slots[0]._words[0] |= slots.DONE
    kernel.session(fs, previous={"signal": 9}).recover()
    assert kernel.answer()[:2] == (4, 0) and fs.executed == [("a", 4)] and kernel.nothing_more()


def test_a_write_whose_bytes_change_while_it_waits_is_answered_eio(fs: DictFs) -> None:
    """The worker lives; it would go on with what lies in the slot now."""
    kernel = Kernel(slot_count=1, park_bytes=4096)
    try:
        session = kernel.session(fs)
        late = read_late(4)
        kernel.die(session, late)
        session.park.park = lambda *arguments, **words: None  # type: ignore[method-assign,assignment]
        pending = session.execute(session.slots[0], Opcode.READ, Context(0, 0, 0, 4, 4), 2, session.slots[0].read_buffer[40 : len(late)])
        assert pending is not None and pending.held is session.slots[0]
        session.slots[0].request()[50] ^= 1
        fs.gate.fire()
        assert kernel.answer()[:2] == (4, errno.EIO)
    finally:
        kernel.close()


def test_resent_request_finds_its_reply(kernel: Kernel, fs: DictFs) -> None:
    """RESEND is sent, and a request that comes again while its first execution waits is dropped."""
    first = serve(kernel, DictFs())
    init(kernel)
    first.park.park(read_late(4))
    kernel.ours.shutdown(socket.SHUT_WR)  # the first one's readers end
    assert first.wait(60)
    kernel.ours.close()
    kernel.theirs.close()
    kernel.ours, kernel.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.ours.settimeout(60)
    kernel.ours.send(read_late(4 | RESEND_BIT))
    kernel.ours.send(mkdir(b"new", 8))
    session = serve(kernel, fs)
    assert kernel.ours.recv(100) == abi.pack_notify(abi.Notify.RESEND)
    assert kernel.answer()[:2] == (8, 0)
    assert len(session.park) == 1 and session.inherited is not None
    fs.gate.fire()
    assert kernel.answer() == (4, 0, b"0123456789")  # this "kernel" takes any id
    assert session.inherited is None and len(session.park) == 0 and kernel.nothing_more()


class Queued(Kernel):
    """It has been asked to send again, and refuses replies to what it has queued until that was read (ENOENT)."""

    def __init__(self, slot_count: int, queued: set[int]) -> None:
        super().__init__(slot_count)
        self.queued = queued

    def session(self, fs: Any, **options: Any) -> Session:
        session = super().session(fs, **options)
        write = session.write
        session.write = lambda unique, reply: unique & ~RESEND_BIT not in self.queued and write(unique, reply)  # type: ignore[method-assign]
        return session

    def kept(self) -> set[int]:
        """The uniques of the replies that a further successor would find."""
        area = slots.SlotArea(bytearray(self.memory["slots"]))
        entries = parked_requests.ParkArea(bytearray(self.memory["park"])).entries()
        return {abi.OUT_HEADER.unpack_from(one.reply())[2] for one in [*area, *entries] if one.state == slots.DONE}


@pytest.mark.parametrize("slot_count", [1, 2, 3])
def test_replies_that_the_kernel_does_not_take_yet_outlive_what_is_read_next(fs: DictFs, slot_count: int) -> None:
    """A worker died while it drained what it had asked to be sent again; replies that it kept are in slots, in one case in all of them."""
    kernel = Queued(slot_count, set())
    try:
        dead = kernel.session(DictFs(), overrides=Overrides())
        dead.control.update(negotiated=control_area.Negotiated(45, abi.HAS_RESEND, 1 << 20, 1 << 20, 12))
        answered = [4 + 2 * number for number in range(min(2, slot_count))]
        kernel.die(dead, *(mkdir(b"%d" % unique, unique) for unique in answered))
        for slot, unique in zip(dead.slots, answered, strict=False):
            assert slot.store_reply(abi.pack_error(unique, errno.EDQUOT))
        kernel.queued |= {*answered}
        kept: list[set[int]] = []
        made = fs.mkdir

        def look(*arguments: Any) -> Any:
            kept.append(kernel.kept())
            return made(*arguments)

        fs.mkdir = look  # type: ignore[method-assign]
        kernel.ours.send(mkdir(b"other", 100 | RESEND_BIT))
        kernel.session(fs, previous={"signal": 9}).recover()
        assert kept == [{*answered}] and fs.executed == [("other", 100)]
        assert kernel.ours.recv(100) == abi.pack_notify(abi.Notify.RESEND)
        assert kernel.answer()[0] == 100 | RESEND_BIT and kernel.nothing_more() and kernel.kept() == set()
    finally:
        kernel.close()


class FakeHeld:
    freed = 0

    def free(self) -> None:
        self.freed += 1


def test_reply_is_kept_until_its_request_comes_by() -> None:
    known: set[int] = set()
    written: list[bytes] = []

    def write(unique: int, reply: Any) -> bool:
        if unique in known:
            written.append(reply)
        return unique in known

    unwanted: list[Any] = []
    inherited, held = InheritedRequests(write, unwanted.append), FakeHeld()
    inherited.add(4)
    assert not inherited.claim(6 | RESEND_BIT)
    assert inherited.send(held, 4, abi.pack_error(4, 0)) and held.freed == 0  # type: ignore[arg-type]
    known.add(4 | RESEND_BIT)
    assert inherited.claim(4 | RESEND_BIT) and written == [abi.pack_error(4 | RESEND_BIT, 0)] and held.freed == 1
    assert not inherited.claim(4 | RESEND_BIT)
    answered = FakeHeld()
    inherited.add(8)
    assert inherited.send(answered, 8, abi.pack_error(8, 0)) and answered.freed == 0  # type: ignore[arg-type]
    assert not inherited.is_over
    inherited.drained()
    assert answered.freed == 1 and inherited.is_over and unwanted == [None]


def test_the_outcome_of_a_request_whose_caller_was_killed_is_unwanted() -> None:
    """At the end of what the kernel sends again, when it is read again, or when it ends later."""
    known: set[int] = set()
    unwanted: list[Any] = []
    inherited = InheritedRequests(lambda unique, reply: unique in known, unwanted.append)
    for unique in (4, 6, 8, 10):
        inherited.add(unique)
    held = FakeHeld()
    inherited.send(held, 4, abi.pack_error(4, 0), "of 4")  # type: ignore[arg-type]
    inherited.send(held, 6, abi.pack_error(6, 0), "of 6")  # type: ignore[arg-type]
    assert not unwanted and held.freed == 0, "they may come by yet"
    assert inherited.claim(6 | RESEND_BIT) and unwanted == ["of 6"] and held.freed == 1
    inherited.drained()
    assert unwanted == ["of 6", "of 4"] and held.freed == 2
    known.add(8 | RESEND_BIT)
    inherited.send(held, 8, abi.pack_error(8, 0), "of 8")  # type: ignore[arg-type]
    inherited.send(held, 10, abi.pack_error(10, 0), "of 10")  # type: ignore[arg-type]
    assert unwanted == ["of 6", "of 4", "of 10"] and held.freed == 4 and inherited.is_over


@pytest.mark.parametrize("flags", [0, abi.HAS_RESEND])
@pytest.mark.parametrize("answered", [False, True])
def test_a_handle_whose_caller_was_killed_while_no_worker_lived_is_closed(fs: DictFs, flags: int, answered: bool) -> None:
    """The kernel does not take the answer.  Where the dead worker had stored one, it may have taken that, and the handle is used."""
    kernel = Queued(1, {4})
    try:
        dead = kernel.session(DictFs(), overrides=Overrides())
        dead.control.update(negotiated=control_area.Negotiated(45, flags, 1 << 20, 1 << 20, 12))
        kernel.die(dead, request(Opcode.CREATE, 4, 1, abi.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + b"made\0"))
        if answered:
            assert dead.slots[0].store_reply(abi.pack_error(4, 0))
        kernel.session(fs, previous={"signal": 9}).recover()
        assert fs.executed == ([] if answered else [("made", 4)])
        assert [opened.fh for _, opened in fs.taken_back] == ([] if answered else [fs.names[1][b"made"]])
        assert {slot.state for slot in slots.SlotArea(bytearray(kernel.memory["slots"]))} == {slots.FREE}
    finally:
        kernel.close()


# --- fuzz ----------------------------------------------------------------------------------------------------------------------


def test_random_requests_get_error_replies_only(seed: int) -> None:
    """Whatever comes, one reply or none, no thread ends, and the session still serves."""
    rng = random.Random(seed)
    kernel = Kernel(slot_count=1)
    fs = DictFs()
    fs.gate.fire()
    good = [
        mkdir(b"x", 4), read_late(4), request(Opcode.RENAME2, 4, 1, abi.RENAME2_IN.pack(1, 0, 0) + b"a\0b\0"),
        request(Opcode.WRITE, 4, 2, abi.WRITE_IN.pack(2, 0, 4, 0, 0, 0, 0) + b"data"),
        request(Opcode.SETXATTR, 4, 2, b"\1\0\0\0\0\0\0\0n\0v"),
        request(Opcode.SETATTR, 4, 2, abi.SETATTR_IN.pack(1, *[0] * 15)),
        request(Opcode.BATCH_FORGET, 4, 0, struct.pack("<IIQQ", 1, 0, 2, 1)),
    ]  # fmt: skip
    try:
        serve(kernel, fs)
        for turn in range(1500):
            if rng.random() < 0.5:
                opcode = rng.choice([*Opcode, 0, 7, 54, 4096, 0xFFFF_FFFF])
                raw = request(opcode, 2 + 2 * turn, rng.choice([0, 1, 2, 3, 1 << 63]), rng.randbytes(rng.randrange(120)))
            else:
                mutated = bytearray(rng.choice(good))
                for _ in range(rng.randrange(1, 4)):
                    mutated[rng.choice([*range(4, 8), *range(16, len(mutated))])] = rng.randrange(256)
                raw = bytes(mutated[: rng.randrange(40, len(mutated) + 1)])
            opcode, unique = struct.unpack_from("<4xIQ", raw)
            kernel.ours.send(raw)
            if opcode in abi.WITHOUT_REPLY:
                continue
            assert kernel.answer()[0] == unique
        assert kernel.ask(request(Opcode.STATFS, 1 << 20))[:2] == (1 << 20, 0) and kernel.nothing_more()
    finally:
        kernel.close()


def test_the_filesystem_hears_when_the_kernel_has_a_reply_that_it_may_remember() -> None:
    """Behind the reply, so that whatever came between its making and its writing is seen."""
    kernel = Kernel()
    fs = DictFs()
    events: list[str] = []
    try:
        session = kernel.session(fs)
        session.start()
        write, fs.promise = session.write, lambda: events.append("promise") or (1, 1)  # type: ignore[func-returns-value, method-assign]
        session.write = lambda *args: events.append("reply") or write(*args)  # type: ignore[func-returns-value, method-assign]
        heard = threading.Semaphore(0)
        fs.delivered = lambda promise, ctx, value, *, pages: (events.append(f"{ctx.nodeid} {pages}"), heard.release())  # type: ignore
        for raw, error, told in (
            (request(Opcode.LOOKUP, 2, 1, b"wait\0"), 0, "1 False"),
            (request(Opcode.LOOKUP, 4, 1, b"none\0"), 0, "1 False"),  # a name that is not there may be remembered, too
            (request(Opcode.GETATTR, 6, 2, abi.GETATTR_IN.pack(0, 0, 0)), 0, "2 False"),
            (request(Opcode.READ, 8, 3, abi.READ_IN.pack(1, 0, 9, 0, 0, 0, 0)), 0, "3 True"),
        ):
            assert kernel.ask(raw)[1] == error
            assert heard.acquire(timeout=60)
            assert events == ["promise", "reply", told]
            events.clear()
        assert kernel.ask(request(Opcode.STATFS, 10))[1] == 0 and events == ["reply"]
    finally:
        kernel.close()


def test_a_handle_whose_caller_was_killed_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killed_callers, "is_being_killed", lambda tid: tid == 77)
    kernel = Kernel()
    fs = DictFs()
    gate = Signal()

    def opens(ctx: Context, ino: int, flags: int) -> Any:
        yield gate
        return Opened(5, CachePolicy.DIRECT)

    fs.open = opens  # type: ignore[method-assign, assignment]
    try:
        session = kernel.session(fs)
        session.start()
        answered, write = threading.Semaphore(0), session.write
        known = {2: True}

        def as_the_kernel(unique: int, reply: Any) -> bool:
            """It takes one answer of a request."""
            if not known.pop(unique, unique not in (2,)):
                answered.release()
                return False
            return write(unique, reply)

        session.write = as_the_kernel  # type: ignore[method-assign]
        kernel.ours.send(request(Opcode.OPEN, 2, 2, abi.OPEN_IN.pack(os.O_RDONLY, 0)))
        kernel.ours.send(request(Opcode.INTERRUPT, 3, 2, abi.INTERRUPT_IN.pack(2)))
        assert kernel.answer() == (2, errno.EINTR, b"")
        gate.fire()
        assert answered.acquire(timeout=60)
        assert kernel.ask(request(Opcode.STATFS, 10))[1] == 0
        until(lambda: fs.taken_back and fs.delivered_to)  # by whoever ended it
        session_over = kernel.nothing_more()
        assert session_over and [opened.fh for opened in fs.taken_back] == [5]
        assert [(unique, ino) for unique, ino, _ in fs.delivered_to] == [(2, 2)], "the kernel has to forget what it knows of it"
    finally:
        kernel.close()


# --- notifications ---------------------------------------------------------------------------------------------------------------


def test_notifications_go_out_in_order() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notifier = Notifier(theirs.fileno())
    try:
        notifier.invalidate_inode(8, 4096, 10)
        notifier.invalidate_inode(7)
        assert notifier.flushed(60)
        expected = [abi.pack_inval_inode(8, 4096, 10), abi.pack_inval_inode(7, 0, 0)]
        assert [ours.recv(100) for _ in expected] == expected
    finally:
        notifier.close()
        ours.close()
        theirs.close()


def test_pages_are_dropped_before_it_is_said_and_only_so_many_wait() -> None:
    """The kernel sends a number of requests in the background; if all of these waited, the READ that a drop waits for would never come."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notifier = Notifier(theirs.fileno())
    said: list[int] = []
    try:
        with notifier._changed:  # its thread sends nothing
            for number in range(PAGE_DROPS_WAITING_MAX + 1):
                notifier.drop_pages(7, number, 1, lambda number=number: said.append(number))  # type: ignore[misc]
            assert said == [PAGE_DROPS_WAITING_MAX] and PAGE_DROPS_WAITING_MAX < BACKGROUND_REQUESTS_MAX
        assert notifier.flushed(60)
        told = [ours.recv(100) for _ in range(PAGE_DROPS_WAITING_MAX + 1)]
        assert told == [abi.pack_inval_inode(7, number, 1) for number in range(PAGE_DROPS_WAITING_MAX + 1)]
        assert said == [PAGE_DROPS_WAITING_MAX, *range(PAGE_DROPS_WAITING_MAX)]
        notifier.close()
        notifier.drop_pages(7, 0, 1, lambda: said.append(-1))
        assert said[-1] == -1
    finally:
        notifier.close()
        ours.close()
        theirs.close()


def test_names_and_attributes_of_a_lost_session_are_forgotten_before_anything_is_served_again() -> None:
    """Pages follow: to forget those waits for reads, and reads wait for the session."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notifier = Notifier(theirs.fileno())
    try:
        with notifier._changed:  # its thread sends nothing
            notifier.invalidate_all([8, 9])
            expected = [abi.pack_notify(abi.Notify.INC_EPOCH), abi.pack_inval_inode(8, -1, 0), abi.pack_inval_inode(9, -1, 0)]
            assert [ours.recv(100, socket.MSG_DONTWAIT) for _ in expected] == expected
        assert notifier.flushed(60)
        assert [ours.recv(100) for _ in (8, 9)] == [abi.pack_inval_inode(ino, 0, 0) for ino in (8, 9)]
    finally:
        notifier.close()
        ours.close()
        theirs.close()


def test_notifier_ends_with_the_mount() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)  # EBADF on write: the mount is gone
    notifier = Notifier(fd)
    notifier.invalidate_inode(7)
    assert notifier.flushed(60) and notifier.failed == 1
    os.close(fd)
