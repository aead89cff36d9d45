"""Elections: PreVote, the vote, the first moment of a leader, and its end for want of a quorum (thesis 3.4, 4.2.3, 6.2, 9.6; etcd raft).

A node that hears nothing asks first whether it would win (PreVote), which changes nothing anywhere; so a node that was cut off comes back
without a larger term.  Whoever hears a leader refuses, unless the leader itself asked for the election; so a removed node disrupts nothing.
A leader that has not heard a quorum for the shortest election timeout steps down (CheckQuorum), so clients find the other one.

Votes count only from voters of the candidate's newest configuration, by member id: node and incarnation of the journal.  The voter refuses,
too, whoever is a voter in none of the configurations that its own log leaves possible (the newest committed one and those after it), unless
the candidate's is newer (`membership_index`).  For the same reason a leader that was voted out stands for election again as long as it does
not know that the entry which says so is committed: nobody else may have it, and without it the others would need a vote it cannot give.
"""

from __future__ import annotations

from awsomefsd.meta.raft.member import MemberState, become_follower, draw_election_time, has_live_leader, is_member, may_campaign
from awsomefsd.meta.raft.messages import (
    AnyRaftMessage,
    Append,
    AppendReply,
    Heartbeat,
    StateSnapshotChunk,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from awsomefsd.meta.raft.progress import Progress
from awsomefsd.meta.raft.replication import append_own
from awsomefsd.meta.raft.types import Role


# --- candidate ----------------------------------------------------------------------------------------------------------------
def pre_campaign(member: MemberState) -> None:
    """The election timeout has passed: ask whether an election would be won (PreVote); the term stays."""
    _become_candidate(member, Role.PRE_CANDIDATE)
    if member.quorum.reached(member.votes.__contains__):
        _campaign(member, transfer=False)
    else:
        _ask_for_votes(member, member.term + 1, pre=True, transfer=False)


def _campaign(member: MemberState, transfer: bool) -> None:
    member.term += 1
    member.vote = member.id
    _become_candidate(member, Role.CANDIDATE)
    if member.quorum.reached(member.votes.__contains__):
        _become_leader(member)  # nothing is said before term and vote are stored, see member.py
    else:
        _ask_for_votes(member, member.term, pre=False, transfer=transfer)


def _become_candidate(member: MemberState, role: Role) -> None:
    member.role, member.leader = role, ""
    member.view_given = False
    member.votes = {member.id: True}
    draw_election_time(member)


def _ask_for_votes(member: MemberState, term: int, pre: bool, transfer: bool) -> None:
    log = member.log
    for voter in sorted(member.voters - {member.id}):
        request = VoteRequest(member.id, voter, term, log.last_index, log.last_term, log.membership.index, pre, transfer)
        member.messages_after_store.append(request)


def on_vote_reply(member: MemberState, reply: VoteReply) -> None:
    wanted = Role.PRE_CANDIDATE if reply.pre else Role.CANDIDATE
    if member.role is not wanted or reply.sender not in member.voters or (reply.granted and reply.term != member.term + reply.pre):
        return
    member.votes.setdefault(reply.sender, reply.granted)
    if member.quorum.reached(lambda voter: member.votes.get(voter, False)):
        if reply.pre:
            _campaign(member, transfer=False)
        else:
            _become_leader(member)
    elif member.quorum.impossible(lambda voter: not member.votes.get(voter, True)):
        become_follower(member, member.term, "")


def on_timeout_now(member: MemberState, message: TimeoutNow) -> None:
    if may_campaign(member) and member.role is Role.FOLLOWER:
        _campaign(member, transfer=True)


# --- voter --------------------------------------------------------------------------------------------------------------------
def on_vote_request(member: MemberState, request: VoteRequest) -> None:
    granted = _may_grant_vote(member, request)
    if granted and not request.pre:
        member.vote = request.sender
        draw_election_time(member)
    reply = VoteReply(member.id, request.sender, request.term if granted else member.term, granted, request.pre)
    if granted:
        member.messages_after_store.append(reply)
    else:
        member.messages.append(reply)


def _may_grant_vote(member: MemberState, request: VoteRequest) -> bool:
    return _vote_is_free(member, request) and _log_is_up_to_date(member, request) and _may_be_voter(member, request)


def _vote_is_free(member: MemberState, request: VoteRequest) -> bool:
    if request.pre:
        return request.term > member.term
    return member.vote == request.sender or (member.vote == "" and member.leader == "")


def _log_is_up_to_date(member: MemberState, request: VoteRequest) -> bool:
    return (request.last_term, request.last_index) >= (member.log.last_term, member.log.last_index)


def _may_be_voter(member: MemberState, request: VoteRequest) -> bool:
    return request.sender in member.log.contenders() or request.membership_index > member.log.membership.index


# --- leader -------------------------------------------------------------------------------------------------------------------
def _become_leader(member: MemberState) -> None:
    assert member.role is Role.CANDIDATE and member.vote == member.id
    member.role, member.leader = Role.LEADER, member.id
    member.view_given = False
    member.votes = {}
    member.round = 0
    member.heartbeat_at_ms = member.now_ms + member.config.heartbeat_ms
    peers = member.log.membership.membership.ids() - {member.id}
    member.progress = {peer: Progress(member.log.last_index + 1, member.now_ms) for peer in sorted(peers)}
    index = member.term_start = member.log.last_index + 1
    append_own(member, [(index, member.term, member.codec.noop(index, member.term))])


def hears_quorum(member: MemberState) -> bool:
    """True if a leader has heard a quorum within the shortest election timeout (CheckQuorum)."""
    since = member.now_ms - member.config.election_ms_min
    progress = member.progress
    return member.quorum.reached(lambda voter: voter == member.id or (voter in progress and progress[voter].heard_ms >= since))


# --- terms that differ ----------------------------------------------------------------------------------------------------------
def on_larger_term(member: MemberState, message: AnyRaftMessage) -> bool:
    """A message of a larger term than ours has come.  True: it is handled further, as one of our term now or as a question for votes."""
    if isinstance(message, (Append, Heartbeat, StateSnapshotChunk, TimeoutNow)):
        become_follower(member, message.term, message.sender)  # its sender was elected
        return True
    if isinstance(message, VoteRequest):
        if (has_live_leader(member) and not message.transfer) or not _may_be_voter(member, message):
            member.messages.append(VoteReply(member.id, message.sender, member.term, False, message.pre))
            return False
        if not message.pre:
            become_follower(member, message.term, "")
        return True
    if isinstance(message, VoteReply) and message.pre and message.granted:
        return True
    if is_member(member, message.sender):
        become_follower(member, message.term, "")
    return False


def on_smaller_term(member: MemberState, message: AnyRaftMessage) -> None:
    """A message of a smaller term than ours has come: a leader that was deposed learns so, a candidate too."""
    if isinstance(message, (Append, Heartbeat, StateSnapshotChunk)):
        member.messages.append(AppendReply(member.id, message.sender, member.term, 0, True))
    elif isinstance(message, VoteRequest):
        member.messages.append(VoteReply(member.id, message.sender, member.term, False, message.pre))
