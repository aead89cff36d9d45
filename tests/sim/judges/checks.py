"""What must hold, looked at all the time.

The judge sees what no node sees: every entry that any node applies, with its reply, in `truth`.  An index is applied with the same entry
and the same reply everywhere and for ever (state machine safety, and with it that nothing acknowledged is lost); an acknowledged request is
in the truth with the reply that was given; a request id has one outcome.  Registers are linearizable: the log is their order, so a read
must return a value that was current at some moment between its start and its end, and nobody reads back in time.  Locks exclude each other
in true time.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable
from typing import Any
from zlib import crc32

from msgspec.structs import replace

from awsomefsd.base.codec import encode
from awsomefsd.base.errors import FsError
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.raft.types import Role
from tests.sim.judges.lease_checks import LeaseChecks
from tests.sim.judges.renewal_checks import RenewalChecks
from tests.sim.names.judge import NamesJudge
from tests.sim.world import World


class _Watched(Machine):
    """The production machine, observed."""

    __slots__ = ("_checks", "_node")

    def __init__(self, txn: Any, checks: Checks, node: Any) -> None:
        super().__init__(txn, node.build)
        self._checks, self._node = checks, node

    def apply(self, entry: c.Entry) -> m.Reply:
        fresh = entry.index > self.applied_index
        if fresh and entry.index != self.applied_index + 1:
            raise self._checks.world.broken(f"{self._node.name} applies {entry.index} after {self.applied_index}")
        reply = super().apply(entry)
        if fresh:
            self._checks.applied(self._node, entry, reply)
        return reply


class HandedOut:
    """Numbers that are told to somebody once: sessions, inodes, and incarnations of segments."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.judging = True
        self._seen: set[tuple[Any, ...]] = set()

    def look(self, entry: c.Entry, reply: m.Reply) -> None:
        numbers: list[tuple[Any, ...]] = []
        if isinstance(reply, m.SegmentsLeased):
            numbers = [("segment", info.segment, info.incarnation) for info in reply.segments]
        elif isinstance(reply, m.SessionOpened) and not reply.resumed:
            numbers = [("session", reply.session)]
        elif isinstance(reply, m.Found) and reply.created and not isinstance(entry.command, c.Link):
            numbers = [("inode", getattr(entry.command, "volume", 0), reply.attr.ino)]
        for number in numbers:
            if number in self._seen and self.judging:
                raise self.world.broken(f"handed out twice: {number}, with entry {entry.index}: {entry.command}")
            self._seen.add(number)


def _answer(reply: m.Reply) -> m.Reply:
    """Without the grant, which the leader numbers anew for each answer."""
    return replace(reply, leased=None) if isinstance(reply, m.Found) and reply.leased is not None else reply


class Checks:
    def __init__(self, world: World) -> None:
        self.world = world
        self.truth: list[tuple[int, int, int]] = []  # entry i + 1: term, checksum of the entry, of the reply
        self._outcomes: dict[tuple[int, int], tuple[int, bytes, int]] = {}  # request id → index, encoded reply, session
        self._invoked: dict[tuple[int, int], int] = {}  # request id → index that was acknowledged when it began
        self._known = 0  # index of the newest entry that anybody outside was told about
        self._values: dict[int, tuple[int, int]] = {}  # value → register, index
        self._writes: dict[int, list[int]] = {}  # register → indexes of its writes
        self._next_value = 100
        self._locks: dict[Any, dict[tuple[int, int], int]] = {}
        self._voters: dict[str, Any] = {}
        self._leaders: dict[int, str] = {}  # term → member
        self._entries: dict[tuple[int, int], tuple[int, int]] = {}  # (index, term) → checksum, term of the entry before
        self._sessions: dict[int, Any] = {}  # session → its mount
        self._boots: dict[int, tuple[str, str]] = {}  # session → node and its boot
        self.ended: set[int] = set()  # sessions
        self.leases = LeaseChecks(world)
        self.names: NamesJudge | None = None  # of mounts that decide names
        self.renewals = RenewalChecks(world)
        self.handed_out = HandedOut(world)
        self.turned: Callable[[], None] = lambda: None  # after each turn of any node

    def machine_of(self, node: Any) -> Any:
        return lambda txn: _Watched(txn, self, node)

    # --- the log ---------------------------------------------------------------------------------------------------------------
    def applied(self, node: Any, entry: c.Entry, reply: m.Reply) -> None:
        encoded = encode(reply)
        mine = (entry.term, crc32(encode(entry)), crc32(encoded))
        index = entry.index
        if index <= len(self.truth):
            if self.truth[index - 1] != mine:
                raise self.world.broken(f"{node.name} applies another entry {index} (term {entry.term}) than others did: {entry}, {reply}")
            return
        if index != len(self.truth) + 1:
            raise self.world.broken(f"{node.name} applies entry {index}, nobody has applied {len(self.truth) + 1}")
        if self.truth and entry.term < self.truth[-1][0]:
            raise self.world.broken(f"{node.name} applies entry {index} of term {entry.term} after one of term {self.truth[-1][0]}")
        self.truth.append(mine)
        self.world.digest = crc32(encoded, self.world.digest)
        self._observe(entry, reply, encode(_answer(reply)))

    def _observe(self, entry: c.Entry, reply: m.Reply, encoded: bytes) -> None:
        command = entry.command
        kept = not (isinstance(reply, m.Failed) and (reply.retry or reply.errno == errno.ESTALE))
        kept = kept and not isinstance(command, c.Apply)  # once by the sequences of its records
        if entry.mount and entry.unique != HOST_UNIQUE and kept:
            first = self._outcomes.setdefault((entry.mount, entry.unique), (entry.index, encoded, entry.session))
            if first[1] != encoded:
                request = f"{entry.mount:x}/{entry.unique}"
                raise self.world.broken(f"request {request} was applied twice, as entries {first[0]} and {entry.index}: {command}")
            if first[0] != entry.index:
                return
        self.leases.applied(entry, reply)
        if self.names is not None:
            self.names.applied(entry, reply)
        self.handed_out.look(entry, reply)
        if isinstance(command, c.Recover):
            self.ended.update(self._boots)
            self._have_ended([*self._boots])
        if isinstance(command, c.SetVolume) and isinstance(reply, m.Done):
            self._values[command.quota_inodes] = (command.volume, entry.index)
            self._writes.setdefault(command.volume, []).append(entry.index)
        elif isinstance(command, c.EndSession) and isinstance(reply, m.Done):
            self._session_ended(command.session)
        elif isinstance(command, c.OpenSession) and isinstance(reply, m.SessionOpened):
            ended = [other for other, (node, was) in self._boots.items() if node == command.node and was != command.boot_id]
            self.ended.update(ended)
            self._have_ended(ended)
            self._boots[reply.session] = (command.node, command.boot_id)

    def rewind(self, index: int) -> None:
        """A majority is lost for good: what it committed behind this entry is no part of the log any more."""
        del self.truth[index:]
        self._outcomes = {request: outcome for request, outcome in self._outcomes.items() if outcome[0] <= index}
        self._values = {value: (register, at) for value, (register, at) in self._values.items() if at <= index}
        self._writes = {register: [at for at in indexes if at <= index] for register, indexes in self._writes.items()}
        self._known = min(self._known, index)
        self._locks.clear()

    # --- raft ------------------------------------------------------------------------------------------------------------------
    def opened(self, node: Any, voter: Any) -> None:
        self._voters[node.name] = voter

    def after_turn(self, node: Any) -> None:
        """Election safety and leader completeness, when a node has come to lead."""
        voter = self._voters.get(node.name)
        if voter is None or node.replica is None or node.replica.log is not voter:
            return
        raft = voter._raft
        if raft.role is not Role.LEADER:
            return
        known = self._leaders.get(raft.term)
        if known == raft.id:
            return
        if known is not None:
            raise self.world.broken(f"{raft.id} and {known} lead in term {raft.term}")
        self._leaders[raft.term] = raft.id
        self.world.count("leaderships")
        self.world.say(f"{node.name} leads in term {raft.term}")
        for index in range(max(raft.log.first_index, 1), len(self.truth) + 1):
            if raft.log.term(index) != self.truth[index - 1][0]:
                raise self.world.broken(f"the leader of term {raft.term}, {node.name}, lacks the committed entry {index}")

    def journaled(self, term: int, first: int, before: int, payloads: list[bytes]) -> None:
        """Log matching: one entry and one predecessor for each (index, term), by whomever it is written."""
        if not self._voters:
            return  # a single voter writes what it lost unsynced again, in its only term
        for index, payload in enumerate(payloads, first):
            mine = (crc32(payload), before)
            if self._entries.setdefault((index, term), mine) != mine:
                raise self.world.broken(f"two different entries {index} of term {term}, or with different ones before them")
            before = term

    def acknowledges(self, node: Any, index: int) -> None:
        """An AppendReply is a promise: its entries are in the sender's journal, and no power cut takes them."""
        journal, unsynced = node.replica.log._journal, node.disk.unsynced(".journal")
        if journal.last_index < index or unsynced:
            has = f"its journal ends with {journal.last_index}, unsynced: {unsynced}"
            raise self.world.broken(f"{node.name} acknowledges entry {index}; {has}")

    # --- requests ----------------------------------------------------------------------------------------------------------------
    def invoked(self, mount: int, unique: int, command: c.Command) -> None:
        self._invoked[(mount, unique)] = self._known

    def acknowledged(self, mount: int, unique: int, outcome: Any) -> None:
        found = self._outcomes.get((mount, unique))
        if isinstance(outcome, FsError) and found is None and outcome.errno in (errno.ENOLCK, errno.EINTR):
            return  # of the leader's memory
        if found is None:
            raise self.world.broken(f"request {mount:x}/{unique} was acknowledged ({outcome!r}) and is not in the log")
        index, encoded, _ = found
        expected = m.Answer(0, outcome).reply if not isinstance(outcome, FsError) else None
        if expected is not None and encode(_answer(expected)) != encoded:
            raise self.world.broken(f"request {mount:x}/{unique}: the answer {outcome} is not that of entry {index}")
        if index <= self._invoked[(mount, unique)]:
            raise self.world.broken(f"request {mount:x}/{unique} took effect as entry {index}, before it was made")
        self._known = max(self._known, index)

    # --- registers -----------------------------------------------------------------------------------------------------------------
    def new_value(self) -> int:
        self._next_value += 1
        return self._next_value

    def told(self, value: int) -> None:
        """Somebody was told that this value was written."""
        self._known = max(self._known, self._values[value][1])

    def before_read(self) -> int:
        return self._known

    def after_read(self, mount: Any, register: int, value: int, before: int) -> None:
        writes = self._writes.get(register, [])
        position = bisect_right(writes, before)
        least = writes[position - 1] if position else 0
        of, index = self._values.get(value, (register, 0)) if value else (register, 0)
        if (value and value not in self._values) or of != register:
            raise self.world.broken(f"{mount.host.name} read {value} from register {register}, where nobody wrote it")
        if index < least:
            raise self.world.broken(f"{mount.host.name}: stale read of register {register}: entry {index}, known was {least}")
        self._known = max(self._known, index)
        self.world.count("register reads")

    # --- sessions and locks ----------------------------------------------------------------------------------------------------------
    def session_opened(self, mount: Any, reply: m.SessionOpened) -> None:
        self._sessions[reply.session] = mount
        self.world.say(f"{mount.host.name}: session {reply.session} {'resumed' if reply.resumed else 'opened'}")

    def _have_ended(self, sessions: list[int]) -> None:
        self.leases.sessions_ended(sessions)
        if self.names is not None:
            self.names.sessions_ended(sessions)

    def _session_ended(self, session: int) -> None:
        """A session is ended only when its worker, by its own clock, serves no more: the lease is over in true time."""
        self.ended.add(session)
        self._have_ended([session])
        mount = self._sessions.get(session)
        if mount is not None and mount.up and mount.session == session and not mount.dead:
            left = mount.lease.left_ns(mount.host.clock.boot_ns())
            if left > 0:
                raise self.world.broken(f"session {session} is ended while {mount.host.name} may serve for another {left / 1e9:.3f} s")
            self.renewals.lost(mount, session, "ended")

    def session_lost(self, mount: Any, session: int) -> None:
        """A renewal was refused."""
        self.renewals.lost(mount, session, "refused")

    def session_refused(self, mount: Any, error: BaseException) -> None:
        if not isinstance(error, FsError) or error.errno not in (errno.EBUSY, errno.ESTALE):
            raise self.world.broken(f"{mount.host.name}: cannot open a session: {error!r}")
        self.world.say(f"{mount.host.name}: no session: {error}")

    def locked(self, key: Any, mount: Any, unique: int, owner: int, handle_session: int) -> bool:
        """A lock was granted.  False: the worker knows that its session was replaced, or may not serve, so the handle fails."""
        if mount.session != handle_session:
            return False
        session = self._outcomes[(mount.number, unique)][2]
        if session in self.ended:
            if mount.lease.left_ns(mount.host.clock.boot_ns()) > 0:
                raise self.world.broken(f"{mount.host.name} serves a lock on {key} of session {session}, which has ended")
            return False
        holders = self._locks.setdefault(key, {})
        for other in [other for other in holders if other[0] in self.ended]:
            del holders[other]
        if holders:
            raise self.world.broken(f"lock on {key}: granted to {owner} of session {session} while {sorted(holders)} hold it")
        holders[(session, owner)] = self.world.now_ns
        self.world.count("locks")
        return True

    def unlocking(self, key: Any, owner: int) -> None:
        for other in [other for other in self._locks.get(key, {}) if other[1] == owner]:
            del self._locks[key][other]
