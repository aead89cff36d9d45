"""A mount that shares its volume decides names of what it holds under write leases; all else is the leader's, as ever.

There are two ways for a change, and no third:

* *Decided here*, if the write lease of every inode that it touches is held, nobody asks for one of them, and no change of this mount is
  under way at the leader.
* *The leader's* otherwise.  It is sent when the leader has all records, and nothing is decided until it is answered: what could be decided
  meanwhile goes to the leader as well.  So nobody waits for a turn here, and records and changes of the leader never cross.  A change of
  which all inodes are known by number (bytes of a file, a write without a lease) keeps decisions off these inodes only.

*The rows that are known here are those of inodes that are held.*  They are forgotten before a lease is given back, in any way; what comes
with an answer of other inodes is not believed.  So whatever the rules can be run over is true.

A question is answered from these rows, or by the leader, once it has all records of the inodes in question.  If a record has since touched
what the answer tells of, it is asked again as a change of the leader's is.  While a change of this mount is on its way to the leader, rows
that are held still answer, as things were before: nobody else is told of it before that lease is recalled.

*A recall* marks the lease first (held_leases.py), so nothing more is decided of the inode.  It goes on when the leader has the newest
record that touches it, and its rows are forgotten.  It waits for the shipper alone, and the shipper for no lease.

*A lost session* ends every lease: others may have changed anything since.  What the leader has not applied is put aside, all of it, and
nothing more is decided by this worker; if all was applied, it goes on.

Leases are asked for when a directory or file is missed a second time, and nobody waits for them.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import LEASE_WRITE, Attr
from awsomefsd.base.wait import Resume, Wait, block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.held_leases import FIRST_CHANGES, FIRST_EPOCH
from awsomefsd.meta.client.leases import DecidingLeases
from awsomefsd.meta.state import keys
from awsomefsd.vfs.state.delegated_names import Again, DelegatedNames, as_held, give, named
from awsomefsd.vfs.state.held_names import HeldNames
from awsomefsd.vfs.state.overlay_state import Missing, Question
from awsomefsd.vfs.state.started import Sending, Started

MISSES_MAX = 4_096  # inodes that are remembered as missed
_LEASED = m.Leased(0, 0, LEASE_WRITE, FIRST_EPOCH, FIRST_CHANGES, False)  # of what a record makes; term 0: no leader's answer says so


class SharedNames(DelegatedNames):
    """DelegatedNames of a mount that shares its volume.  `leases` is set before `begin`."""

    leases: DecidingLeases

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._leading = 0  # changes under way at the leader, of inodes that are not all known
        self._led: Counter[int] = Counter()  # inodes that the leader is changing
        self._missed: dict[int, None] = {}

    # --- what is decided here ----------------------------------------------------------------------------------------------
    def _holds(self, inos: Iterable[int]) -> bool:
        named = list(inos)
        if self._is_held(named):
            return True
        if not self._leading:
            for ino in named:
                if not self.leases.may_decide(ino):
                    self._miss(ino)
        return False

    def _is_held(self, inos: Iterable[int]) -> bool:
        return not self._leading and all(self.leases.may_decide(ino) and not self._led[ino] for ino in inos)

    def _miss(self, ino: int) -> None:
        """A lease costs the leader an entry, and others a recall: an inode that is changed once is not worth it."""
        if ino in self._missed:
            self.leases.want_to_decide(ino)
        elif len(self._missed) < MISSES_MAX:
            self._missed[ino] = None
        else:
            self._missed = {ino: None}

    def _is_ours(self, record: c.DecidedRecord, touched: list[int]) -> bool:
        if record.ino and not self.leases.may_make:
            return False
        return self._holds(ino for ino in touched if ino != record.ino) and not self._moves_directory(record)

    def _moves_directory(self, record: c.DecidedRecord) -> bool:
        """The rule against loops reads ancestors that others may move."""
        command = record.command
        if not isinstance(command, c.Rename) or command.parent == command.new_parent:
            return False
        attrs = [None if self._names is None else self._names.attr(ino) for ino in record.leads_to if ino]
        return any(attr is None or stat.S_ISDIR(attr.mode) for attr in attrs)

    def _note_made(self, record: c.DecidedRecord, reply: Any) -> None:
        if record.ino and isinstance(reply, m.Found):
            self.leases.made_here(record.ino)
            reply.leased = _LEASED

    def _believed(self, missing: Missing, found: list[tuple[bytes, bytes | None]]) -> list[tuple[bytes, bytes | None]]:
        """Rows of what was asked for, and so held when it was asked; of what was given back since, the question knows."""
        held = missing.inodes()
        return [row for row in found if keys.first_u64(row[0]) in held]

    def _fetch(self, names: HeldNames, missing: Missing, resume: Resume) -> None:
        with self.lock:
            question = names.rows.ask() if self._is_held(missing.inodes()) else None
        if question is None:
            resume(None, None)  # what waits for the rows looks again
        else:
            self._fetch_page(names, missing, question, [], resume)

    # --- what is the leader's ----------------------------------------------------------------------------------------------
    def propose(self, command: Any, unique: int, token: tuple[int, int] | None = None) -> Wait:
        if self._names is not None:
            send = Sending(partial(self._metadata.propose, command, unique, token))
            if isinstance(command, c.ReleaseOrphan):
                return Started(partial(self._change, command.inos, send), send)
            if isinstance(command, c.WriteData):
                return Started(partial(self._change, [command.ino], send), send)
            if isinstance(command, c.Commit) and not all(step.lease for step in command.inodes):
                return Started(partial(self._change, [step.ino for step in command.inodes], send), send)
        return super().propose(command, unique, token)

    def _synchronous(self, command: Any, send: Callable[[], Wait], resume: Resume) -> None:
        with self.lock:
            self._leading += 1
            newest = self._newest_of_all()
        sending = _Noted(send)

        def answered(reply: Any, error: BaseException | None) -> None:
            with self.lock:
                self._leading -= 1
                if sending.begun:
                    self._forget([*named(command), *_told(reply)])
                resume(reply, error)

        self._behind(newest, sending, answered)

    def _change(self, inos: list[int], send: Callable[[], Wait], resume: Resume) -> None:
        with self.lock:
            self._led.update(inos)
            newest = self._newest_of_all()
        sending = _Noted(send)

        def answered(reply: Any, error: BaseException | None) -> None:
            with self.lock:
                for ino in inos:
                    self._led[ino] -= 1
                    if not self._led[ino]:
                        del self._led[ino]
                if sending.begun:
                    self._forget(inos)
                resume(reply, error)

        self._behind(newest, sending, answered)

    def _newest_of_all(self) -> int:
        """Returns the newest record that is not applied, as the log or the rows know: the log hears of an answer first."""
        newest = self._log.newest_unapplied()
        return newest if self._names is None else max(newest, self._names.rows.newest)

    def _forget(self, inos: Iterable[int]) -> None:
        if self._names is not None:
            for ino in inos:
                self._names.rows.forget(ino)

    # --- questions ---------------------------------------------------------------------------------------------------------
    def _answer(self, body: Any, resume: Resume) -> None:
        with self.lock:
            names, wanted = self._names, None
            if names is not None:
                try:
                    known = names.ask(body)
                    if not isinstance(known, m.Found) or known.attr.nlink:
                        give(resume, known)
                        return
                    # without a name it is there as long as any session has it open: the leader knows
                except Missing as missing:
                    wanted = missing if self._is_held(missing.inodes()) else None
        if names is None:
            self._metadata.ask(body).start(resume)
        elif wanted is not None:
            self._after(Started(partial(self._fetch, names, wanted)), resume, lambda: self._answer(body, resume))
        else:
            self._ask_leader(names, body, resume)

    def _list(self, body: m.ReadDir, resume: Resume) -> None:
        """A page of a directory; of one that is not known whole the leader's."""
        with self.lock:
            names = self._names
            if names is not None:
                names.listed(body.ino)
                with suppress(Missing):
                    give(resume, names.ask_rows(body))
                    return
        if names is None:
            self._metadata.ask(body).start(resume)
        else:
            self._ask_leader(names, body, resume)

    def _ask_leader(self, names: HeldNames, body: Any, resume: Resume, *, waited: bool = False) -> None:
        inos = named(body)
        with self.lock:
            newest = max(map(names.rows.newest_of, inos), default=0)
            question = names.rows.ask() if not newest else None
        if question is not None:
            self._metadata.ask(body).start(partial(self._asked, names, body, question, resume))
        elif waited:
            self._ask_alone(body, resume)
        else:
            self._after(self.shipper.wait(newest), resume, lambda: self._ask_leader(names, body, resume, waited=True))

    def _asked(self, names: HeldNames, body: Any, question: Question, resume: Resume, reply: Any, error: BaseException | None) -> None:
        with self.lock:
            is_old = any(names.rows.was_touched(question, ino) for ino in {*named(body), *_told(reply)})
            if isinstance(reply, m.Entries):
                reply.entries = [as_held(names, question, entry) for entry in reply.entries]
            names.rows.give_up(question)
            if not is_old:
                resume(reply, error)
                return
        self._ask_alone(body, resume)

    def _ask_alone(self, body: Any, resume: Resume) -> None:
        """Asks as the leader changes: nothing is decided until it has answered."""
        with self.lock:
            self._leading += 1
            newest = self._newest_of_all()

        def answered(reply: Any, error: BaseException | None) -> None:
            with self.lock:
                self._leading -= 1
                resume(reply, error)

        self._behind(newest, partial(self._metadata.ask, body), answered)

    # --- leases that go ----------------------------------------------------------------------------------------------------
    def let_go(self, ino: int, mode: int, done: Again) -> None:
        """Handles a recall: when the leader has what was decided of the inode, nothing is known of it here.  Does not block.

        A recall of an earlier leader is void, and the lease is still held: more may be decided until the next leader asks.  Then rows stay.
        """
        with self.lock:
            names = self._names
            newest = self._newest_of_all() if names is None else names.rows.newest_of(ino)

        def gone(_value: Any, _error: BaseException | None) -> None:
            with self.lock:
                if self.is_told(ino):
                    self._forget([ino])
            done()

        if newest:
            self.shipper.wait(newest).start(gone)
        else:
            gone(None, None)

    def is_clean(self, ino: int) -> bool:
        """Returns whether the leader has what was decided of an inode of which nothing is decided now; then nothing is known of it here."""
        with self.lock:
            if not self.is_told(ino):
                return False
            self._forget([ino])
        return True

    def is_told(self, ino: int) -> bool:
        """Returns whether the leader has all that was decided of an inode."""
        with self.lock:
            return not (self._newest_of_all() if self._names is None else self._names.rows.newest_of(ino))

    def session_lost(self, applied: int, round_: int, why: str) -> None:
        """Another session was opened, and no lease is held.  Blocks until what the leader has not applied is put aside."""
        with self.lock:
            newest = self._newest_of_all()
            self._numbers.clear()
            self._missed.clear()
            if newest > applied:
                self.end()
            elif self._names is not None:  # the answer to the last batch may not be taken up yet
                self._names.rows.clear()
        if newest <= applied:
            self.shipper.goes_on(applied, round_)
            return
        self.shipper.goes_no_further(applied, round_, why)
        with suppress(FsError):  # that it was put aside
            block_on(self.shipper.wait(newest))


class _Noted:
    """A request that may never be sent: the mount ends while it waits for records, and then what is known of its inodes stays."""

    def __init__(self, send: Callable[[], Wait]) -> None:
        self._send = send
        self.begun = False

    def __call__(self) -> Wait:
        self.begun = True
        return self._send()


def _told(reply: Any) -> list[int]:
    """Returns the inodes of which an answer tells."""
    attrs = [getattr(reply, field, None) for field in ("attr", "parent", "new_parent", "replaced", "whiteout")]
    return [attr.ino for attr in attrs if isinstance(attr, Attr)]
