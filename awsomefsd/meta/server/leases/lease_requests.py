"""Handles requests for leases, and parks what has to wait until another session gives its lease back.

lease_table.py knows who holds what; here that meets the log.  A proposal that changes what others hold is parked, without a thread, until
they have let go, and then handled again from the beginning.  While one is on its way, nothing is granted under its keys, so a grant is
ordered with the proposals on the same key: what is read after it is what it covers.

So is a question, of a mount or a tool, whose answer another mount may hold back under a write lease, as buffered data or as decided changes
of names: it is parked until that is recalled to a read lease.  That is looked at when the answer would be given, not when the question
comes, so the answer has all there is then.
A question that was parked has been confirmed (read_index.py) before: when it is woken it is answered at once, or a writer that comes
back quickly could starve it.

A question for what is shown only (`buffered`: stat) flushes nothing: the writer is asked for size and times (a look, lease_recalls.py) and
keeps its lease.  Each look begins after the questions that it answers have come, so what they are told is no older than they are, and one
look at a time is open for an inode, however many ask.

What the table knows of write leases it learns from the entries as they are applied, whoever proposed them: an answer that was given up as
"outcome unknown" may yet become a lease.

Only volumes whose sessions share them are concerned; for all others the leader pays one look at an empty table.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from awsomefsd.base.limits import FILE_BYTES_MAX, LEASES_HELD_MAX, LEASES_LOADED_A_TURN, LEASES_SWEPT_A_CHECK
from awsomefsd.base.types import HOST_UNIQUE, LEASE_READ, LEASE_WRITE
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.commands import AcquireLease, AnyCommand, Apply, Create, Entry, OpenSession, OpenShared, ReleaseLease, Tmpfile
from awsomefsd.meta.replica.applied_machine import AppliedLeases
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.server.leases.conflicts import NAMES_ONLY, QUESTIONS, asked, touched
from awsomefsd.meta.server.leases.lease_grants import Recall
from awsomefsd.meta.server.leases.lease_table import LeaseTable
from awsomefsd.meta.server.proposals import BatchProposer
from awsomefsd.meta.server.request import AnyRequest, Origin, Request, Silent
from awsomefsd.meta.server.session_clock import Renewals
from awsomefsd.meta.server.waiters import Key

_ENDED = m.Failed(errno.ESTALE, "the session has ended")
_TOO_MANY = m.Failed(errno.ENOLCK, "the session holds too many leases")
_LATER = m.Failed(errno.EAGAIN, "the leases of the session are not reported, or too many wait", True)


class _Deciding:
    """The origin of a proposal that changes something under some keys.  With its answer, whatever that is, they are not busy any more."""

    def __init__(self, origin: Origin, table: LeaseTable, keys: list[Key]) -> None:
        self._origin = origin
        self._table = table
        self._keys = keys
        self.mount = origin.mount

    def answer(self, call: int, reply: m.Reply) -> None:
        self._table.queues.leave(self._keys)
        self._origin.answer(call, self._seen(reply))

    def _seen(self, reply: m.Reply) -> m.Reply:
        return reply


class _Acquiring(_Deciding):
    def __init__(self, origin: Origin, table: LeaseTable, key: Key, session: int) -> None:
        super().__init__(origin, table, [key])
        self._session = session
        table.granting[key] = session

    def answer(self, call: int, reply: m.Reply) -> None:
        self._table.granting.pop(self._keys[0], None)
        super().answer(call, reply)

    def _seen(self, reply: m.Reply) -> m.Reply:
        if not isinstance(reply, m.Leased):
            return reply
        return self._table.grants.number_grant(self._session, self._keys[0], reply)


class _Making(_Deciding):
    """The origin of a Create or Tmpfile that asks for the lease of what it makes."""

    def __init__(self, origin: Origin, table: LeaseTable, keys: list[Key], session: int, volume: int) -> None:
        super().__init__(origin, table, keys)
        self._session = session
        self._volume = volume

    def _seen(self, reply: m.Reply) -> m.Reply:
        if isinstance(reply, m.Found) and _makes_directory(reply):
            return replace(reply, leased=self._table.grants.regrant_read(self._session, (self._volume, reply.attr.ino)))
        return made(self._table, self._session, self._volume, reply)


def _makes_directory(reply: m.Found) -> bool:
    return reply.created and stat.S_ISDIR(reply.attr.mode)


def made(table: LeaseTable, session: int, volume: int, reply: m.Reply) -> m.Reply:
    """Returns the answer with a number for its grant; without the grant if the session holds it no more."""
    if not isinstance(reply, m.Found) or reply.leased is None:
        return reply
    key = (volume, reply.attr.ino)
    grant = None
    if table.grants.writer(key) == (session, reply.leased.epoch):
        grant = table.grants.number_grant(session, key, reply.leased)
    return replace(reply, leased=grant)


def _is_look(body: m.Body) -> bool:
    """The question is for what is shown of a file, not for what is committed of it."""
    return isinstance(body, (m.GetAttr, m.Lookup)) and body.buffered


def _is_plausible(shown: tuple[int, int, int, int]) -> bool:
    size, stored_bytes, *times_ns = shown
    return 0 <= size <= FILE_BYTES_MAX and 0 <= stored_bytes < 1 << 62 and all(abs(time_ns) < 1 << 64 for time_ns in times_ns)


def _with_shown(reply: m.Reply, shown: tuple[int, int, int, int]) -> m.Reply:
    """Returns the answer to a question with what the writer shows of the file."""
    if not isinstance(reply, m.Found):
        return reply
    size, stored_bytes, mtime_ns, ctime_ns = shown
    attr = replace(reply.attr, size=size, stored_bytes=stored_bytes, mtime_ns=mtime_ns, ctime_ns=ctime_ns)
    return replace(reply, attr=attr)


class LeaseRequests:
    """Used by the metadata thread only; nothing blocks."""

    def __init__(
        self,
        replica: Replica,
        renewals: Renewals,
        proposer: BatchProposer,
        boot_ns: Callable[[], int],
        query: Callable[[m.Body], m.Reply],
    ) -> None:
        """`query` answers a question from the applied state."""
        self._replica = replica
        self._query = query
        self._renewals = renewals
        self._boot_ns = boot_ns
        self._proposer = proposer
        self._table = LeaseTable()
        self._unswept: list[Key] = []
        self._loaded = b""  # where the next write leases of before are taken up
        self._awaiting: dict[int, Request[m.AwaitRecalls]] = {}  # session → its request that waits for a recall

    def _machine(self) -> AppliedLeases:
        return self._replica.machine  # it may be another one after a snapshot

    @property
    def active(self) -> bool:
        """True: there are sessions that share a volume."""
        return bool(self._table.holders)

    def figures(self) -> dict[str, int]:
        return self._table.figures(self._boot_ns())

    # --- the leadership ---------------------------------------------------------------------------------------------------------
    def begin(self, term: int) -> None:
        machine = self._machine()
        self._table = LeaseTable(term)
        self._loaded = b""
        self._table.begin(machine.sharing_sessions(), lambda key: self._machine().write_lease(*key), self._boot_ns())

    @property
    def is_loading(self) -> bool:
        """True: `load` has more to do."""
        return not self._table.grants.is_complete

    def load(self) -> None:
        """Takes up some of the write leases of before this leadership.  Call it once a turn."""
        if self.is_loading:
            found, self._loaded = self._machine().write_leases(self._loaded, LEASES_LOADED_A_TURN)
            self._table.grants.load(found, last=not self._loaded)

    def note_applied(self, entry: Entry, reply: m.Reply) -> None:
        """Takes up an applied entry that begins or ends a write lease, or makes a directory: nobody else knows that yet, so its maker reads
        it."""
        if not self.active:
            return
        command = entry.command
        if isinstance(command, AcquireLease):
            if isinstance(reply, m.Leased):
                self._table.grants.set_writer(entry.session, (command.volume, command.ino), reply.epoch)
        elif isinstance(command, ReleaseLease):
            key = (command.volume, command.ino)
            known = self._table.grants.writers.get(key)
            if isinstance(reply, m.Done) and known in (None, (entry.session, command.lease)):  # None: not loaded, but waited for
                self._table.grants.remove_writer(key)
        elif isinstance(command, (Create, Tmpfile)) and isinstance(reply, m.Found) and reply.leased is not None:
            self._table.grants.set_writer(entry.session, (command.volume, reply.attr.ino), reply.leased.epoch)
        elif isinstance(command, Create) and command.lease and isinstance(reply, m.Found) and _makes_directory(reply):
            self._table.grants.add_reader(entry.session, (command.volume, reply.attr.ino))
        elif isinstance(command, Apply) and isinstance(reply, m.Applied):
            self._note_made(entry, command, reply)

    def _note_made(self, entry: Entry, command: Apply, reply: m.Applied) -> None:
        """What records have made, their session holds; those that an earlier batch applied are looked up like the others."""
        for record in command.records:
            if record.ino and record.sequence <= reply.applied:
                session, epoch = self._machine().write_lease(command.volume, record.ino)
                if session == entry.session:
                    self._table.grants.set_writer(session, (command.volume, record.ino), epoch)

    def take_waiting(self) -> list[AnyRequest]:
        """Returns all requests that wait here, to be told to ask the next leader; nothing is remembered of the leases."""
        found: list[AnyRequest] = [*self._table.queues.take_all(), *self._awaiting.values()]
        self._awaiting.clear()
        self._table = LeaseTable()
        return found

    def drop_origin(self, origin: Origin) -> None:
        if self._table.queues.waiting_count:
            self._table.queues.keep_if(lambda parked: parked.origin is not origin)
        for session in [session for session, waiting in self._awaiting.items() if waiting.origin is origin]:
            del self._awaiting[session]

    def note_opened(self, command: OpenSession, reply: m.SessionOpened) -> None:
        """Takes up an opened session.  One that a successor took over is taken to hold everything until it reports."""
        if command.shared and (not isinstance(command, OpenShared) or command.caches):
            self._table.open_session(reply.session, command.volume, command.mount, self._boot_ns() if reply.resumed else None)

    def keep_only(self, sessions: Iterable[int]) -> None:
        """Drops the sessions that are not among these, and what waits for them."""
        live = set(sessions)
        for session in [session for session in self._table.holders if session not in live]:
            self._table.end_session(session)
            self._table.grants.remove_writes_of(session)
            waiting = self._awaiting.pop(session, None)
            if waiting is not None:
                waiting.answer(_ENDED)

    def tick(self, now_ns: int) -> None:
        for session in self._table.overdue(now_ns):
            self._renewals.stop_renewing(session)
        self._sweep()

    def _sweep(self) -> None:
        """Drops write leases that ended with their inode, some at a time: no entry of theirs says so."""
        table, machine = self._table, self._machine()
        if not self._unswept:
            self._unswept = list(table.grants.writers)
        some, self._unswept = self._unswept[-LEASES_SWEPT_A_CHECK:], self._unswept[:-LEASES_SWEPT_A_CHECK]
        for key in some:
            writer = table.grants.writers.get(key)
            if writer is not None and machine.write_lease(*key) != writer:
                table.grants.remove_writer(key)

    def take_woken(self) -> list[AnyRequest]:
        """Returns the requests that waited and are to be handled again."""
        return self._table.queues.take_woken()

    def send_recalls(self) -> None:
        """Answers the sessions that wait for recalls and have new ones; after what was woken, which may need more of them."""
        for session in self._table.recalls.take_sessions_to_tell():
            waiting = self._awaiting.get(session)
            if waiting is not None and (recalls := self._table.recalls.open_recalls(session, waiting.body.after)):
                del self._awaiting[session]
                waiting.answer(m.Recalls(self._table.term, recalls))

    # --- proposals --------------------------------------------------------------------------------------------------------------
    def admit(self, request: Request[m.Propose]) -> Request[m.Propose] | None:
        """Returns the request that is to be proposed, its answer watched; None: it waits, or was refused."""
        table, origin, body = self._table, request.origin, request.body
        command = body.command
        changes, reads, looked_up = touched(command, self._machine().child)
        volume = getattr(command, "volume", 0)
        if not any(holder.volume == volume for holder in table.holders.values()):
            return request
        now, blocked = self._boot_ns(), next((key for key in looked_up if table.queues.is_busy(key)), None)
        for key, mode in [*((key, LEASE_WRITE) for key in changes), *((key, LEASE_READ) for key in reads)]:
            free = table.recalls.recall_conflicting(body.session, key, mode, now)  # asks all who are in the way, of all keys
            free = free and table.granting.get(key, body.session) == body.session  # else it is recalled once it is granted
            table.contention.note_use(key, origin.mount, mode, now)
            if blocked is None and not (free and (not table.queues.has_waiters(key) or table.recalls.is_recalled(body.session, key))):
                blocked = key
        if blocked is not None:
            self._park(blocked, request)
            return None
        keys = changes + reads
        table.queues.enter(keys)
        if isinstance(command, (Create, Tmpfile)) and command.lease:
            return request._replace(origin=_Making(origin, table, keys, body.session, volume))
        return request._replace(origin=_Deciding(origin, table, keys)) if keys else request

    def without_lease_if_full(self, session: int, command: Any) -> Any:
        """Returns the command to propose: without its wish for a lease if the session holds too many."""
        if isinstance(command, (Create, Tmpfile)) and command.lease and self._table.grants.is_full(session):
            return replace(command, lease=False)
        return command

    def regrant_stored(self, body: m.Propose, reply: m.Reply) -> m.Reply:
        """Returns the result of a request that was executed before; its grant gets a new number, or is left out."""
        return made(self._table, body.session, getattr(body.command, "volume", 0), reply)

    # --- questions --------------------------------------------------------------------------------------------------------------
    def recall_early(self, request: AnyRequest) -> None:
        """Recalls the write lease that is in the way of a question while that waits for its confirmation."""
        if not _is_look(request.body) and (self._table.grants.writers or self.is_loading):
            for key in self._asked(request.body):
                self._table.recalls.recall_writer(request.origin.mount, key, self._boot_ns())

    def _asked(self, body: Any) -> list[Key]:
        """Returns the inodes of which a question asks what others may hold back, the one that it is about at last."""
        machine = self._machine()
        if type(body) not in QUESTIONS or (type(body) in NAMES_ONLY and not machine.may_hold_names(body.volume, body.ino)):
            return []
        return asked(body, machine.child)

    def park_if_buffered(self, request: AnyRequest) -> bool:
        """Parks a question whose answer another mount buffers under a write lease, and recalls that lease.  False: answer it now."""
        keys = self._asked(request.body)
        mount, now = request.origin.mount, self._boot_ns()
        for key in keys:
            self._table.contention.note_use(key, mount, LEASE_READ, now)
        held = [key for key in keys if self._table.recalls.is_buffered(mount, key)]
        if not held:
            return False
        key = held[0]
        if key == self._looked_at(request.body, keys) and (open_one := self._table.recalls.begin_look(key, now)) is not None:
            if not self._table.queues.park_looking(key, request, since=open_one):
                request.answer(_LATER)
            return True
        self._table.recalls.recall_writer(mount, key, now)
        self._park(key, request)
        return True

    def _take_shown(self, session: int, recall: Recall, shown: tuple[int, int, int, int] | None) -> None:
        """The writer has answered a look; what it does not say has to be committed."""
        recalls, queues, key, now = self._table.recalls, self._table.queues, recall.key, self._boot_ns()
        recalls.end_look(session, recall)
        if shown is None or not _is_plausible(shown):
            recalls.recall_writer(0, key, now)
            return
        looked, more = queues.take_looked(key)
        if more:
            recalls.begin_look(key, now)
        for request in looked:
            keys = self._asked(request.body)
            if key == self._looked_at(request.body, keys) and not any(recalls.is_buffered(request.origin.mount, one) for one in keys[:-1]):
                request.answer(_with_shown(self._query(request.body), shown))
            else:  # the name leads elsewhere now, or may soon
                self._park(key, request)
                queues.wake(key)

    def _looked_at(self, body: m.Body, keys: list[Key]) -> Key | None:
        """Returns the inode of which a question is for what is shown, by a name that leads there; None if it is no such question."""
        if not _is_look(body) or (isinstance(body, m.Lookup) and len(keys) == 1):
            return None
        return keys[-1]

    def hide_buffered(self, request: AnyRequest, reply: m.Reply) -> m.Reply:
        """Returns the reply; a page of a directory comes without the attributes of files that another mount writes."""
        table, body = self._table, request.body
        if not isinstance(body, m.ReadDir) or not body.plus or body.at or not isinstance(reply, m.Entries):
            return reply
        if not table.grants.writers and not self.is_loading:
            return reply
        volume, mount = body.volume, request.origin.mount
        entries = [
            replace(entry, attr=None) if entry.attr is not None and table.recalls.is_buffered(mount, (volume, entry.ino)) else entry
            for entry in reply.entries
        ]
        return m.Entries(entries, reply.end, reply.newest)

    def _park(self, key: Key, request: AnyRequest) -> None:
        if not self._table.queues.park(key, request):
            request.answer(_LATER)

    # --- requests ---------------------------------------------------------------------------------------------------------------
    def handlers(self) -> dict[type, Callable[[AnyRequest], None]]:
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

    def _answer_ended(self, request: AnyRequest) -> bool:
        """True: the session that asks has ended, and has been told so."""
        session, epoch = request.body.session, request.body.epoch
        if session in self._table.holders and self._renewals.is_alive(session, epoch):
            return False
        request.answer(_ENDED)
        return True

    def get(self, request: Request[m.GetLease]) -> None:
        if self._answer_ended(request):
            return
        table, body, session, mount = self._table, request.body, request.body.session, request.origin.mount
        if table.holders[session].volume != body.volume or body.mode not in (LEASE_READ, LEASE_WRITE):
            request.answer(m.Failed(errno.EINVAL, f"mode {body.mode} of volume {body.volume}"))
            return
        if not table.has_reported(session):
            request.answer(_LATER)
            return
        key, now = (body.volume, body.ino), self._boot_ns()
        if body.unless_written and (table.grants.writer(key) or (session, 0))[0] != session:
            request.answer(m.Contested(0))  # who wants more than to look may ask at once
            return
        if (table.grants.writer(key) or (0, 0))[0] != session:
            table.contention.note_use(key, mount, body.mode, now)
            pause_ms = table.contention.pause_ms(key, mount, body.mode, now)
            if pause_ms:
                request.answer(m.Contested(pause_ms))
                return
        free = table.recalls.recall_conflicting(session, key, body.mode, now)
        if not free or table.queues.is_busy(key) or table.queues.has_waiters(key):
            self._park(key, request)
        elif body.mode == LEASE_WRITE and table.grants.writer(key) is None:
            if table.grants.is_full(session):
                request.answer(_TOO_MANY)
                return
            table.queues.enter([key])
            command = AcquireLease(body.volume, body.ino, body.known)
            self._propose(request, _Acquiring(request.origin, table, key, session), command)
        else:
            request.answer(self._grant(session, key, mount, body.known))

    def _grant(self, session: int, key: Key, mount: int, known: int) -> m.Reply:
        """Grants to read; or again, and at once, what the session has already: an entry would let an older release end the newer grant."""
        changes, changed_by_others = self._machine().changes_by_others(*key, mount, known)
        writer = self._table.grants.writer(key)
        if writer is not None:
            return self._table.grants.number_grant(session, key, m.Leased(0, 0, LEASE_WRITE, writer[1], changes, changed_by_others))
        granted = self._table.grants.grant_read(session, key)
        if granted is None:
            return _TOO_MANY
        return m.Leased(self._table.term, granted, LEASE_READ, 0, changes, changed_by_others)

    def inherited(self, request: Request[m.GetInherited]) -> None:
        if not self._answer_ended(request):
            inos = self._table.inherited(request.body.session)
            request.answer(m.Failed(errno.ENODATA, "this leader began since") if inos is None else m.Inodes(inos))

    def report(self, request: Request[m.ReportLeases]) -> None:
        body = request.body
        if not self._answer_ended(request):
            known = self._table.report(body.session, body.term, body.inos)
            why = f"this is term {self._table.term}, and a session holds {LEASES_HELD_MAX} leases at most"
            request.answer(m.Done() if known else m.Failed(errno.EINVAL, why))

    def await_recalls(self, request: Request[m.AwaitRecalls]) -> None:
        body = request.body
        if self._answer_ended(request):
            return
        recalls = self._table.recalls.open_recalls(body.session, body.after)
        older = self._awaiting.pop(body.session, None)
        if older is not None:
            older.answer(m.Recalls(self._table.term, []))
        if recalls:
            request.answer(m.Recalls(self._table.term, recalls))
        else:
            self._awaiting[body.session] = request

    def answer_recall(self, request: Request[m.AnswerRecall]) -> None:
        body = request.body
        if self._answer_ended(request):
            return
        recall = self._table.recalls.find(body.session, body.term, body.sequence)
        if recall is not None and recall.is_look:
            self._take_shown(body.session, recall, body.shown)
            request.answer(m.Done())
            return
        epoch = 0 if recall is None else self._table.recalls.answer(body.session, recall, self._boot_ns())
        if recall is not None and epoch:
            self._release(request, recall.key, epoch)
        else:
            request.answer(m.Done())

    def _propose(self, request: AnyRequest, origin: Origin, command: AnyCommand) -> None:
        """Proposes a command for the session that `request` names; `origin` hears what became of it."""
        body = m.Propose(HOST_UNIQUE, request.body.session, request.body.epoch, [], command)
        self._proposer.enter(Request(origin, request.call, body), body)

    def _release(self, request: AnyRequest, key: Key, epoch: int) -> None:
        self._table.queues.enter([key])
        self._propose(request, _Deciding(request.origin, self._table, [key]), ReleaseLease(*key, epoch))

    def _release_silently(self, request: AnyRequest, key: Key, epoch: int) -> None:
        """As `_release`, for a request that is answered already."""
        self._release(request._replace(origin=Silent(request.origin.mount), call=0), key, epoch)

    def extend_recall(self, request: Request[m.ExtendRecall]) -> None:
        body = request.body
        if not self._answer_ended(request):
            recall = self._table.recalls.find(body.session, body.term, body.sequence)
            if recall is not None:
                self._table.recalls.extend(recall, body.done, self._boot_ns())
            request.answer(m.Done())

    def release(self, request: Request[m.ReleaseLeases]) -> None:
        body = request.body
        if self._answer_ended(request):
            return
        request.answer(m.Done())
        volume = self._table.holders[body.session].volume
        for ino in body.inos:
            epoch = self._table.give_up(body.session, body.term, body.sequence, ino)
            if epoch:
                self._release_silently(request, (volume, ino), epoch)

    def lower(self, request: Request[m.ReturnLeases]) -> None:
        """Ends each write lease with an entry of its own, all of them in one batch."""
        body = request.body
        if self._answer_ended(request):
            return
        request.answer(m.Done())
        volume = self._table.holders[body.session].volume
        for ino, lease in body.leases:
            if self._table.lower(body.session, (volume, ino), lease):
                self._release_silently(request, (volume, ino), lease)
