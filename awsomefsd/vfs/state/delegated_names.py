"""The way to the metadata service of a mount that decides names by itself, because it holds its volume whole.

It stands where the client stands (meta/client/metadata.py), so operations do not know of it.  What it does with each change and question:

* *Decided here*: names, attributes but the size, extended attributes.  The rule runs over the rows that the mount has (held_names.py), the
  record goes into the op log, and the answer is there.  Deciding, storing and showing are one step under `lock`, and so is what the caller
  does with the answer up to its next wait: caches are filled in the order in which things were decided.
* *Ordered*: what changes the bytes of a file, its locks or access times, or asks the leader about it, goes to the leader when it has all
  records of that inode.  Where it changes what rules look at, the leader has all records before, those of that inode wait for its end, and
  its rows are forgotten then.  A commit of data changes size and times only, and is taken up field by field (`_take_up`); records do not
  wait for it.  The first name of a file without one is given so too: such a file ends with the session, and a record of its name would be
  refused under the next one.
* *Synchronous*: what cannot be decided here (no inode number is to be had) waits until all is shipped; nothing else is decided meanwhile.
* All else is the client's.

Before `begin`, after a record was refused (`refused`), and on volumes whose names are durable, everything is the client's.

Rejected: asking the leader for names that are not here and merging its answer (an answer may be older than what was decided meanwhile).
"""

from __future__ import annotations

import errno
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import INODES_PER_GRANT_MAX
from awsomefsd.base.power_cut import DECIDES, WHY, Why
from awsomefsd.base.types import Attr, Dirent
from awsomefsd.base.wait import Resume, Signal, Wait, block_on
from awsomefsd.io.file.op_log import OpLog, OpRecord
from awsomefsd.io.file.reservation import Uniques
from awsomefsd.io.file.shipper import Shipper, record_of
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.meta.machine.held import COMMANDS, QUESTIONS, NamesHolder, NoNumber
from awsomefsd.meta.machine.record_checks import inodes_of
from awsomefsd.meta.state import rows
from awsomefsd.vfs.state.decided_change import ANSWERED, NOT_HERE, Change, Durable, Leaders, NotHere, Outcome, Until
from awsomefsd.vfs.state.held_names import HeldNames
from awsomefsd.vfs.state.overlay_state import Missing, Question
from awsomefsd.vfs.state.started import Sending, Started

NUMBERS_LOW = INODES_PER_GRANT_MAX // 4  # inode numbers left when more are asked for
ALL_NUMBERS = 1 << 62

Again = Callable[[], None]


class Lease(Protocol):
    """The lease of the session, as the mount sees it (mount_state.SessionView)."""

    def left_ns(self) -> int: ...
    def renewed(self) -> Wait: ...


class DelegatedNames:
    """Implements Metadata.  Any thread may call; only `give_up` blocks.  `lock` is held while an answer given here is taken up."""

    def __init__(self, volume: int, metadata: Metadata, op_log: OpLog, log_id: int, lease: Lease, uniques: Uniques) -> None:
        self.volume = volume
        self.lock = threading.RLock()
        self._metadata = metadata
        self._log = op_log
        self._lease = lease
        self._uniques = uniques
        self.shipper = Shipper(volume, op_log, log_id, metadata, uniques, self)
        self.put_aside: Callable[[list[OpRecord], str], None] = lambda records, why: None  # stores them; set before `begin`
        self.note_applied: Callable[[int], None] = lambda through: None  # so that a successor knows it; set before `begin`
        self.synchronous: Callable[[], bool] = lambda: False  # changes of names are durable when they return (mount option sync)
        self._names: HeldNames | None = None  # None: nothing is decided here
        self._numbers: deque[int] = deque()  # granted and not used, ascending
        self._granting: Signal | None = None
        self._refused_numbers = False  # the last grant was refused
        self._busy: dict[int, Signal] = {}  # inodes that the leader is changing
        self._reading: dict[int, Signal] = {}  # inodes whose times of reads are on their way to the leader
        self._alone: Signal | None = None  # a synchronous change is under way
        self._room = Signal()
        self._full = False  # somebody waits for room in the log
        self._newest = 0  # sequence of the newest record
        self.why_not = Why.VOLUME  # nothing is decided here, for the figures
        self.decided = 0

    # --- begin and end -----------------------------------------------------------------------------------------------------
    @property
    def decides(self) -> bool:
        return self._names is not None

    def begin(self, holder: NamesHolder) -> None:
        """Decides names from now on: all records are applied, and the log may be used."""
        with self.lock:
            self._names = HeldNames(holder)
            self.why_not = Why.REFUSED  # if it ends before the mount does
            self._ask_numbers()

    def session_replaced(self) -> None:
        """Another session was opened: the quota counts nothing for the numbers that are left, and files without names may have ended."""
        with self.lock:
            self._numbers.clear()
            if self._names is not None:
                self._names.rows.forget_nameless()

    def end(self) -> None:
        """Leaves all to the leader from now on; all records are applied."""
        with self.lock:
            self._names = None

    def give_up(self, why: str) -> None:
        """Leaves all to the leader from now on: others have changed the volume.  Blocks until what it does not have is put aside."""
        self.end()
        newest = self._log.newest_unapplied()
        self.shipper.give_up(why)
        if newest:
            with suppress(FsError):  # that it was
                block_on(self.shipper.wait(newest))

    def bound(self, share: float) -> None:
        """Remembers no more than this share of what it may (a Cache of the memory budget)."""
        with self.lock:
            if self._names is not None:
                self._names.rows.bound(share)

    def figures(self) -> dict[str, int]:
        shipper = self.shipper
        diverged = int(shipper.diverged or shipper.differing > 0)
        why = self.why_not if not self.decides else Why.SYNC if self.synchronous() else Why.DECIDES
        return {
            DECIDES: int(self.decides), WHY: int(why), "names_decided": self.decided, "names_batches": shipper.batches,
            "names_differing": shipper.differing, "names_diverged": diverged,
        }  # fmt: skip

    def synced(self) -> Signal | None:
        """Returns a Wait for all records up to now to be applied; None if they are.

        Where a record was refused nothing is decided any more, and it still waits for those that are being put aside: EIO, and no silence.
        """
        newest = self._log.newest_unapplied()
        return self.shipper.wait(newest) if newest > self.shipper.applied else None

    # --- shipper.RecordsHolder ----------------------------------------------------------------------------------------------------
    def applied(self, through: int) -> None:
        self.note_applied(through)
        with self.lock:
            if self._names is not None:
                self._names.rows.applied(through)
        if self._full:
            self._wake()

    def refused(self, why: str) -> None:
        self.end()
        self._wake()  # who waits for room goes to the leader

    def set_aside(self, records: list[OpRecord], why: str) -> None:
        self.put_aside(records, why)

    # --- Metadata ----------------------------------------------------------------------------------------------------------
    def propose(self, command: Any, unique: int, token: tuple[int, int] | None = None) -> Wait:
        kind = type(command)
        send = Sending(partial(self._metadata.propose, command, unique, token))
        if kind is c.Commit:  # it may wait for records, and not go under a later session then: its data may be a conflict by that time
            token = token or self._metadata.session_token()
            if self._names is not None or self._log.newest_unapplied():
                send = Sending(partial(self._metadata.propose, command, unique, token))
                return Started(partial(self._commit, command, token, send), send)
        if self._names is None:
            return self._of_log(unique) or self._metadata.propose(command, unique, token)
        if kind in COMMANDS and not (kind is c.SetAttr and command.mask & c.SET_SIZE):
            return Change(self, command, unique, send)
        if kind in _CHANGING:
            return Started(partial(self._change, _CHANGING[kind](command), send), send)
        if kind is c.SetLock:
            return Started(partial(self._ordered, (command.ino,), send), send)
        if kind is c.SetAtimes:
            return Started(partial(self._atimes, command, send), send)
        return send()

    def ask(self, body: Any) -> Wait:
        if self._names is None:
            return self._metadata.ask(body)
        kind = type(body)
        if kind is m.ReadDir:
            return Started(partial(self._list, body))
        if kind in QUESTIONS:
            return Started(partial(self._answer, body))
        if kind in (m.GetLayout, m.TestLock):
            return Started(partial(self._ordered, (body.ino,), partial(self._metadata.ask, body)))
        return self._metadata.ask(body)

    def wait_lock(self, command: c.SetLock, unique: int, no_deadlock: bool = False) -> Wait:
        send = partial(self._metadata.wait_lock, command, unique, no_deadlock)
        return send() if self._names is None else Started(partial(self._ordered, (command.ino,), send))

    def session_token(self) -> tuple[int, int]:
        return self._metadata.session_token()

    def ack(self, unique: int) -> None:
        if not self._answered(unique):
            self._metadata.ack(unique)

    def ack_inherited(self, unique: int) -> None:
        if not self._answered(unique):
            self._metadata.ack_inherited(unique)

    def _answered(self, unique: int) -> bool:
        """Returns whether the request has a record here; the service never heard of it then."""
        found = self._log.answered(unique)
        if self._full:
            self._wake()
        return found

    def cancel(self, unique: int) -> None:
        self._metadata.cancel(unique)

    # --- decided here ------------------------------------------------------------------------------------------------------
    def try_to_decide(self, command: Any, unique: int, resume: Resume) -> Outcome:
        """Decides a change and resumes with its answer; or returns why not, for `decide`."""
        with self.lock:
            names = self._names
            if names is None:
                return NOT_HERE
            outcome = self._decided(names, command, unique)
            if isinstance(outcome, (Until, Leaders, Durable)):
                return outcome
            give(resume, outcome)
        return ANSWERED

    def decide(self, command: Any, unique: int, send: Callable[[], Wait], resume: Resume, outcome: Outcome | None = None) -> None:
        """Decides a change, or lets the leader do it, after whatever is to be waited for.  `outcome`: of an attempt just now."""
        if outcome is None:
            outcome = self.try_to_decide(command, unique, resume)
        if isinstance(outcome, Until):
            self._after(outcome.wait, resume, lambda: self.decide(command, unique, send, resume))
        elif isinstance(outcome, Leaders):
            self._change(outcome.inodes, send, resume)
        elif isinstance(outcome, Durable):
            self._synchronous(command, send, resume)
        elif isinstance(outcome, NotHere):
            send().start(resume)

    def _decided(self, names: HeldNames, command: Any, unique: int) -> m.Reply | Until | Leaders | Durable:
        """Returns the answer of a change whose record is stored, or why there is none (with the lock)."""
        if self._alone is not None:
            return Until(self._alone)
        if not self._holds(named(command)):
            return Durable()
        if self.synchronous():  # since a remount: a mount that begins with it decides nothing
            return Durable()
        if self._reading and type(command) is c.SetAttr and command.mask & c.SET_ATIME:
            reading = self._reading.get(command.ino)
            if reading is not None:
                return Until(reading)
        if self._lease.left_ns() <= 0:
            return Until(self._lease.renewed())
        time_ns = time.time_ns()
        try:
            reply = names.decide(command, time_ns, self._numbers[0] if self._numbers else 0)
            if isinstance(reply, m.Failed) or not names.rows.changed:
                return reply
            if type(command) is c.Link and reply.attr.nlink == 1:  # type: ignore[union-attr]
                names.abandon()
                return Leaders([command.ino, command.parent])
            record = c.DecidedRecord(0, unique, time_ns, command, 0, _leads_to(command, reply), 0, names.made)
            touched = inodes_of(record)
            record.check = names.check_of(record, touched)
        except Missing as missing:
            names.abandon()
            return Until(Started(partial(self._fetch, names, missing))) if self._holds(missing.inodes()) else Durable()
        except NoNumber:
            return Durable() if self._refused_numbers else Until(self._ask_numbers())
        if not self._is_ours(record, touched):
            names.abandon()
            return Durable()
        busy = next((self._busy[ino] for ino in touched if ino in self._busy), None) if self._busy else None
        stored = self._stored(names, record) if busy is None else None
        if stored is None:
            names.abandon()
            return Until(busy or self._room)
        names.keep(stored.sequence)
        self._newest = stored.sequence
        self.decided += 1
        self._note_made(record, reply)
        self.shipper.stored(stored, touched)
        if record.ino:
            self._numbers.popleft()
            if len(self._numbers) < NUMBERS_LOW and self._granting is None and not self._refused_numbers:
                self._ask_numbers()
        return reply

    def _holds(self, inos: Iterable[int]) -> bool:
        """Returns whether what touches only these may be decided here (with the lock)."""
        return True

    def _is_ours(self, record: c.DecidedRecord, touched: list[int]) -> bool:
        """Returns whether this record may be stored (with the lock)."""
        return True

    def _note_made(self, record: c.DecidedRecord, reply: Any) -> None:
        """The record is stored, and on its way with the next batch (with the lock)."""

    def _stored(self, names: HeldNames, record: c.DecidedRecord) -> OpRecord | None:
        """Returns None if the log has no room, and lets `_room` be fired when it may have some.

        What the log does not take (an exception) has not happened: the next record must not bring it along.
        """
        try:
            said = c.record_encode(record)
            stored = self._log.store(said, record.unique, record.time_ns)
            if stored is None:
                self._full = True  # before it is tried again: a record that goes from now on is told of
                stored = self._log.store(said, record.unique, record.time_ns)
        except BaseException:
            names.abandon()
            raise
        return stored

    def _wake(self) -> None:
        """There may be room in the log."""
        with self.lock:
            self._full = False
            room, self._room = self._room, Signal()
        room.fire()

    def _session_after(self, token: tuple[int, int]) -> Wait:
        """Returns a Wait after a refusal (ESTALE): it ends when the mount is served under another session, which may be so already."""
        renewed = self._lease.renewed()
        if self._lease.left_ns() > 0 and self._metadata.session_token() != token:
            renewed = Signal()
            renewed.fire()
        return renewed

    def _after(self, wait: Wait, resume: Resume, again: Again) -> None:
        wait.start(lambda _value, error: again() if error is None else resume(None, error))

    # --- questions ---------------------------------------------------------------------------------------------------------
    def _answer(self, body: Any, resume: Resume) -> None:
        with self.lock:
            names = self._names
            if names is not None and self._alone is None:
                busy = self._busy.get(getattr(body, "ino", 0))
                try:
                    if busy is None:
                        give(resume, names.ask(body))
                        return
                    until: Wait = busy
                except Missing as missing:
                    until = Started(partial(self._fetch, names, missing))
            else:
                until = self._alone or self._metadata.ask(body)
        if names is None:
            until.start(resume)
        else:
            self._after(until, resume, lambda: self._answer(body, resume))

    def _fetch(self, names: HeldNames, missing: Missing, resume: Resume) -> None:
        """Asks for rows."""
        with self.lock:
            question = names.rows.ask()
        self._fetch_page(names, missing, question, [], resume)

    def _fetch_page(
        self, names: HeldNames, missing: Missing, question: Question, found: list[tuple[bytes, bytes | None]], resume: Resume
    ) -> None:
        group = missing.group  # its rows come in their order; one of them that came before would be taken for the end of a page
        wanted = [] if found else [key for key in missing.keys if not group or not key.startswith(group)]
        after = max((key for key, _ in found if key.startswith(group)), default=b"") if group else b""

        def answered(reply: m.FoundRows | None, error: BaseException | None) -> None:
            if reply is not None:
                found.extend(reply.rows)
                if reply.more and missing.group:
                    self._fetch_page(names, missing, question, found, resume)
                    return
            with self.lock:
                if reply is None:
                    names.rows.give_up(question)
                else:
                    names.rows.learn(question, self._believed(missing, found), missing.group)
            if isinstance(error, FsError) and error.errno == errno.ESTALE:
                self._after(self._session_after((session, epoch)), resume, lambda: resume(None, None))  # another one will ask
            else:
                resume(None, error)

        session, epoch = self._metadata.session_token()
        self._metadata.ask(m.GetRows(session, epoch, self.volume, wanted, missing.group, after)).start(answered)

    def _believed(self, missing: Missing, found: list[tuple[bytes, bytes | None]]) -> list[tuple[bytes, bytes | None]]:
        """Returns the rows, of those that the leader gave, that nobody else changes."""
        return found

    def _list(self, body: m.ReadDir, resume: Resume) -> None:
        """A page of a directory; of one that is not known whole the leader's, once it has all records of it.

        The kernel lets nobody change it meanwhile.
        """
        with self.lock:
            names = self._names
            known: m.Reply | None = None
            if names is not None and self._alone is None:
                with suppress(Missing):
                    known = names.ask_rows(body)
            if known is not None:
                give(resume, known)
                return
            question = names.rows.ask() if names is not None else None
            if names is not None:
                names.listed(body.ino)

        def answered(reply: m.Entries | None, error: BaseException | None) -> None:
            with self.lock:
                if names is not None and question is not None:
                    if reply is not None:
                        reply.entries = [as_held(names, question, entry) for entry in reply.entries]
                    names.rows.give_up(question)
                resume(reply, error)

        self._ordered((body.ino,), partial(self._metadata.ask, body), answered)

    # --- ordered -----------------------------------------------------------------------------------------------------------
    def _ordered(self, inos: Iterable[int], send: Callable[[], Wait], resume: Resume) -> None:
        """Starts `send` when the leader has all records of these inodes; EIO if one of them was put aside.

        When nothing is decided any more, it is not known which records those are: all that are left are being put aside.
        """
        names = self._names
        newest = self._log.newest_unapplied() if names is None else max(map(names.rows.newest_of, inos), default=0)
        self._behind(newest, send, resume)

    def _behind(self, newest: int, send: Callable[[], Wait], resume: Resume) -> None:
        if newest:
            self._after(self.shipper.wait(newest), resume, lambda: send().start(resume))
        else:
            send().start(resume)

    def _change(self, inos: list[int], send: Callable[[], Wait], resume: Resume) -> None:
        """The leader changes files, when it has all records: what is there after a power cut is what there was at some moment.

        Records of these files wait for the end of it, and their rows are asked for again.
        """
        with self.lock:
            busy = next((self._busy[ino] for ino in inos if ino in self._busy), None) or self._alone
            if busy is None:
                signal = Signal()
                self._busy.update(dict.fromkeys(inos, signal))
                newest = self._newest_unapplied(inos)
        if busy is not None:
            self._after(busy, resume, lambda: self._change(inos, send, resume))
            return

        def answered(reply: Any, error: BaseException | None) -> None:
            with self.lock:
                for ino in inos:
                    del self._busy[ino]
                    if self._names is not None and (error is None or isinstance(error, FsError)):  # else the client has ended
                        self._names.rows.forget(ino)
                resume(reply, error)
            signal.fire()

        self._behind(newest, send, answered)

    def _newest_unapplied(self, inos: Iterable[int]) -> int:
        """Returns the newest record that is not applied, as the log or the rows of these inodes know: the log hears of an answer first."""
        newest = self._log.newest_unapplied()
        return newest if self._names is None else max(newest, *map(self._names.rows.newest_of, inos))

    def _commit(self, command: c.Commit, token: tuple[int, int], send: Callable[[], Wait], resume: Resume) -> None:
        """A commit goes in the batch of the last record of its files, if that is not applied yet.

        Called with locks of the flusher, so without this one.
        """
        steps = {step.ino: step for step in command.inodes}

        def answered(reply: m.Committed | None, error: BaseException | None) -> None:
            if reply is None:  # which may come at once, with the locks of the flusher held
                resume(None, error)
                return
            with self.lock:
                reply.attrs = [None if attr is None else self._take_up(attr, steps[attr.ino]) for attr in reply.attrs]
                resume(reply, error)

        names = self._names
        newest = 0 if names is None else max(map(names.rows.newest_of, steps), default=0)
        if not newest:
            self._ordered(steps, send, answered)
            return

        def went(reply: m.Committed | None, error: BaseException | None) -> None:
            if reply is None and error is None:
                send().start(answered)
            else:
                answered(reply, error)

        self.shipper.commit(command, newest, token, went)

    def _take_up(self, attr: Attr, step: c.InodeCommit) -> Attr:
        """Puts what a commit of data has changed into the rows of a file; returns its attributes as they are then.

        Times that a SetAttr of an older log has set do not stand against it: a commit of another log is newer (attributes.follow_log).
        """
        names = self._names
        if names is None:
            return attr

        def committed(row: rows.InodeRow) -> None:
            row.size, row.stored_bytes, row.inline = attr.size, attr.stored_bytes, attr.inline
            if step.log != row.log or step.sequence > row.times_sequence:
                row.mtime_ns, row.mtime_explicit = attr.mtime_ns, False
                row.ctime_ns = max(row.ctime_ns, attr.ctime_ns)

        names.rows.amend(attr.ino, committed)
        return names.attr(attr.ino) or attr

    def _atimes(self, command: c.SetAtimes, send: Callable[[], Wait], resume: Resume) -> None:
        """Sends times of reads.  A utimensat that sets the time of one of these files waits for the end of it, or the older time might win.

        Called with a lock of the times, so without this one; whoever sets a time has had that lock before it comes here.
        """
        read = dict(command.atimes)
        over = Signal()
        self._reading.update(dict.fromkeys(read, over))

        def answered(reply: m.Committed | None, error: BaseException | None) -> None:
            for ino in read:
                if self._reading.get(ino) is over:
                    del self._reading[ino]
            if reply is None:  # which may come at once
                resume(None, error)
            else:
                with self.lock:
                    if (names := self._names) is not None:
                        for ino, atime_ns in read.items():
                            names.rows.amend(ino, partial(_set_atime, atime_ns))
                        reply.attrs = [None if attr is None else names.attr(attr.ino) or attr for attr in reply.attrs]
                    resume(reply, error)
            over.fire()

        self._ordered(read, send, answered)

    # --- synchronous -------------------------------------------------------------------------------------------------------
    def _synchronous(self, command: Any, send: Callable[[], Wait], resume: Resume) -> None:
        """The leader does it, when it has all records; nothing is decided until it has answered, and no row is known then."""
        with self.lock:
            other = self._alone
            if other is None:
                self._alone = signal = Signal()
                newest = self._newest
        if other is not None:
            self._after(other, resume, lambda: self._synchronous(command, send, resume))
            return

        def answered(reply: Any, error: BaseException | None) -> None:
            with self.lock:
                if self._names is not None:
                    self._names.rows.clear()
                if error is None:  # there was room for it: the next one asks for numbers again
                    self._refused_numbers = False
                self._alone = None
                resume(reply, error)
            signal.fire()

        self.shipper.wait(newest).start(lambda _value, error: send().start(answered) if error is None else answered(None, error))

    # --- inode numbers -----------------------------------------------------------------------------------------------------
    def _ask_numbers(self) -> Signal:
        """Asks for inode numbers (with the lock); the Wait ends when there are some, or none are to be had.

        If none is left here, those that were granted before are given back: when the leader has all records, none of these needs one.
        """
        if self._granting is not None:
            return self._granting
        granting = self._granting = Signal()
        unique, token = self._uniques.next_background_unique(), self._metadata.session_token()

        def granted(reply: m.InodesGranted | None, error: BaseException | None) -> None:
            self._metadata.ack(unique)
            with self.lock:
                self._granting = None
                self._refused_numbers = isinstance(error, FsError) and error.errno != errno.ESTALE
                if reply is not None and self._metadata.session_token() == token:
                    self._numbers.extend(range(reply.first, reply.first + reply.count))
            if isinstance(error, FsError) and error.errno == errno.ESTALE:
                self._session_after(token).start(lambda _value, _error: granting.fire())
            elif isinstance(error, FsError):
                granting.fire()
            else:  # no answer came, and who asks at once may get none again: who waits hears that
                granting.fire(None, error)

        lowest, newest = (0, 0) if self._numbers else (ALL_NUMBERS, self._log.newest_unapplied())
        asked = self._metadata.propose(c.GrantInodes(self.volume, INODES_PER_GRANT_MAX, lowest), unique, token)
        if newest:
            self.shipper.wait(newest).start(lambda _value, error: asked.start(granted) if error is None else granted(None, error))
        else:
            asked.start(granted)
        return granting

    # --- after a worker's death --------------------------------------------------------------------------------------------
    def _of_log(self, unique: int) -> Wait | None:
        """Returns the answer to a request that a predecessor has decided, as a Wait: its inodes say their numbers, and no more.

        What was put aside has not happened: the leader decides then.
        """
        stored = self._log.find_unique(unique)
        if stored is None or stored.aside:
            return None
        return Started(lambda resume: resume(answer_again(record_of(stored)), None))


def named(command: Any) -> list[int]:
    """Returns the inodes that a command names by their numbers."""
    found = [getattr(command, field, 0) for field in ("parent", "new_parent", "ino")]
    return [ino for ino in dict.fromkeys([*found, *getattr(command, "inos", ())]) if ino]


# --- answers ------------------------------------------------------------------------------------------------------------------
def give(resume: Resume, reply: m.Reply) -> None:
    if isinstance(reply, m.Failed):
        resume(None, FsError(reply.errno, reply.detail))
    else:
        resume(reply, None)


def _leads_to(command: Any, reply: Any) -> list[int]:
    """Returns where the names of a command led, as its answer tells: to nothing, where something was made."""
    if isinstance(command, (c.Unlink, c.Rmdir)):
        return [reply.attr.ino]
    if isinstance(command, c.Rename):
        return [reply.attr.ino, reply.replaced.ino if reply.replaced is not None else 0]
    return [0] if isinstance(command, (c.Create, c.Link)) else []


def as_held(names: HeldNames, question: Question, entry: Dirent) -> Dirent:
    """Returns an entry of the leader's with the attributes that are known here; with none, where those of the leader may be old."""
    if entry.attr is None:
        return entry
    attr = names.attr(entry.ino)
    if attr is None and not question.is_older(names.rows.inode_key(entry.ino)):
        attr = entry.attr
    return Dirent(entry.name, entry.ino, entry.kind, entry.cookie, attr)


def _set_atime(atime_ns: int, row: rows.InodeRow) -> None:
    row.atime_ns = atime_ns


_CHANGING: dict[type, Callable[[Any], list[int]]] = {
    c.SetAttr: lambda command: [command.ino],  # of its size
    c.Fallocate: lambda command: [command.ino],
    c.Draw: lambda command: [command.ino],
    c.CopyRange: lambda command: [*dict.fromkeys((command.ino, command.new_ino))],
}


def _only_number(ino: int, kind: int = stat.S_IFREG) -> Attr:
    return Attr(ino, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def answer_again(record: c.DecidedRecord) -> m.Reply:
    """Returns the answer to a request whose record is applied.  The attributes of what is gone say that; others are to be asked for."""
    command = record.command
    if isinstance(command, (c.Create, c.Tmpfile)):
        kind = stat.S_IFMT(command.mode) if isinstance(command, c.Create) else stat.S_IFREG
        return m.Found(_only_number(record.ino, kind), _only_number(command.parent, stat.S_IFDIR), True)
    if isinstance(command, c.Link):
        return m.Found(_only_number(command.ino), _only_number(command.parent, stat.S_IFDIR), True)
    if isinstance(command, (c.Unlink, c.Rmdir)):
        kind = stat.S_IFDIR if isinstance(command, c.Rmdir) else stat.S_IFREG
        return m.Removed(_only_number(record.leads_to[0], kind), _only_number(command.parent, stat.S_IFDIR))
    if isinstance(command, c.Rename):
        source, target = record.leads_to
        parents = _only_number(command.parent, stat.S_IFDIR), _only_number(command.new_parent, stat.S_IFDIR)
        replaced = _only_number(target) if target else None
        return m.Renamed(_only_number(source), replaced, *parents, _only_number(record.ino, stat.S_IFCHR) if record.ino else None)
    if isinstance(command, c.ReleaseOrphan):
        return m.Done()
    assert isinstance(command, (c.SetAttr, c.SetXattr, c.RemoveXattr)), f"a mount decides no {type(command).__name__}"
    return m.Found(_only_number(command.ino))
