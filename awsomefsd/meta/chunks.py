"""Chunks of snapshots on their way: filled from the file and sealed with a checksum, not faster than SNAPSHOT_BYTES_PER_S_MAX.

The core keeps one chunk out to each follower; this bounds all of them together, so that replication keeps its share of disk and network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from crc32c import crc32c
from msgspec.structs import replace

from awsomefsd.limits import SNAPSHOT_BYTES_PER_S_MAX
from awsomefsd.meta.raft_messages import SnapshotChunk

_CRC_BYTES = 4


class ChunkFiles(Protocol):
    """What is used of snapshot.SnapshotFiles here and in the voter."""

    def read(self, name: str, offset: int, length: int) -> bytes | None: ...

    def write(self, chunk: SnapshotChunk) -> None: ...

    def drop(self, name: str) -> None: ...


class ChunkSender:
    def __init__(self, files: ChunkFiles, send: Callable[[str, SnapshotChunk], None], lost: Callable[[str], None]) -> None:
        """`lost` is told the name of a snapshot that cannot be read."""
        self._files = files
        self._send = send
        self._lost = lost
        self._late: deque[tuple[int, str, SnapshotChunk]] = deque()
        self._next_ns = 0

    def put(self, node: str, chunk: SnapshotChunk, now_ns: int) -> None:
        due = max(self._next_ns, now_ns)
        self._next_ns = due + chunk.length * 1_000_000_000 // SNAPSHOT_BYTES_PER_S_MAX
        self._late.append((due, node, chunk))
        self.release(now_ns)

    @property
    def due_ns(self) -> int | None:
        return self._late[0][0] if self._late else None

    def release(self, now_ns: int) -> None:
        while self._late and self._late[0][0] <= now_ns:
            _, node, chunk = self._late.popleft()
            data = self._files.read(chunk.meta.name, chunk.offset, chunk.length)
            if data is None or len(data) != chunk.length:
                self._lost(chunk.meta.name)
            else:
                self._send(node, replace(chunk, data=crc32c(data).to_bytes(_CRC_BYTES, "little") + data))

    def clear(self) -> None:
        self._late.clear()


def unsealed(chunk: SnapshotChunk) -> SnapshotChunk | None:
    """The chunk without its checksum; None if it is not what was sent."""
    data = chunk.data[_CRC_BYTES:]
    if chunk.data[:_CRC_BYTES] != crc32c(data).to_bytes(_CRC_BYTES, "little"):
        return None
    return replace(chunk, data=data)
