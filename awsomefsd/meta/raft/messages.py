"""The messages between the members of a Raft group.  Names from the paper (Ongaro's thesis, figure 3.1) and etcd raft.

Every message names the members (node/incarnation) it is from and for, and the sender's term.  A message for another incarnation than the
receiver's is not for it.  `entries` are (index, term, payload), consecutive.

Append doubles as the probe: without entries it only asks whether the logs match at `previous_index`.  An AppendReply that refuses tells
the index that was refused and a hint: the largest index of the follower's log at or below it whose term is at most `previous_term`, and
the term there.  The leader skips everything of its own log above the hint with a larger term, so one round trip passes a whole term.

Heartbeat carries a round; its reply proves contact at or after the *sending* of that round (ReadIndex, thesis 6.4).

StateSnapshotChunk: the core decides offset and length, whoever sends it fills `data` from the file `name`.  StateSnapshotReply asks for the
next offset, or (`refused`) says that what arrived is no good and the transfer begins again.
"""

from __future__ import annotations

from typing import Union

import msgspec
from msgspec import Struct

from awsomefsd.meta.raft.membership import Membership

LogEntry = tuple[int, int, bytes]  # index, term, payload


class RaftMessage(Struct, array_like=True, gc=False):
    sender: str
    to: str
    term: int


class Append(RaftMessage, tag=1):
    previous_index: int
    previous_term: int
    commit: int
    entries: list[LogEntry] = []


class AppendReply(RaftMessage, tag=2):
    """Accepted: the logs match up to `index`.  Refused: they do not match at `index`, see above for the hint."""

    index: int
    refused: bool = False
    hint_index: int = 0
    hint_term: int = 0


class Heartbeat(RaftMessage, tag=3):
    """`commit` never exceeds what the receiver is known to have."""

    round: int
    commit: int


class HeartbeatReply(RaftMessage, tag=4):
    round: int


class VoteRequest(RaftMessage, tag=5):
    """`term` is the one the candidate wants to lead (PreVote: would want).  `transfer`: the leader itself asked for this election.

    `membership_index`: index of the newest configuration the candidate knows.
    """

    last_index: int
    last_term: int
    membership_index: int
    pre: bool = False
    transfer: bool = False


class VoteReply(RaftMessage, tag=6):
    """`term`: the requested one if granted, otherwise the voter's own."""

    granted: bool
    pre: bool = False


class TimeoutNow(RaftMessage, tag=7):
    """Leadership transfer: start an election at once (thesis 3.10)."""


class StateSnapshot(Struct, array_like=True, frozen=True):
    """State after entry `index`.  `name` is unique among all state snapshots of the cluster; `size` in bytes."""

    index: int
    term: int
    membership: Membership
    membership_index: int
    size: int
    name: str


class StateSnapshotChunk(RaftMessage, tag=8):
    """Bytes [offset, offset + length) of a state snapshot."""

    meta: StateSnapshot
    offset: int
    length: int
    data: bytes = b""

    @property
    def last(self) -> bool:
        """True if it is the last one."""
        return self.offset + self.length >= self.meta.size


class StateSnapshotReply(RaftMessage, tag=9):
    name: str
    offset: int
    refused: bool = False


AnyRaftMessage = Union[
    Append, AppendReply, Heartbeat, HeartbeatReply, VoteRequest, VoteReply, TimeoutNow, StateSnapshotChunk, StateSnapshotReply,
]  # fmt: skip

raft_encode = msgspec.msgpack.Encoder().encode
raft_decode = msgspec.msgpack.Decoder(AnyRaftMessage).decode
