"""The state of one member, its terms and roles: all subjects of the Raft core share it.

`MemberState` has the fields.  Each subject is a file of functions over it (election, replication, state_snapshot, read_index, proposals):
`on_append(member, message)`, as the rules of meta/machine are functions over its state.  Imports go one way: member ← state_snapshot ←
replication ← read_index, proposals, election ← raft.  A leadership can end in each of them, so `become_follower` is here, and clears the
fields of all.

Two lists of messages.  What promises something durable (a vote, an acknowledgement, the request for votes of a candidate that voted for
itself) waits for the store; and while a new term or vote is itself not stored, everything does.
"""

from __future__ import annotations

from collections import deque

from awsomefsd.base.errors import NotLeading
from awsomefsd.meta.raft.log import RaftLog
from awsomefsd.meta.raft.membership import Quorum
from awsomefsd.meta.raft.messages import AnyRaftMessage, AppendReply, StateSnapshot, StateSnapshotChunk
from awsomefsd.meta.raft.progress import Progress
from awsomefsd.meta.raft.types import Config, EntryCodec, HardState, LogView, MembershipAt, Role


class MemberState:
    """`membership.Member` says who a member is; this is what the member itself knows.  Only the functions of this package change it."""

    def __init__(
        self, config: Config, view: LogView, codec: EntryCodec, hard_state: HardState, applied: int, membership: MembershipAt, now_ms: int
    ) -> None:
        self.config = config
        self.id = config.id
        self.codec = codec
        self.log = RaftLog(view, codec, config, applied, membership)
        self.now_ms = now_ms

        # term and role
        self.term, self.vote = hard_state
        self.role = Role.FOLLOWER
        self.leader = ""  # member id, "" while none is known
        self.heard_leader_ms: int | None = None
        self.election_at_ms = 0  # without a leader until then: stand for election
        self.votes: dict[str, bool] = {}  # a candidate's: who has answered what

        # who counts: the newest configuration of the log
        self.quorum = Quorum(self.log.membership.membership)
        self.voters = self.log.membership.membership.all_voters()

        # what the next Ready gives out
        self.messages: list[AnyRaftMessage] = []
        self.messages_after_store: list[AnyRaftMessage] = []
        self.hard_state_given = hard_state
        self.membership_given = self.view_given = False

        self._begin_without_leadership()
        self._begin_without_transfer()
        draw_election_time(self)
        if self.voters == {self.id}:
            self.election_at_ms = now_ms  # the only voter waits for nobody

    def _begin_without_leadership(self) -> None:
        # a leader's: replication
        self.progress: dict[str, Progress] = {}
        self.term_start = 0  # index of the own no-op
        self.heartbeat_at_ms = 0
        self.flush_due = False
        self.transferee = ""
        self.transfer_until_ms = 0

        # a leader's: rounds of heartbeats, and the reads they confirm
        self.round = 0
        self.rounds: deque[tuple[int, int]] = deque()  # (round, when it was sent), not answered by a quorum yet
        self.contact_ms: int | None = None
        self.tickets: list[int] = []  # not in a round yet
        self.tickets_hurry = False  # one of them does not wait for the regular heartbeat
        self.read_rounds: deque[tuple[int, int, list[int]]] = deque()  # (round, index, tickets)
        self.reads_done: list[tuple[int, int]] = []
        self.reads_lost: list[int] = []

    def _begin_without_transfer(self) -> None:
        # a leader's: the state snapshot it sends
        self.state_snapshot: StateSnapshot | None = None  # newest that can be sent
        self.state_snapshot_wanted = 0

        # a follower's: the state snapshot it receives
        self.incoming: StateSnapshot | None = None
        self.incoming_term = 0
        self.incoming_offset = 0
        self.chunks: list[StateSnapshotChunk] = []
        self.install: StateSnapshot | None = None  # whole: nothing else enters the log until the driver says installed or refused


def acknowledge(member: MemberState, leader: str, index: int) -> None:
    """Say that everything up to `index` is durable here; it is said only when that is so."""
    member.messages_after_store.append(AppendReply(member.id, leader, member.term, index))


# --- roles --------------------------------------------------------------------------------------------------------------------
def draw_election_time(member: MemberState) -> None:
    """Draw the time of the next election, at random within the bounds of Config."""
    low, high = member.config.election_ms_min, member.config.election_ms_max
    member.election_at_ms = member.now_ms + low + int(member.config.random() * (high - low))


def become_follower(member: MemberState, term: int, leader: str) -> None:
    """Follow `leader` ("" while none is known) in `term`, which is the present one or a later one; a leadership ends."""
    assert term >= member.term, "terms never fall"
    if member.role is Role.LEADER:
        _end_leadership(member)
    if term != member.term:
        member.term, member.vote = term, ""
    if member.role is not Role.FOLLOWER or member.leader != leader:
        member.view_given = False
    member.role, member.leader = Role.FOLLOWER, leader
    member.votes = {}
    draw_election_time(member)


def _end_leadership(member: MemberState) -> None:
    member.reads_lost += member.tickets
    for _, _, tickets in member.read_rounds:
        member.reads_lost += tickets
    member.tickets, member.tickets_hurry = [], False
    member.read_rounds.clear()
    member.rounds.clear()
    member.contact_ms = None
    member.progress = {}
    member.transferee = ""
    member.state_snapshot_wanted = 0
    member.flush_due = False


def follow_leader(member: MemberState, leader: str) -> None:
    """A message of the leader of our term has come: follow it, and put the election off."""
    if member.role is not Role.FOLLOWER or member.leader != leader:
        become_follower(member, member.term, leader)
    member.heard_leader_ms = member.now_ms
    draw_election_time(member)


def has_live_leader(member: MemberState) -> bool:
    """True if a leader was heard within the shortest election timeout: votes for another would only disrupt it (thesis 4.2.3)."""
    if member.role is Role.LEADER:
        return True
    heard = member.heard_leader_ms
    return member.leader != "" and heard is not None and member.now_ms - heard < member.config.election_ms_min


def may_campaign(member: MemberState) -> bool:
    """True if this member may stand for election.

    Not only voters of the newest configuration may: one that is not in it may be the only one to have it (thesis 4.2.2).
    """
    return member.install is None and member.id in member.log.contenders()


def require_leader(member: MemberState) -> None:
    """Raises NotLeading."""
    if member.role is not Role.LEADER:
        raise NotLeading(member.leader.partition("/")[0])


def require_leading(member: MemberState) -> None:
    """Raises NotLeading unless this is the leader, and not about to hand over."""
    require_leader(member)
    if member.transferee:
        raise NotLeading("")


# --- who counts ---------------------------------------------------------------------------------------------------------------
def is_member(member: MemberState, member_id: str) -> bool:
    """True if the member id is in the configuration in force."""
    if member.role is Role.LEADER:
        return member_id in member.progress
    return member.log.membership.membership.find(member_id) is not None


def adopt_membership(member: MemberState) -> None:
    """The log's newest configuration is another one: it is in force at once.

    The voters whose word decides are those of the newest configuration in the log, of both halves of a joint.
    """
    membership = member.log.membership.membership
    member.quorum = Quorum(membership)
    member.voters = membership.all_voters()
    member.membership_given = False
    if member.role is not Role.LEADER:
        return
    wanted = membership.ids() - {member.id}
    for gone in sorted(member.progress.keys() - wanted):
        del member.progress[gone]
    for new in sorted(wanted - member.progress.keys()):  # the order of messages must not depend on hashes
        member.progress[new] = Progress(member.log.last_index + 1, member.now_ms)
    member.flush_due = True


def is_own_term_committed(member: MemberState) -> bool:
    """True if an entry of the leader's own term is committed; before that it does not know what is."""
    return member.log.commit >= member.term_start
