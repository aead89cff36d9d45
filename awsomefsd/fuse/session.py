"""The FUSE session: blocking reader threads, one slot each, and the life of a request from readv(2) to its reply.

A request is read into its reader's slot, marked executing, and its handler is called at once.

*It has a result:* the reply is kept in the slot (where repeating the request would change something), written, and the slot is free.
*It only seems to wait* (a Prompt whose attempt succeeds: a change of names that this mount decides).  It goes on at once, in its slot.
*It has to wait* (the handler returned Steps that yield a Wait): the first step has run, the wait has not begun yet.  The request is
copied to the park area, the slot is free, and only then the wait begins: whichever thread ends it, however soon, finds the
entry that carries the request.  In between both copies exist; a successor takes them for one (same unique, takeover.py).
*The Steps of a WRITE use its bytes,* which lie in the slot.  So they yield a Payload before they wait, and go on with the bytes of the copy
(decision 152).  A WRITE that yields another Wait first keeps its slot, because nobody knows what it still reads.
*The Steps wait for the kernel itself* (a KernelWait: pages are to go before a WRITE is answered).  The kernel may need a reader for that,
so only a request in the park area waits; one that keeps its slot goes on at once (decision 175).  The area notes that it has done its work,
so that a successor only waits and does not do it again (decision 200).
*A request that finds no room in the park area* keeps its slot until the end, and its reader with it.  That is the back-pressure: the other
readers go on, and when all wait the kernel queues.  The last part of the area is kept for requests that are no WRITE.

Behind a reply of which the kernel remembers something the filesystem is asked whether the kernel may still believe it: this thread may have
been stopped before it wrote the reply, beyond the time that the reply promises.

INTERRUPT may overtake the request that it names, so its unique is remembered and looked up once the wait has begun.  It ends a wait for a
lock, and lets a caller go that is being killed (killed_callers.py).

An exception of a handler is answered (handlers.Failures); no request ends a thread.  A reply the kernel does not want (ENOENT: it dropped
the request, or has the answer already) is harmless.  ENODEV from readv says that the mount is gone: the readers end.

Rejected: a clone of the descriptor for each reader (its requests are aborted when it closes), a queue between readers and executors (a
thread switch for each request costs as much as the request).
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import Any

from awsomefsd.base.errors import Corrupt
from awsomefsd.base.failpoints import hit
from awsomefsd.base.wait import GENERATORS, Errand, KernelWait, Payload, Prompt, Promptly, Wait, begin_reading_requests
from awsomefsd.fuse import abi
from awsomefsd.fuse.abi import Opcode
from awsomefsd.fuse.access_log import AccessLog, name_of
from awsomefsd.fuse.control_area import ControlArea, Negotiated
from awsomefsd.fuse.encode import PIECES_MAX, Reply, plain
from awsomefsd.fuse.handlers import Failures, Row, table
from awsomefsd.fuse.inherited_requests import UNIQUE_MASK, InheritedRequests, RequestMemory
from awsomefsd.fuse.killed_callers import KilledCallers
from awsomefsd.fuse.negotiate import Overrides, agree, pack_init, pack_major_only, read_offer
from awsomefsd.fuse.parked_requests import ParkArea, ParkEntry
from awsomefsd.fuse.slots import Slot, SlotArea
from awsomefsd.fuse.takeover import Takeover
from awsomefsd.fuse.turn import ReadingTurns, Turn
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.api.filesystem import Filesystem, Promise

__all__ = ["Overrides", "Session"]

log = logging.getLogger("awsomefsd.fuse")

INTERRUPTS_REMEMBERED = 256
LONG_REQUEST_BYTES = 32 * 1024  # a WRITE of more is copied and checksummed for so long that the next reader may begin
_NAMES = (Opcode.LOOKUP, Opcode.READDIRPLUS, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE)
REMEMBERED = frozenset((*_NAMES, Opcode.GETATTR, Opcode.SETATTR, Opcode.READ, Opcode.READLINK))  # the kernel keeps something of the reply
NAME_CHANGES = frozenset((*_NAMES[2:], Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2))
_OPENS = (Opcode.OPEN, Opcode.CREATE)  # they begin with the flags of open(2), which may truncate
_BYTE_CHANGES = frozenset(
    (Opcode.WRITE, Opcode.SETATTR, Opcode.FALLOCATE, Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64, Opcode.RENAME, Opcode.RENAME2)
)  # a rename decides which bytes have a name, after a flush
READ_AGAIN = frozenset((errno.ENOENT, errno.EINTR, errno.EAGAIN))
READ_ENDED = frozenset((errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN))
_BODY_AT = abi.IN_HEADER.size
_FLAGS = struct.Struct("<I")


class Ended:
    """An Event that is set once, at a tenth of its price: every request that waits makes one, and few are ever waited for."""

    __slots__ = ("_lock", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        self.is_set = True
        self._lock.release()

    def wait(self, timeout_s: float = -1) -> bool:
        """Blocks until it is set, and returns True; False after `timeout_s` (below 0: no limit)."""
        if not self._lock.acquire(timeout=timeout_s):
            return False
        self._lock.release()
        return True


class Pending:
    """A request whose Steps wait.  `step` is its Resume for each Wait, called by any thread.

    `ended` is set last of all, or when nothing is left to wait for but the kernel: that needs our readers, which begin behind a takeover.
    """

    __slots__ = ("_op", "_session", "ctx", "ended", "errand", "held", "is_over", "opcode", "reader")

    def __init__(self, session: Session, held: RequestMemory, opcode: int, ctx: Context, op: Any, reader: int = 0) -> None:
        """`reader`: the thread that does the errands which it meets itself; 0 from the moment when it goes on to other requests."""
        self.reader = reader
        self.errand: Errand | None = None
        self._session = session
        self._op = op
        self.held = held
        self.opcode = opcode
        self.ctx = ctx
        self.ended = Ended()
        self.is_over = False

    def begin(self, wait: Wait) -> None:
        try:
            if type(wait) is Errand and self.reader == threading.get_ident():
                wait.claim()
                self.errand = wait
            if type(wait) is not KernelWait:
                wait.start(self.step)
            elif not isinstance(self.held, ParkEntry):
                wait.begin_only()
                self.step(None, None)
            else:
                if wait.is_last:
                    self.held.note_waits_only()
                self._set_ended()
                wait.start(self.step)
        except Exception as err:
            self.step(None, err)

    def step(self, value: Any, error: BaseException | None) -> None:
        if (isinstance(self.held, Slot) or self.opcode == Opcode.WRITE) and not self.held.is_intact:  # it may still be read
            log.error("request %d (opcode %d), which waited, fails its checksum: answered EIO", self.ctx.unique, self.opcode)
            error = error or Corrupt(f"request {self.ctx.unique} has changed in memory while it waited")
        try:
            wait = self._op.send(value) if error is None else self._op.throw(error)
        except StopIteration as stop:
            self._end(stop.value, None)
        except Exception as err:
            self._end(None, err)
        else:
            self.begin(wait)

    def _end(self, value: Any, error: Exception | None) -> None:
        self.is_over = True
        try:
            self._session.finish(self.held, self.opcode, self.ctx, value, error)
        finally:
            self._set_ended()

    def _set_ended(self) -> None:
        """One thread at a time drives the Steps, so nobody else sets it."""
        if not self.ended.is_set:
            self.ended.set()


class Session:
    """One mount's conversation with the kernel.  `recover` once, then `start`; `wait` returns when the kernel has unmounted.

    `fresh`: no worker served this mount before.  `previous` says how the predecessor ended ({"signal": n | None}).  `on_first_reply` is
    called once, on the thread that wrote the reply.  `tells_root`: a caller of uid 0 may see what others do.  The caller ends the
    filesystem after `wait`.
    """

    def __init__(
        self,
        fd: int,
        fs: Filesystem,
        control: ControlArea,
        slots: SlotArea,
        park: ParkArea,
        *,
        fresh: bool,
        overrides: Overrides = Overrides(),
        previous: Mapping[str, Any] | None = None,
        on_first_reply: Callable[[], None] | None = None,
        tells_root: bool = True,
    ) -> None:
        self.fd = fd
        self.fs = fs
        self.control = control
        self.slots = slots
        self.park = park
        self.fresh = fresh
        ended = previous or {}
        self.previous_signal: int | None = ended.get("signal")
        self.previous_unknown = "code" in ended and ended["code"] is None and self.previous_signal is None  # its parent was gone
        self.failures = Failures()
        self.inherited: InheritedRequests | None = None  # requests of a predecessor that wait, or whose reply is not claimed yet
        self._repeated: list[Pending] = []  # of a takeover, still waiting when their first step had run
        self._busy: dict[int, Ended] = {}  # slots that a takeover left to requests which keep them
        self._overrides = overrides
        self._on_first_reply = on_first_reply
        self._turns = ReadingTurns()
        self._interrupted: deque[int] = deque(maxlen=INTERRUPTS_REMEMBERED)
        self._waiting: dict[int, Pending] = {}  # by unique
        self._killed = KilledCallers(self._give_up)
        self._threads: list[threading.Thread] = []
        self._counts = [control.counter("fuse_unknown")] * abi.OPCODES
        for op in Opcode:
            self._counts[op] = control.counter(f"fuse_{op.name.lower()}")
        self._unwanted = control.counter("fuse_replies_unwanted")
        self._failed_writes = control.counter("fuse_replies_failed")
        self._kept_slots = control.counter("fuse_slots_kept")
        self._latencies = control.latencies
        self._latency_rows = control.latencies.rows
        self._access_log = AccessLog(tells_root)
        self._watchers = self._access_log.readers
        self._table: list[Row] = []
        negotiated = control.state.negotiated
        self._use(negotiated.flags if negotiated is not None else 0)

    @property
    def negotiated(self) -> Negotiated | None:
        """The values of this mount; None until the kernel has sent INIT."""
        return self.control.state.negotiated

    # --- life ----------------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Takes over the requests that a predecessor left; called before `start`, and only when that process is gone.  Blocks."""
        os.set_blocking(self.fd, True)  # a predecessor may have died while it drained resent requests
        if self.fresh:
            return
        negotiated = self.negotiated
        if negotiated is not None and negotiated.flags & abi.HAS_RESEND:
            self.inherited = InheritedRequests(self.write, self.unwanted)
        takeover = Takeover(self)
        takeover.run()
        self._repeated, self._busy = takeover.repeated, takeover.busy
        self._end_inherited()

    def wait_repeated(self) -> None:
        """Blocks until the requests that `recover` began have ended, except for those that wait for a lock, perhaps for ever."""
        for pending in self._repeated:
            if pending.opcode != Opcode.SETLKW:
                pending.ended.wait()
        self._repeated.clear()

    def start(self) -> None:
        """Starts one reader thread for each slot, and the one that watches their turn."""
        self._turns.watch(len(self.slots))
        for slot in self.slots:
            thread = threading.Thread(target=self._read_loop, args=(slot,), name=f"fuse-{slot.index}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks until every reader has ended (the kernel has unmounted), and returns True; False after `timeout_s` for one of them."""
        for thread in self._threads:
            thread.join(timeout_s)
            if thread.is_alive():
                return False
        return True

    # --- one request -----------------------------------------------------------------------------------------------------------

    def _read_loop(self, slot: Slot) -> None:
        begin_reading_requests()
        busy = self._busy.get(slot.index)
        if busy is not None:
            busy.wait()
        turn = Turn(self._turns)
        turn.take()
        try:
            while self.read_one(slot, turn):
                turn.take()
        finally:
            turn.give()
            self._turns.leave()

    def read_one(self, slot: Slot, turn: Turn | None = None) -> bool:
        """Reads and serves one request (or tries to); returns False when there will be no more.  Blocks in readv(2)."""
        slot.begin_read()
        asked_ns = monotonic_ns()
        try:
            length = os.readv(self.fd, [slot.read_buffer])
        except OSError as err:
            if err.errno in READ_AGAIN:
                return True
            if err.errno not in READ_ENDED:
                log.error("cannot read from the FUSE device: %s", err)
            return False
        if length < _BODY_AT:
            return length > 0
        if turn is not None:
            turn.came(asked_ns)
        self.serve(slot, length, turn)
        return True

    def serve(self, slot: Slot, length: int, turn: Turn | None = None) -> None:
        """Executes the request in `slot`; on return the slot is free.  Blocks until a request that keeps its slot has ended."""
        _, opcode, wire, nodeid, uid, gid, pid, _, _ = abi.IN_HEADER.unpack_from(slot.head)
        ctx = Context(uid, gid, pid, wire & UNIQUE_MASK, wire)
        slot.start(length)
        if wire > UNIQUE_MASK and self.inherited is not None and self.inherited.claim(wire):
            slot.free()
            return
        if turn is not None and length > LONG_REQUEST_BYTES:
            turn.give()
        reads = turn if opcode == Opcode.READ else None
        if reads is not None:
            reads.begin_read()
        pending = self.execute(slot, opcode, ctx, nodeid, slot.read_buffer[_BODY_AT:length], turn)
        if reads is not None:
            reads.end_read()
        if pending is not None:
            self._go_on(pending, slot, turn)

    def _go_on(self, pending: Pending, slot: Slot, turn: Turn | None) -> None:
        """Does the errands of a request that waits; if the request keeps the slot, blocks until it has ended."""
        while turn is not None and (errand := pending.errand) is not None:
            pending.errand = None
            errand.run(turn.give)
        pending.reader = 0  # another request of this thread may resume this one: nobody would do what it claims then
        if pending.held is slot:
            if turn is not None:
                turn.give()
            pending.ended.wait()

    def execute(
        self, held: RequestMemory, opcode: int, ctx: Context, nodeid: int, body: memoryview, turn: Turn | None = None,
    ) -> Pending | None:  # fmt: skip
        """Calls the handler; returns None when the request has ended, else the Pending that goes on by itself (or has ended since).

        With a `turn` the caller is a reader: it does the errands of the Pending.
        """
        fs = self.fs
        value: Any = None
        op: Any = None
        wait: Wait | None = None
        error: Exception | None = None
        ctx.nodeid = nodeid
        hit("request.execute.before")
        try:
            row = self._table[opcode] if opcode < abi.OPCODES else self._table[0]
            value = row[0](fs, ctx, nodeid, body)
            if type(value) in GENERATORS:
                try:
                    wait = value.send(None)
                except StopIteration as stop:
                    value = stop.value
                else:
                    op = value
                    if isinstance(wait, Prompt):
                        went = Promptly(op, wait)
                        wait, value, error = went.wait, went.value, went.error
        except Exception as err:
            error = err
        if wait is not None and error is None:
            return self._wait(held, opcode, ctx, op, wait, 0 if turn is None else threading.get_ident())
        self.finish(held, opcode, ctx, value, error)
        return None

    def _wait(self, held: RequestMemory, opcode: int, ctx: Context, op: Any, wait: Wait, reader: int) -> Pending:
        if isinstance(held, Slot):
            entry = self._parked(held, opcode, wait)
            if entry is not None:
                held = entry
            else:
                held.seal()
                self._kept_slots.add()
        pending = self._waiting[ctx.unique] = Pending(self, held, opcode, ctx, op, reader)
        pending.begin(wait)
        if ctx.unique in self._interrupted:
            try:
                self.fs.interrupt(ctx.unique)
                self._killed.signalled(pending)
            except Exception:
                log.exception("request %d could not be interrupted", ctx.unique)
        return pending

    def _give_up(self, pending: Pending) -> bool:
        """Answers EINTR to a caller that is being killed; the request goes on.  False: the kernel has not taken it (yet).

        A caller that changes bytes waits: its locks end with it, and the next program may have synced other bytes before the request does
        its work.
        """
        ctx = pending.ctx
        if pending.opcode in _BYTE_CHANGES or (pending.opcode in _OPENS and _truncates(pending.held)):
            return False
        if not self.fs.may_give_up(names=pending.opcode in NAME_CHANGES):
            return False
        ctx.given_up = True  # before: it may end meanwhile, and its own answer find no caller
        return self.write(ctx.wire_unique, abi.pack_error(ctx.wire_unique, errno.EINTR))

    def _parked(self, slot: Slot, opcode: int, wait: Wait) -> ParkEntry | None:
        """Copies the request to the park area and frees the slot; returns None where the request keeps its slot."""
        writes = opcode == Opcode.WRITE
        if writes and type(wait) is not Payload:
            return None
        try:
            entry = self.park.park(slot.request(), reserve=not writes)
        except ValueError:  # longer than anything that the kernel sends
            return None
        if entry is None:
            return None
        if type(wait) is Payload:
            wait.data = entry.request()[abi.WRITE_DATA_AT : abi.WRITE_DATA_AT + len(wait.data)]
        slot.free()
        return entry

    def finish(self, held: RequestMemory, opcode: int, ctx: Context, value: Any, error: Exception | None) -> None:
        """Answers a request that has ended, and frees its memory.  Any thread may call; never raises."""
        self._waiting.pop(ctx.unique, None)
        try:
            if opcode >= abi.OPCODES:
                opcode = 0
            self._counts[opcode].add()
            _, encode, stored = self._table[opcode]
            if encode is None:
                if error is not None:  # for the log
                    self.failures.reply(self.fs, opcode, ctx, error)
                held.free()
                return
            promise = self.fs.promise() if opcode in REMEMBERED else None
            name = name_of(opcode, held.request()) if self._watchers else b""  # the memory is freed with the reply
            if error is None:
                try:
                    if not self.deliver(held, ctx, encode(self.fs, ctx, value), stored, value) and (ctx.given_up or ctx.repeated):
                        self.unwanted(value)
                except Exception as err:
                    error = err
            if error is not None:
                value = None
                self.deliver(held, ctx, self.failures.reply(self.fs, opcode, ctx, error), stored)
            if ctx.given_up:  # the kernel took EINTR for the outcome: what it remembers from before may be wrong
                promise = (0, 0)
            if not ctx.repeated:  # of a repeated one only the rest is known
                self._measured(opcode, name, ctx, value, error)
            if promise is not None:
                self._delivered(promise, opcode, ctx, value)
        except Exception as err:
            log.exception("request %d (opcode %d) was not answered", ctx.unique, opcode)
            self.write(ctx.wire_unique, abi.pack_error(ctx.wire_unique, getattr(err, "errno", None) or errno.EIO))
            held.free()
            self.settle(ctx.unique)

    def _measured(self, opcode: int, name: bytes, ctx: Context, value: Any, error: Exception | None) -> None:
        """Counts how long a request took, and notes it for who looks.  The memory of the request is freed: nothing may be raised."""
        try:
            if row := self._latency_rows[opcode]:
                self._latencies.count(row, monotonic_ns() - ctx.began_ns)
            if self._watchers and opcode != Opcode.IOCTL:
                self._access_log.note(opcode, name, ctx, value, error)
        except Exception:
            log.exception("request %d was answered, and not counted", ctx.unique)

    def _delivered(self, promise: Promise, opcode: int, ctx: Context, value: Any) -> None:
        """This thread may have been stopped before it wrote the reply, however long."""
        try:
            self.fs.delivered(promise, ctx, value, pages=opcode == Opcode.READ)
        except Exception:
            log.exception("request %d was answered, and the kernel may believe the answer for too long", ctx.unique)

    def deliver(self, held: RequestMemory, ctx: Context, reply: Reply, stored: bool, outcome: Any = None) -> bool:
        """Stores the reply if it must not be computed again, writes it, and frees the memory of the request, in this order.

        Returns False where the kernel does not know the request (any more), and nobody has been told of the `outcome`.
        """
        if stored:
            assert type(reply) is bytes
            held.store_reply(reply)
            hit("request.reply.stored")
        taken = self.send(held, ctx.unique, ctx.wire_unique, reply, outcome)
        hit("request.reply.sent")
        if stored:
            self.settle(ctx.unique)
        return taken

    def send(self, held: RequestMemory, unique: int, wire_unique: int, reply: Reply, outcome: Any = None) -> bool:
        """Writes a reply, and frees the memory of its request; returns as `write`."""
        inherited = self.inherited
        taken = True
        if inherited is None or not inherited.send(held, unique, reply, outcome):
            taken = self.write(wire_unique, reply)
            held.free()
        if inherited is not None:
            self._end_inherited()
        return taken

    def _end_inherited(self) -> None:
        inherited = self.inherited
        if inherited is not None and inherited.is_over:
            self.inherited = None

    def unwanted(self, outcome: Any) -> None:
        """Takes back what a request gave that nobody waits for; never raises."""
        try:
            if outcome is not None:
                self.fs.abandoned(outcome)
        except Exception:
            log.exception("a handle that nobody has could not be closed")

    def settle(self, unique: int) -> None:
        """Tells the filesystem that the answer is stored or sent, so that its result is not needed any more."""
        try:
            self.fs.replied(unique)
        except Exception:
            log.exception("request %d was answered, but its result could not be given up", unique)

    def write(self, unique: int, reply: Reply) -> bool:
        """Writes a reply with one system call; returns False where the kernel does not know the request (any more)."""
        try:
            if isinstance(reply, bytes):
                os.write(self.fd, reply)
            else:
                os.writev(self.fd, reply)
        except OSError as err:
            return self._unwritten(unique, err)
        if self._on_first_reply is not None:
            self._first_reply()
        return True

    def _unwritten(self, unique: int, err: OSError) -> bool:
        if err.errno == errno.ENOENT:
            self._unwanted.add()
            return False
        if err.errno in READ_ENDED:
            return True  # unmounted: no caller waits
        self._failed_writes.add()
        log.error("the kernel refused a reply: %s", err)
        try:  # one that it cannot refuse, or the caller waits for ever
            os.write(self.fd, abi.pack_error(unique, errno.EIO))
        except OSError:
            pass  # ENOENT: the kernel had ended it with an error of its own
        return True

    def _first_reply(self) -> None:
        on_first_reply, self._on_first_reply = self._on_first_reply, None
        if on_first_reply is not None:
            on_first_reply()

    # --- requests of the session itself ------------------------------------------------------------------------------------------

    def _use(self, flags: int) -> None:
        rows = table(flags)
        rows[Opcode.INIT] = (self._init, self._init_reply, False)
        rows[Opcode.IOCTL] = (self._access_log.answer, plain, False)
        rows[Opcode.INTERRUPT] = (self._interrupt, None, False)
        self._table = rows

    def _init(self, fs: Filesystem, ctx: Context, nodeid: int, body: memoryview) -> Negotiated | None:
        offer = read_offer(body)
        if offer.major > abi.KERNEL_MAJOR:
            return None
        agreed = agree(offer, self._overrides)
        self.control.update(negotiated=agreed)  # before the reply: from then on a successor may have to know
        self._use(agreed.flags)
        return agreed

    def _init_reply(self, fs: Filesystem, ctx: Context, agreed: Negotiated | None) -> bytes:
        return pack_major_only(ctx.wire_unique) if agreed is None else pack_init(ctx.wire_unique, agreed)

    def _interrupt(self, fs: Filesystem, ctx: Context, nodeid: int, body: memoryview) -> None:
        unique = abi.INTERRUPT_IN.unpack_from(body)[0] & UNIQUE_MASK
        self._interrupted.append(unique)  # first, so that a request which begins to wait now finds it
        fs.interrupt(unique)
        pending = self._waiting.get(unique)
        if pending is not None:
            self._killed.signalled(pending)


def _truncates(opens: RequestMemory) -> bool:
    """Says whether an OPEN or CREATE has O_TRUNC; also where its memory was freed meanwhile: then it is over."""
    request = opens.request()
    return len(request) < _BODY_AT + _FLAGS.size or bool(_FLAGS.unpack_from(request, _BODY_AT)[0] & os.O_TRUNC)


assert os.sysconf("SC_IOV_MAX") > PIECES_MAX
