"""The values that go into the Raft core (Config, LogView, events) and come out of it (Ready), after etcd raft's Config, Storage, Ready.

The loop of whoever drives it (raft.py has the core, class Raft):

    raft.tick(now_ms) / raft.step(message) / raft.propose(payloads) / raft.read_index(ticket) …
    while raft.has_ready():
        ready = raft.ready()
        send(ready.messages)                                  may go before, or beside, the storing
        store(ready.hard_state); truncate(ready.truncate_after); append(ready.entries); write(ready.chunks); sync()
        send(ready.messages_after_store)                      acknowledgements and votes: what they say is durable now
        if ready.entries: raft.stored(ready.entries[-1][0], ready.entries[-1][1])
        if ready.install: … raft.state_snapshot_installed(meta) or raft.state_snapshot_refused(meta)
        apply(ready.committed); raft.applied(index of the last)
        answer ready.reads whose index is applied

One Ready at a time: the next is asked for when all of this one is durable.  Events may be given to the core in between.  A crash at any
place in the loop leaves less stored than the core knew and nothing said that is not stored, except a leader's Append (thesis 10.2.1): the
leader counts its own entries when `stored` says so.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from awsomefsd.base import limits
from awsomefsd.meta.raft.membership import Membership
from awsomefsd.meta.raft.messages import AnyRaftMessage, LogEntry, StateSnapshot, StateSnapshotChunk


class Role(enum.Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class HardState(NamedTuple):
    """Durable before anything that follows from it is said.  `vote` is a member id or ""."""

    term: int
    vote: str


@dataclass(frozen=True)
class Config:
    """`random` gives numbers in [0, 1); every wait for an election is drawn from it."""

    id: str  # Member.id of this journal
    random: Callable[[], float]
    heartbeat_ms: int = limits.RAFT_HEARTBEAT_MS
    election_ms_min: int = limits.RAFT_ELECTION_MS_MIN
    election_ms_max: int = limits.RAFT_ELECTION_MS_MAX
    append_bytes_max: int = limits.RAFT_APPEND_BYTES_MAX
    inflight_messages_max: int = limits.RAFT_INFLIGHT_MESSAGES_MAX
    inflight_bytes_max: int = limits.RAFT_INFLIGHT_BYTES_MAX
    apply_bytes_max: int = limits.RAFT_APPLY_BYTES_MAX
    cache_entries_max: int = limits.RAFT_CACHE_ENTRIES_MAX
    cache_bytes_max: int = limits.RAFT_CACHE_BYTES_MAX
    chunk_bytes: int = limits.RAFT_CHUNK_BYTES
    promote_lag_entries_max: int = limits.RAFT_PROMOTE_LAG_ENTRIES_MAX


class LogView(Protocol):
    """The durable log, read only.  It holds what `stored` and `state_snapshot_installed` said, less what was compacted away."""

    @property
    def first_index(self) -> int:
        """Oldest entry kept; last_index + 1 if there is none."""

    @property
    def last_index(self) -> int:
        """Index of the newest stored entry."""

    def term(self, index: int) -> int | None:
        """Term of an entry, also of the one before first_index (where the compaction or state snapshot ended); None if it is not known."""

    def entries(self, start: int, bytes_max: int) -> list[LogEntry]:
        """Consecutive entries from `start` on, about `bytes_max` bytes but at least one; [] behind the end or before first_index."""


class EntryCodec(Protocol):
    """The core makes two kinds of entries itself and must know one of them again in the log (meta/voter/raft_entries.py)."""

    def noop(self, index: int, term: int) -> bytes:
        """The payload of the entry that a new leader appends first."""

    def membership(self, index: int, term: int, membership: Membership) -> bytes:
        """The payload of an entry that holds a configuration."""

    def membership_of(self, payload: bytes) -> Membership | None:
        """None for every entry that is not a membership; called once for each entry that enters the log."""


@dataclass(frozen=True)
class MembershipAt:
    """A configuration and the index of the entry that holds it."""

    index: int
    membership: Membership


@dataclass
class Ready:
    """The work to be done now, in the order of the loop above.  Empty parts need nothing."""

    hard_state: HardState | None = None
    truncate_after: int | None = None  # entries above are to be removed before `entries` are appended
    entries: list[LogEntry] = field(default_factory=list)
    chunks: list[StateSnapshotChunk] = field(default_factory=list)  # to write into the file that is received; offset 0 begins a new one
    messages: list[AnyRaftMessage] = field(default_factory=list)
    messages_after_store: list[AnyRaftMessage] = field(default_factory=list)
    install: StateSnapshot | None = None  # all its chunks are in the file: verify, install atomically, empty the log
    committed: list[LogEntry] = field(default_factory=list)  # consecutive, stored, each once
    reads: list[tuple[int, int]] = field(default_factory=list)  # (ticket, index): valid once everything up to index is applied
    reads_lost: list[int] = field(default_factory=list)  # tickets of a leadership that ended
    state_snapshot_wanted: int = 0  # make one of at least this index: some follower needs entries before first_index
    membership: MembershipAt | None = None  # it changed (by appending, truncating or a state snapshot)
    leader_changed: bool = False  # role, term or leader hint


@dataclass(frozen=True)
class PeerStatus:
    """A leader's view of another member: indexes of the log, and the time in ms at which it was heard."""

    id: str
    state: str
    match: int
    next: int
    inflight_messages: int
    heard_ms: int
