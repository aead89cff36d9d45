"""Handles every request to the metadata service while this node leads.  No sockets here; time comes from injected clocks.

One turn: the transport hands in every request that is ready (`handle`), then calls `run`.  Queries are answered from the open
transaction, which holds exactly what is applied, so nothing is seen before it is durable; at once by a single voter, else when a quorum
has said that this node still leads (read_index.py).  Proposals are collected and become one batch: one journal sync, then they are
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
from random import Random

from msgspec.structs import replace

from awsomefsd.base.clock import Clocks
from awsomefsd.base.errors import NotLeading, ProtocolError, Unavailable
from awsomefsd.base.limits import NS_PER_MS, REAP_EXTENTS_PER_ENTRY, SESSION_TTL_MS
from awsomefsd.base.types import HOST_UNIQUE, is_node_mount
from awsomefsd.meta.api.commands import (
    UNPROPOSED_COMMANDS,
    AcquireLease,
    AnyCommand,
    Apply,
    CopyRange,
    Create,
    DeleteVolume,
    EndSession,
    Entry,
    KeepForCheckpoint,
    KeepSegments,
    LeaseBays,
    LeaseSegments,
    OpenCollector,
    OpenSession,
    OpenShared,
    OpenSnapshot,
    PlanMirror,
    Reap,
    ReleaseLease,
    ReleaseOrphan,
    SetLock,
    Tmpfile,
)
from awsomefsd.meta.api.messages import (
    AwaitSpaceRecall,
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
from awsomefsd.meta.api.messages.devices import ReportDevices
from awsomefsd.meta.api.messages.nodes import GetNode, ListNodes, NodeReport
from awsomefsd.meta.api.messages.pools import GetPool, Pool
from awsomefsd.meta.api.messages.snapshots import AnswerFlush, FlushVolumes
from awsomefsd.meta.net.traffic import Asked
from awsomefsd.meta.replica.applied_machine import AppliedMachine
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.server.absent_devices import AbsentDevices
from awsomefsd.meta.server.flushes import Flushes, ServingSession
from awsomefsd.meta.server.leases.conflicts import QUESTIONS
from awsomefsd.meta.server.leases.lease_requests import LeaseRequests
from awsomefsd.meta.server.lock_waits import LockWaits
from awsomefsd.meta.server.proposals import BatchProposer, Proposals
from awsomefsd.meta.server.read_index import Reads
from awsomefsd.meta.server.request import AnyRequest, Origin, Request
from awsomefsd.meta.server.requests import LeaderHost, PlainRequests
from awsomefsd.meta.server.session_clock import CHECK_MS, Renewals
from awsomefsd.meta.server.space_recalls import SpaceRecalls
from awsomefsd.meta.server.waiters import LockWaiters, Waiter

Answer = Callable[[AppliedMachine, Body], Reply]
REAP_PAUSE_MS = 20  # between two Reap entries, or three times what one took if that is longer
_RETRY = Failed(errno.EAGAIN, "not committed; send it again", True)
_UNKNOWN = Failed(errno.EAGAIN, "this node stopped leading before it was known whether that was committed", True)
_WATCHED = frozenset({OpenSession, OpenShared, OpenSnapshot, OpenCollector, EndSession, ReleaseOrphan, DeleteVolume})
_LEASING = frozenset({AcquireLease, ReleaseLease, Create, Tmpfile, Apply})


class Leader:
    """Used by the metadata thread only.  Nothing blocks but `run` and `tick`, which wait for the disk."""

    def __init__(
        self,
        replica: Replica,
        answer: Answer,
        *,
        cluster_uuid: str,
        site: int,
        host: LeaderHost,
        clocks: Clocks,
        session_ttl_ms: int = SESSION_TTL_MS,
    ) -> None:
        self._replica = replica
        self._answer = answer
        self._boot_ns = clocks.boot_ns
        self._monotonic_ns = clocks.monotonic_ns
        self._host = host
        self._leads = False
        self._term = -1  # of the newest leadership
        self._plain = False  # leads, and every connection may ask
        self._alone = False  # leads for ever: nothing comes out of the log but what was put in
        self._proposals = Proposals()
        self._proposer = BatchProposer(self._proposals, site, clocks.wall_ns, replica.machine)
        self._reads = Reads(replica.log)
        self._renewals = Renewals(session_ttl_ms)
        self._waiters = LockWaiters()
        self._locks = LockWaits(self._waiters, replica, self._proposer, self._reads)
        self._requests = PlainRequests(replica, cluster_uuid, host, self._proposer, clocks.monotonic_ns, clocks.wall_ns)
        self._leases = LeaseRequests(replica, self._renewals, self._proposer, clocks.boot_ns, self._query)
        self._space = SpaceRecalls()
        self._flushes = Flushes(self._space, lambda: [ServingSession(*one) for one in replica.machine.serving()])
        self._absent = AbsentDevices(replica, self._requests.sightings, self._proposer)
        self._asked = Asked()
        self._check_ns = 0  # boot time of the next check of sessions
        self._reap_ns = 0  # monotonic time before which no Reap is proposed
        self._reaping = True  # there may be something to reap; looked at after a pause, not in every turn
        self.expired = 0
        self._handlers = self._table()
        self._notice()

    def _table(self) -> dict[type, Callable[[AnyRequest], None]]:
        """Returns the handlers of all requests that are more than a query of the state."""
        return {
            Propose: self._propose,
            WaitLock: self._wait_lock,
            Renew: self._renew,
            AwaitSpaceRecall: self._await_space_recall,
            AnswerFlush: self._flushes.answered,
            Cancel: self._locks.cancel,
            Follow: lambda request: self._requests.follow(request, _RETRY),
            GetStatus: self._status,
            **dict.fromkeys((GetDevices, NodeReport, ListNodes, GetNode, ReportDevices, GetPool, FlushVolumes), self._read_and_complete),
            Hello: self._hello,
            **self._requests.handlers(),
            **self._leases.handlers(),
        }

    # --- the turn --------------------------------------------------------------------------------------------------------
    @property
    def is_full(self) -> bool:
        """True: hand in no further request before `run`."""
        return self._proposals.is_full or self._reads.is_full

    def handle(self, request: AnyRequest) -> None:
        """Takes one request; it is answered here, in `run`, or much later.  Raises ProtocolError for what no client of ours sends."""
        if not self._plain and self._turn_away(request):
            return
        body = request.body
        self._asked.count(body)
        handler = self._handlers.get(type(body))
        if handler is not None:
            handler(request)
        elif self._leases.active:
            self._leased_query(request)
        elif self._reads.confirm_now():
            request.answer(self._query(body))
        else:
            self._reads.park(request)

    def _leased_query(self, request: AnyRequest) -> None:
        """Handles a query whose answer another mount may buffer under a write lease."""
        if self._reads.confirm_now():
            self._answer_read(request)
        else:
            self._leases.recall_early(request)
            self._reads.park(request)

    def _turn_away(self, request: AnyRequest) -> bool:
        if self._requests.is_void(request.origin):
            return True
        body = request.body
        if self._leads or (type(body) is GetStatus and not body.of_leader):
            return False
        request.answer(self._not_leader())
        return True

    def _not_leader(self) -> NotLeader:
        log = self._replica.log
        leader = "" if log.leading else log.leader
        return NotLeader(leader, self._host.address_of(leader) if leader else "")

    # --- leadership -------------------------------------------------------------------------------------------------------
    def _notice(self) -> None:
        """Begins or ends what belongs to a leadership, if the log says so.  Called around everything that may change it."""
        log = self._replica.log
        if log.leading:
            if self._leads and log.term == self._term:
                return
            self._step_down()
            assert log.term > self._term, "a leadership begins once in its term: workers report to it once"
            self._leads, self._term = True, log.term
            self._proposer.begin(self._replica.machine.last_stamp)
            self._renewals.begin(self._sessions(), self._boot_ns())
            self._leases.begin(log.term)
            self._flushes.begin(log.term)
            self._check_ns, self._reaping = 0, True
            self._alone = log.next_deadline_ns() is None
        elif self._leads:
            self._step_down()
        self._plain = self._leads and not self._requests.any_void

    def _step_down(self) -> None:
        """Ends what belongs to a leadership: answers all that is open, because its outcome will not be known here."""
        if not self._leads:
            return
        self._leads = self._plain = self._alone = False
        self._replica.checkpoint_progress.wake()
        asked = self._proposals.take_all()
        waiting = self._reads.take_all()
        waiting += [waiter.request for waiter in self._waiters.take_all()]
        waiting += self._leases.take_waiting()
        waiting += self._space.take_waiting()
        waiting += self._flushes.take_waiting()
        waiting += [follower.request for follower in self._requests.followers.take_all()]
        elsewhere = self._not_leader()
        for request in asked:
            request.answer(elsewhere if request.origin.mount else _UNKNOWN)
        for request in waiting:
            request.answer(elsewhere)
        self._requests.end_all()
        self._absent.forget()

    def take_void(self) -> list[Origin]:
        """Returns the connections that the transport is to close after this turn's answers: nothing from them is executed any more."""
        return self._requests.take_void() if not self._plain else []

    def _sessions(self) -> dict[int, int]:
        return self._replica.machine.live_sessions()

    def _query(self, body: Body) -> Reply:
        return self._answer(self._replica.machine, body)

    def run(self) -> None:
        """Commits and applies what was collected, then what that made possible; answers what is decided."""
        self._reads.draw()
        if not self._alone or self._proposals.batch or self._waiters.to_retry or self._leases.active or self._space.waiting_count:
            self._notice()
            taken = self._run_batch()
            while taken and self._leads and (self._retry_locks() or self._retry_leases() or self._retry_without_space()):
                taken = self._run_batch()
        if self._reads.parked and self._leads:
            for request in self._reads.take_confirmed():
                self._answer_read(request)
            while self._leads and self._retry_leases() and self._run_batch():  # tells whom the questions wait for
                pass
        if self._requests.followers:
            self._requests.feed_followers()

    def _run_batch(self) -> bool:
        """Hands over what was collected, if anything; applies what is committed, whoever proposed it.

        False: the log took nothing.  While the leadership is being transferred it refuses, and this node leads on in its term: the batch
        waits, for an election timeout at most.  Then another leads, and all is answered by `_step_down`; or the log takes it.
        """
        proposals, taken = self._proposals, True
        if proposals.batch:
            try:
                self._replica.propose(proposals.batch)
            except NotLeading:
                if not self._replica.log.leading:
                    self._step_down()
                    return False
                taken = False
            else:
                proposals.mark_handed_over()
        try:
            applied = self._replica.ready()
        except Unavailable:  # what was proposed may yet be committed by one of several voters; its id makes asking again harmless
            for request in proposals.take_all():
                request.answer(_RETRY)
            return True
        self._replica.checkpoint_progress.note_applied(self._replica.machine.applied_index)
        for entry, reply in applied:
            if type(entry.command) in _WATCHED:
                self._watch(entry, reply)
            elif type(entry.command) in _LEASING:
                self._leases.note_applied(entry, reply)
            pending = proposals.take_decided(entry)
            if pending is not None:
                for key in proposals.take_unlocked(entry.command) if proposals.locking else ():
                    self._waiters.mark_unlocked(key)
                if pending.term != entry.term:
                    pending.request.answer(_RETRY)
                elif not self._recall_space(entry, reply, pending.request):
                    pending.request.answer(reply)
        for key in sorted(self._replica.machine.take_unlocked()):
            self._waiters.mark_unlocked(key)
        if applied:
            self._reaping = True
        self._notice()
        return taken

    def _watch(self, entry: Entry, reply: Reply) -> None:
        """Keeps the leader's memory in step with what was applied."""
        command = entry.command
        if isinstance(command, (OpenSession, OpenCollector, EndSession)):
            now = self._boot_ns()
            self._renewals.update(self._sessions(), now)
            if isinstance(reply, SessionOpened) and isinstance(command, OpenSession):
                self._leases.note_opened(command, reply)
            self._leases.keep_only(self._sessions())
            self._space.keep_only(self._sessions())
            self._flushes.keep_only(self._sessions())
            if isinstance(reply, SessionOpened):
                self._renewals.note_opened(reply.session, reply.resumed, entry.index, now)
            if isinstance(command, EndSession):
                self._proposals.ending.discard(command.session)
            if isinstance(command, EndSession) and isinstance(reply, Done):
                for waiter in self._waiters.of_session(command.session):
                    self._locks.end(waiter, Failed(errno.ESTALE, "the session has ended"))
        self._waiters.mark_all_unlocked()

    def tick(self) -> None:
        """Does what is due by time: ends sessions, works in the background, commits the store.  Call it once a turn, after `run`."""
        if not self._alone:
            self._notice()
        now = self._boot_ns()
        self._leases.load()
        if self._leads and now >= self._check_ns:
            self._check_ns = now + CHECK_MS * NS_PER_MS
            self._leases.tick(now)
            self._space.tick(now)
            self._flushes.tick(now)
            self._absent.tick(self._monotonic_ns() // NS_PER_MS)
            self._retry_without_space()
            for session, epoch in self._renewals.take_expired(now):
                if session in self._proposals.ending or self._proposals.opens(self._replica.machine.mount_of(session)):
                    continue  # whoever opens it is promised a whole lease
                self.expired += 1
                self.enter_own(EndSession(session, epoch, False, expired=True))
        if self._proposals.batch:
            self.run()
        self._reap()
        self._replica.pass_time(self._monotonic_ns())

    def _reap(self) -> None:
        start = self._monotonic_ns()
        if not self._reaping or start < self._reap_ns or not self._leads or len(self._proposals):
            return
        self._reap_ns = start + REAP_PAUSE_MS * NS_PER_MS
        self._reaping = self._replica.machine.reap_pending()
        if not self._reaping:
            return
        self.enter_own(Reap(REAP_EXTENTS_PER_ENTRY))
        self.run()
        end = self._monotonic_ns()
        self._reap_ns = end + max(REAP_PAUSE_MS * NS_PER_MS, 3 * (end - start))

    def idle_ms(self) -> int:
        """Returns for how many ms nothing has to be done if nobody asks for anything."""
        if self._leases.is_loading:
            return 0
        now = self._monotonic_ns()
        times = [CHECK_MS * NS_PER_MS]
        if (due := self._replica.commit_due_ns()) is not None:
            times.append(due - now)
        if self._reaping and self._leads and not len(self._proposals):  # as _reap: else nothing would come of being awake
            times.append(self._reap_ns - now)
        if (deadline := self._requests.followers.next_deadline_ns()) is not None:
            times.append(deadline - now)
        return max(-(-min(times) // NS_PER_MS), 0)

    def drop_origin(self, origin: Origin) -> None:
        """Forgets what a connection that is gone waits for.  What it proposed still commits; the result is stored."""
        self._waiters.drop_origin(origin)
        self._reads.drop_origin(origin)
        self._leases.drop_origin(origin)
        self._space.drop_origin(origin)
        self._flushes.drop_origin(origin)
        self._requests.drop_origin(origin)
        self._plain = self._leads and not self._requests.any_void

    # --- proposals --------------------------------------------------------------------------------------------------------
    def _propose(self, request: Request[Propose]) -> None:
        mount, body = request.origin.mount, request.body
        unique = body.unique if mount else HOST_UNIQUE  # without a mount nothing is sent twice, and nobody would acknowledge a result
        if unique:
            stored = self._replica.machine.stored_result(mount, unique)
            if stored is not None:
                request.answer(self._leases.regrant_stored(body, stored))
                return
        acks = self._requests.acks_to_propose(mount, unique, body.acks)
        refusal = self._proposals.refusal(self._replica.machine, mount, acks, body.command, request.size)
        if refusal is not None:
            request.answer(refusal)
            return
        command = body.command
        if type(command) in UNPROPOSED_COMMANDS:
            raise ProtocolError(f"{type(command).__name__} is not for clients")  # one of Raft's is in force as soon as it is in a log
        if type(command) is EndSession and (not mount or is_node_mount(mount)) and not self._renewals.let_end(command):
            request.answer(Failed(errno.EAGAIN, "the lease of that session runs out first", True))
            return
        if self._leases.active:
            admitted = self._leases.admit(request)
            if admitted is None:
                return
            request, command = admitted, self._leases.without_lease_if_full(body.session, command)
        if isinstance(command, CopyRange) and (damage := self._damage_of(command)) is not None:
            request.answer(damage)
            return
        if isinstance(command, (LeaseSegments, LeaseBays, PlanMirror, KeepSegments, KeepForCheckpoint)):
            command = replace(command, safe_index=self._safe_index())
        if isinstance(command, LeaseBays):  # the leader alone chooses, whatever a client says
            draw = Random(self._replica.machine.applied_index).randrange
            command = replace(command, ensembles=self._replica.machine.choose_bays(body.session, command, draw))
        self._proposer.enter(request, Propose(unique, body.session, body.epoch, acks, command))

    def _safe_index(self) -> int:
        """Returns the last entry whose freeing no session and no checkpoint on a device goes back before; wakes who writes the latter."""
        applied = self._replica.machine.applied_index
        return min(self._renewals.safe_index(applied), self._replica.checkpoint_progress.safe_index(applied))

    def _damage_of(self, command: CopyRange) -> Failed | None:
        return self._replica.machine.copy_refusal(command)

    def enter_own(self, command: AnyCommand) -> None:
        """Proposes a command of the service itself, with the next batch."""
        self._proposer.enter_own(command)

    def _retry_leases(self) -> bool:
        """Handles again what waited for a lease.  True: something was proposed."""
        if self._leases.active:
            for request in self._leases.take_woken():
                if type(request.body) in QUESTIONS:
                    self._answer_read(request)
                else:
                    self.handle(request)
            self._leases.send_recalls()
        return bool(self._proposals.batch)

    # --- space that others hold -----------------------------------------------------------------------------------------
    def _recall_space(self, entry: Entry, reply: Reply, request: AnyRequest) -> bool:
        """Returns True if a request that was refused for want of space waits for what other sessions give back."""
        if not self._space.may_help(entry, reply) or self._replica.machine.stored_result(entry.mount, entry.unique) is not None:
            return False
        assert isinstance(reply, Failed), "only a refusal is helped"
        volume = getattr(entry.command, "volume", 0) if reply.errno == errno.EDQUOT else 0
        others = self._replica.machine.reserving_sessions(volume, entry.session)
        return self._space.park(request, others, self._boot_ns())

    def _retry_without_space(self) -> bool:
        """Proposes again what waited for space.  True: something was proposed."""
        for request in self._space.take_ready():
            body = request.body
            self._proposer.enter(request, Propose(body.unique, body.session, body.epoch, [], body.command))
        return bool(self._proposals.batch)

    def _await_space_recall(self, request: Request[AwaitSpaceRecall]) -> None:
        if self._renewals.is_alive(request.body.session, request.body.epoch):
            self._space.await_recall(request)
            self._flushes.tell(request.body.session)
        else:
            request.answer(Failed(errno.ESTALE, "the session has ended"))

    # --- locks that wait -------------------------------------------------------------------------------------------------
    def _wait_lock(self, request: Request[WaitLock]) -> None:
        origin, body = request.origin, request.body
        command = body.command
        if not isinstance(command, SetLock) or not body.unique or not origin.mount:
            raise ProtocolError("WaitLock takes a SetLock of a mount, with an id")
        if (stored := self._replica.machine.stored_result(origin.mount, body.unique)) is not None:
            request.answer(stored)
            return
        refusal = self._proposals.refusal(self._replica.machine, origin.mount, body.acks, body.command, request.size)
        if refusal is None and not self._waiters.park(Waiter(request, command)):
            refusal = Failed(errno.ENOLCK, "too many wait for a lock on this file")
        if refusal is not None:
            request.answer(refusal)

    def _retry_locks(self) -> bool:
        if self._waiters.to_retry:
            self._locks.retry(self._proposals.locking)
        return bool(self._proposals.batch)

    # --- the rest -----------------------------------------------------------------------------------------------------------
    def _hello(self, request: Request[Hello]) -> None:
        self._requests.hello(request)
        self._plain = self._leads and not self._requests.any_void

    def _renew(self, request: Request[Renew]) -> None:
        """Acknowledges a renewal when a quorum has spoken after it came; not while the end of the session is on its way."""
        if request.body.session not in self._proposals.ending and self._reads.confirm_now():
            self._answer_read(request)
        else:
            self._extend(request.body)
            self._reads.park(request)

    def _extend(self, body: Renew) -> bool:
        seen = min(body.seen_index, self._replica.machine.applied_index)
        return self._renewals.renew(body.session, body.epoch, seen, self._boot_ns())

    def _answer_read(self, request: AnyRequest) -> None:
        """Answers a query or a renewal whose ticket is confirmed."""
        body = request.body
        if isinstance(body, FlushVolumes):
            self._flushes.flush(request, self._boot_ns())
        elif not isinstance(body, Renew):
            if self._leases.active and self._leases.park_if_buffered(request):
                return
            reply = self._leases.hide_buffered(request, self._query(body)) if self._leases.active else self._query(body)
            reply = self._requests.complete(request, reply)
            request.answer(self._with_safe_index(reply) if isinstance(reply, Pool) else reply)
        elif body.session in self._proposals.ending:
            self._reads.park(request)
        else:
            request.answer(Done() if self._extend(body) else Failed(errno.ESTALE, "the session has ended"))

    def _with_safe_index(self, pool: Pool) -> Pool:
        """Says what may be trimmed, where there is something to trim: no checkpoint is hurried for nothing."""
        return replace(pool, safe_index=self._safe_index()) if any(device.stale for device in pool.devices) else pool

    def _read_and_complete(self, request: AnyRequest) -> None:
        if self._reads.confirm_now():
            self._answer_read(request)
        else:
            self._reads.park(request)

    def _status(self, request: Request[GetStatus]) -> None:
        reply = self._query(request.body)
        figures = dict(reply.figures) if isinstance(reply, Status) else {}
        request.answer(Status({**figures, **self.figures()}))

    def figures(self) -> dict[str, int | float | str]:
        return {
            **self._replica.figures(),
            "level": self._replica.machine.level,
            "sessions": len(self._renewals),
            "sessions_expired": self.expired,
            "clock_jumps": self._renewals.jumps,
            "lock_waiters": len(self._waiters),
            "lock_deadlocks": self._locks.deadlocks,
            "space_recalls": self._space.recalls,
            "followers": len(self._requests.followers),
            "admission_refused": self._proposals.refused,
            "reaping": int(self._reaping),
            "leading": int(self._leads),
            **self._leases.figures(),
            **self._asked.figures(),
            **self._host.transport_figures(),
        }
