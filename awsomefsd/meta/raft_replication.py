"""The log's way to the others: Append, its replies, and when an entry is committed (thesis 3.5, 3.6, 10.2.1; etcd raft, raft.go).

Only an entry of the leader's own term is committed by counting; older ones are committed with it (figure 3.7 of the thesis, figure 8 of the
paper).  The leader counts itself as far as its own entries are stored, and only if it is a voter.  A follower commits what the leader has
committed and this follower is known to have in common with it.
"""

from __future__ import annotations

from awsomefsd.meta.raft_membership import leave_joint
from awsomefsd.meta.raft_messages import Append, AppendReply, Heartbeat, HeartbeatReply, LogEntry, TimeoutNow
from awsomefsd.meta.raft_progress import Progress, ProgressState
from awsomefsd.meta.raft_snapshot import SnapshotTransfer
from awsomefsd.meta.raft_types import Role


class Replication(SnapshotTransfer):
    # --- leader: sending ----------------------------------------------------------------------------------------------------
    def _append_own(self, entries: list[LogEntry]) -> None:
        if self.log.append(entries):
            self._membership_changed()
        self._flush_due = True

    def _flush(self) -> None:
        """Send to everybody what their windows have room for; called once a Ready, so that a turn's proposals go together."""
        self._flush_due = False
        for peer, progress in self._progress.items():
            self._send_entries(peer, progress)

    def _send_entries(self, peer: str, progress: Progress) -> None:
        config, log = self.config, self.log
        while progress.may_send(config.inflight_messages_max, config.inflight_bytes_max):
            probing = progress.state is ProgressState.PROBE
            if progress.next > log.last_index and not (probing and progress.match < log.last_index):
                return
            entries = log.slice(progress.next, config.append_bytes_max)
            if not entries and progress.next <= log.last_index:
                self._begin_snapshot(peer, progress)
            else:
                self._send_append(peer, progress, entries)

    def _send_append(self, peer: str, progress: Progress, entries: list[LogEntry]) -> None:
        previous = progress.next - 1
        term = self.log.term(previous)
        if term is None:  # compacted away
            self._begin_snapshot(peer, progress)
            return
        self._send(Append(self.id, peer, self.term, previous, term, self.log.commit, entries))
        if entries or progress.state is ProgressState.PROBE:
            progress.sent(previous + len(entries), sum([len(entry[2]) for entry in entries]))

    def _broadcast_heartbeat(self) -> int:
        """A new round to everybody; its number."""
        self._round += 1
        self._rounds.append((self._round, self.now_ms))
        self._heartbeat_at_ms = self.now_ms + self.config.heartbeat_ms
        for peer, progress in self._progress.items():
            self._send(Heartbeat(self.id, peer, self.term, self._round, min(progress.match, self.log.commit)))
        return self._round

    # --- leader: replies ----------------------------------------------------------------------------------------------------
    def _on_append_reply(self, reply: AppendReply) -> None:
        progress = self._progress.get(reply.sender)
        if self.role is not Role.LEADER or progress is None or reply.index > self.log.last_index:
            return
        progress.heard_ms = self.now_ms
        if reply.refused:
            resume_at = self.log.hint(reply.hint_index, reply.hint_term)[0] + 1
            if progress.refused(reply.index, resume_at):
                self._send_entries(reply.sender, progress)
            return
        news = progress.acknowledged(reply.index)
        if reply.index == progress.match:
            self._matched(reply.sender, progress)
        if news:
            self._advance_commit()
            if reply.sender == self._transferee:
                self._hand_over_when_ready()
        if self.role is Role.LEADER and reply.sender in self._progress:
            self._flush_due = True

    def _matched(self, peer: str, progress: Progress) -> None:
        """Where the logs match is known now."""
        if progress.state is ProgressState.PROBE:
            progress.replicate()
        elif progress.state is ProgressState.SNAPSHOT:
            if progress.match + 1 >= self.log.first_index:
                progress.replicate()
            elif progress.snapshot is not None and progress.match >= progress.snapshot.index:
                self._begin_snapshot(peer, progress)  # the log was compacted beyond it meanwhile

    def _on_heartbeat_reply(self, reply: HeartbeatReply) -> None:
        progress = self._progress.get(reply.sender)
        if self.role is not Role.LEADER or progress is None or reply.round > self._round:
            return
        progress.heard_ms = self.now_ms
        progress.round = max(progress.round, reply.round)
        if progress.match < self.log.last_index and progress.state is not ProgressState.SNAPSHOT:
            if progress.state is ProgressState.PROBE:
                progress.probe_out = False  # it, or its reply, may be lost
            elif progress.match == progress.match_at_heartbeat and progress.inflight:
                self._send_append(reply.sender, progress, [])  # nothing has moved: a refusal tells that something was lost
            self._send_entries(reply.sender, progress)
        progress.match_at_heartbeat = progress.match

    def _advance_commit(self) -> None:
        matches = {peer: progress.match for peer, progress in self._progress.items()}
        matches[self.id] = self.log.stable
        index = self._quorum.value(matches)
        if index > self.log.commit and self._may_commit(index):
            self.log.commit_to(index)
            self._committed()

    def _may_commit(self, index: int) -> bool:
        return self.log.term(index) == self.term

    def _committed(self) -> None:
        """A leader's duties when its commit index has moved: leave a joint, or go if it is no voter any more."""
        newest = self.log.membership
        if newest.index > self.log.commit or self.log.commit < self._term_start:
            return
        if newest.membership.joint:
            index = self.log.last_index + 1
            self._append_own([(index, self.term, self.codec.membership(index, self.term, leave_joint(newest.membership)))])
        elif self.id not in self._voters:
            self._go()

    def _go(self) -> None:
        """The committed configuration is without this leader: say so to all, and let the one that is furthest be elected at once."""
        for peer, progress in self._progress.items():
            if (term := self.log.term(progress.match)) is not None:
                self._send(Append(self.id, peer, self.term, progress.match, term, self.log.commit))
        heirs = [(progress.match, peer) for peer, progress in self._progress.items() if peer in self._voters]
        match, heir = max(heirs, default=(0, ""))
        if match == self.log.last_index:
            self._send(TimeoutNow(self.id, heir, self.term))
        self._become_follower(self.term, "")

    def _hand_over_when_ready(self) -> None:
        """Leadership transfer: the target must have everything, then it may start its election."""
        progress = self._progress.get(self._transferee)
        if progress is not None and progress.match == self.log.last_index:
            self._send(TimeoutNow(self.id, self._transferee, self.term))

    # --- follower -----------------------------------------------------------------------------------------------------------
    def _on_append(self, message: Append) -> None:
        self._heard_leader(message.sender)
        log = self.log
        if self._install is not None:
            return
        if message.previous_index < log.commit:
            self._accept(message.sender, log.commit)
            return
        if not log.matches(message.previous_index, message.previous_term):
            hint, term = log.hint(message.previous_index, message.previous_term)
            self._send(AppendReply(self.id, message.sender, self.term, message.previous_index, True, hint, term))
            return
        matched = message.previous_index + len(message.entries)
        if message.entries and log.accept(message.entries):
            self._membership_changed()
        log.commit_to(min(message.commit, matched))
        self._accept(message.sender, matched)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._heard_leader(message.sender)
        if self._install is None:
            self.log.commit_to(min(message.commit, self.log.last_index))
        self._send(HeartbeatReply(self.id, message.sender, self.term, message.round))
