"""Chunks of state snapshots on their way: filled from the file and sealed with a checksum, not faster than STATE_SNAPSHOT_BYTES_PER_S_MAX.

The core keeps one chunk out to each follower; this bounds all of them together, so that replication keeps its share of disk and network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from crc32c import crc32c
from msgspec.structs import replace

from awsomefsd.base.limits import STATE_SNAPSHOT_BYTES_PER_S_MAX
from awsomefsd.meta.raft.messages import StateSnapshotChunk

_CRC_BYTES = 4


class ChunkFiles(Protocol):
    """The calls to StateSnapshotFiles that the voter needs: copies to read from, and the file that is received."""

    def read(self, name: str, offset: int, length: int) -> bytes | None:
        """Bytes of a copy; None if there is no such copy (any more)."""

    def write(self, chunk: StateSnapshotChunk) -> None:
        """Write a received chunk into its place; offset 0 begins a new file.  Raises OSError."""

    def drop(self, name: str) -> None:
        """Remove a copy; harmless if it is gone."""


class ChunkSender:
    """Fills chunks from the files and sends them, at the pace of STATE_SNAPSHOT_BYTES_PER_S_MAX.  One thread; reads block on the disk."""

    def __init__(self, files: ChunkFiles, send: Callable[[str, StateSnapshotChunk], None], lost: Callable[[str], None]) -> None:
        """`lost` is told the name of a state snapshot that cannot be read."""
        self._files = files
        self._send = send
        self._lost = lost
        self._late: deque[tuple[int, str, StateSnapshotChunk]] = deque()
        self._next_ns = 0

    def put(self, node: str, chunk: StateSnapshotChunk, now_ns: int) -> None:
        """Send a chunk to a node as soon as the pace allows."""
        due = max(self._next_ns, now_ns)
        self._next_ns = due + chunk.length * 1_000_000_000 // STATE_SNAPSHOT_BYTES_PER_S_MAX
        self._late.append((due, node, chunk))
        self.release(now_ns)

    @property
    def due_ns(self) -> int | None:
        """Time at which `release` is due; None while nothing waits."""
        return self._late[0][0] if self._late else None

    def release(self, now_ns: int) -> None:
        """Send what is due by now."""
        while self._late and self._late[0][0] <= now_ns:
            _, node, chunk = self._late.popleft()
            data = self._files.read(chunk.meta.name, chunk.offset, chunk.length)
            if data is None or len(data) != chunk.length:
                self._lost(chunk.meta.name)
            else:
                self._send(node, replace(chunk, data=crc32c(data).to_bytes(_CRC_BYTES, "little") + data))

    def clear(self) -> None:
        """Forget what waits: this node does not lead any more."""
        self._late.clear()


def unsealed(chunk: StateSnapshotChunk) -> StateSnapshotChunk | None:
    """The chunk without its checksum; None if it is not what was sent."""
    data = chunk.data[_CRC_BYTES:]
    if chunk.data[:_CRC_BYTES] != crc32c(data).to_bytes(_CRC_BYTES, "little"):
        return None
    return replace(chunk, data=data)
