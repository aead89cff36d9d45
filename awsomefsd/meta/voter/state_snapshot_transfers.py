"""Drives the state snapshots of one voter: the copies that it sends while it leads, and the one that it receives.

Three objects share the subject.  The core decides which chunk goes to whom and which one is wanted next (meta/raft/state_snapshot.py).
This one moves the chunks between the files and the voter's messages, keeps a copy until no follower needs it, and holds a state snapshot
that has come in whole.  The replica makes the copies and puts a received state in place of its own
(meta/replica/state_snapshot_exchange.py).

    leader     ready.state_snapshot_wanted → take_wanted → (the replica makes a copy) → copied → send, send, … → drop_unused
    follower   check → core → write → ready.install → to_install → (the replica stages it) → Voter.installed or refused

Nothing here orders durable effects: the voter's loop calls `write` before it sends the reply to the chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from awsomefsd.meta.raft.messages import StateSnapshot, StateSnapshotChunk
from awsomefsd.meta.raft.raft import Raft
from awsomefsd.meta.raft.types import Ready, Role
from awsomefsd.meta.voter.state_snapshot_chunks import ChunkFiles, ChunkSender, unsealed


class StateSnapshotTransfers:
    """Used by the metadata thread only.  Reads and writes of chunks wait for the disk; nothing waits for another node."""

    def __init__(self, raft: Raft, files: ChunkFiles, send: Callable[[str, StateSnapshotChunk], None]) -> None:
        """`send(node, chunk)` sends a chunk whose data is filled in and sealed."""
        self._raft = raft
        self._files = files
        self._sender = ChunkSender(files, send, raft.state_snapshot_dropped)
        self._wanted = False
        self._copies: list[str] = []  # names of those that may be in use
        self._to_install: StateSnapshot | None = None
        self.installs = self.bad_chunks = 0

    # --- the voter's loop -------------------------------------------------------------------------------------------------------
    def send(self, node: str, chunk: StateSnapshotChunk, now_ns: int) -> None:
        """Fill the chunk that the core wants sent and send it, as soon as the pace allows."""
        self._sender.put(node, chunk, now_ns)

    @property
    def due_ns(self) -> int | None:
        """Boot time at which `release` is due; None while no chunk waits."""
        return self._sender.due_ns

    def release(self, now_ns: int) -> None:
        """Send the chunks that are due by now."""
        self._sender.release(now_ns)

    def check(self, chunk: StateSnapshotChunk) -> StateSnapshotChunk | None:
        """The received chunk without its checksum; None, and counted, if it is not what was sent."""
        checked = unsealed(chunk)
        self.bad_chunks += checked is None
        return checked

    def write(self, chunks: Iterable[StateSnapshotChunk]) -> None:
        """Write received chunks into their places.  Raises OSError."""
        for chunk in chunks:
            self._files.write(chunk)

    def note(self, ready: Ready) -> None:
        """Take from a stored Ready what concerns state snapshots."""
        self._to_install = ready.install
        self._wanted = self._wanted or ready.state_snapshot_wanted > 0
        if ready.leader_changed and self._raft.role is not Role.LEADER:
            self._sender.clear()

    def drop_unused(self) -> None:
        """Remove the copies of a leader once no follower needs one."""
        if self._copies and all(peer.state != "snapshot" for peer in self._raft.peers()):
            for name in self._copies:
                self._raft.state_snapshot_dropped(name)
                self._files.drop(name)
            self._copies.clear()

    def installed(self, meta: StateSnapshot) -> None:
        """State and journal are the state snapshot's, durably; only the voter calls this (Voter.installed)."""
        self._to_install = None
        self.installs += 1
        self._raft.state_snapshot_installed(meta)

    # --- the replica's exchange ---------------------------------------------------------------------------------------------------
    def take_wanted(self) -> bool:
        """True if a copy of the state is wanted for a follower that is too far behind; once for each wish, and only of a leader."""
        wanted, self._wanted = self._wanted, False
        return wanted and self._raft.role is Role.LEADER

    def copied(self, meta: StateSnapshot) -> None:
        """A copy of the state can be sent from now on."""
        self._copies.append(meta.name)
        self._raft.state_snapshot_made(meta)

    @property
    def to_install(self) -> StateSnapshot | None:
        """A state snapshot that has come in whole, to replace the state.

        `Voter.ready` returns nothing until `Voter.installed` or `refused` is said.
        """
        return self._to_install

    def refused(self, meta: StateSnapshot) -> None:
        """The state snapshot could not be used; nothing has changed, and the transfer begins again."""
        self._to_install = None
        self._raft.state_snapshot_refused(meta)
