"""A leader's knowledge of one other member, and how much it may send there (etcd raft, package tracker).

    PROBE           where the logs match is not known: one Append at a time, the next when its reply or a heartbeat's comes
    REPLICATE       Appends are sent ahead of their replies, up to a window of messages and bytes
    STATE_SNAPSHOT  the entries it needs are compacted away: chunks of a state snapshot, one at a time

`match` is what it has acknowledged as durable, `next` the first index to send.  A refusal in REPLICATE (something was lost or came out of
order) leads to PROBE, an acknowledgement to REPLICATE.
"""

from __future__ import annotations

import enum
from collections import deque

from awsomefsd.meta.raft.messages import StateSnapshot


class ProgressState(enum.Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    STATE_SNAPSHOT = "snapshot"


class Progress:
    """The leader's view of one member.  `match` < `next` always."""

    __slots__ = (
        "chunk_out_ms", "heard_ms", "inflight", "inflight_bytes", "match", "match_at_heartbeat", "next", "offset", "probe_out", "round",
        "state", "state_snapshot",
    )  # fmt: skip

    def __init__(self, next_index: int, now_ms: int) -> None:
        self.state = ProgressState.PROBE
        self.match = 0
        self.next = next_index
        self.heard_ms = now_ms  # anything of it in this term
        self.round = 0  # newest it has answered
        self.probe_out = False
        self.inflight: deque[tuple[int, int]] = deque()  # (last index, bytes) of each Append not answered
        self.inflight_bytes = 0
        self.match_at_heartbeat = 0
        self.state_snapshot: StateSnapshot | None = None  # being sent; None in STATE_SNAPSHOT: waits for one to be made
        self.offset = 0
        self.chunk_out_ms = -1  # when the chunk at `offset` was sent; -1: it was not

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.probe_out = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.state_snapshot = None
        self.offset = 0
        self.chunk_out_ms = -1

    def probe(self, next_index: int) -> None:
        """Find out again where the logs match."""
        self._enter(ProgressState.PROBE)
        self.next = max(next_index, self.match + 1)

    def replicate(self) -> None:
        """The logs match: send ahead of replies."""
        self._enter(ProgressState.REPLICATE)
        self.next = self.match + 1

    def send_state_snapshot(self, meta: StateSnapshot | None) -> None:
        """Send that state snapshot, or (None) wait for one to be made."""
        self._enter(ProgressState.STATE_SNAPSHOT)
        self.state_snapshot = meta

    def may_send(self, messages_max: int, bytes_max: int) -> bool:
        """True if another Append may be sent now."""
        if self.state is ProgressState.REPLICATE:
            return len(self.inflight) < messages_max and self.inflight_bytes < bytes_max
        return self.state is ProgressState.PROBE and not self.probe_out

    def sent(self, last_index: int, size: int) -> None:
        """An Append that ends with `last_index` is on its way."""
        if self.state is ProgressState.PROBE:
            self.probe_out = True
            return
        self.inflight.append((last_index, size))
        self.inflight_bytes += size
        self.next = last_index + 1

    def acknowledged(self, index: int) -> bool:
        """The member has everything up to `index`; True if that is new."""
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        assert self.match < self.next and self.inflight_bytes >= 0
        return True

    def refused(self, index: int, resume_at: int) -> bool:
        """No match at `index`: probe at `resume_at`.  False for a stale refusal, which changes nothing."""
        if index <= self.match or self.state is ProgressState.STATE_SNAPSHOT:
            return False
        if self.state is ProgressState.PROBE and index != self.next - 1:
            return False
        self.probe(min(index, resume_at))
        return True
