"""Raft as a pure core: events in, a Ready out.  raft_types.py has the loop around it, raft_messages.py what members say to each other.

After "Consensus: Bridging Theory and Practice" (Ongaro 2014, "the thesis") and etcd's raft (go.etcd.io/raft), with their names.  No clock,
socket, disk, thread or dice here: time comes with `tick` (any monotonic milliseconds; tick before step, so that what is heard has the right
time), chance with Config.random, and the log is a LogView.

    raft_core         state, terms, roles, the two lists of messages            raft_log         the log, durable and in memory
    raft_snapshot     snapshots in chunks                                       raft_progress    a leader's view of one member
    raft_replication  Append, commit                                            raft_membership  configurations, majorities, joint consensus
    raft_reads        ReadIndex, quorum contact                                 raft_entries     no-op and membership as log entries
    raft_election     PreVote, votes, CheckQuorum

Invariants (the simulator checks them all the time): one leader a term; equal (index, term) means equal logs up to there; a committed entry
is in the log of every later leader; what is applied at an index is the same everywhere.

Choices.  Joint consensus (raft_membership).  A removed or replaced journal is known by its member id; nothing it says is counted.  Reads
only with a confirmed round, not on the leader's lease: that would trust clocks.  Replies to proposals are the driver's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from awsomefsd.meta import raft_messages as m
from awsomefsd.meta.raft_election import Election
from awsomefsd.meta.raft_membership import ChangeRefused, Member, Membership, step_to
from awsomefsd.meta.raft_types import HardState, PeerStatus, Ready, Role


class Raft(Election):
    """Made from what is durable: hard state, log, `applied` (index the state has), and the configuration in the state at `applied`.

    A node that joins has an empty configuration; the first node of a cluster is told one with itself as the voter.
    """

    # --- events -----------------------------------------------------------------------------------------------------------------
    def tick(self, now_ms: int) -> None:
        """Time has come to `now_ms`."""
        self.now_ms = max(self.now_ms, now_ms)
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self.now_ms >= self._election_at_ms:
            if self._may_campaign():
                self._pre_campaign()
            else:  # a learner may have been forgotten with the leader that took it in, and says so only while it knows of none
                self._become_follower(self.term, "")

    def _tick_leader(self) -> None:
        if not self._hears_quorum():
            self._become_follower(self.term, "")
            return
        if self._transferee and self.now_ms >= self._transfer_until_ms:
            self._transferee = ""
        if self.now_ms >= self._heartbeat_at_ms:
            self._beat()
            self._retry_chunks()

    def next_deadline_ms(self) -> int | None:
        """When `tick` is due; None: never by time."""
        if self.role is Role.LEADER:
            return min(self._heartbeat_at_ms, self._transfer_until_ms) if self._transferee else self._heartbeat_at_ms
        return self._election_at_ms if self._may_campaign() else None

    def step(self, message: m.AnyRaftMessage) -> None:
        """A message has come.  Anything may come at any time, late, twice and in any order."""
        if message.to != self.id or message.sender == self.id:
            return
        if message.term > self.term:
            if not self._follow_term(message):
                return
        elif message.term < self.term:
            self._answer_stale(message)
            return
        self._dispatch(message)

    def _dispatch(self, message: m.AnyRaftMessage) -> None:
        match message:
            case m.Append():
                self._on_append(message)
            case m.AppendReply():
                self._on_append_reply(message)
            case m.Heartbeat():
                self._on_heartbeat(message)
            case m.HeartbeatReply():
                self._on_heartbeat_reply(message)
            case m.VoteRequest():
                self._on_vote_request(message)
            case m.VoteReply():
                self._on_vote_reply(message)
            case m.TimeoutNow():
                self._on_timeout_now(message)
            case m.SnapshotChunk():
                self._on_snapshot_chunk(message)
            case m.SnapshotReply():
                self._on_snapshot_reply(message)

    def _follow_term(self, message: m.AnyRaftMessage) -> bool:
        """A larger term than ours: whether the message is looked at further."""
        if isinstance(message, (m.Append, m.Heartbeat, m.SnapshotChunk, m.TimeoutNow)):
            self._become_follower(message.term, message.sender)  # its sender was elected
            return True
        if isinstance(message, m.VoteRequest):
            if (self._hears_leader() and not message.transfer) or not self._may_be_voter(message):
                self._send(m.VoteReply(self.id, message.sender, self.term, False, message.pre))
                return False
            if not message.pre:
                self._become_follower(message.term, "")
            return True
        if isinstance(message, m.VoteReply) and message.pre and message.granted:
            return True
        if self._is_member(message.sender):
            self._become_follower(message.term, "")
        return False

    def _answer_stale(self, message: m.AnyRaftMessage) -> None:
        """A smaller term than ours: a leader that was deposed learns so, a candidate too."""
        if isinstance(message, (m.Append, m.Heartbeat, m.SnapshotChunk)):
            self._send(m.AppendReply(self.id, message.sender, self.term, 0, True))
        elif isinstance(message, m.VoteRequest):
            self._send(m.VoteReply(self.id, message.sender, self.term, False, message.pre))

    def propose(self, payloads: Sequence[bytes]) -> int:
        """Append these to the log as entries from the returned index on, in the present term.  Raises NotLeading, also in a transfer."""
        self._require_leading()
        first = self.last_index + 1
        if payloads:
            self._append_own(list(zip(range(first, first + len(payloads)), repeat(self.term), payloads, strict=False)))
        return first

    def propose_membership(self, members: Iterable[Member]) -> int:
        """Go to that configuration (through a joint one if voters change); index of the first entry.  Done when Ready.membership says so.

        Raises NotLeading, or ChangeRefused: one change at a time, only when an entry of the own term is committed, and a new voter must be
        a learner that is nearly up to date (thesis 4.2.1).
        """
        self._require_leading()
        newest = self.log.membership
        if not self._own_term_committed() or newest.index > self.log.commit:
            raise ChangeRefused("a change of the membership, or the leader's first entry, is not committed yet")
        following = step_to(newest.membership, members)
        self._check_new_voters(following)
        index = self.last_index + 1
        self._append_own([(index, self.term, self.codec.membership(index, self.term, following))])
        return index

    def _check_new_voters(self, following: Membership) -> None:
        for voter in following.voters() - self._voters:
            progress = self._progress.get(voter)
            if progress is None or self.last_index - progress.match > self.config.promote_lag_entries_max or not progress.match:
                raise ChangeRefused(f"{voter} is no learner that has caught up")

    def transfer(self, to: str) -> None:
        """Hand the leadership to a voter: it gets everything, then is told to start an election.  Given up after an election timeout.

        Proposals are refused meanwhile.  Raises NotLeading, or ChangeRefused for a target that is no voter.
        """
        self._require_leading()
        if to not in self._voters or to not in self._progress:
            raise ChangeRefused(f"{to} is no other voter")
        self._transferee = to
        self._transfer_until_ms = self.now_ms + self.config.election_ms_min
        self._hand_over_when_ready()
        self._flush_due = True

    def stored(self, index: int, term: int) -> None:
        """The entries of the last Ready are durable, up to this one."""
        if self.log.stored(index, term) and self.role is Role.LEADER:
            self._advance_commit()

    def applied(self, index: int) -> None:
        """The state has what Ready.committed gave, up to `index`."""
        self.log.applied_to(index)

    # --- what follows from them ---------------------------------------------------------------------------------------------------
    def has_ready(self) -> bool:
        return bool(
            self._ready_messages
            or self._ready_after_store
            or self._flush_due
            or self.log.pending()
            or self._hard_state_given != (self.term, self.vote)
            or not (self._membership_given and self._view_given)
            or self._reads_done
            or self._reads_lost
            or self._chunks
            or self._snapshot_wanted
            or (self.role is Role.LEADER and self._may_start_reads())
        )

    def ready(self) -> Ready:
        """What is to be done now, in the order raft_types.py states; given out once."""
        if self.role is Role.LEADER:
            if self._may_start_reads():
                self._start_reads()
            if self._flush_due:
                self._flush()
        ready = Ready()
        ready.truncate_after, ready.entries = self.log.take_entries()
        ready.messages, self._ready_messages = self._ready_messages, []
        ready.messages_after_store, self._ready_after_store = self._ready_after_store, []
        if self._hard_state_given != (self.term, self.vote):
            ready.hard_state = self._hard_state_given = HardState(self.term, self.vote)
            ready.messages_after_store = ready.messages + ready.messages_after_store
            ready.messages = []
        ready.chunks, self._chunks = self._chunks, []
        if ready.chunks and self._install is not None:
            ready.install = self._install
        else:
            ready.committed = self.log.take_committed()
        ready.reads, self._reads_done = self._reads_done, []
        ready.reads_lost, self._reads_lost = self._reads_lost, []
        ready.snapshot_wanted, self._snapshot_wanted = self._snapshot_wanted, 0
        if not self._membership_given:
            ready.membership, self._membership_given = self.log.membership, True
        ready.leader_changed, self._view_given = not self._view_given, True
        return ready

    # --- how it is ------------------------------------------------------------------------------------------------------------------
    @property
    def last_index(self) -> int:
        """Of the log, with what is not stored yet: the next proposal gets the index behind it."""
        return self.log.last_index

    @property
    def commit(self) -> int:
        return self.log.commit

    @property
    def membership(self) -> Membership:
        """In force here."""
        return self.log.membership.membership

    @property
    def serving(self) -> bool:
        """This node leads, and has applied an entry of its own term: its state has everything that was ever committed."""
        return self.role is Role.LEADER and self.log.applied >= self._term_start

    def peers(self) -> list[PeerStatus]:
        """What a leader knows of the others."""
        return [
            PeerStatus(peer, progress.state.value, progress.match, progress.next, len(progress.inflight), progress.heard_ms)
            for peer, progress in sorted(self._progress.items())
        ]
