"""Snapshots in chunks, for a follower that needs entries which are compacted away (thesis chapter 5, InstallSnapshot with an offset).

The data is elsewhere: the leader's core says which bytes of which snapshot are to be sent, the follower's says which chunk comes next and
when all of them are there.  One chunk is out at a time; its reply carries the offset that is wanted next, so a lost chunk or reply, a
duplicate and a resumed transfer are all the same case.  What is not answered within an election timeout is sent again.

A follower gives a half received snapshot up for one with a larger index, or for the one of a newer leader.  When all chunks are there,
nothing else enters its log until the driver says installed or refused.  Installed: the log is the snapshot, and an AppendReply at its index
takes the follower back into replication.
"""

from __future__ import annotations

from awsomefsd.meta.raft_core import Core
from awsomefsd.meta.raft_messages import SnapshotChunk, SnapshotMeta, SnapshotReply
from awsomefsd.meta.raft_progress import Progress, ProgressState
from awsomefsd.meta.raft_types import MembershipAt, Role


class SnapshotTransfer(Core):
    # --- leader ---------------------------------------------------------------------------------------------------------------
    def snapshot_made(self, meta: SnapshotMeta) -> None:
        """A snapshot is there for sending: followers that wait get it, transfers of older ones go on.

        Entries behind `meta.index` should be kept in the log until it is out of use, otherwise the next snapshot follows.
        """
        self._snapshot = meta
        self._snapshot_wanted = 0
        for peer, progress in self._progress.items():
            if progress.state is ProgressState.SNAPSHOT and progress.snapshot is None:
                self._begin_snapshot(peer, progress)

    def snapshot_dropped(self, name: str) -> None:
        """That snapshot cannot be read any more: its transfers begin anew with another."""
        if self._snapshot is not None and self._snapshot.name == name:
            self._snapshot = None
        for peer, progress in self._progress.items():
            if progress.snapshot is not None and progress.snapshot.name == name:
                self._begin_snapshot(peer, progress)

    def _begin_snapshot(self, peer: str, progress: Progress) -> None:
        """From here on the follower gets chunks, as soon as there is a snapshot that the kept log continues."""
        usable = self._snapshot is not None and self._snapshot.index + 1 >= self.log.first_index and self._snapshot.index > progress.match
        progress.send_snapshot(self._snapshot if usable else None)
        if progress.snapshot is None:
            self._snapshot_wanted = max(self._snapshot_wanted, self.log.first_index - 1)
        else:
            self._send_chunk(peer, progress)

    def _send_chunk(self, peer: str, progress: Progress) -> None:
        meta = progress.snapshot
        assert meta is not None
        length = min(self.config.chunk_bytes, meta.size - progress.offset)
        progress.chunk_out_ms = self.now_ms
        self._send(SnapshotChunk(self.id, peer, self.term, meta, progress.offset, length))

    def _retry_chunks(self) -> None:
        for peer, progress in self._progress.items():
            if progress.snapshot is not None and self.now_ms - progress.chunk_out_ms >= self.config.election_ms_min:
                self._send_chunk(peer, progress)  # at the end it has no bytes, and asks what became of the snapshot

    def _on_snapshot_reply(self, reply: SnapshotReply) -> None:
        progress = self._progress.get(reply.sender)
        if self.role is not Role.LEADER or progress is None:
            return
        progress.heard_ms = self.now_ms
        meta = progress.snapshot
        if meta is None or meta.name != reply.name or reply.offset > meta.size:
            return
        if reply.refused:
            self._begin_snapshot(reply.sender, progress)
        elif reply.offset != progress.offset:
            progress.offset = reply.offset
            if reply.offset < meta.size:
                self._send_chunk(reply.sender, progress)

    # --- follower -------------------------------------------------------------------------------------------------------------
    def _on_snapshot_chunk(self, chunk: SnapshotChunk) -> None:
        self._heard_leader(chunk.sender)
        meta, log = chunk.meta, self.log
        if meta.index > log.commit and log.matches(meta.index, meta.term) and self._install is None:
            log.commit_to(meta.index)  # nothing is missing after all
        if meta.index <= log.commit:
            self._incoming = None if self._install is None else self._incoming
            self._accept(chunk.sender, log.commit)
            return
        if self._install is not None or not self._take_up(chunk):
            self._ask_for(chunk, self._incoming_offset if meta == self._incoming else 0)
            return
        if chunk.offset == self._incoming_offset and 0 < chunk.length == len(chunk.data):
            self._chunks.append(chunk)
            self._incoming_offset += chunk.length
            if chunk.last:
                self._install = meta
        self._ask_for(chunk, self._incoming_offset)

    def _take_up(self, chunk: SnapshotChunk) -> bool:
        """Whether this chunk is of the snapshot that is being received, or begins one that takes its place."""
        incoming = self._incoming
        if incoming is not None and incoming.name == chunk.meta.name:
            self._incoming_term = self.term
            return True
        if incoming is not None and self._incoming_term == self.term and chunk.meta.index < incoming.index:
            return False  # late, of one that was given up
        self._incoming, self._incoming_term, self._incoming_offset = chunk.meta, self.term, 0
        return True

    def _ask_for(self, chunk: SnapshotChunk, offset: int) -> None:
        self._send_after_store(SnapshotReply(self.id, chunk.sender, self.term, chunk.meta.name, offset))

    def snapshot_installed(self, meta: SnapshotMeta) -> None:
        """Ready.install is done: state and an empty log that begins behind meta.index are durable."""
        assert self._install == meta and meta.index > self.log.commit
        self._install = self._incoming = None
        self.log.reset(meta.index, MembershipAt(meta.membership_index, meta.membership))
        self._membership_changed()
        if self.leader:
            self._accept(self.leader, meta.index)

    def snapshot_refused(self, meta: SnapshotMeta) -> None:
        """Ready.install failed (digest, format): nothing has changed, the transfer begins anew."""
        assert self._install == meta
        self._install = self._incoming = None
        self._incoming_offset = 0
        if self.leader:
            self._send(SnapshotReply(self.id, self.leader, self.term, meta.name, 0, True))
