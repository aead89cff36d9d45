"""The names, types and meanings on the metrics page of what workers, metadata service, collection and segment server count.

Figures are plain numbers with short names, as `status -v` shows them.  Prometheus wants base units, "_total" behind what only grows, and
labels where a name would stand for many.  docs/MONITORING.md has the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from awsomefsd.base.metrics import Labels, Sample
from awsomefsd.fuse.latencies import BOUNDS_US

UNKNOWN = "A figure without a description."
COUNTERS = {
    "worker_flush_batches": "flushes; of this worker alone",
    "worker_superblocks_repaired": "superblocks that this mount's worker rewrote from the other one",
    "worker_corrupt_reads": "reads that met wrong bytes on a device (EIO). Not there before the first one",
    "worker_dirty_corrupt": "records of the dirty log that a successor found damaged. Not there before the first one",
    "worker_files_put_aside": "files whose buffered data became a conflict",
    "worker_files_put_aside_told": "those of them of which a flush of the mount has told",
    "worker_names_decided": "changes of names that this mount has decided itself",
    "worker_names_batches": "batches in which it has shipped them",
    "worker_names_differing": "changes that the cluster decided otherwise; the mount decides none any more",
    "worker_fuse_unknown": "requests of a kind that the program does not know",
    "worker_fuse_replies_failed": "replies that the kernel did not take",
    "worker_fuse_replies_unwanted": "replies that the kernel did not wait for any more (interrupted requests)",
    "worker_fuse_slots_kept": "requests that kept their slot while they waited",
    "meta_batches": "journal syncs with entries",
    "meta_entries": "entries in them",
    "meta_journal_syncs": "fdatasync calls of the journal",
    "meta_journal_sync_ns": "time that they took, in all",
    "meta_store_commits": "commits of the store",
    "meta_store_map_grown": "how often it grew",
    "meta_admission_refused": "commands that were refused for a bound. Leader",
    "meta_sessions_expired": "sessions that ended without a word. Leader",
    "meta_clock_jumps": "pauses of this node of more than 2 s, after which all sessions get their full time again. Leader",
    "meta_lock_deadlocks": "waits that were refused with EDEADLK. Leader",
    "meta_space_recalls": "sessions that were asked for reserved space that they do not need, because another had none. Leader",
    "meta_lease_recalls": "leases that were recalled. Leader",
    "meta_lease_looks": "questions to a writer for the size and times that it shows, which take no lease. Leader",
    "meta_lease_recalls_answered": "recalls with an answer. Leader",
    "meta_lease_contests": "inodes that became contested. Leader",
    "meta_peers_refused": "local connections that were refused: not root, or too many",
    "meta_protocol_errors": "connections that were ended because of what they sent",
    "meta_slow_dropped": "connections that were ended because they took nothing, or did not greet in time",
    "meta_requests_not_allowed": "requests of other nodes that were refused (EACCES)",
    "meta_members_diverged": "times that this node's state differed from the majority's and was rebuilt",
    "meta_digests_compared": "comparisons of states",
    "meta_snapshots_installed": "states that were taken over from a leader",
    "meta_snapshot_bad_chunks": "pieces of them that were damaged on the way and asked for again",
    "meta_peers_dials": "attempts to connect",
    "meta_peers_dropped": "messages that could not be sent; Raft sends again what matters",
    "meta_peers_errors": "connections that ended by an error, or were one too many",
    "meta_peers_refused_hellos": "greetings of voters that were refused",
    "meta_port_accepted": "connections to the metadata port",
    "meta_port_handshakes_failed": "handshakes that failed: strangers, wrong certificates",
    "meta_port_crowded_out": "handshakes that were dropped because more than 64 went on",
    "meta_port_deaf": "times that no connection was accepted for a second, for lack of descriptors",
    "meta_checkpoints_written": "whole copies",
    "meta_checkpoint_errors": "attempts that failed",
    "collect_rounds": "rounds",
    "collect_segments": "segments that were collected",
    "collect_copied_bytes": "bytes that were copied",
    "collect_moved_bytes": "bytes whose new place was committed",
    "collect_skipped_bytes": "bytes that had been changed meanwhile",
    "collect_merged_bytes": "bytes of small neighbours that were pulled along",
    "collect_corrupt_pieces": "extents with wrong bytes, left where they are",
    "segment_accepted": "connections to the segment server",
    "segment_strangers": "handshakes that failed: strangers, wrong certificates",
    "segment_nonsense": "connections that were ended because of what they sent",
    "segment_crowded_out": "connections that were dropped before they had greeted, because there were too many",
    "segment_connections_lost": "connections of nodes that ended, in whatever way",
    "segment_copies_made": "copies of segments into bays of this node",
    "segment_copies_failed": "copies that failed, and are ordered again",
    "segment_copies_mended": "pieces of copies that were wrong in one source and were taken from another",
}
GAUGES = {
    "worker_dirty_bytes": "buffered bytes that are not committed",
    "worker_dirty_used_bytes": "room that they take in the dirty log (of 96 MiB)",
    "worker_reserved_bytes_left": "space that is promised to this mount and not used",
    "worker_parked_requests": "requests that wait (locks, leases, space)",
    "worker_open_files": "open files",
    "worker_inodes_cached": "inodes in the cache of names",
    "worker_lease_left_ms": "how long the session is still believed without another renewal, at most 6.667; 0: the mount stands still",
    "worker_memory_bytes": "memory of the worker, its shared memory included",
    "worker_memory_budget_bytes": "memory.worker",
    "worker_memory_cache_percent": "how much of its caches it keeps; below 100 it saves memory",
    "worker_workers": "number of this worker, counted over all workers of the mount",
    "worker_names_delegated": "1: the mount decides names itself",
    "worker_names_durable_why": "why not: 1 volume, 2 sync options, 3 level, 4 keeper, 5 dirty data, 6 refused changes; 0: it does",
    "worker_names_diverged": "1: a change was decided otherwise by the cluster",
    "worker_names_applied": "newest change of a name that the cluster has of a mount that decides names (a sequence, no count)",
    "meta_applied": "newest entry that this node has applied",
    "meta_last_index": "newest committed entry that it knows",
    "meta_first_index": "oldest entry that its journal still has",
    "meta_term": "term of its log",
    "meta_level": "level that it acts at",
    "meta_leading": "1: this node leads",
    "meta_replayed": "entries that were read from the journal at the start",
    "meta_journal_bytes": "size of the journal's files",
    "meta_journal_full": "1: no room for entries; several voters",
    "meta_journal_in_doubt": "1: after a start with a torn end, until a leader has confirmed it; several voters",
    "meta_store_commit_ms_max": "longest commit since the start, until the metadata thread knew of it; it goes on meanwhile",
    "meta_store_map_bytes": "size of the store's map",
    "meta_store_map_use_percent": "how much of it is used; it grows by itself at 70",
    "meta_results_held": "answers that are kept for requests which may be sent again",
    "meta_reaping": "1: what deletions left is being freed. Leader",
    "meta_sessions": "sessions: mounts and collectors. Leader",
    "meta_followers": "readers of the log that wait for changes",
    "meta_lock_waiters": "waiting locks. Leader",
    "meta_leases_read": "read leases of shared mounts. Leader",
    "meta_leases_write": "write leases. Leader",
    "meta_lease_waiters": "requests that wait for a lease. Leader",
    "meta_lease_recalls_open": "recalls and looks without an answer. Leader",
    "meta_lease_contested_inodes": "contested inodes now. Leader",
    "meta_connections": "connections of workers, daemons and nodes",
    "meta_voters": "voters in the membership that this node knows",
    "meta_members": "those and learners",
    "meta_peers_connected": "voters that this node is connected to",
    "meta_peers_incoming": "voters that are connected to this node",
    "meta_port_handshakes": "handshakes that are running",
    "meta_checkpoint_lag_ms": "how much work would be lost with state_dir now, in time",
    "meta_checkpoint_lag_entries": "the same in entries",
    "meta_checkpoint_index": "entry of the newest whole copy",
    "meta_checkpoint_durable": "newest entry that the device has",
    "meta_checkpoint_bytes": "size of the copy, compressed",
    "meta_checkpoint_segments": "segments that checkpoints keep",
    "collect_reclaimable_bytes": "dead bytes of segments in use",
    "collect_segments_free": "free segments at its last look",
    "collect_segments_total": "all segments at its last look",
    "segment_connections": "connections of nodes to the segment server",
    "segment_handshakes": "connections to it that have not greeted yet",
    "segment_copies": "copies into bays of this node that are under way",
}
# one figure for each member, kind of request or bound; the group is the label's value
FAMILIES = (
    (re.compile(r"worker_fuse_(\w+)"), "worker_fuse_requests_total", "opcode", "requests of the kernel"),
    (re.compile(r"meta_lag_([\w-]+)"), "meta_member_lag_entries", "member", "entries by which a member is behind. Leader"),
    (re.compile(r"meta_silent_ms_([\w-]+)"), "meta_member_silent_seconds", "member", "how long a member was not heard. Leader"),
    (
        re.compile(r"meta_lease_recalls_within_(\d+)ms"),
        "meta_lease_recalls_within_total",
        "within_seconds",
        "recalls that were answered within a time. Leader",
    ),
)
# what one worker counted of one kind of request, put together by `histograms`; words of fuse/latencies.py
_LATENCY = re.compile(r"worker_request_(\w+)_(?:le_(\d+us|inf)|(ns_sum))")
LATENCY_HELP = "how long requests of the kernel took, from a reader of the worker to the reply"
_NAMES = {  # where the figure's own name would mislead
    "collect_segments": "collect_collected_segments_total",
    "collect_segments_free": "collect_device_segments_free",
    "collect_segments_total": "collect_device_segments",
    "meta_store_commit_ms_max": "meta_store_commit_max_seconds",
}
_UNITS = (("_ms", 1e-3), ("_ns", 1e-9))


def name_of(figure: str) -> str:
    """Returns the name of the metric of a figure that COUNTERS or GAUGES has."""
    if figure in _NAMES:
        return _NAMES[figure]
    for unit, _ in _UNITS:
        if figure.endswith(unit):
            figure, of = figure.removesuffix(unit) + "_seconds", figure
            return figure + "_total" if of in COUNTERS else figure
    return figure + "_total" if figure in COUNTERS else figure


def sample(figure: str, value: float, labels: Labels = ()) -> Sample:
    """Returns the sample of a figure, whose name begins with "worker_", "meta_", "collect_" or "segment_"."""
    if figure in COUNTERS or figure in GAUGES:
        kind, means = ("counter", COUNTERS[figure]) if figure in COUNTERS else ("gauge", GAUGES[figure])
        return Sample(f"awsomefsd_{name_of(figure)}", kind, means, value * _scale(figure), labels)
    for shape, name, label, means in FAMILIES:
        if found := shape.fullmatch(figure):
            kind = "counter" if name.endswith("_total") else "gauge"
            return Sample(f"awsomefsd_{name}", kind, means, value * _scale(figure), (*labels, (label, _label_value(label, found[1]))))
    return Sample(f"awsomefsd_{figure}", "gauge", UNKNOWN, value, labels)


def of_worker(figures: Mapping[str, int], labels: Labels) -> Iterator[Sample]:
    """Yields the samples of the figures that one worker reported."""
    latencies: dict[str, dict[str, int]] = {}
    for name, value in sorted(figures.items()):
        if found := _LATENCY.fullmatch(f"worker_{name}"):
            latencies.setdefault(found[1], {})[found[2] or found[3]] = value
        else:
            yield sample(f"worker_{name}", value, labels)
    for opcode, row in latencies.items():
        yield from _histogram(row, (*labels, ("opcode", opcode)))


def _histogram(row: Mapping[str, int], labels: Labels) -> Iterator[Sample]:
    """Prometheus wants every bound, and with each all that took less; workers leave out buckets in which nothing is.

    A worker of another build may have bounds of its own.
    """
    name, total = "awsomefsd_worker_fuse_request_seconds", 0
    bounds = {*BOUNDS_US, *(int(key.removesuffix("us")) for key in row if key.endswith("us"))}
    for bound in sorted(bounds):
        total += row.get(f"{bound}us", 0)
        yield Sample(f"{name}_bucket", "histogram", LATENCY_HELP, total, (*labels, ("le", f"{bound / 1e6:g}")))
    total += row.get("inf", 0)
    yield Sample(f"{name}_bucket", "histogram", LATENCY_HELP, total, (*labels, ("le", "+Inf")))
    yield Sample(f"{name}_count", "histogram", LATENCY_HELP, total, labels)
    yield Sample(f"{name}_sum", "histogram", LATENCY_HELP, row.get("ns_sum", 0) * 1e-9, labels)


def _scale(figure: str) -> float:
    if figure.startswith(("meta_silent_ms_", "meta_store_commit_ms_")):
        return 1e-3
    return next((scale for unit, scale in _UNITS if figure.endswith(unit)), 1)


def _label_value(label: str, text: str) -> str:
    """A bound is in seconds."""
    return f"{int(text) / 1_000:g}" if label == "within_seconds" else text
