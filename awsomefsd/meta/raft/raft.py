"""Raft as a pure core: events in, a Ready out.  types.py has the loop around it, messages.py what members say to each other.

After "Consensus: Bridging Theory and Practice" (Ongaro 2014, "the thesis") and etcd's raft (go.etcd.io/raft), with their names.  No clock,
socket, disk, thread or dice here: time comes with `tick` (any monotonic milliseconds; tick before step, so that what is heard has the right
time), chance with Config.random, and the log is a LogView.

    member          state of one member, terms, roles          log                 the log, durable and in memory
    election        PreVote, votes, CheckQuorum                progress            a leader's view of one member
    replication     Append, heartbeats, commit                 membership          configurations, majorities, joint consensus
    read_index      ReadIndex, quorum contact                  proposals           entries, changes of the membership, hand-over
    state_snapshot  state snapshots in chunks                  voter/raft_entries  no-op and membership as log entries

Invariants (the simulator checks them all the time): one leader a term; equal (index, term) means equal logs up to there; a committed entry
is in the log of every later leader; what is applied at an index is the same everywhere.

Choices.  Joint consensus (membership.py).  A removed or replaced journal is known by its member id; nothing it says is counted.  Reads
only with a confirmed round, not on the leader's lease: that would trust clocks.  Replies to proposals are the driver's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from awsomefsd.meta.raft import election, proposals, read_index, replication, state_snapshot
from awsomefsd.meta.raft import messages as m
from awsomefsd.meta.raft.log import RaftLog
from awsomefsd.meta.raft.member import MemberState, become_follower, may_campaign
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.raft.types import Config, EntryCodec, HardState, LogView, MembershipAt, PeerStatus, Ready, Role


class Raft:
    """The core of one member: events in, `ready` out.  One thread uses it; nothing blocks but reads of the LogView.

    It is made from what is durable: hard state, log, `applied` (index the state has), and the configuration in the state at `applied`.  A
    node that joins has an empty configuration; the first node of a cluster is told one with itself as the voter.
    """

    def __init__(
        self, config: Config, view: LogView, codec: EntryCodec, hard_state: HardState, applied: int, membership: MembershipAt, now_ms: int
    ) -> None:
        self.config = config
        self.id = config.id
        self._view = view
        self._codec = codec
        self.member = MemberState(config, view, codec, hard_state, applied, membership, now_ms)

    def restart(self, hard_state: HardState, applied: int, membership: MembershipAt, now_ms: int) -> None:
        """Begin again from what is durable now: hard state and log were written by the driver (the first entry of a cluster)."""
        self.member = MemberState(self.config, self._view, self._codec, hard_state, applied, membership, now_ms)

    @property
    def log(self) -> RaftLog:
        """The log, durable and in memory."""
        return self.member.log

    # --- events -----------------------------------------------------------------------------------------------------------------
    def pass_time(self, now_ms: int) -> None:
        """Time has come to `now_ms`; what is due is left to `tick`.  Messages that are taken in between came before anything was due."""
        self.member.now_ms = max(self.member.now_ms, now_ms)

    def tick(self, now_ms: int) -> None:
        """Time has come to `now_ms`; a smaller time than before changes nothing."""
        self.pass_time(now_ms)
        member = self.member
        if member.role is Role.LEADER:
            self._tick_leader()
        elif member.now_ms >= member.election_at_ms:
            if may_campaign(member):
                election.pre_campaign(member)
            else:  # a learner may have been forgotten with the leader that took it in, and says so only while it knows of none
                become_follower(member, member.term, "")

    def _tick_leader(self) -> None:
        member = self.member
        if not election.hears_quorum(member):
            become_follower(member, member.term, "")
            return
        if member.transferee and member.now_ms >= member.transfer_until_ms:
            member.transferee = ""
        if member.now_ms >= member.heartbeat_at_ms:
            read_index.beat(member)
            state_snapshot.retry_chunks(member)

    def next_deadline_ms(self) -> int | None:
        """Time in ms at which `tick` is due; None: never by time."""
        member = self.member
        if member.role is Role.LEADER:
            return min(member.heartbeat_at_ms, member.transfer_until_ms) if member.transferee else member.heartbeat_at_ms
        return member.election_at_ms if may_campaign(member) else None

    def step(self, message: m.AnyRaftMessage) -> None:
        """Take a message.  Any may come at any time, late, twice and in any order; one for another member is ignored."""
        member = self.member
        if message.to != member.id or message.sender == member.id:
            return
        if message.term > member.term:
            if not election.on_larger_term(member, message):
                return
        elif message.term < member.term:
            election.on_smaller_term(member, message)
            return
        _dispatch(member, message)

    def propose(self, payloads: Sequence[bytes]) -> int:
        """Append these to the log as entries from the returned index on, in the present term.  Raises NotLeading, also in a transfer."""
        return proposals.propose(self.member, payloads)

    def propose_membership(self, members: Iterable[Member]) -> int:
        """Go to that configuration; the index of the first entry.  Raises NotLeading, or ChangeRefused (proposals.py says when)."""
        return proposals.propose_membership(self.member, members)

    def transfer(self, to: str) -> None:
        """Begin to hand the leadership to the voter `to`.  Raises NotLeading, or ChangeRefused for a target that is no voter."""
        proposals.transfer(self.member, to)

    def read_index(self, ticket: int, *, patient: bool = False) -> None:
        """Ready.reads will have (ticket, index), or Ready.reads_lost the ticket.  Raises NotLeading.

        A patient ticket starts no round: it waits for the next regular heartbeat, or for a round that another one starts.
        """
        read_index.read_index(self.member, ticket, patient)

    def stored(self, index: int, term: int) -> None:
        """The entries of the last Ready are durable, up to this one."""
        member = self.member
        if member.log.stored(index, term) and member.role is Role.LEADER:
            replication.advance_commit(member)

    def applied(self, index: int) -> None:
        """The state has what Ready.committed gave, up to `index`."""
        self.log.applied_to(index)

    def state_snapshot_made(self, meta: m.StateSnapshot) -> None:
        """A state snapshot can be sent: keep the entries behind `meta.index` in the log until `state_snapshot_dropped`."""
        state_snapshot.state_snapshot_made(self.member, meta)

    def state_snapshot_dropped(self, name: str) -> None:
        """That state snapshot cannot be read any more."""
        state_snapshot.state_snapshot_dropped(self.member, name)

    def state_snapshot_installed(self, meta: m.StateSnapshot) -> None:
        """Ready.install is done: state and an empty log that begins behind meta.index are durable."""
        state_snapshot.state_snapshot_installed(self.member, meta)

    def state_snapshot_refused(self, meta: m.StateSnapshot) -> None:
        """Ready.install failed (digest, format): nothing has changed."""
        state_snapshot.state_snapshot_refused(self.member, meta)

    # --- what follows from them ---------------------------------------------------------------------------------------------------
    def has_ready(self) -> bool:
        """True if `ready` has something to be done."""
        member = self.member
        return bool(
            member.messages
            or member.messages_after_store
            or member.flush_due
            or member.log.pending()
            or member.hard_state_given != (member.term, member.vote)
            or not (member.membership_given and member.view_given)
            or member.reads_done
            or member.reads_lost
            or member.chunks
            or member.state_snapshot_wanted
            or (member.role is Role.LEADER and read_index.may_start_reads(member))
        )

    def ready(self) -> Ready:
        """The work to be done now, in the order types.py states; given out once."""
        member = self.member
        if member.role is Role.LEADER:
            if read_index.may_start_reads(member):
                read_index.start_reads(member)
            if member.flush_due:
                replication.flush(member)
        ready = Ready()
        ready.truncate_after, ready.entries = member.log.take_entries()
        ready.messages, member.messages = member.messages, []
        ready.messages_after_store, member.messages_after_store = member.messages_after_store, []
        if member.hard_state_given != (member.term, member.vote):
            term, vote = member.hard_state_given
            assert member.term > term or (member.term == term and not vote), "terms never fall, and one vote is given in each"
            ready.hard_state = member.hard_state_given = HardState(member.term, member.vote)
            ready.messages_after_store = ready.messages + ready.messages_after_store
            ready.messages = []
        ready.chunks, member.chunks = member.chunks, []
        if ready.chunks and member.install is not None:
            ready.install = member.install
        else:
            ready.committed = member.log.take_committed()
        ready.reads, member.reads_done = member.reads_done, []
        ready.reads_lost, member.reads_lost = member.reads_lost, []
        ready.state_snapshot_wanted, member.state_snapshot_wanted = member.state_snapshot_wanted, 0
        if not member.membership_given:
            ready.membership, member.membership_given = member.log.membership, True
        ready.leader_changed, member.view_given = not member.view_given, True
        return ready

    # --- how it is ------------------------------------------------------------------------------------------------------------------
    @property
    def term(self) -> int:
        """The present term."""
        return self.member.term

    @property
    def role(self) -> Role:
        """The role in it."""
        return self.member.role

    @property
    def leader(self) -> str:
        """Member id of the leader of this term, "" while none is known."""
        return self.member.leader

    @property
    def last_index(self) -> int:
        """Index of the newest entry, stored or not: the next proposal gets the one behind it."""
        return self.log.last_index

    @property
    def commit(self) -> int:
        """Index of the newest committed entry."""
        return self.log.commit

    @property
    def membership(self) -> Membership:
        """The configuration in force here."""
        return self.log.membership.membership

    @property
    def serving(self) -> bool:
        """True if this node leads and has applied an entry of its own term: its state has everything that was ever committed."""
        return self.member.role is Role.LEADER and self.log.applied >= self.member.term_start

    @property
    def quorum_contact_ms(self) -> int | None:
        """Time at which the newest round was sent that a quorum has answered; None if none was in this leadership."""
        return read_index.quorum_contact_ms(self.member)

    def peers(self) -> list[PeerStatus]:
        """A leader's view of each other member, by id; [] for any other role."""
        return [
            PeerStatus(peer, progress.state.value, progress.match, progress.next, len(progress.inflight), progress.heard_ms)
            for peer, progress in sorted(self.member.progress.items())
        ]


def _dispatch(member: MemberState, message: m.AnyRaftMessage) -> None:
    match message:
        case m.Append():
            replication.on_append(member, message)
        case m.AppendReply():
            replication.on_append_reply(member, message)
        case m.Heartbeat():
            replication.on_heartbeat(member, message)
        case m.HeartbeatReply():
            read_index.on_heartbeat_reply(member, message)
        case m.VoteRequest():
            election.on_vote_request(member, message)
        case m.VoteReply():
            election.on_vote_reply(member, message)
        case m.TimeoutNow():
            election.on_timeout_now(member, message)
        case m.StateSnapshotChunk():
            state_snapshot.on_state_snapshot_chunk(member, message)
        case m.StateSnapshotReply():
            state_snapshot.on_state_snapshot_reply(member, message)
