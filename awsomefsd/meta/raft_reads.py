"""ReadIndex, and since when the leadership is certain (thesis 6.4; etcd raft, read_only.go).

A read may be answered from the state at the leader's commit index if the leader was still the leader after the read arrived: a round of
heartbeats sent after that, answered by a quorum, proves it.  One round confirms every ticket that was asked for before it; while it is out,
further tickets wait for the next one, so there is at most one round more than the regular heartbeats.  A new leader does not know what is
committed before an entry of its own term is: until then tickets wait.
"""

from __future__ import annotations

from awsomefsd.meta.raft_messages import HeartbeatReply
from awsomefsd.meta.raft_replication import Replication
from awsomefsd.meta.raft_types import Role


class Reads(Replication):
    def read_index(self, ticket: int) -> None:
        """Ready.reads will have (ticket, index), or Ready.reads_lost the ticket.  Raises NotLeading."""
        self._require_leader()
        self._tickets.append(ticket)

    @property
    def quorum_contact_ms(self) -> int | None:
        """When the newest round was sent that a quorum has answered; None if none was in this leadership."""
        if self.role is Role.LEADER and self._quorum.reached(self.id.__eq__):
            return self.now_ms
        return self._contact_ms

    def _own_term_committed(self) -> bool:
        return self.log.commit >= self._term_start

    def _may_start_reads(self) -> bool:
        return bool(self._tickets) and not self._read_rounds and self._own_term_committed()

    def _start_reads(self) -> None:
        """The waiting tickets, with the commit index as it is now, ride on a new round."""
        tickets, self._tickets = self._tickets, []
        self._read_rounds.append((self._broadcast_heartbeat(), self.log.commit, tickets))
        self._confirm()

    def _beat(self) -> None:
        """The regular heartbeat; tickets ride along."""
        if self._tickets and self._own_term_committed():
            self._start_reads()
        else:
            self._broadcast_heartbeat()
            self._confirm()

    def _on_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        super()._on_heartbeat_reply(reply)
        if self.role is Role.LEADER:
            self._confirm()

    def _confirm(self) -> None:
        """Rounds that a quorum has answered."""
        answered = self._answered_round()
        while self._rounds and self._rounds[0][0] <= answered:
            self._contact_ms = self._rounds.popleft()[1]
        while self._read_rounds and self._read_rounds[0][0] <= answered:
            _, index, tickets = self._read_rounds.popleft()
            self._reads_done += [(ticket, index) for ticket in tickets]

    def _answered_round(self) -> int:
        rounds = {peer: progress.round for peer, progress in self._progress.items()}
        rounds[self.id] = self._round
        return self._quorum.value(rounds)
