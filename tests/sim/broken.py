"""Deliberately broken variants of production code, one at a time: the simulator must find each, or it would not find the real ones.

A variant changes methods of production classes, or functions of production modules, for the length of a run; nothing else differs from a
normal run.  `FOUND` says with which seed each was found; the normal run looks at those first, `build.py soak` searches from seed 1 on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from awsomefsd.base.limits import NS_PER_MS, SESSION_TTL_MS
from awsomefsd.base.types import LEASE_WRITE
from awsomefsd.meta.api.commands import ChangeMembership
from awsomefsd.meta.client.held_leases import LeaseHolder
from awsomefsd.meta.client.lease_protocol import LeaseClient
from awsomefsd.meta.client.session_lease import RenewalTimer
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.machine import sessions, write_leases
from awsomefsd.meta.raft import election, replication
from awsomefsd.meta.raft.member import follow_leader
from awsomefsd.meta.raft.membership import Membership, Quorum
from awsomefsd.meta.raft.messages import HeartbeatReply
from awsomefsd.meta.raft.raft import Raft
from awsomefsd.meta.server.leases.lease_requests import LeaseRequests
from awsomefsd.meta.server.leases.lease_table import LeaseTable
from awsomefsd.meta.server.requests import PlainRequests
from awsomefsd.meta.server.session_clock import Renewals
from awsomefsd.meta.state.results import Results
from awsomefsd.meta.voter.voter import Voter
from awsomefsd.recovery import force_single
from tests.sim.machines.state_snapshot_files import SimFiles

Patch = tuple[Any, str, Any]


def _answer_before_sync() -> list[Patch]:
    def sync(self: Any) -> None:
        self._synced = self._end

    return [(Journal, "sync", sync)]


def _dedupe_forgets_at_a_flush() -> list[Patch]:
    flush = Results.flush

    def forgetting(self: Any) -> None:
        flush(self)
        self._replies.clear()

    return [(Results, "flush", forgetting)]


def _lease_counts_from_the_answer() -> list[Patch]:
    """The worker trusts its session as long as the leader does, from when it heard so."""
    answered, begin = RenewalTimer.take_answer, RenewalTimer.begin

    def late(self: Any, sent_ns: int, error: Any, same_session: bool, now_ns: int) -> Any:
        self._fence_ns = SESSION_TTL_MS * NS_PER_MS
        return answered(self, now_ns, error, same_session, now_ns)

    def begun(self: Any, since_ns: int) -> None:
        self._fence_ns = SESSION_TTL_MS * NS_PER_MS
        begin(self, since_ns)

    return [(RenewalTimer, "take_answer", late), (RenewalTimer, "begin", begun)]


def _no_full_ttl_at_the_beginning() -> list[Patch]:
    begin = Renewals.begin

    def hasty(self: Any, sessions: dict[int, int], now_ns: int) -> None:
        begin(self, sessions, now_ns)
        for live in self._live.values():
            live.deadline_ns = now_ns + 1_000 * NS_PER_MS

    return [(Renewals, "begin", hasty)]


def _old_connections_are_read() -> list[Patch]:
    """A copy of a request that was left behind is executed after its result was acknowledged."""
    return [(PlainRequests, "_end", lambda self, origin: None)]


def _vote_not_persisted() -> list[Patch]:
    def remember(self: Any, term: int, vote: bytes) -> None:
        self.term, self.vote = term, vote

    return [(Journal, "set_hard_state", remember)]


def _older_terms_by_counting() -> list[Patch]:
    """Figure 3.7 of the thesis: an entry of an older term on a majority is not committed by that."""
    return [(replication, "_may_commit", lambda member, index: True)]


def _read_without_confirmation() -> list[Patch]:
    return [(Voter, "reads_confirmed", lambda self: self._ticket)]


def _half_is_a_majority() -> list[Patch]:
    def reached(self: Any, agreed: Callable[[str], bool]) -> bool:
        return bool(self._halves) and all(sum(map(agreed, half)) * 2 >= len(half) - 1 for half in self._halves)

    return [(Quorum, "reached", reached)]


def _vote_for_a_shorter_log() -> list[Patch]:
    return [(election, "_log_is_up_to_date", lambda member, request: True)]


def _acknowledged_before_stored() -> list[Patch]:
    """A follower says what is not durable: promises go with the messages that may go first."""
    ready = Raft.ready

    def hasty(self: Any) -> Any:
        found = ready(self)
        found.messages, found.messages_after_store = found.messages + found.messages_after_store, []
        return found

    return [(Raft, "ready", hasty)]


def _snapshot_installed_halfway() -> list[Patch]:
    """The state is the snapshot's, but for some of its rows; the journal goes on from it."""
    stage = SimFiles.stage

    def halfway(self: Any, *arguments: Any) -> None:
        stage(self, *arguments)
        rows = self._ready.rows
        for key in sorted(rows)[len(rows) // 2 :]:
            del rows[key]

    return [(SimFiles, "stage", halfway)]


def _wiped_voter_votes() -> list[Patch]:
    """A journal that is lost comes back under the incarnation of the old one."""
    recover = Journal._recover

    def same(self: Any, cluster: bytes, node: bytes, create: bool, incarnation: bytes) -> None:
        recover(self, cluster, node, create, bytes(reversed(node)))

    return [(Journal, "_recover", same)]


def _learner_counts() -> list[Patch]:
    return [(Membership, "voters", lambda self: frozenset(member.id for member in self.members))]


def _commit_ahead_of_the_match() -> list[Patch]:
    """A follower believes a leader's commit index for entries that it has not compared."""

    def believing(member: Any, message: Any) -> None:
        follow_leader(member, message.sender)
        member.log.commit_to(member.log.last_index)
        member.messages.append(HeartbeatReply(member.id, message.sender, member.term, message.round))

    return [(replication, "on_heartbeat", believing)]


def _recall_acknowledged_too_early() -> list[Patch]:
    """Before what was held back is committed, and what was cached is dropped."""

    def hasty(self: Any, ino: int, mode: int, done: Callable[[], None]) -> None:
        done()
        self._answer()

    return [(LeaseClient, "_handle_recall", hasty)]


def _stale_grant_accepted() -> list[Patch]:
    """(term, sequence) of a grant mean nothing."""
    granted = LeaseHolder.granted

    def trusting(self: Any, ino: int, reply: Any) -> bool:
        floor, self._floor = self._floor, (reply.term, -1)
        try:
            return granted(self, ino, reply)
        finally:
            self._floor = floor

    return [(LeaseHolder, "granted", trusting)]


def _eviction_takes_write_leases() -> list[Patch]:
    """What has become a write lease since it was chosen is given up as well, with data held back under it."""
    release = LeaseHolder.release

    def greedy(self: Any, inos: list[int]) -> Any:
        released = release(self, inos)
        for ino in inos:
            self._held.pop(ino, None)
        released.inos = list(inos)
        return released

    return [(LeaseHolder, "release", greedy)]


def _successor_adopts_nothing() -> list[Patch]:
    """A recall of what its predecessor held is answered at once."""
    return [(LeaseHolder, "adopt", lambda self, inos: None)]


def _successor_forgets_what_it_knew() -> list[Patch]:
    """What it buffers under an adopted lease names no number of changes, so that nobody can tell what others wrote since."""

    def adopt(self: Any, inos: Any) -> None:
        for ino, (epoch, _) in inos.items():
            self._hold(ino, LEASE_WRITE, epoch, 0)

    def may_buffer(self: Any, ino: int) -> int:
        held = self._held.get(ino)
        if held is None or held.mode != LEASE_WRITE or ino in self._recalling or ino in self._pausing:
            return 0
        epoch: int = held.epoch
        return epoch if self._left_ns() > 0 else 0

    return [(LeaseHolder, "adopt", adopt), (LeaseHolder, "may_buffer", may_buffer)]


def _ended_lease_commits() -> list[Patch]:
    """The fence at the resource is gone: a commit of any epoch, also one that has ended, is applied."""
    return [
        (write_leases, "check_may_change", lambda state, entry, volume, ino: None),
        (write_leases, "is_held", lambda state, entry, volume, ino, lease: True),
    ]


def _questions_pass_a_writer() -> list[Patch]:
    """What is committed is told, whatever somebody holds back."""
    return [(LeaseRequests, "park_if_buffered", lambda self, request: False)]


def _no_quarantine() -> list[Patch]:
    """Time is taken for proof: what an expired session held is free at once, while its writes may be on their way."""
    end_leases = sessions.end_leases
    return [(sessions, "end_leases", lambda state, session, exited: end_leases(state, session, exited=True))]


def _no_wait_for_reports() -> list[Patch]:
    """A new leader takes nobody to hold anything until told."""
    begin = LeaseTable.begin

    def forgetful(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        for holder in self.holders.values():
            holder.report_ns = None

    return [(LeaseTable, "begin", forgetful)]


def _renewals_run_out() -> list[Patch]:
    """Who has renewed often enough is renewed no more, as if it had let the deadline of a recall pass."""
    counts: dict[int, int] = {}
    renew = Renewals.renew

    def worn(self: Any, session: int, *arguments: Any) -> bool:
        counts[session] = counts.get(session, 0) + 1
        if counts[session] == 15:
            self.stop_renewing(session)
        return renew(self, session, *arguments)

    return [(Renewals, "renew", worn)]


def _new_leader_forgets_sessions() -> list[Patch]:
    """Who renewed with the leader before is refused, until the next session is opened."""

    def begin(self: Any, sessions: dict[int, int], now_ns: int) -> None:
        self._live.clear()
        self._checked_ns = None

    return [(Renewals, "begin", begin)]


def _administrator_ends_at_once() -> list[Patch]:
    return [(Renewals, "let_end", lambda self, command: True)]


def _recovery_without_recover() -> list[Patch]:
    """Who goes on alone hands out again what the lost majority had handed out, and sessions live on."""
    return [(force_single, "first_commands", lambda membership, seen, proof: [ChangeMembership(membership)])]


VARIANTS: dict[str, Callable[[], list[Patch]]] = {
    "answer before sync": _answer_before_sync,
    "dedupe that forgets": _dedupe_forgets_at_a_flush,
    "lease without margin": _lease_counts_from_the_answer,
    "a new leader grants no full TTL": _no_full_ttl_at_the_beginning,
    "old connections are read": _old_connections_are_read,
    "vote not persisted": _vote_not_persisted,
    "older terms committed by counting": _older_terms_by_counting,
    "read index without confirmation": _read_without_confirmation,
    "half is a majority": _half_is_a_majority,
    "vote for a shorter log": _vote_for_a_shorter_log,
    "acknowledged before it is stored": _acknowledged_before_stored,
    "snapshot installed halfway": _snapshot_installed_halfway,
    "a wiped voter that votes": _wiped_voter_votes,
    "learner counted as voter": _learner_counts,
    "commit ahead of the match": _commit_ahead_of_the_match,
    "a recall acknowledged too early": _recall_acknowledged_too_early,
    "a stale grant is accepted": _stale_grant_accepted,
    "an eviction takes write leases": _eviction_takes_write_leases,
    "a successor adopts nothing": _successor_adopts_nothing,
    "a successor forgets what it knew": _successor_forgets_what_it_knew,
    "an ended lease commits": _ended_lease_commits,
    "a new leader does not wait for reports": _no_wait_for_reports,
    "questions pass a writer": _questions_pass_a_writer,
    "quarantine is ended by time": _no_quarantine,
    "renewals run out": _renewals_run_out,
    "a new leader forgets the sessions": _new_leader_forgets_sessions,
    "a recovery hands out again": _recovery_without_recover,
    "an administrator ends sessions at once": _administrator_ends_at_once,
}


@contextlib.contextmanager
def broken(name: str) -> Iterator[None]:
    patches = VARIANTS[name]()
    saved = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in patches]
    try:
        for owner, attribute, stand_in in patches:
            setattr(owner, attribute, stand_in)
        yield
    finally:
        for owner, attribute, original in saved:
            setattr(owner, attribute, original)
