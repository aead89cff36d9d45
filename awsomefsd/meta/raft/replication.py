"""The log's way to the others: Append, its replies, and the commit of entries (thesis 3.5, 3.6, 10.2.1; etcd raft, raft.go).

Only an entry of the leader's own term is committed by counting; older ones are committed with it (figure 3.7 of the thesis, figure 8 of the
paper).  The leader counts itself as far as its own entries are stored, and only if it is a voter.  A follower commits what the leader has
committed and this follower is known to have in common with it.
"""

from __future__ import annotations

from awsomefsd.meta.raft.member import MemberState, acknowledge, adopt_membership, become_follower, follow_leader
from awsomefsd.meta.raft.membership import leave_joint
from awsomefsd.meta.raft.messages import Append, AppendReply, Heartbeat, HeartbeatReply, LogEntry, TimeoutNow
from awsomefsd.meta.raft.progress import Progress, ProgressState
from awsomefsd.meta.raft.state_snapshot import begin_state_snapshot
from awsomefsd.meta.raft.types import Role


# --- leader: sending ----------------------------------------------------------------------------------------------------------
def append_own(member: MemberState, entries: list[LogEntry]) -> None:
    """Append the leader's own entries, from last_index + 1 on and of its term; they are sent with the next Ready."""
    assert member.role is Role.LEADER and entries[0][1] == entries[-1][1] == member.term
    if member.log.append(entries):
        adopt_membership(member)
    member.flush_due = True


def flush(member: MemberState) -> None:
    """Send to everybody what their windows have room for; called once a Ready, so that a turn's proposals go together."""
    member.flush_due = False
    for peer, progress in member.progress.items():
        _send_entries(member, peer, progress)


def _send_entries(member: MemberState, peer: str, progress: Progress) -> None:
    config, log = member.config, member.log
    while progress.may_send(config.inflight_messages_max, config.inflight_bytes_max):
        probing = progress.state is ProgressState.PROBE
        if progress.next > log.last_index and not (probing and progress.match < log.last_index):
            return
        entries = log.slice(progress.next, config.append_bytes_max)
        if not entries and progress.next <= log.last_index:
            begin_state_snapshot(member, peer, progress)
        else:
            _send_append(member, peer, progress, entries)


def _send_append(member: MemberState, peer: str, progress: Progress, entries: list[LogEntry]) -> None:
    previous = progress.next - 1
    term = member.log.term(previous)
    if term is None:  # compacted away
        begin_state_snapshot(member, peer, progress)
        return
    member.messages.append(Append(member.id, peer, member.term, previous, term, member.log.commit, entries))
    if entries or progress.state is ProgressState.PROBE:
        progress.sent(previous + len(entries), sum([len(entry[2]) for entry in entries]))


def broadcast_heartbeat(member: MemberState) -> int:
    """Send a new round to everybody; returns its number."""
    member.round += 1
    member.rounds.append((member.round, member.now_ms))
    member.heartbeat_at_ms = member.now_ms + member.config.heartbeat_ms
    for peer, progress in member.progress.items():
        member.messages.append(Heartbeat(member.id, peer, member.term, member.round, min(progress.match, member.log.commit)))
    return member.round


# --- leader: replies ----------------------------------------------------------------------------------------------------------
def on_append_reply(member: MemberState, reply: AppendReply) -> None:
    progress = member.progress.get(reply.sender)
    if member.role is not Role.LEADER or progress is None or reply.index > member.log.last_index:
        return
    progress.heard_ms = member.now_ms
    if reply.refused:
        resume_at = member.log.hint(reply.hint_index, reply.hint_term)[0] + 1
        if progress.refused(reply.index, resume_at):
            _send_entries(member, reply.sender, progress)
        return
    news = progress.acknowledged(reply.index)
    if reply.index == progress.match:
        _matched(member, reply.sender, progress)
    if news:
        advance_commit(member)
        if reply.sender == member.transferee:
            hand_over_when_ready(member)
    if member.role is Role.LEADER and reply.sender in member.progress:
        member.flush_due = True


def _matched(member: MemberState, peer: str, progress: Progress) -> None:
    """The follower's log is known to match now: go on from there."""
    if progress.state is ProgressState.PROBE:
        progress.replicate()
    elif progress.state is ProgressState.STATE_SNAPSHOT:
        if progress.match + 1 >= member.log.first_index:
            progress.replicate()
        elif progress.state_snapshot is not None and progress.match >= progress.state_snapshot.index:
            begin_state_snapshot(member, peer, progress)  # the log was compacted beyond it meanwhile


def on_heartbeat_reply(member: MemberState, reply: HeartbeatReply) -> None:
    progress = member.progress.get(reply.sender)
    if member.role is not Role.LEADER or progress is None or reply.round > member.round:
        return
    progress.heard_ms = member.now_ms
    progress.round = max(progress.round, reply.round)
    if progress.match < member.log.last_index and progress.state is not ProgressState.STATE_SNAPSHOT:
        if progress.state is ProgressState.PROBE:
            progress.probe_out = False  # it, or its reply, may be lost
        elif progress.match == progress.match_at_heartbeat and progress.inflight:
            _send_append(member, reply.sender, progress, [])  # nothing has moved: a refusal tells that something was lost
        _send_entries(member, reply.sender, progress)
    progress.match_at_heartbeat = progress.match


def advance_commit(member: MemberState) -> None:
    """Commit what a majority has stored, as far as it is of the leader's own term."""
    matches = {peer: progress.match for peer, progress in member.progress.items()}
    matches[member.id] = member.log.stable
    index = member.quorum.value(matches)
    if index > member.log.commit and _may_commit(member, index):
        member.log.commit_to(index)
        assert member.log.applied <= member.log.commit == index
        _committed(member)


def _may_commit(member: MemberState, index: int) -> bool:
    return member.log.term(index) == member.term


def _committed(member: MemberState) -> None:
    """A leader's duties when its commit index has moved: leave a joint, or go if it is no voter any more."""
    newest = member.log.membership
    if newest.index > member.log.commit or member.log.commit < member.term_start:
        return
    if newest.membership.joint:
        index = member.log.last_index + 1
        append_own(member, [(index, member.term, member.codec.membership(index, member.term, leave_joint(newest.membership)))])
    elif member.id not in member.voters:
        _resign(member)


def _resign(member: MemberState) -> None:
    """The committed configuration is without this leader: say so to all, and let the one that is furthest be elected at once."""
    for peer, progress in member.progress.items():
        if (term := member.log.term(progress.match)) is not None:
            member.messages.append(Append(member.id, peer, member.term, progress.match, term, member.log.commit))
    successors = [(progress.match, peer) for peer, progress in member.progress.items() if peer in member.voters]
    match, successor = max(successors, default=(0, ""))
    if match == member.log.last_index:
        member.messages.append(TimeoutNow(member.id, successor, member.term))
    become_follower(member, member.term, "")


def hand_over_when_ready(member: MemberState) -> None:
    """Leadership transfer: the target must have everything, then it may start its election."""
    progress = member.progress.get(member.transferee)
    if progress is not None and progress.match == member.log.last_index:
        member.messages.append(TimeoutNow(member.id, member.transferee, member.term))


# --- follower -----------------------------------------------------------------------------------------------------------------
def on_append(member: MemberState, message: Append) -> None:
    follow_leader(member, message.sender)
    log = member.log
    if member.install is not None:
        return
    if message.previous_index < log.commit:
        acknowledge(member, message.sender, log.commit)
        return
    if not log.matches(message.previous_index, message.previous_term):
        hint, term = log.hint(message.previous_index, message.previous_term)
        member.messages.append(AppendReply(member.id, message.sender, member.term, message.previous_index, True, hint, term))
        return
    matched = message.previous_index + len(message.entries)
    if message.entries and log.accept(message.entries):
        adopt_membership(member)
    log.commit_to(min(message.commit, matched))
    acknowledge(member, message.sender, matched)


def on_heartbeat(member: MemberState, message: Heartbeat) -> None:
    follow_leader(member, message.sender)
    if member.install is None:
        member.log.commit_to(min(message.commit, member.log.last_index))
    member.messages.append(HeartbeatReply(member.id, message.sender, member.term, message.round))
