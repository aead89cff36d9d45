"""What the metadata service does with a request, whoever sent it and however: no sockets here, and time is told by injected clocks.

One turn: the transport hands in every request that is ready (`handle`), then calls `run`.  Queries are answered from the open
transaction, which holds exactly what is applied, so nothing is seen before it is durable; at once by a single voter, else when a quorum
has said that this node still leads (leader_reads.py).  Proposals are collected and become one batch: one journal sync, then they are
applied in order, when they are committed, and answered.  Everything runs on one thread; between two calls nothing changes.

The order inside a request that was sent again matters: first the stored result, then admission.  A worker that is refused for holding too
many results must still get the ones it lost, and the acknowledgements on a refused proposal are counted as if they had been applied.

Leadership is a scope.  It begins with the clock of the newest entry, a full TTL for every session, and nobody waiting; it ends with every
open request answered NotLeader (the client asks the next leader under the same id; the daemon's own proposals, which have none, are told
that their outcome is unknown) and every connection of a mount closed.  Only a leader ends sessions, reaps and grants waiting locks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from awsomefsd.clock import HybridClock
from awsomefsd.errors import NotLeading, ProtocolError, Unavailable
from awsomefsd.limits import BATCH_ENTRIES_MAX, READS_PARKED_MAX, REAP_EXTENTS_PER_ENTRY, SESSION_TTL_MS
from awsomefsd.meta.commands import (
    UNPROPOSED_COMMANDS,
    AcquireLease,
    Create,
    DeleteVolume,
    EndSession,
    Entry,
    KeepSegments,
    LeaseSegments,
    OpenCollector,
    OpenSession,
    OpenShared,
    Reap,
    ReleaseLease,
    ReleaseOrphan,
    SetLock,
    Tmpfile,
)
from awsomefsd.meta.device_messages import ReportDevices
from awsomefsd.meta.leader_desk import Desk
from awsomefsd.meta.leader_leases import LeaseDesk
from awsomefsd.meta.leader_locks import LockDesk
from awsomefsd.meta.leader_proposals import Proposals
from awsomefsd.meta.leader_reads import Reads
from awsomefsd.meta.lease_keys import QUESTIONS
from awsomefsd.meta.messages import (
    Body,
    Cancel,
    Done,
    Failed,
    Follow,
    GetDevices,
    GetStatus,
    Hello,
    NotLeader,
    Propose,
    Renew,
    Reply,
    SessionOpened,
    Status,
    WaitLock,
)
from awsomefsd.meta.node_messages import GetNode, ListNodes, NodeReport
from awsomefsd.meta.renewals import CHECK_MS, Renewals
from awsomefsd.meta.replica import AppliedMachine, Replica
from awsomefsd.meta.traffic import Asked
from awsomefsd.meta.waiting import LockWaiters, Origin, Silent, Waiter
from awsomefsd.types import HOST_UNIQUE, Lock, is_node_mount

Answer = Callable[[AppliedMachine, Body], Reply]
_MS = 1_000_000
REAP_PAUSE_MS = 20  # between two Reap entries, or three times what one took if that is longer
_RETRY = Failed(errno.EAGAIN, "not committed, send it again", True)
_UNKNOWN = Failed(errno.EAGAIN, "this node stopped leading before it was known whether that was committed", True)
_WATCHED = frozenset({OpenSession, OpenShared, OpenCollector, EndSession, ReleaseOrphan, DeleteVolume})
_LEASING = frozenset({AcquireLease, ReleaseLease, Create, Tmpfile})


class Leader:
    def __init__(
        self,
        replica: Replica,
        answer: Answer,
        *,
        cluster_uuid: str,
        site: int,
        device_paths: Callable[[], dict[str, str]],
        boot_ns: Callable[[], int],
        wall_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        transport_figures: Callable[[], dict[str, int]] = dict,
        address_of: Callable[[str], str] = lambda node: "",
        session_ttl_ms: int = SESSION_TTL_MS,
    ) -> None:
        self._replica = replica
        self._answer = answer
        self._site = site
        self._boot_ns = boot_ns
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._transport_figures = transport_figures
        self._address_of = address_of
        self._leads = False
        self._term = 0  # of the leadership
        self._plain = False  # leads, and every connection may ask
        self._alone = False  # leads for ever: nothing comes out of the log but what was put in
        self._clock = HybridClock(replica.machine.last_stamp, wall_ns)
        self._renewals = Renewals(session_ttl_ms)
        self._waiters = LockWaiters()
        self._locks = LockDesk(self._waiters, self._in_the_way, self._enter_lock, lambda: self.full)
        self._reads = Reads(replica.log)
        self._desk = Desk(replica, cluster_uuid, device_paths, monotonic_ns, self.enter_own)
        self._proposals = Proposals()
        self._leases = LeaseDesk(lambda: replica.machine, self._renewals, boot_ns, self._enter_lease)
        self._nobody = Silent()
        self._asked = Asked()
        self._check_ns = 0  # boot time of the next check of sessions
        self._reap_ns = 0  # monotonic time before which no Reap is proposed
        self._reaping = True  # there may be something to reap; looked at after a pause, not in every turn
        self.expired = 0
        self._handlers = self._table()
        self._notice()

    def _table(self) -> dict[type, Callable[[Origin, int, Any, int], None]]:
        """Requests that are more than a look at the state."""
        return {
            Propose: self._propose,
            WaitLock: self._wait_lock,
            Renew: self._renew,
            Cancel: self._locks.cancel,
            Follow: lambda origin, call, body, size: self._desk.follow(origin, call, body, _RETRY),
            GetStatus: self._status,
            **dict.fromkeys((GetDevices, NodeReport, ListNodes, GetNode, ReportDevices), self._completed),
            Hello: self._hello,
            **self._desk.handlers(),
            **self._leases.handlers(),
        }

    # --- the turn --------------------------------------------------------------------------------------------------------
    @property
    def full(self) -> bool:
        """No further request before `run`."""
        return len(self._proposals.batch) >= BATCH_ENTRIES_MAX or self._proposals.full or self._reads.parked >= READS_PARKED_MAX

    def handle(self, origin: Origin, call: int, body: Body, size: int) -> None:
        """One request of `size` encoded bytes.  Raises ProtocolError for what no client of ours sends."""
        if not self._plain and self._turned_away(origin, call, body):
            return
        self._asked.count(body)
        handler = self._handlers.get(type(body))
        if handler is not None:
            handler(origin, call, body, size)
        elif self._leases.active:
            self._leased_query(origin, call, body)
        elif self._reads.at_once():
            origin.answer(call, self._query(body))
        else:
            self._reads.park(origin, call, body)

    def _leased_query(self, origin: Origin, call: int, body: Body) -> None:
        """As every query; and what it asks for may be held back by somebody."""
        if self._reads.at_once():
            self._answer_read(origin, call, body)
        else:
            self._leases.expect(origin, body)
            self._reads.park(origin, call, body)

    def _turned_away(self, origin: Origin, call: int, body: Body) -> bool:
        if self._desk.void(origin):
            return True
        if self._leads or type(body) is GetStatus:
            return False
        origin.answer(call, self._not_leader())
        return True

    def _not_leader(self) -> NotLeader:
        log = self._replica.log
        leader = "" if log.leading else log.leader
        return NotLeader(leader, self._address_of(leader) if leader else "")

    # --- leadership -------------------------------------------------------------------------------------------------------
    def _notice(self) -> None:
        """Begin or end what belongs to a leadership, if the log says so.  Looked at around everything that may change it."""
        log = self._replica.log
        if log.leading:
            if self._leads and log.term == self._term:
                return
            self._step_down()
            self._leads, self._term = True, log.term
            self._clock = HybridClock(self._replica.machine.last_stamp, self._wall_ns)
            self._renewals.begin(self._sessions(), self._boot_ns())
            self._leases.begin(log.term)
            self._check_ns, self._reaping = 0, True
            self._alone = log.next_deadline_ns() is None
        elif self._leads:
            self._step_down()
        self._plain = self._leads and not self._desk.any_void

    def _step_down(self) -> None:
        """Nobody's outcome is known here any more."""
        if not self._leads:
            return
        self._leads = self._plain = self._alone = False
        asked = self._proposals.take_all()
        waiting = [(parked.origin, parked.call) for parked in self._reads.take_all()]
        waiting += [(waiter.origin, waiter.call) for waiter in self._waiters.take_all()]
        waiting += self._leases.take_waiting()
        waiting += [(follower.origin, follower.call) for follower in self._desk.followers.take_all()]
        elsewhere = self._not_leader()
        for origin, call in asked:
            origin.answer(call, elsewhere if origin.mount else _UNKNOWN)
        for origin, call in waiting:
            origin.answer(call, elsewhere)
        self._desk.end_all()

    def take_void(self) -> list[Origin]:
        """Connections that the transport closes after this turn's answers: nothing from them is executed any more."""
        return self._desk.take_void() if not self._plain else []

    def _sessions(self) -> dict[int, int]:
        return self._replica.look(lambda machine: machine.live_sessions())

    def _query(self, body: Body) -> Reply:
        return self._replica.look(lambda machine: self._answer(machine, body))

    def run(self) -> None:
        """Commit and apply what was collected, then what that made possible."""
        self._reads.draw()
        if not self._alone or self._proposals.batch or self._waiters.to_retry or self._leases.active:
            self._notice()
            self._run_batch()
            while self._leads and (self._retry_locks() or self._retry_leases()):
                self._run_batch()
        if self._reads.parked and self._leads:
            for parked in self._reads.take_confirmed():
                self._answer_read(parked.origin, parked.call, parked.body)
            while self._leads and self._retry_leases():  # tells whom the questions wait for
                self._run_batch()
        if self._desk.followers:
            self._desk.feed_followers()

    def _run_batch(self) -> None:
        """Hand over what was collected, if anything; apply what is committed, whoever proposed it."""
        proposals = self._proposals
        if proposals.batch:
            try:
                self._replica.propose(proposals.batch)
            except NotLeading:
                self._step_down()
                return
            proposals.handed_over()
        try:
            applied = self._replica.ready()
        except Unavailable:  # what was proposed may yet be committed by one of several voters; its id makes asking again harmless
            for origin, call in proposals.take_all():
                origin.answer(call, _RETRY)
            return
        for entry, reply in applied:
            if type(entry.command) in _WATCHED:
                self._watch(entry, reply)
            elif type(entry.command) in _LEASING:
                self._leases.applied(entry, reply)
            asker = proposals.decided(entry)
            if asker is not None:
                if proposals.locking and (key := proposals.unlocked(entry.command)):
                    self._waiters.unlocked(key)
                asker[1].answer(asker[2], reply if asker[0] == entry.term else _RETRY)
        for key in sorted(self._replica.machine.take_unlocked()):
            self._waiters.unlocked(key)
        if applied:
            self._reaping = True
        self._notice()

    def _watch(self, entry: Entry, reply: Reply) -> None:
        """Keep the leader's memory in step with what was applied."""
        command = entry.command
        if isinstance(command, (OpenSession, OpenCollector, EndSession)):
            now = self._boot_ns()
            self._renewals.update(self._sessions(), now)
            if isinstance(reply, SessionOpened) and isinstance(command, OpenSession):
                self._leases.opened(command, reply)
            self._leases.live(self._sessions())
            if isinstance(reply, SessionOpened):
                self._renewals.opened(reply.session, reply.resumed, entry.index, now)
            if isinstance(command, EndSession):
                self._proposals.ending.discard(command.session)
            if isinstance(command, EndSession) and isinstance(reply, Done):
                for waiter in self._waiters.of_session(command.session):
                    self._locks.end(waiter, Failed(errno.ESTALE, "the session has ended"))
        self._waiters.unlocked_all()

    def tick(self) -> None:
        """What time brings: the end of sessions, background work, the store's commit.  Call it once a turn, after `run`."""
        if not self._alone:
            self._notice()
        now = self._boot_ns()
        if self._leads and now >= self._check_ns:
            self._check_ns = now + CHECK_MS * _MS
            self._leases.tick(now)
            for session, epoch in self._renewals.expired(now):
                if session in self._proposals.ending:
                    continue
                self.expired += 1
                self.enter_own(EndSession(session, epoch, False, expired=True))
        if self._proposals.batch:
            self.run()
        self._reap()
        due = self._replica.commit_due_ns()
        if due is not None and self._monotonic_ns() >= due:
            self._replica.commit()

    def _reap(self) -> None:
        start = self._monotonic_ns()
        if not self._reaping or start < self._reap_ns or not self._leads or len(self._proposals):
            return
        self._reap_ns = start + REAP_PAUSE_MS * _MS
        self._reaping = self._replica.look(lambda machine: machine.reap_pending())
        if not self._reaping:
            return
        self.enter_own(Reap(REAP_EXTENTS_PER_ENTRY))
        self.run()
        end = self._monotonic_ns()
        self._reap_ns = end + max(REAP_PAUSE_MS * _MS, 3 * (end - start))

    def idle_ms(self) -> int:
        """How long nothing has to be done if nobody asks for anything."""
        now = self._monotonic_ns()
        times = [CHECK_MS * _MS]
        if (due := self._replica.commit_due_ns()) is not None:
            times.append(due - now)
        if self._reaping and self._leads and not len(self._proposals):  # as _reap: else nothing would come of being awake
            times.append(self._reap_ns - now)
        if (deadline := self._desk.followers.next_deadline_ns()) is not None:
            times.append(deadline - now)
        return max(-(-min(times) // _MS), 0)

    def drop_origin(self, origin: Origin) -> None:
        """Its connection is gone.  What it proposed still commits; the result is stored."""
        self._waiters.drop_origin(origin)
        self._reads.drop_origin(origin)
        self._leases.drop_origin(origin)
        self._desk.drop_origin(origin)
        self._plain = self._leads and not self._desk.any_void

    # --- proposals --------------------------------------------------------------------------------------------------------
    def _propose(self, origin: Origin, call: int, body: Propose, size: int) -> None:
        mount = origin.mount
        unique = body.unique if mount else HOST_UNIQUE  # without a mount nothing is sent twice, and nobody would acknowledge a result
        if unique:
            stored = self._replica.machine.stored_result(mount, unique)
            if stored is not None:
                origin.answer(call, self._leases.stored(body, stored))
                return
        acks = self._desk.acks(mount, unique, body.acks)
        refusal = self._proposals.refusal(self._replica.machine, mount, acks, body.command, size)
        if refusal is not None:
            origin.answer(call, refusal)
            return
        command = body.command
        if type(command) in UNPROPOSED_COMMANDS:
            raise ProtocolError(f"{type(command).__name__} is not for clients")  # one of Raft's is in force as soon as it is in a log
        if self._leases.active:
            if type(command) is EndSession and (not mount or is_node_mount(mount)) and not self._leases.may_end(command):
                origin.answer(call, Failed(errno.EAGAIN, "the lease of that session runs out first", True))
                return
            admitted = self._leases.admit(origin, call, body, size)
            if admitted is None:
                return
            origin, command = admitted, self._leases.bounded(body.session, command)
        if type(command) is LeaseSegments or type(command) is KeepSegments:
            applied = self._replica.machine.applied_index
            safe = min(self._renewals.safe_index(applied), self._replica.on_device.safe_index(applied))
            command = replace(command, safe_index=safe)
        self._enter(origin, call, unique, body.session, body.epoch, acks, command, size)

    def _enter(self, origin: Origin, call: int, unique: int, session: int, epoch: int, acks: list[int], command: Any, size: int) -> None:
        stamp, time_ns = self._clock.now(), self._wall_ns()
        entry = Entry(0, 0, command.since, 0, self._site, stamp, time_ns, origin.mount, unique, session, epoch, acks, command)
        self._proposals.enter(entry, origin, call, size)

    def enter_own(self, command: Any) -> None:
        """A command of the service itself, with the next batch."""
        self._enter(self._nobody, 0, 0, 0, 0, [], command, 0)

    def _enter_lease(self, origin: Origin, call: int, session: int, epoch: int, command: Any) -> None:
        self._enter(origin, call, HOST_UNIQUE, session, epoch, [], command, 0)

    def _retry_leases(self) -> bool:
        """Handle again what waited for a lease."""
        if self._leases.active:
            for parked in self._leases.take_woken():
                if type(parked.body) in QUESTIONS:
                    self._answer_read(parked.origin, parked.call, parked.body)
                else:
                    self.handle(parked.origin, parked.call, parked.body, parked.size)
            self._leases.tell()
        return bool(self._proposals.batch)

    # --- locks that wait -------------------------------------------------------------------------------------------------
    def _wait_lock(self, origin: Origin, call: int, body: WaitLock, size: int) -> None:
        command = body.command
        if not isinstance(command, SetLock) or not body.unique or not origin.mount:
            raise ProtocolError("WaitLock takes a SetLock of a mount, with an id")
        if (stored := self._replica.machine.stored_result(origin.mount, body.unique)) is not None:
            origin.answer(call, stored)
            return
        refusal = self._proposals.refusal(self._replica.machine, origin.mount, body.acks, body.command, size)
        if refusal is None and not self._waiters.park(Waiter(origin, call, body, command)):
            refusal = Failed(errno.ENOLCK, "too many wait for a lock on this file")
        if refusal is not None:
            origin.answer(call, refusal)

    def _retry_locks(self) -> bool:
        if self._waiters.to_retry:
            self._locks.retry(self._proposals.locking)
        return bool(self._proposals.batch)

    def _enter_lock(self, waiter: Waiter) -> None:
        body = waiter.body
        self._enter(waiter.origin, waiter.call, body.unique, body.session, body.epoch, body.acks, waiter.command, 0)

    def _in_the_way(self, session: int, command: Any) -> list[Lock]:
        return self._replica.look(lambda machine: machine.locks_in_the_way(session, command))

    # --- the rest -----------------------------------------------------------------------------------------------------------
    def _hello(self, origin: Origin, call: int, body: Hello, size: int) -> None:
        self._desk.hello(origin, call, body)
        self._plain = self._leads and not self._desk.any_void

    def _renew(self, origin: Origin, call: int, body: Renew, size: int) -> None:
        """Acknowledged when a quorum has spoken after it came; not while the end of the session is on its way."""
        if body.session not in self._proposals.ending and self._reads.at_once():
            self._answer_read(origin, call, body)
        else:
            self._extend(body)
            self._reads.park(origin, call, body)

    def _extend(self, body: Renew) -> bool:
        seen = min(body.seen_index, self._replica.machine.applied_index)
        return self._renewals.renew(body.session, body.epoch, seen, self._boot_ns())

    def _answer_read(self, origin: Origin, call: int, body: Body) -> None:
        """What a ticket was drawn for."""
        if not isinstance(body, Renew):
            if self._leases.active and self._leases.holds_up(origin, call, body):
                return
            reply = self._leases.shown(origin, body, self._query(body)) if self._leases.active else self._query(body)
            origin.answer(call, self._desk.completed(origin, body, reply))
        elif body.session in self._proposals.ending:
            self._reads.park(origin, call, body)
        else:
            origin.answer(call, Done() if self._extend(body) else Failed(errno.ESTALE, "the session has ended"))

    def _completed(self, origin: Origin, call: int, body: Body, size: int) -> None:
        if self._reads.at_once():
            self._answer_read(origin, call, body)
        else:
            self._reads.park(origin, call, body)

    def _status(self, origin: Origin, call: int, body: GetStatus, size: int) -> None:
        reply = self._query(body)
        figures = dict(reply.figures) if isinstance(reply, Status) else {}
        origin.answer(call, Status({**figures, **self.figures()}))

    def figures(self) -> dict[str, int | float | str]:
        return {
            **self._replica.figures(),
            "level": self._replica.machine.level,
            "sessions": len(self._renewals),
            "sessions_expired": self.expired,
            "clock_jumps": self._renewals.jumps,
            "lock_waiters": len(self._waiters),
            "lock_deadlocks": self._locks.deadlocks,
            "followers": len(self._desk.followers),
            "admission_refused": self._proposals.refused,
            "reaping": int(self._reaping),
            "leading": int(self._leads),
            **self._leases.figures(),
            **self._asked.figures(),
            **self._transport_figures(),
        }
