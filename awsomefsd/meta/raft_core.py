"""State of one member, terms and roles: what all parts of the Raft core share.

The parts are one class in layers, each in its file: Core (this) → SnapshotTransfer → Replication → Reads → Election → Raft.  A layer calls
only downwards; what Core must tell the layers above it (a leadership ended) it does on fields that live here.

Two lists of messages.  What promises something durable (a vote, an acknowledgement, the request for votes of a candidate that voted for
itself) waits for the store; and while a new term or vote is itself not stored, everything does.
"""

from __future__ import annotations

from collections import deque

from awsomefsd.errors import NotLeading
from awsomefsd.meta.raft_log import RaftLog
from awsomefsd.meta.raft_membership import Quorum
from awsomefsd.meta.raft_messages import AnyRaftMessage, AppendReply, SnapshotChunk, SnapshotMeta
from awsomefsd.meta.raft_progress import Progress
from awsomefsd.meta.raft_types import Config, EntryCodec, HardState, LogView, MembershipAt, Role


class Core:
    def __init__(
        self, config: Config, view: LogView, codec: EntryCodec, hard_state: HardState, applied: int, membership: MembershipAt, now_ms: int
    ) -> None:
        self.config = config
        self.id = config.id
        self.codec = codec
        self.log = RaftLog(view, codec, config, applied, membership)
        self.term, self.vote = hard_state
        self._hard_state_given = hard_state
        self.role = Role.FOLLOWER
        self.leader = ""
        self.now_ms = now_ms
        self._heard_leader_ms: int | None = None
        self._election_at_ms = 0
        self._ready_messages: list[AnyRaftMessage] = []
        self._ready_after_store: list[AnyRaftMessage] = []
        self._membership_given = self._view_given = False
        self._quorum = Quorum(self.log.membership.membership)
        self._voters = self.log.membership.membership.all_voters()
        self._votes: dict[str, bool] = {}
        # a leader's
        self._progress: dict[str, Progress] = {}
        self._term_start = 0  # index of the own no-op
        self._heartbeat_at_ms = 0
        self._flush_due = False
        self._transferee = ""
        self._transfer_until_ms = 0
        self._round = 0
        self._rounds: deque[tuple[int, int]] = deque()  # (round, when it was sent), not answered by a quorum yet
        self._contact_ms: int | None = None
        self._tickets: list[int] = []  # not in a round yet
        self._read_rounds: deque[tuple[int, int, list[int]]] = deque()  # (round, index, tickets)
        self._reads_done: list[tuple[int, int]] = []
        self._reads_lost: list[int] = []
        self._snapshot: SnapshotMeta | None = None  # newest that can be sent
        self._snapshot_wanted = 0
        # a follower's
        self._incoming: SnapshotMeta | None = None
        self._incoming_term = 0
        self._incoming_offset = 0
        self._chunks: list[SnapshotChunk] = []
        self._install: SnapshotMeta | None = None
        self._draw_election_time()
        if self._voters == {self.id}:
            self._election_at_ms = now_ms  # the only voter waits for nobody

    # --- messages -----------------------------------------------------------------------------------------------------------
    def _send(self, message: AnyRaftMessage) -> None:
        self._ready_messages.append(message)

    def _send_after_store(self, message: AnyRaftMessage) -> None:
        self._ready_after_store.append(message)

    def _accept(self, leader: str, index: int) -> None:
        """Said only when everything up to `index` is durable here."""
        self._send_after_store(AppendReply(self.id, leader, self.term, index))

    # --- roles --------------------------------------------------------------------------------------------------------------
    def _draw_election_time(self) -> None:
        low, high = self.config.election_ms_min, self.config.election_ms_max
        self._election_at_ms = self.now_ms + low + int(self.config.random() * (high - low))

    def _become_follower(self, term: int, leader: str) -> None:
        if self.role is Role.LEADER:
            self._leadership_ended()
        if term != self.term:
            self.term, self.vote = term, ""
        if self.role is not Role.FOLLOWER or self.leader != leader:
            self._view_given = False
        self.role, self.leader = Role.FOLLOWER, leader
        self._votes = {}
        self._draw_election_time()

    def _leadership_ended(self) -> None:
        self._reads_lost += self._tickets
        for _, _, tickets in self._read_rounds:
            self._reads_lost += tickets
        self._tickets = []
        self._read_rounds.clear()
        self._rounds.clear()
        self._contact_ms = None
        self._progress = {}
        self._transferee = ""
        self._snapshot_wanted = 0
        self._flush_due = False

    def _heard_leader(self, leader: str) -> None:
        """A message of the leader of our term."""
        if self.role is not Role.FOLLOWER or self.leader != leader:
            self._become_follower(self.term, leader)
        self._heard_leader_ms = self.now_ms
        self._draw_election_time()

    def _hears_leader(self) -> bool:
        """A leader was heard within the shortest election timeout: votes for somebody else would only disrupt it (thesis 4.2.3)."""
        if self.role is Role.LEADER:
            return True
        heard = self._heard_leader_ms
        return self.leader != "" and heard is not None and self.now_ms - heard < self.config.election_ms_min

    def _may_campaign(self) -> bool:
        """Not only voters of the newest configuration: one that is not in it may be the only one to have it (thesis 4.2.2)."""
        return self._install is None and self.id in self.log.contenders()

    def _require_leader(self) -> None:
        if self.role is not Role.LEADER:
            raise NotLeading(self.leader.partition("/")[0])

    def _require_leading(self) -> None:
        """The leader, and not about to hand over."""
        self._require_leader()
        if self._transferee:
            raise NotLeading("")

    # --- who counts ---------------------------------------------------------------------------------------------------------
    def _is_member(self, member_id: str) -> bool:
        return member_id in self._progress if self.role is Role.LEADER else self._known(member_id)

    def _known(self, member_id: str) -> bool:
        return self.log.membership.membership.find(member_id) is not None

    def _count_voters(self) -> Quorum:
        """Whose word decides: voters of the newest configuration in the log, of both halves of a joint."""
        return Quorum(self.log.membership.membership)

    def _membership_changed(self) -> None:
        """The log's newest configuration is in force at once."""
        self._quorum = self._count_voters()
        self._voters = self.log.membership.membership.all_voters()
        self._membership_given = False
        if self.role is not Role.LEADER:
            return
        wanted = self.log.membership.membership.ids() - {self.id}
        for gone in sorted(self._progress.keys() - wanted):
            del self._progress[gone]
        for new in sorted(wanted - self._progress.keys()):  # the order of messages must not depend on hashes
            self._progress[new] = Progress(self.log.last_index + 1, self.now_ms)
        self._flush_due = True
