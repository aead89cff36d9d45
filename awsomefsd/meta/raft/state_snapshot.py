"""Snapshots in chunks, for a follower that needs entries which are compacted away (thesis chapter 5, InstallSnapshot with an offset).

The data is elsewhere: the leader's core says which bytes of which state snapshot are to be sent, the follower's says which chunk comes next
and when all of them are there.  One chunk is out at a time; its reply carries the offset that is wanted next, so a lost chunk or reply, a
duplicate and a resumed transfer are all the same case.  What is not answered within an election timeout is sent again.

A follower gives up a half received state snapshot for one with a larger index, or for the one of a newer leader.  When all chunks are
there, nothing else enters its log until the driver says installed or refused.  Installed: the log is the state snapshot, and an AppendReply
at its index takes the follower back into replication.
"""

from __future__ import annotations

from awsomefsd.meta.raft.member import MemberState, acknowledge, adopt_membership, follow_leader
from awsomefsd.meta.raft.messages import StateSnapshot, StateSnapshotChunk, StateSnapshotReply
from awsomefsd.meta.raft.progress import Progress, ProgressState
from awsomefsd.meta.raft.types import MembershipAt, Role


# --- leader -------------------------------------------------------------------------------------------------------------------
def state_snapshot_made(member: MemberState, meta: StateSnapshot) -> None:
    """A state snapshot can be sent: followers that wait get it, transfers of older ones go on.

    Entries behind `meta.index` should be kept in the log until it is out of use, otherwise the next state snapshot follows.
    """
    member.state_snapshot = meta
    member.state_snapshot_wanted = 0
    for peer, progress in member.progress.items():
        if progress.state is ProgressState.STATE_SNAPSHOT and progress.state_snapshot is None:
            begin_state_snapshot(member, peer, progress)


def state_snapshot_dropped(member: MemberState, name: str) -> None:
    """That state snapshot cannot be read any more: its transfers begin again with another."""
    if member.state_snapshot is not None and member.state_snapshot.name == name:
        member.state_snapshot = None
    for peer, progress in member.progress.items():
        if progress.state_snapshot is not None and progress.state_snapshot.name == name:
            begin_state_snapshot(member, peer, progress)


def begin_state_snapshot(member: MemberState, peer: str, progress: Progress) -> None:
    """Send chunks to the follower from here on, as soon as there is a state snapshot that the kept log continues."""
    newest = member.state_snapshot
    usable = newest is not None and newest.index + 1 >= member.log.first_index and newest.index > progress.match
    progress.send_state_snapshot(newest if usable else None)
    if progress.state_snapshot is None:
        member.state_snapshot_wanted = max(member.state_snapshot_wanted, member.log.first_index - 1)
    else:
        _send_chunk(member, peer, progress)


def _send_chunk(member: MemberState, peer: str, progress: Progress) -> None:
    meta = progress.state_snapshot
    assert meta is not None
    length = min(member.config.chunk_bytes, meta.size - progress.offset)
    progress.chunk_out_ms = member.now_ms
    member.messages.append(StateSnapshotChunk(member.id, peer, member.term, meta, progress.offset, length))


def retry_chunks(member: MemberState) -> None:
    """Send chunks again that were not answered within an election timeout."""
    for peer, progress in member.progress.items():
        if progress.state_snapshot is not None and member.now_ms - progress.chunk_out_ms >= member.config.election_ms_min:
            _send_chunk(member, peer, progress)  # at the end it has no bytes, and asks what became of the state snapshot


def on_state_snapshot_reply(member: MemberState, reply: StateSnapshotReply) -> None:
    progress = member.progress.get(reply.sender)
    if member.role is not Role.LEADER or progress is None:
        return
    progress.heard_ms = member.now_ms
    meta = progress.state_snapshot
    if meta is None or meta.name != reply.name or reply.offset > meta.size:
        return
    if reply.refused:
        begin_state_snapshot(member, reply.sender, progress)
    elif reply.offset != progress.offset:
        progress.offset = reply.offset
        if reply.offset < meta.size:
            _send_chunk(member, reply.sender, progress)


# --- follower -----------------------------------------------------------------------------------------------------------------
def on_state_snapshot_chunk(member: MemberState, chunk: StateSnapshotChunk) -> None:
    follow_leader(member, chunk.sender)
    meta, log = chunk.meta, member.log
    if meta.index > log.commit and log.matches(meta.index, meta.term) and member.install is None:
        log.commit_to(meta.index)  # nothing is missing after all
    if meta.index <= log.commit:
        member.incoming = None if member.install is None else member.incoming
        acknowledge(member, chunk.sender, log.commit)
        return
    if member.install is not None or not _take_up(member, chunk):
        _ask_for(member, chunk, member.incoming_offset if meta == member.incoming else 0)
        return
    if chunk.offset == member.incoming_offset and 0 < chunk.length == len(chunk.data):
        member.chunks.append(chunk)
        member.incoming_offset += chunk.length
        if chunk.last:
            member.install = meta
    _ask_for(member, chunk, member.incoming_offset)


def _take_up(member: MemberState, chunk: StateSnapshotChunk) -> bool:
    """True if this chunk is of the state snapshot that is being received, or begins one that takes its place."""
    incoming = member.incoming
    if incoming is not None and incoming.name == chunk.meta.name:
        member.incoming_term = member.term
        return True
    if incoming is not None and member.incoming_term == member.term and chunk.meta.index < incoming.index:
        return False  # late, of one that was given up
    member.incoming, member.incoming_term, member.incoming_offset = chunk.meta, member.term, 0
    return True


def _ask_for(member: MemberState, chunk: StateSnapshotChunk, offset: int) -> None:
    member.messages_after_store.append(StateSnapshotReply(member.id, chunk.sender, member.term, chunk.meta.name, offset))


def state_snapshot_installed(member: MemberState, meta: StateSnapshot) -> None:
    """Ready.install is done: state and an empty log that begins behind meta.index are durable."""
    assert member.install == meta and meta.index > member.log.commit
    member.install = member.incoming = None
    member.log.reset(meta.index, MembershipAt(meta.membership_index, meta.membership))
    adopt_membership(member)
    if member.leader:
        acknowledge(member, member.leader, meta.index)


def state_snapshot_refused(member: MemberState, meta: StateSnapshot) -> None:
    """Ready.install failed (digest, format): nothing has changed, the transfer begins again."""
    assert member.install == meta
    member.install = member.incoming = None
    member.incoming_offset = 0
    if member.leader:
        member.messages.append(StateSnapshotReply(member.id, member.leader, member.term, meta.name, 0, True))
