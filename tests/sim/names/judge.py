"""What must hold between mounts that decide names of one volume, in true time.

Two models are kept.  `committed` is what the log says.  `shown` is that and, above it, what each mount has decided and the log does not
have.  A decision counts from the moment at which its record is stored, a change of the leader's from the moment at which it is applied, so
there is one order, and each answer must be what `shown` was at some moment between its question and itself.

* Records come into the log in the order in which they were decided, each once, none left out: the log has a prefix, always.
* What a mount has not shipped when its session ends is gone, and nothing of it comes into the log later.
* fsync says yes only when the log has everything; nothing that it said yes to is ever gone.
* No record is refused, and none differs, while its session lives.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.record_checks import inodes_of
from awsomefsd.vfs.state.delegated_names import named
from tests.sim.names.model import Model
from tests.sim.world import World


@dataclass
class Decided:
    """A record that the log does not have."""

    sequence: int
    unique: int
    session: int
    command: Any
    made: int
    touches: list[int]


@dataclass
class Outcome:
    """Of a request that has changed something."""

    command: Any
    ino: int
    after: Model


class NamesJudge:
    def __init__(self, world: World, volume: int) -> None:
        self.world, self.volume = world, volume
        self.committed = self.shown = Model()
        self._when: list[int] = [0]
        self._models: list[Model] = [self.shown]
        self.pending: dict[int, deque[Decided]] = {}  # by mount, in order
        self._applied: dict[int, int] = {}  # mount → newest record in the log
        self._outcomes: dict[tuple[int, int], Outcome] = {}
        self._flying: dict[tuple[int, int], tuple[int, set[int]]] = {}  # request to the leader, applied and not answered → when, what of
        self._gone: dict[int, set[int]] = {}  # mount → sequences that ended with a session
        self._ended: set[int] = set()

    def _wrong(self, what: str) -> None:
        raise self.world.broken(what)

    def _shows(self, model: Model) -> None:
        if model is not self.shown:
            self.shown = model
            self._when.append(self.world.now_ns)
            self._models.append(model)

    def _moments(self, since_ns: int) -> list[Model]:
        """All that was shown from then until now, the newest first."""
        first = max(bisect_left(self._when, since_ns) - 1, 0)
        return self._models[first:][::-1]

    # --- changes -----------------------------------------------------------------------------------------------------------
    def decided(self, mount: Any, sequence: int, record: c.DecidedRecord) -> None:
        """A mount has decided a change: it is seen there from now on."""
        command = record.command
        wrong = self.shown.errors(command)
        if wrong and not isinstance(command, c.SetAttr):  # an inode without names may be there for those who have it open
            self._wrong(f"{mount.host.name} decided {command}, but {[errno.errorcode[number] for number in wrong]}")
        if mount.session in self._ended:
            self._wrong(f"{mount.host.name} decided {command} under session {mount.session}, which has ended")
        self._leads_to(mount.host.name, record, self.shown)
        found = Decided(sequence, record.unique, mount.session, command, record.ino, inodes_of(record))
        self.pending.setdefault(mount.number, deque()).append(found)
        ino = _ino_of(command, record.ino, self.shown)
        self._shows(self.shown.after(command, record.ino))
        self._outcomes[(mount.number, record.unique)] = Outcome(command, ino, self.shown)
        self.world.count("names decided")

    def _leads_to(self, who: str, record: c.DecidedRecord, model: Model) -> None:
        command = record.command
        if isinstance(command, (c.Unlink, c.Rmdir, c.Rename)):
            found = [model.find(command.parent, command.name)]
            if isinstance(command, c.Rename):
                found.append(model.find(command.new_parent, command.new_name))
            if record.leads_to != found:
                self._wrong(f"{who}: {command} leads to {record.leads_to}; it is {found}")

    def applied(self, entry: c.Entry, reply: m.Reply) -> None:
        """An entry of the log, when it is applied first."""
        command = entry.command
        if getattr(command, "volume", 0) != self.volume or isinstance(reply, m.Failed):
            return
        if isinstance(command, c.Apply):
            assert isinstance(reply, m.Applied)
            self._batch(entry, command, reply)
        elif isinstance(command, (c.Create, c.Link, c.Unlink, c.Rmdir, c.Rename, c.SetAttr)):
            self._leaders(entry, command, reply)

    def _batch(self, entry: c.Entry, command: c.Apply, reply: m.Applied) -> None:
        if (reply.refused and not reply.retry) or reply.differs:
            self._wrong(f"session {entry.session}: record {reply.refused or reply.differs} was refused or differs: {reply}")
        pending = self.pending.setdefault(entry.mount, deque())
        for record in command.records:
            if not self._applied.get(entry.mount, 0) < record.sequence <= reply.applied:
                continue
            first = pending[0] if pending else None
            if first is None or (first.sequence, first.command, first.made) != (record.sequence, record.command, record.ino):
                self._wrong(f"session {entry.session}: record {record.sequence} is in the log, the next of this mount is {first}: {record}")
            assert first is not None
            if first.session != entry.session:
                self._wrong(f"record {record.sequence} of session {first.session} was taken under session {entry.session}")
            pending.popleft()
            self._leads_to(f"session {entry.session}", record, self.committed)
            self.committed = self.committed.after(record.command, record.ino)
            self._applied[entry.mount] = record.sequence
            self.world.count("records applied")
        if reply.applied > self._applied.get(entry.mount, 0):
            self._wrong(f"session {entry.session}: records up to {reply.applied} are in the log, of {command.records}")

    def _leaders(self, entry: c.Entry, command: Any, reply: Any) -> None:
        made = reply.attr.ino if isinstance(command, c.Create) else 0
        if isinstance(command, c.SetAttr) and not reply.attr.nlink:
            return  # as in `decided`
        for what, model in (("is shown", self.shown), ("is in the log", self.committed)):
            wrong = model.errors(command)
            if wrong:
                names = [errno.errorcode[number] for number in wrong]
                self._wrong(f"the leader did {command} for session {entry.session}, but by what {what}: {names}")
        self.committed = self.committed.after(command, made)
        ino, replaced = _ino_of(command, made, self.shown), 0
        if isinstance(command, c.Rename):
            replaced = self.shown.find(command.new_parent, command.new_name)
        self._shows(self.shown.after(command, made))
        outcome = Outcome(command, ino, self.shown)
        self._flying[(entry.mount, entry.unique)] = self.world.now_ns, {*named(command), ino, replaced}
        self._outcomes[(entry.mount, entry.unique)] = outcome
        self._fits(f"entry {entry.index}", outcome, reply, again=False)
        self.world.count("names changed by the leader")

    def sessions_ended(self, sessions: Iterable[int]) -> None:
        """What they have not shipped never was, for anybody else."""
        ended = set(sessions)
        self._ended |= ended
        lost = 0
        for mount, pending in self.pending.items():
            kept = deque(one for one in pending if one.session not in ended)
            gone = [one for one in pending if one.session in ended]
            lost += len(gone)
            self._gone.setdefault(mount, set()).update(one.sequence for one in gone)
            for one in gone:
                self._outcomes.pop((mount, one.unique), None)
            self.pending[mount] = kept
        if lost:
            self.world.count("records lost with their session", lost)
            model = self.committed
            for pending in self.pending.values():
                for one in pending:
                    model = model.after(one.command, one.made)
            self._shows(model)

    # --- answers -----------------------------------------------------------------------------------------------------------
    def answered(self, mount: Any, unique: int, command: Any, since_ns: int, reply: Any, error: Any, again: bool) -> None:
        """The program was told.  `again`: by a successor, which may have had the answer from the log."""
        outcome = self._outcomes.pop((mount.number, unique), None)
        self._flying.pop((mount.number, unique), None)
        who = f"{mount.host.name}, request {unique}"
        self.world.count("names answered")
        if error is not None and error.errno == errno.EIO:
            self._may_be_eio(mount, who)
        elif outcome is not None:
            if error is not None:
                self._wrong(f"{who}: {command} has happened, and {error!r} is told")
            self._fits(who, outcome, reply, again=again)
        elif error is None:
            if not any(_is_nothing(model, command) for model in self._moments(since_ns)):
                self._wrong(f"{who}: {command} has not happened, and is answered {reply}")
        elif not any(error.errno in model.errors(command) for model in self._moments(since_ns)):
            self._wrong(f"{who}: {command} is told {error!r}, which fits nothing since then")

    def _may_be_eio(self, mount: Any, who: str) -> None:
        if not self._gone.get(mount.number):
            self._wrong(f"{who}: EIO, and nothing of this mount was lost")
        self.world.count("told EIO")

    def _fits(self, who: str, outcome: Outcome, reply: Any, *, again: bool) -> None:
        attr = reply.attr
        told_replaced = getattr(reply, "replaced", None)
        if attr.ino != outcome.ino:
            self._wrong(f"{who}: {outcome.command} is answered with inode {attr.ino}, it was {outcome.ino}")
        file = outcome.after.files.get(attr.ino)
        if again or (file is None and told_replaced is None):
            return
        if file is not None and (attr.nlink, attr.mode & 0o7777, attr.size) != (file.links, file.mode, file.size):
            self._wrong(f"{who}: {outcome.command} is answered with {attr}; it is {file}")

    def asked(self, mount: Any, body: Any, since_ns: int, reply: Any, error: Any) -> None:
        """A question was answered.

        A mount that holds what it changes at the leader may show it as it was until it has that answer: nobody else is told before.
        """
        if error is not None and error.errno == errno.EIO:
            self._may_be_eio(mount, f"{mount.host.name}, {body}")
            return
        fits = _QUESTIONS[type(body)]
        number = 0 if error is None else error.errno
        inos = {*named(body), reply.attr.ino} if isinstance(reply, m.Found) else set(named(body))
        own = [when for (number_of, _), (when, of) in self._flying.items() if number_of == mount.number and not of.isdisjoint(inos)]
        since_ns = min([since_ns, *own])
        if not any(fits(model, body, reply, number) for model in self._moments(since_ns)):
            raise self.world.broken(f"{mount.host.name}: {body} is answered {reply} {error!r}; asked at {since_ns}, it is {self.shown}")
        self.world.count("questions of names")

    # --- fsync -------------------------------------------------------------------------------------------------------------
    def syncing(self, mount: Any) -> list[Decided]:
        return list(self.pending.get(mount.number, ()))

    def synced(self, mount: Any, ino: int, wanted: list[Decided], begun: list[Decided], error: Any) -> None:
        """An fsync of an inode ends.  `wanted`: what the log did not have when it was asked, `begun`: when the worker began with it.

        What was lost in between (it waited for a successor, or for a session) is told by the inodes that it touched.
        """
        gone = self._gone.get(mount.number, set())
        if error is not None:
            if error.errno != errno.EIO or not gone:
                self._wrong(f"{mount.host.name}: fsync fails with {error!r}")
            self.world.count("fsyncs told of a loss")
            return
        newest = self._applied.get(mount.number, 0)
        before = [one for one in wanted if one.sequence not in gone or ino in one.touches]
        missing = [one for one in (*before, *begun) if one.sequence in gone or one.sequence > newest]
        if missing:
            self._wrong(f"{mount.host.name}: fsync of {ino} says yes, and the log does not have {missing}")
        self.world.count("fsyncs")

    def at_rest(self) -> None:
        left = {mount: list(pending) for mount, pending in self.pending.items() if pending}
        if left or (self.committed.directories, self.committed.files) != (self.shown.directories, self.shown.files):
            self._wrong(f"at rest the log does not have what is shown: {left}")


def _ino_of(command: Any, made: int, before: Model) -> int:
    if isinstance(command, c.Create):
        return made
    return int(command.ino) if isinstance(command, (c.SetAttr, c.Link)) else before.find(command.parent, command.name)


def _is_nothing(model: Model, command: Any) -> bool:
    """Says whether it may be done without an outcome here."""
    if isinstance(command, c.SetAttr):
        return not model.knows(command.ino)
    if not isinstance(command, c.Rename):
        return False
    found = model.find(command.parent, command.name)
    return bool(found) and found == model.find(command.new_parent, command.new_name)


def _fits_lookup(model: Model, body: m.Lookup, reply: Any, number: int) -> bool:
    found = model.find(body.parent, body.name)
    return not found if number == errno.ENOENT else not number and reply.attr.ino == found and model.fits(reply.attr)


def _fits_attr(model: Model, body: m.GetAttr, reply: Any, number: int) -> bool:
    """An inode without names may be there for those who have it open."""
    if number == errno.ENOENT or (not number and not reply.attr.nlink):
        return not model.knows(body.ino)
    return not number and model.fits(reply.attr)


def _fits_list(model: Model, body: m.ReadDir, reply: Any, number: int) -> bool:
    names = model.directories.get(body.ino)
    if number or names is None:
        return names is None and (number == errno.ENOENT or not reply.entries)
    return {entry.name: entry.ino for entry in reply.entries} == names


_QUESTIONS: dict[type, Callable[[Model, Any, Any, int], bool]] = {m.Lookup: _fits_lookup, m.GetAttr: _fits_attr, m.ReadDir: _fits_list}
