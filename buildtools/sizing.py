"""The tables of bounds and of segments in docs/SIZING.md, made from the code.

``python3 -m buildtools.sizing`` writes them between the two markers of the page; a test compares both.  docs/CAPABILITIES.md has the bounds
that programs meet (names, files, attributes); here are those that decide how large a node, a device or a cluster has to be.
"""

from __future__ import annotations

import sys

from awsomefsd.base import limits
from awsomefsd.base.sizes import format_bytes
from awsomefsd.io.device.superblock import DEVICE_BYTES_MIN, geometry
from buildtools.say import CHECKOUT

PAGE = CHECKOUT / "docs" / "SIZING.md"
BEGIN, END = "<!-- made by buildtools.sizing: begin -->\n", "<!-- made by buildtools.sizing: end -->\n"
_DEVICES = (DEVICE_BYTES_MIN, *(size * limits.GIB for size in (1, 2, 8, 32, 64, 1_024, 10_240)))
_BOUNDS = (
    ("nodes of a cluster", "NODES_MAX"), ("sessions: mounts of all nodes, and collectors", "SESSIONS_MAX"), ("volumes", "VOLUMES_MAX"),
    ("devices that one node reports", "DEVICES_REPORTED_MAX"), ("segments that one session may hold", "SEGMENTS_PER_SESSION_MAX"),
    ("segments that a mount leases ahead", "SEGMENTS_LEASED_AHEAD"), ("segments that no writer is given", "SEGMENTS_RESERVED"),
    ("segments that a device must have for checkpoints", "CHECKPOINT_SEGMENTS_MIN"),
    ("space that a mount reserves ahead", "RESERVE_BATCH_BYTES"),
    ("buffered data of a mount", "DIRTY_BYTES_MAX"), ("buffered data that starts a flush", "DIRTY_FLUSH_BYTES"),
    ("age of buffered data that starts a flush", "DIRTY_AGE_MS_MAX"),
    ("waiting requests of a mount, in bytes", "PARK_BYTES_MAX"), ("requests of a mount that are served at once", "FUSE_READERS"),
    ("inodes in the cache of a mount", "INODES_CACHED_MAX"), ("names in the cache of a mount", "DENTRIES_CACHED_MAX"),
    ("entries of a directory that is cached whole", "DIRECTORY_LISTED_ENTRIES_MAX"),
    ("leases of a session, of each kind", "LEASES_PER_SESSION_MAX"),
    ("extents of a file", "EXTENTS_PER_INODE_MAX"), ("extents in one flush", "EXTENTS_PER_COMMIT_MAX"),
    ("life of a session without renewal", "SESSION_TTL_MS"), ("time between renewals", "SESSION_RENEW_MS"),
    ("time after the last renewal at which a mount stands still", "SESSION_SELF_FENCE_MS"),
    ("heartbeats of the leader", "RAFT_HEARTBEAT_MS"), ("silence before an election, at least", "RAFT_ELECTION_MS_MIN"),
    ("silence before an election, at most", "RAFT_ELECTION_MS_MAX"),
    ("one file of the journal", "JOURNAL_FILE_BYTES"), ("entries that a voter keeps for others", "VOTER_KEEP_ENTRIES"),
    ("entries that a leader keeps for a voter that is behind", "VOTER_KEEP_ENTRIES_MAX"),
    ("a state that is sent to a voter, a second", "STATE_SNAPSHOT_BYTES_PER_S_MAX"),
    ("free segments below which collection does not rest, %", "COLLECT_LOW_FREE_PERCENT"),
    ("bytes that collection, above that, and scrub read or copy a second, together", "UPKEEP_BYTES_PER_S_MAX"),
    ("bytes that scrub reads a second", "SCRUB_BYTES_PER_S"),
    ("smallest budget of a worker", "WORKER_MEMORY_BYTES_MIN"), ("read-ahead of a mount", "READ_AHEAD_BYTES_MAX"),
)  # fmt: skip


def _shown(name: str) -> str:
    value = getattr(limits, name)
    if "_BYTES" in name:
        return format_bytes(value)
    if "_MS" in name:
        return f"{value / 1_000:,.2f} s" if value % 1_000 and value > 1_000 else f"{value // 1_000} s" if value >= 1_000 else f"{value} ms"
    return f"{value:,}"


def section() -> str:
    """What stands between the markers: Markdown, with a line end."""
    lines = ["| size of the device | segment | segments |", "| --- | --- | --- |"]
    for size in _DEVICES:
        segment, count = geometry(size)
        lines.append(f"| {format_bytes(size)} | {format_bytes(segment)} | {count:,} |")
    lines += ["", "| bound | value |", "| --- | --- |"]
    lines += [f"| {what} | {_shown(name)} |" for what, name in _BOUNDS]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page `text` with this section in the place of the one it has.  ValueError if it has no markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no line {(BEGIN if not begin else END).strip()!r}")
    return f"{head}{begin}\n{section()}\n{end}{tail}"


def main() -> int:
    PAGE.write_text(page(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
