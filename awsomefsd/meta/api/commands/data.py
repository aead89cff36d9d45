"""Commands about the bytes of files."""

from __future__ import annotations

from msgspec import Struct

from awsomefsd.base.types import Extent, SegmentProgress
from awsomefsd.meta.api.commands.base import Command


class InodeCommit(Struct, array_like=True, gc=False):
    """Bytes of one inode become visible.

    Ignored (errno 0) if `sequence` is not newer than what this `log` has committed for the inode or was overtaken by a truncation; ENOENT
    in the reply if the inode is gone.  `extents` are in order, later ones win; they end inline data, so the first ones must cover it.
    `inline` patches (offset, bytes) are for inodes without extents (ESTALE otherwise), result at most INLINE_BYTES_MAX.
    `size` is the file size after these writes if it grew (the machine takes the maximum).
    """

    ino: int
    log: int
    sequence: int
    size: int
    mtime_ns: int
    extents: list[Extent] = []
    inline: list[tuple[int, bytes]] = []
    lease: int = 0  # epoch of the write lease under which these bytes were buffered; 0: none


class Commit(Command, tag=30):
    """Durable bytes become visible; all inodes in one entry.  `consumed_bytes` of the session's reservation are used up."""

    volume: int
    inodes: list[InodeCommit]
    consumed_bytes: int
    segments: list[SegmentProgress]


class Reap(Command, tag=31):
    """Background: free up to REAP_EXTENTS_PER_ENTRY extents of inodes that have no name and no pin, or of deleted volumes."""

    count: int


FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16  # FALLOC_FL_* of linux/falloc.h
# Modes of fallocate(2) that are served.
FALLOC_MODES = (0, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE)


class Fallocate(Command, tag=32):
    """fallocate(2): allocate, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE.  Answered by Ranged.

    What is seen (zeros, size, times) happens in this entry, whatever the number of extents.  Allocation may stop before the end: `reached`
    says where, and KEEP_SIZE from there with `goes_on` (do not round down) does the rest.  EAGAIN: the inode has inline data, which has to
    become extents first.  EAGAIN, ENOSPC and EDQUOT change nothing and are not kept as a result.
    """

    volume: int
    ino: int
    mode: int
    offset: int
    length: int
    kill_suidgid: bool = False
    goes_on: bool = False


class CopyRange(Command, tag=33):
    """copy_file_range(2) by reference: the destination's extents name the same places.  Answered by Ranged; may copy less, never nothing.

    EOPNOTSUPP where bytes have to be copied: the source or the destination has inline data, or a frame has too many owners.
    """

    volume: int
    ino: int
    offset: int
    new_ino: int
    new_offset: int
    length: int
    kill_suidgid: bool = False


class Draw(Command, tag=34):
    """A write into allocated space for which nothing can be reserved: the unwritten range becomes a hole, and `bytes` are reserved for it.

    Answered by Reserved.  ENOSPC if not all of the range is unwritten.
    """

    volume: int
    ino: int
    offset: int
    length: int
    bytes: int


class WriteData(Command, tag=135):
    """One write(2) on a shared mount: its durable bytes become visible.  Answered by Found.

    `extents` are in order and cover [offset, offset + length), or, with `append`, [0, length) counted from the file's size at this entry.
    `inline` is what the inode held inline when the writer looked; it is among the extents then.  EAGAIN if it is something else now.
    EAGAIN, and ESTALE for places that are not the session's (any more), change nothing and are not kept.
    """

    since = 2

    volume: int
    ino: int
    offset: int
    length: int
    append: bool
    kill_suidgid: bool
    extents: list[Extent]
    consumed_bytes: int
    segments: list[SegmentProgress]
    inline: bytes = b""
