"""A successor takes up the requests that its predecessor had read, before it reads any itself.

It runs on one thread, when the predecessor is known to be gone, in this order:

1. Collect slots and park entries.  A request that is in both (it was being parked) counts once, as parked, unless the other has its reply.
2. DONE: its reply is sent again.  If the first one had arrived, the kernel says ENOENT.
3. Deaths are counted against what was executing, in shared memory, before anything is executed.  A *suspect* was executing at
   POISON_DEATHS deaths.  A suspect that was the only one executing when the worker died, and not by SIGKILL, is answered EIO: it would kill
   every worker to come.  The others run alone, one after the other; the control area names the one that runs, so that a further death
   counts against it and not against those whose state still says EXECUTING.  A request that waits after its first step does not kill a
   worker; it gets ALONE_S to end, then the next one runs.
   A parked request waits, it does not run: SIGKILL (from outside, or the memory limit) does not count against it.
4. The rest is executed in the order of arrival (unique).
5. FUSE_NOTIFY_RESEND, where negotiated: the kernel queues again, at the head, the requests without an answer.  These are read and executed
   here (inherited_requests.py says why single-threaded) until a request comes that is new or none is left.  This is a second line: it finds
   requests that neither slots nor park entries hold, of which there should be none.

Every step may be interrupted by the next death: states change only by storing a reply or freeing, and counts only grow.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from typing import Any, NamedTuple, Protocol

from awsomefsd.base.errors import Corrupt
from awsomefsd.base.limits import POISON_DEATHS
from awsomefsd.fuse import abi
from awsomefsd.fuse.control_area import ControlArea, Suspect
from awsomefsd.fuse.encode import Reply
from awsomefsd.fuse.inherited_requests import UNIQUE_MASK, InheritedRequests, RequestMemory
from awsomefsd.fuse.parked_requests import ParkArea, ParkEntry
from awsomefsd.fuse.slots import DONE, EXECUTING, FREE, Slot, SlotArea
from awsomefsd.vfs.api.context import Context

log = logging.getLogger("awsomefsd.fuse")

ALONE_S = 0.2
_NOT_RESENT = frozenset((abi.Opcode.FORGET, abi.Opcode.BATCH_FORGET, abi.Opcode.INTERRUPT))  # read before anything that is queued


class RequestEnd(Protocol):
    """The end of a request that waited."""

    def wait(self, timeout_s: float = -1) -> bool:
        """Blocks until the request has ended, and returns True; False after `timeout_s` (below 0: no limit)."""


class Waiting(Protocol):
    """A request whose first step has run and whose end comes later."""

    @property
    def held(self) -> RequestMemory: ...
    @property
    def ended(self) -> RequestEnd: ...


class Requests(Protocol):
    """The session as a takeover needs it: it serves requests, and knows those of a predecessor.

    The takeover calls it on its own thread, before any reader runs.
    """

    fd: int
    control: ControlArea
    slots: SlotArea
    park: ParkArea
    previous_signal: int | None  # that ended the predecessor
    previous_unknown: bool  # how it ended is not known
    inherited: InheritedRequests | None  # None: the kernel sends nothing again

    def write(self, unique: int, reply: Reply) -> bool:
        """Writes a reply; returns False where the kernel does not know the request (any more)."""

    def send(self, held: RequestMemory, unique: int, wire_unique: int, reply: Reply) -> bool:
        """Writes a reply under the unique that the kernel expects, and frees `held`, now or when the kernel takes the reply."""

    def settle(self, unique: int) -> None:
        """Tells the filesystem that the result of a request is not needed any more."""

    def execute(self, held: RequestMemory, opcode: int, ctx: Context, nodeid: int, body: memoryview) -> Waiting | None:
        """Executes a request and answers it; returns None when it has ended, else what goes on by itself."""

    def serve(self, slot: Slot, length: int) -> None:
        """Executes the request of `length` bytes in `slot`; on return the slot is free."""


class Left(NamedTuple):
    """One request that the predecessor left."""

    unique: int
    wire_unique: int
    opcode: int
    held: RequestMemory

    @property
    def parked(self) -> bool:
        return isinstance(self.held, ParkEntry)


def reply_to(held: RequestMemory, unique: int) -> bytes:
    """Returns the stored reply.  Raises Corrupt if it is damaged, or is that of an earlier request in the same memory."""
    reply = held.reply()
    if len(reply) < abi.OUT_HEADER.size or abi.OUT_HEADER.unpack_from(reply)[2] & UNIQUE_MASK != unique:
        raise Corrupt(f"request {unique}: the stored reply is not its own")
    return reply


class Takeover:
    """The takeover of a mount by the successor of its worker; `run` once.

    Then `repeated` are the requests that it began and that wait, and `busy` are the slots left to those which keep them.
    """

    def __init__(self, session: Requests) -> None:
        self._session = session
        self.repeated: list[Any] = []  # Waiting
        self.busy: dict[int, Any] = {}  # RequestEnd, by slot

    def run(self) -> None:
        """Answers or starts every request that was left; afterwards readers may start.  Blocks; called once, before any reader."""
        session = self._session
        left = self._collect()
        if left:
            log.info("takeover: %d requests left by the predecessor", len(left))
        inherited = session.inherited
        if inherited is not None:
            for one in left:
                inherited.add(one.unique)
        todo = [one for one in left if not self._answered(one)]
        executing = self._executing(todo)
        todo = [one for one in todo if one not in executing or not self._poisoned(one, len(executing))]
        for one in [one for one in todo if one.held.deaths >= POISON_DEATHS]:
            self._alone(one)
            todo.remove(one)
        session.control.update(suspects=[])
        for one in todo:
            self._execute(one)
        if inherited is not None:
            self._ask_again()
            inherited.drained()

    # --- collecting --------------------------------------------------------------------------------------------------------------

    def _collect(self) -> list[Left]:
        """Returns every request once, by unique; the memory of second copies is freed."""
        found: dict[int, Left] = {}
        for held in [*self._session.park.entries(), *self._session.slots]:
            one = self._read(held)
            if one is None:
                continue
            first = found.setdefault(one.unique, one)
            if first is one:
                continue
            keep, drop = (one, first) if one.held.state == DONE != first.held.state else (first, one)
            found[one.unique] = keep
            drop.held.free()
        return sorted(found.values())

    def _read(self, held: RequestMemory) -> Left | None:
        try:
            if isinstance(held, Slot) and held.state == FREE:
                return None
            if not held.is_intact:
                raise Corrupt(f"request {held.unique}, which waited, fails its checksum: answered EIO")
            request = held.request()
            if len(request) < abi.IN_HEADER.size:
                raise Corrupt(f"request of {len(request)} bytes")
            _, opcode, wire, *_ = abi.IN_HEADER.unpack_from(request)
        except Corrupt as err:
            log.error("takeover: %s", err)
            unique = held.unique
            self._session.write(unique, abi.pack_error(unique, errno.EIO))
            held.free()
            self._session.settle(unique)
            return None
        return Left(wire & UNIQUE_MASK, wire, opcode, held)

    def _answered(self, one: Left) -> bool:
        """Sends the stored reply, and returns False if there is none."""
        if one.held.state != DONE:
            return False
        try:
            reply = reply_to(one.held, one.unique)
        except Corrupt as err:
            log.error("takeover: %s", err)
            return False
        self._reply(one, reply)
        return True

    def _reply(self, one: Left, reply: bytes) -> None:
        self._session.send(one.held, one.unique, one.wire_unique, reply)
        self._session.settle(one.unique)

    # --- suspects ----------------------------------------------------------------------------------------------------------------

    def _poisoned(self, one: Left, executing_count: int) -> bool:
        """Counts the death; returns True for a request that was answered EIO because it kills."""
        killed = self._session.previous_signal == signal.SIGKILL or self._session.previous_unknown  # no proof against the request
        if one.parked and killed:
            return False
        deaths = one.held.add_death()
        if killed or deaths < POISON_DEATHS or executing_count > 1:
            return False
        log.error("request %d (opcode %d) killed its worker %d times, the last time alone: answered EIO", one.unique, one.opcode, deaths)
        reply = abi.pack_error(one.wire_unique, errno.EIO)
        one.held.store_reply(reply)
        self._reply(one, reply)
        return True

    def _executing(self, todo: list[Left]) -> list[Left]:
        """Returns the requests that were executing at the death: the one that ran alone, or all whose state says so."""
        alone = {suspect.unique for suspect in self._session.control.state.suspects}
        return [one for one in todo if one.held.state == EXECUTING and (not alone or one.unique in alone)]

    def _alone(self, one: Left) -> None:
        log.warning("request %d (opcode %d) was executing at %d deaths: it runs alone", one.unique, one.opcode, one.held.deaths)
        self._session.control.update(suspects=[Suspect(one.unique, one.held.deaths, one.opcode)])
        pending = self._execute(one)
        if pending is not None:
            pending.ended.wait(ALONE_S)

    # --- executing ---------------------------------------------------------------------------------------------------------------

    def _execute(self, one: Left) -> Waiting | None:
        session, held = self._session, one.held
        if isinstance(held, Slot):
            held.executing()
        request = held.request()
        _, opcode, wire, nodeid, uid, gid, pid, _, _ = abi.IN_HEADER.unpack_from(request)
        ctx = Context(uid, gid, pid, one.unique, wire)
        ctx.repeated = True
        ctx.waits_only = isinstance(held, ParkEntry) and held.waits_only
        pending = session.execute(held, opcode, ctx, nodeid, request[abi.IN_HEADER.size :])
        if pending is not None:
            self.repeated.append(pending)
            if isinstance(pending.held, Slot):
                self.busy[pending.held.index] = pending.ended
        return pending

    # --- the second line -----------------------------------------------------------------------------------------------------------

    def _ask_again(self) -> None:
        session = self._session
        try:
            os.write(session.fd, abi.pack_notify(abi.Notify.RESEND))
        except OSError as err:
            log.warning("takeover: the kernel refused to send requests again: %s", err)
            return
        slot = self._idle_slot()
        os.set_blocking(session.fd, False)
        try:
            while self._read_resent(slot):
                pass
        finally:
            os.set_blocking(session.fd, True)

    def _idle_slot(self) -> Slot:
        """Returns a slot to read into; while there is room, none with a reply that the kernel does not take yet and a successor may need.

        Replies that are not stored are of requests that change nothing; the kernel sends those again.
        """
        session = self._session
        while True:
            idle = [slot for slot in session.slots if slot.index not in self.busy]
            for slot in sorted(idle, key=lambda slot: slot.state == DONE):
                if slot.state != DONE or self._moved(slot):
                    return slot
            if not self.busy:
                log.warning("takeover: no room to keep %d replies that the kernel does not take yet", len(idle))
                return idle[0]
            self.busy.pop(next(iter(self.busy))).wait()  # kept by a request

    def _moved(self, slot: Slot) -> bool:
        """Moves request and reply to the park area, if it can; after a kill they are in both places, and the one with the reply counts."""
        session = self._session
        try:
            reply = slot.reply()
            entry = session.park.park(slot.request())
        except (Corrupt, ValueError):
            return False
        if entry is None:
            return False
        if session.inherited is None or not entry.store_reply(reply):
            entry.free()
            return False
        session.inherited.moved(slot, entry)
        slot.free()
        return True

    def _read_resent(self, slot: Slot) -> bool:
        """Reads and serves one more request that may have been resent; returns False when there is no more."""
        session = self._session
        slot.begin_read()
        try:
            length = os.readv(session.fd, [slot.read_buffer])
        except OSError as err:
            return err.errno in (errno.ENOENT, errno.EINTR)
        if length < abi.IN_HEADER.size:
            return False
        _, opcode, wire, *_ = abi.IN_HEADER.unpack_from(slot.head)
        session.serve(slot, length)
        return wire > UNIQUE_MASK or opcode in _NOT_RESENT
