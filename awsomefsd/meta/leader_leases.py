"""What the leader does with leases: requests of sessions, proposals that have to wait for somebody to let go, and whom that ends.

lease_table.py knows who holds what; here that meets the log.  A proposal that changes what others hold is parked, without a thread, until
they have let go, and then handled again from the beginning.  While one is on its way, nothing is granted under its keys, so a grant is
ordered with the proposals on the same key: what is read after it is what it covers.

Only volumes whose sessions share them are concerned; for all others the leader pays one look at an empty table.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from awsomefsd.meta import messages as m
from awsomefsd.meta.commands import AcquireLease, Commit, Create, EndSession, Link, OpenSession, OpenShared, ReleaseLease, SetLock
from awsomefsd.meta.lease_table import LeaseTable
from awsomefsd.meta.renewals import Renewals
from awsomefsd.meta.replica import AppliedMachine
from awsomefsd.meta.waiting import Key, Origin
from awsomefsd.types import LEASE_READ, LEASE_WRITE

_UNCACHED = (SetLock, AcquireLease, ReleaseLease, OpenSession, EndSession)
_ENDED = m.Failed(errno.ESTALE, "the session has ended")
_LATER = m.Failed(errno.EAGAIN, "the leases of the session are not reported, or too many wait", True)

Enter = Callable[[Origin, int, int, int, Any], None]  # origin, call, session, epoch, command


class Parked(NamedTuple):
    origin: Origin
    call: int
    body: m.Body
    size: int


class _Deciding:
    """Who asked for a proposal that changes something under some keys; whatever the outcome, nothing is on its way there any more."""

    def __init__(self, origin: Origin, table: LeaseTable, keys: list[Key]) -> None:
        self._origin = origin
        self._table = table
        self._keys = keys
        self.mount = origin.mount

    def answer(self, call: int, reply: m.Reply) -> None:
        self._table.decided(self._keys)
        self._origin.answer(call, self._seen(reply))

    def _seen(self, reply: m.Reply) -> m.Reply:
        return reply


class _Acquiring(_Deciding):
    def __init__(self, origin: Origin, table: LeaseTable, key: Key, session: int) -> None:
        super().__init__(origin, table, [key])
        self._session = session

    def _seen(self, reply: m.Reply) -> m.Reply:
        if not isinstance(reply, m.Leased):
            return reply
        sequence = self._table.acquired(self._session, self._keys[0], reply.epoch)
        return m.Leased(self._table.term, sequence, reply.mode, reply.epoch, reply.changes, reply.foreign)


class _Releasing(_Deciding):
    def __init__(self, origin: Origin, table: LeaseTable, key: Key) -> None:
        super().__init__(origin, table, [key])

    def _seen(self, reply: m.Reply) -> m.Reply:
        if isinstance(reply, m.Done):
            self._table.released(self._keys[0])
        return reply


def keys_of(command: Any, child: Callable[[int, int, bytes], int]) -> tuple[list[Key], list[Key]]:
    """(what the command changes that a read lease covers, the directories in which it looks names up for that)."""
    if isinstance(command, _UNCACHED):
        return [], []
    volume = getattr(command, "volume", 0)
    if isinstance(command, Commit):
        return [(volume, step.ino) for step in command.inodes if not step.lease], []
    inos = [getattr(command, name, 0) for name in ("parent", "new_parent", "ino", "new_ino")]
    looks_up = hasattr(command, "parent") and hasattr(command, "name") and not isinstance(command, (Create, Link))
    names = [(command.parent, command.name)] if looks_up else []
    if hasattr(command, "new_parent"):
        names.append((command.new_parent, command.new_name))
    inos += [child(volume, parent, name) for parent, name in names]
    return [(volume, ino) for ino in dict.fromkeys(inos) if ino], [(volume, parent) for parent, _ in names]


class LeaseDesk:
    def __init__(self, machine: Callable[[], AppliedMachine], renewals: Renewals, boot_ns: Callable[[], int], enter: Enter) -> None:
        self._machine = machine
        self._renewals = renewals
        self._boot_ns = boot_ns
        self._enter = enter
        self._table = LeaseTable()
        self._awaiting: dict[int, tuple[Origin, int, int]] = {}  # session → who waits for recalls, after which

    @property
    def active(self) -> bool:
        """There are sessions that share a volume."""
        return bool(self._table.holders)

    @property
    def waiting(self) -> int:
        return self._table.waiting

    # --- the leadership ---------------------------------------------------------------------------------------------------------
    def begin(self, term: int) -> None:
        machine = self._machine()
        self._table = LeaseTable(term)
        sharing = machine.sharing_sessions()
        self._table.begin(sharing, machine.write_leases() if sharing else {}, self._boot_ns())

    def take_waiting(self) -> list[tuple[Origin, int]]:
        """Who is told to ask the next leader."""
        found = [(parked.origin, parked.call) for parked in self._table.take_queued()]
        found += [(origin, call) for origin, call, _ in self._awaiting.values()]
        self._awaiting.clear()
        self._table = LeaseTable()
        return found

    def drop_origin(self, origin: Origin) -> None:
        if self._table.waiting:
            self._table.keep_if(lambda parked: parked.origin is not origin)
        for session in [session for session, waiting in self._awaiting.items() if waiting[0] is origin]:
            del self._awaiting[session]

    def opened(self, command: OpenSession, reply: m.SessionOpened) -> None:
        if command.shared and not isinstance(command, OpenShared):
            self._table.opened(reply.session, command.volume)

    def live(self, sessions: Iterable[int]) -> None:
        """After sessions were opened or ended."""
        live = set(sessions)
        for session in [session for session in self._table.holders if session not in live]:
            self._table.ended(session)
            self._table.forget_writes(session)
            waiting = self._awaiting.pop(session, None)
            if waiting is not None:
                waiting[0].answer(waiting[1], _ENDED)

    def tick(self, now_ns: int) -> None:
        for session in self._table.overdue(now_ns):
            self._renewals.condemn(session)

    def may_end(self, command: EndSession) -> bool:
        """Not while a worker may still serve under its lease: it is condemned, and ends when that is over."""
        if command.clean or command.session not in self._table.holders or not self._renewals.alive(command.session, command.epoch):
            return True
        self._renewals.condemn(command.session)
        return False

    def take_ready(self) -> list[Parked]:
        """What waited and may be handled again; tells sessions of new recalls on the way."""
        for session in self._table.take_told():
            waiting = self._awaiting.get(session)
            if waiting is not None and (recalls := self._table.open_recalls(session, waiting[2])):
                del self._awaiting[session]
                waiting[0].answer(waiting[1], m.Recalls(self._table.term, recalls))
        return self._table.take_woken()

    # --- proposals --------------------------------------------------------------------------------------------------------------
    def admit(self, origin: Origin, call: int, body: m.Propose, size: int) -> Origin | None:
        """For whom to propose it; None: it waits, or was refused."""
        table = self._table
        keys, looked_up = keys_of(body.command, self._machine().child)
        if not any(holder.volume == volume for volume, _ in keys[:1] for holder in table.holders.values()):
            return origin
        now, blocked = self._boot_ns(), next((key for key in looked_up if table.busy(key)), None)
        for key in keys:
            clear = table.clear(body.session, key, LEASE_WRITE, now)  # asks all who are in the way, of all keys
            if blocked is None and not (clear and (not table.queued(key) or table.recalled(body.session, key))):
                blocked = key
        if blocked is not None:
            self._park(blocked, origin, call, body, size)
            return None
        table.enter(keys)
        return _Deciding(origin, table, keys)

    def _park(self, key: Key, origin: Origin, call: int, body: m.Body, size: int) -> None:
        if not self._table.park(key, Parked(origin, call, body, size)):
            origin.answer(call, _LATER)

    # --- requests ---------------------------------------------------------------------------------------------------------------
    def _alive(self, origin: Origin, call: int, session: int, epoch: int) -> bool:
        if session in self._table.holders and self._renewals.alive(session, epoch):
            return True
        origin.answer(call, _ENDED)
        return False

    def get(self, origin: Origin, call: int, body: m.GetLease, size: int) -> None:
        table, session = self._table, body.session
        if not self._alive(origin, call, session, body.epoch):
            return
        if table.holders[session].volume != body.volume or body.mode not in (LEASE_READ, LEASE_WRITE):
            origin.answer(call, m.Failed(errno.EINVAL, f"mode {body.mode} of volume {body.volume}"))
            return
        if not table.reported(session):
            origin.answer(call, _LATER)
            return
        key = (body.volume, body.ino)
        clear = table.clear(session, key, body.mode, self._boot_ns())
        if not clear or table.busy(key) or table.queued(key):
            self._park(key, origin, call, body, size)
        elif body.mode == LEASE_WRITE and key not in table.writers:
            table.enter([key])
            command = AcquireLease(body.volume, body.ino, body.known)
            self._enter(_Acquiring(origin, table, key, session), call, session, body.epoch, command)
        else:
            origin.answer(call, self._grant(session, key, origin.mount, body.known))

    def _grant(self, session: int, key: Key, mount: int, known: int) -> m.Reply:
        """To read; or, once more, what it has already, at once: an entry would let an older release end the newer grant."""
        changes, foreign = self._machine().foreign_changes(*key, mount, known)
        writer = self._table.writers.get(key)
        if writer is not None:
            sequence = self._table.acquired(session, key, writer[1])
            return m.Leased(self._table.term, sequence, LEASE_WRITE, writer[1], changes, foreign)
        granted = self._table.grant_read(session, key)
        if granted is None:
            return m.Failed(errno.ENOLCK, "the session holds too many leases")
        return m.Leased(self._table.term, granted, LEASE_READ, 0, changes, foreign)

    def report(self, origin: Origin, call: int, body: m.ReportLeases, size: int) -> None:
        if self._alive(origin, call, body.session, body.epoch):
            known = self._table.report(body.session, body.term, body.inos)
            origin.answer(call, m.Done() if known else m.Failed(errno.EINVAL, f"this is term {self._table.term}"))

    def await_recalls(self, origin: Origin, call: int, body: m.AwaitRecalls, size: int) -> None:
        if not self._alive(origin, call, body.session, body.epoch):
            return
        recalls = self._table.open_recalls(body.session, body.after)
        older = self._awaiting.pop(body.session, None)
        if older is not None:
            older[0].answer(older[1], m.Recalls(self._table.term, []))
        if recalls:
            origin.answer(call, m.Recalls(self._table.term, recalls))
        else:
            self._awaiting[body.session] = (origin, call, body.after)

    def answer_recall(self, origin: Origin, call: int, body: m.AnswerRecall, size: int) -> None:
        if not self._alive(origin, call, body.session, body.epoch):
            return
        recall = self._table.recall_of(body.session, body.term, body.sequence)
        epoch = 0 if recall is None else self._table.answered(body.session, recall)
        if recall is not None and epoch:
            self._release(origin, call, body.session, body.epoch, recall.key, epoch)
        else:
            origin.answer(call, m.Done())

    def _release(self, origin: Origin, call: int, session: int, session_epoch: int, key: Key, epoch: int) -> None:
        self._table.enter([key])
        self._enter(_Releasing(origin, self._table, key), call, session, session_epoch, ReleaseLease(*key, epoch))

    def extend_recall(self, origin: Origin, call: int, body: m.ExtendRecall, size: int) -> None:
        if self._alive(origin, call, body.session, body.epoch):
            recall = self._table.recall_of(body.session, body.term, body.sequence)
            if recall is not None:
                self._table.extend(recall, body.done, self._boot_ns())
            origin.answer(call, m.Done())

    def release(self, origin: Origin, call: int, body: m.ReleaseLeases, size: int) -> None:
        if not self._alive(origin, call, body.session, body.epoch):
            return
        origin.answer(call, m.Done())
        volume = self._table.holders[body.session].volume
        for ino in body.inos:
            epoch = self._table.give_up(body.session, body.term, body.sequence, ino)
            if epoch:
                self._release(_Silent(origin.mount), 0, body.session, body.epoch, (volume, ino), epoch)


class _Silent:
    """Nobody waits for it."""

    def __init__(self, mount: int) -> None:
        self.mount = mount

    def answer(self, call: int, reply: m.Reply) -> None:
        pass
