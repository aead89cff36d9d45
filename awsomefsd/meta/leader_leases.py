"""What the leader does with leases: requests of sessions, proposals that have to wait for somebody to let go, and whom that ends.

lease_table.py knows who holds what; here that meets the log.  A proposal that changes what others hold is parked, without a thread, until
they have let go, and then handled again from the beginning.  While one is on its way, nothing is granted under its keys, so a grant is
ordered with the proposals on the same key: what is read after it is what it covers.

So is a question, of a mount or a tool, whose answer another mount may hold back under a write lease: it is parked until that is recalled
to a read lease.  That is looked at when the answer would be given, not when the question comes, so what is told is all there is then.
A question that was parked has been confirmed (leader_reads.py) before: when it is woken it is answered at once, or a writer that comes
back quickly could starve it.

What the table knows of write leases it learns from the entries as they are applied, whoever proposed them: an answer that was given up as
"outcome unknown" may yet become a lease.

Only volumes whose sessions share them are concerned; for all others the leader pays one look at an empty table.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from msgspec.structs import replace

from awsomefsd.limits import LEASES_SWEPT_A_CHECK
from awsomefsd.meta import messages as m
from awsomefsd.meta.commands import AcquireLease, Create, EndSession, Entry, OpenSession, OpenShared, ReleaseLease, Tmpfile
from awsomefsd.meta.lease_keys import QUESTIONS, asked, touched
from awsomefsd.meta.lease_table import LeaseTable
from awsomefsd.meta.renewals import Renewals
from awsomefsd.meta.replica import AppliedMachine
from awsomefsd.meta.waiting import Key, Origin, Silent
from awsomefsd.types import LEASE_READ, LEASE_WRITE

_ENDED = m.Failed(errno.ESTALE, "the session has ended")
_TOO_MANY = m.Failed(errno.ENOLCK, "the session holds too many leases")
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
        return self._table.numbered(self._session, self._keys[0], reply)


class _Making(_Deciding):
    """A Create or Tmpfile that asks for the lease of what it makes."""

    def __init__(self, origin: Origin, table: LeaseTable, keys: list[Key], session: int, volume: int) -> None:
        super().__init__(origin, table, keys)
        self._session = session
        self._volume = volume

    def _seen(self, reply: m.Reply) -> m.Reply:
        if isinstance(reply, m.Found) and _makes_directory(reply):
            return replace(reply, leased=self._table.read_again(self._session, (self._volume, reply.attr.ino)))
        return made(self._table, self._session, self._volume, reply)


def _makes_directory(reply: m.Found) -> bool:
    return reply.created and stat.S_ISDIR(reply.attr.mode)


def made(table: LeaseTable, session: int, volume: int, reply: m.Reply) -> m.Reply:
    """The answer with a number for its grant; without the grant if the session holds it no more."""
    if not isinstance(reply, m.Found) or reply.leased is None:
        return reply
    key = (volume, reply.attr.ino)
    grant = None
    if table.writers.get(key) == (session, reply.leased.epoch):
        grant = table.numbered(session, key, reply.leased)
    return replace(reply, leased=grant)


class LeaseDesk:
    def __init__(self, machine: Callable[[], AppliedMachine], renewals: Renewals, boot_ns: Callable[[], int], enter: Enter) -> None:
        self._machine = machine
        self._renewals = renewals
        self._boot_ns = boot_ns
        self._enter = enter
        self._table = LeaseTable()
        self._unswept: list[Key] = []
        self._awaiting: dict[int, tuple[Origin, int, int]] = {}  # session → who waits for recalls, after which

    @property
    def active(self) -> bool:
        """There are sessions that share a volume."""
        return bool(self._table.holders)

    def figures(self) -> dict[str, int]:
        return self._table.figures(self._boot_ns())

    # --- the leadership ---------------------------------------------------------------------------------------------------------
    def begin(self, term: int) -> None:
        machine = self._machine()
        self._table = LeaseTable(term)
        sharing = machine.sharing_sessions()
        self._table.begin(sharing, machine.write_leases() if sharing else {}, self._boot_ns())

    def applied(self, entry: Entry, reply: m.Reply) -> None:
        """An entry that may begin or end a write lease, or makes a directory: nobody has been told of that, so its maker reads it."""
        if not self.active:
            return
        command = entry.command
        if isinstance(command, AcquireLease):
            if isinstance(reply, m.Leased):
                self._table.writes(entry.session, (command.volume, command.ino), reply.epoch)
        elif isinstance(command, ReleaseLease):
            key = (command.volume, command.ino)
            if isinstance(reply, m.Done) and self._table.writers.get(key) == (entry.session, command.lease):
                self._table.released(key)
        elif isinstance(command, (Create, Tmpfile)) and isinstance(reply, m.Found) and reply.leased is not None:
            self._table.writes(entry.session, (command.volume, reply.attr.ino), reply.leased.epoch)
        elif isinstance(command, Create) and command.lease and isinstance(reply, m.Found) and _makes_directory(reply):
            self._table.reads_made(entry.session, (command.volume, reply.attr.ino))

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
        """A successor reports what it has made the kernel forget: until then the session is taken to hold everything."""
        if command.shared and (not isinstance(command, OpenShared) or command.caches):
            self._table.opened(reply.session, command.volume, command.mount, self._boot_ns() if reply.resumed else None)

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
        self._sweep()

    def _sweep(self) -> None:
        """Leases that ended with their inode, some at a time: no entry of theirs says so."""
        table, machine = self._table, self._machine()
        if not self._unswept:
            self._unswept = list(table.writers)
        some, self._unswept = self._unswept[-LEASES_SWEPT_A_CHECK:], self._unswept[:-LEASES_SWEPT_A_CHECK]
        for key in some:
            writer = table.writers.get(key)
            if writer is not None and machine.write_lease(*key) != writer:
                table.released(key)

    def may_end(self, command: EndSession) -> bool:
        """Not while a worker may still serve under its lease: it is condemned, and ends when that is over."""
        if command.clean or command.session not in self._table.holders or not self._renewals.alive(command.session, command.epoch):
            return True
        self._renewals.condemn(command.session)
        return False

    def take_woken(self) -> list[Parked]:
        """What waited and may be handled again."""
        return self._table.take_woken()

    def tell(self) -> None:
        """Sessions of new recalls; after what was woken, which may need more of them."""
        for session in self._table.take_told():
            waiting = self._awaiting.get(session)
            if waiting is not None and (recalls := self._table.open_recalls(session, waiting[2])):
                del self._awaiting[session]
                waiting[0].answer(waiting[1], m.Recalls(self._table.term, recalls))

    # --- proposals --------------------------------------------------------------------------------------------------------------
    def admit(self, origin: Origin, call: int, body: m.Propose, size: int) -> Origin | None:
        """For whom to propose it; None: it waits, or was refused."""
        table = self._table
        command = body.command
        changes, reads, looked_up = touched(command, self._machine().child)
        volume = getattr(command, "volume", 0)
        if not any(holder.volume == volume for holder in table.holders.values()):
            return origin
        now, blocked = self._boot_ns(), next((key for key in looked_up if table.busy(key)), None)
        for key, mode in [*((key, LEASE_WRITE) for key in changes), *((key, LEASE_READ) for key in reads)]:
            clear = table.clear(body.session, key, mode, now)  # asks all who are in the way, of all keys
            table.contests.used(key, origin.mount, mode, now)
            if blocked is None and not (clear and (not table.queued(key) or table.recalled(body.session, key))):
                blocked = key
        if blocked is not None:
            self._park(blocked, origin, call, body, size)
            return None
        keys = changes + reads
        table.enter(keys)
        if isinstance(command, (Create, Tmpfile)) and command.lease:
            return _Making(origin, table, keys, body.session, volume)
        return _Deciding(origin, table, keys) if keys else origin

    def bounded(self, session: int, command: Any) -> Any:
        """What is proposed in the place of a command: a session with too many leases gets no more of them."""
        if isinstance(command, (Create, Tmpfile)) and command.lease and self._table.full(session):
            return replace(command, lease=False)
        return command

    def stored(self, body: m.Propose, reply: m.Reply) -> m.Reply:
        """The result of a request that was executed before: its grant is told anew, or not at all."""
        return made(self._table, body.session, getattr(body.command, "volume", 0), reply)

    # --- questions --------------------------------------------------------------------------------------------------------------
    def expect(self, origin: Origin, body: m.Body) -> None:
        """A question waits for its confirmation: whoever will be in its way is asked meanwhile."""
        if type(body) in QUESTIONS and self._table.writers:
            key = asked(body, self._machine().child)
            if key is not None:
                self._table.told(origin.mount, key, self._boot_ns())

    def holds_up(self, origin: Origin, call: int, body: m.Body) -> bool:
        """Whether a question that could be answered now waits, or was refused."""
        if type(body) not in QUESTIONS:
            return False
        key = asked(body, self._machine().child)
        if key is None:
            return False
        now = self._boot_ns()
        self._table.contests.used(key, origin.mount, LEASE_READ, now)
        if self._table.told(origin.mount, key, now):
            return False
        self._park(key, origin, call, body, 0)
        return True

    def shown(self, origin: Origin, body: m.Body, reply: m.Reply) -> m.Reply:
        """A page of a directory without the attributes of files that another mount writes."""
        table = self._table
        if not isinstance(body, m.ReadDir) or not body.plus or not isinstance(reply, m.Entries) or not table.writers:
            return reply
        volume, mount = body.volume, origin.mount
        entries = [
            replace(entry, attr=None) if entry.attr is not None and table.held_back(mount, (volume, entry.ino)) else entry
            for entry in reply.entries
        ]
        return m.Entries(entries, reply.end)

    def _park(self, key: Key, origin: Origin, call: int, body: m.Body, size: int) -> None:
        if not self._table.park(key, Parked(origin, call, body, size)):
            origin.answer(call, _LATER)

    # --- requests ---------------------------------------------------------------------------------------------------------------
    def handlers(self) -> dict[type, Callable[..., None]]:
        return {
            m.GetLease: self.get,
            m.ReportLeases: self.report,
            m.AwaitRecalls: self.await_recalls,
            m.AnswerRecall: self.answer_recall,
            m.ExtendRecall: self.extend_recall,
            m.ReleaseLeases: self.release,
            m.ReturnLeases: self.lower,
            m.GetInherited: self.inherited,
        }

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
        key, now = (body.volume, body.ino), self._boot_ns()
        if table.writers.get(key, (0, 0))[0] != session:
            table.contests.used(key, origin.mount, body.mode, now)
            pause_ms = table.contests.pause_ms(key, origin.mount, body.mode, now)
            if pause_ms:
                origin.answer(call, m.Contested(pause_ms))
                return
        clear = table.clear(session, key, body.mode, now)
        if not clear or table.busy(key) or table.queued(key):
            self._park(key, origin, call, body, size)
        elif body.mode == LEASE_WRITE and key not in table.writers:
            if table.full(session):
                origin.answer(call, _TOO_MANY)
                return
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
            return self._table.numbered(session, key, m.Leased(0, 0, LEASE_WRITE, writer[1], changes, foreign))
        granted = self._table.grant_read(session, key)
        if granted is None:
            return _TOO_MANY
        return m.Leased(self._table.term, granted, LEASE_READ, 0, changes, foreign)

    def inherited(self, origin: Origin, call: int, body: m.GetInherited, size: int) -> None:
        if self._alive(origin, call, body.session, body.epoch):
            inos = self._table.inherited(body.session)
            origin.answer(call, m.Failed(errno.ENODATA, "this leader began since") if inos is None else m.Inodes(inos))

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
        epoch = 0 if recall is None else self._table.answered(body.session, recall, self._boot_ns())
        if recall is not None and epoch:
            self._release(origin, call, body.session, body.epoch, recall.key, epoch)
        else:
            origin.answer(call, m.Done())

    def _release(self, origin: Origin, call: int, session: int, session_epoch: int, key: Key, epoch: int) -> None:
        self._table.enter([key])
        self._enter(_Deciding(origin, self._table, [key]), call, session, session_epoch, ReleaseLease(*key, epoch))

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
                self._release(Silent(origin.mount), 0, body.session, body.epoch, (volume, ino), epoch)

    def lower(self, origin: Origin, call: int, body: m.ReturnLeases, size: int) -> None:
        """An entry for each, all of them in one batch."""
        if not self._alive(origin, call, body.session, body.epoch):
            return
        origin.answer(call, m.Done())
        volume = self._table.holders[body.session].volume
        for ino, lease in body.leases:
            if self._table.lower(body.session, (volume, ino), lease):
                self._release(Silent(origin.mount), 0, body.session, body.epoch, (volume, ino), lease)
