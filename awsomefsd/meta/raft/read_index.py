"""ReadIndex, and the time since when the leadership is certain (thesis 6.4; etcd raft, read_only.go).

A read may be answered from the state at the leader's commit index if the leader was still the leader after the read arrived: a round of
heartbeats sent after that, answered by a quorum, proves it.  One round confirms every ticket that was asked for before it; while it is out,
further tickets wait for the next one, so there is at most one round more than the regular heartbeats.  A patient ticket starts no round:
the next regular heartbeat confirms it, or the round of one that hurries.  A new leader does not know what is committed before an entry of
its own term is: until then tickets wait.
"""

from __future__ import annotations

from awsomefsd.meta.raft import replication
from awsomefsd.meta.raft.member import MemberState, is_own_term_committed, require_leader
from awsomefsd.meta.raft.messages import HeartbeatReply
from awsomefsd.meta.raft.types import Role


def read_index(member: MemberState, ticket: int, patient: bool) -> None:
    """Ready.reads will have (ticket, index), or Ready.reads_lost the ticket.  Raises NotLeading."""
    require_leader(member)
    member.tickets.append(ticket)
    member.tickets_hurry = member.tickets_hurry or not patient


def quorum_contact_ms(member: MemberState) -> int | None:
    """Time at which the newest round was sent that a quorum has answered; None if none was in this leadership."""
    if member.role is Role.LEADER and member.quorum.reached(member.id.__eq__):
        return member.now_ms
    return member.contact_ms


def may_start_reads(member: MemberState) -> bool:
    """True if a ticket hurries that a new round may confirm."""
    return member.tickets_hurry and not member.read_rounds and is_own_term_committed(member)


def start_reads(member: MemberState) -> None:
    """Send a new round, which confirms the waiting tickets at the commit index as it is now."""
    tickets, member.tickets, member.tickets_hurry = member.tickets, [], False
    member.read_rounds.append((replication.broadcast_heartbeat(member), member.log.commit, tickets))
    _confirm(member)


def beat(member: MemberState) -> None:
    """Send the regular heartbeat; it confirms waiting tickets too."""
    if member.tickets and is_own_term_committed(member):
        start_reads(member)
    else:
        replication.broadcast_heartbeat(member)
        _confirm(member)


def on_heartbeat_reply(member: MemberState, reply: HeartbeatReply) -> None:
    replication.on_heartbeat_reply(member, reply)
    if member.role is Role.LEADER:
        _confirm(member)


def _confirm(member: MemberState) -> None:
    """Rounds that a quorum has answered."""
    answered = _answered_round(member)
    while member.rounds and member.rounds[0][0] <= answered:
        member.contact_ms = member.rounds.popleft()[1]
    while member.read_rounds and member.read_rounds[0][0] <= answered:
        _, index, tickets = member.read_rounds.popleft()
        member.reads_done += [(ticket, index) for ticket in tickets]


def _answered_round(member: MemberState) -> int:
    rounds = {peer: progress.round for peer, progress in member.progress.items()}
    rounds[member.id] = member.round
    return member.quorum.value(rounds)
