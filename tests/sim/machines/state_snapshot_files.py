"""The files of a voter's state (StateSnapshotFiles) without files: copies to send, one that is received, and the store that it becomes.

A copy is one string of bytes, so that chunks, hashes and half received snapshots are what they are in production.  `stage` has two moments
for a power cut: before the received state is durable (the old store stays), and after (it is the store at the next start).
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Any

import msgspec

from awsomefsd.base.errors import Corrupt
from awsomefsd.meta.raft.messages import StateSnapshot, StateSnapshotChunk
from awsomefsd.meta.replica.store import StoreIdentity
from awsomefsd.meta.voter.ports import RAFT_NOTE, unpack_note
from tests.sim.machines.store import Durable, SimStore


class SimPath(PurePosixPath):
    """A directory that needs no making."""

    def mkdir(self, **_options: Any) -> None:
        """It is there."""


class _Copy(msgspec.Struct, array_like=True):
    rows: dict[bytes, bytes]
    notes: dict[bytes, bytes]
    identity: StoreIdentity


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Copy).decode


class SimFiles:
    """The durable part of a node's state; one `SimStore` at a time is open on it."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._store = Durable()
        self._ready: Durable | None = None  # staged
        self._outgoing: dict[str, bytes] = {}
        self._incoming = bytearray()
        self._made: StateSnapshot | None = None

    def process_died(self) -> None:
        self._outgoing.clear()
        self._incoming = bytearray()
        self._made = None

    def set_aside(self) -> None:
        self._store, self._ready = Durable(), None

    def open_store(self) -> SimStore:
        if self._ready is not None:
            self._store, self._ready = self._ready, None
        return SimStore(self._store, self._node.beside, self._node.step)

    def start_copy(self, store: SimStore) -> None:
        """Of the last commit, at once."""
        durable = self._store
        assert durable.identity is not None
        raw = _encode(_Copy(durable.rows, durable.notes, durable.identity))
        note = unpack_note(durable.notes.get(RAFT_NOTE, b""))
        name = f"{note.term}-{note.index}-{hashlib.sha256(raw).hexdigest()}"
        self._outgoing[name] = raw
        self._made = StateSnapshot(note.index, note.term, note.membership, note.membership_index, len(raw), name)

    def copied(self) -> StateSnapshot | None:
        made, self._made = self._made, None
        return made

    def end_copy(self) -> None:
        self._made = None

    def read(self, name: str, offset: int, length: int) -> bytes | None:
        raw = self._outgoing.get(name)
        return None if raw is None else raw[offset : offset + length]

    def drop(self, name: str) -> None:
        self._outgoing.pop(name, None)

    def write(self, chunk: StateSnapshotChunk) -> None:
        if chunk.offset == 0:
            self._incoming = bytearray()
        assert len(self._incoming) == chunk.offset, "chunks come in order"
        self._incoming += chunk.data

    def stage(self, meta: StateSnapshot, cluster: str, node: str, incarnation: bytes) -> None:
        raw = bytes(self._incoming)
        self._incoming = bytearray()
        if len(raw) != meta.size or not meta.name.endswith("-" + hashlib.sha256(raw).hexdigest()):
            raise Corrupt(f"state snapshot {meta.name}: the bytes received are not the ones that were sent")
        copy = _decode(raw)
        staged = Durable()
        staged.rows, staged.notes, staged.identity = copy.rows, copy.notes, copy.identity
        note = unpack_note(copy.notes[RAFT_NOTE])
        if (note.index, note.term) != (meta.index, meta.term):
            raise Corrupt(f"state snapshot {meta.name}: is of entry {note.index}, not {meta.index}")
        SimStore(staged, self._node.beside, _nothing).adopt(cluster, node, incarnation, meta.index, meta.term)
        self._node.disk.step("snapshot received")
        self._ready = staged
        self._node.world.count("snapshots installed")
        self._node.disk.step("snapshot staged")

    def close(self) -> None:
        """Nothing is open."""


def _nothing(_name: str) -> None:
    pass
