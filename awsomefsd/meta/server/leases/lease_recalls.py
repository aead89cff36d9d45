"""Asks sessions to give a lease back, and takes their answers.  Pure; times are given.

A recall has a deadline that only progress moves.  A recall to read lets the writer go on reading; a stricter one replaces it and keeps its
deadline.

A *look* is a recall that takes nothing: LEASE_WRITE may stay.  The writer answers what it shows of the inode, and goes on buffering.  One
that does not answer in time is treated as with any recall, and one that does not say is recalled to read.  A recall replaces a look, and
begins a deadline of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from awsomefsd.base.limits import NS_PER_MS, RECALL_MS
from awsomefsd.base.types import LEASE_NONE, LEASE_READ, LEASE_WRITE
from awsomefsd.meta.server.leases.contention import Contention
from awsomefsd.meta.server.leases.key_queues import KeyQueues
from awsomefsd.meta.server.leases.lease_grants import Grants, Recall
from awsomefsd.meta.server.waiters import Key

RECALL_BOUNDS_MS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


class LeaseRecalls:
    """Used by the metadata thread only; nothing blocks.  Times are CLOCK_BOOTTIME."""

    def __init__(self, term: int, grants: Grants, queues: KeyQueues, contention: Contention) -> None:
        self._term = term
        self._grants = grants
        self._queues = queues
        self._contention = contention
        self._to_tell: set[int] = set()  # sessions with new recalls
        self._begun = 0
        self._looks = 0
        self._answered_ms = [0] * (len(RECALL_BOUNDS_MS) + 1)  # how many were answered within each bound, the last: later

    # --- what is in the way -----------------------------------------------------------------------------------------------------
    def recall_conflicting(self, session: int, key: Key, mode: int, now_ns: int) -> bool:
        """Recalls every lease that conflicts with `session` reading or changing (LEASE_WRITE) what is under the key.

        True: nothing conflicts.  A session that has not reported conflicts with each change, and is not asked: its report ends that.
        """
        free = True
        writer = self._grants.writer(key)
        if writer is not None and writer[0] != session:
            free = False
            self._recall(writer[0], key, LEASE_READ if mode == LEASE_READ else LEASE_NONE, now_ns)
        if mode == LEASE_WRITE:
            for reader in self._grants.readers_of(key):
                if reader != session:
                    free = False
                    self._recall(reader, key, LEASE_NONE, now_ns)
            for number, holder in self._grants.holders.items():
                if holder.report_ns is not None and number != session and holder.volume == key[0]:
                    free = False
        return free

    def recall_writer(self, mount: int, key: Key, now_ns: int) -> bool:
        """Asks the writer of an inode to commit, for a question of that mount (0: of none).  True: what is committed is all there is."""
        writer = self._grants.writer(key)
        if writer is None or not self.is_buffered(mount, key):
            return True
        self._recall(writer[0], key, LEASE_READ, now_ns)
        return False

    def begin_look(self, key: Key, now_ns: int) -> bool | None:
        """Asks the writer of an inode what it shows.  True: it was asked before and has not answered.

        None: it is asked for the lease anyway, or has ended.
        """
        writer = self._grants.writer(key)
        holder = None if writer is None else self._grants.holders.get(writer[0])
        if writer is None or holder is None:
            return None
        recall = holder.recalls.get(key)
        if recall is None:
            self._recall(writer[0], key, LEASE_WRITE, now_ns)
            return False
        return True if recall.is_look else None

    def end_look(self, session: int, recall: Recall) -> None:
        """It was answered."""
        assert recall.is_look, "a recall ends with the lease, or with its write part"
        del self._grants.holders[session].recalls[recall.key]

    def is_buffered(self, mount: int, key: Key) -> bool:
        """Another mount than this one may buffer something of the inode under a write lease."""
        writer = self._grants.writer(key)
        holder = None if writer is None else self._grants.holders.get(writer[0])
        return writer is not None and not (mount and holder is not None and holder.mount == mount)

    def _recall(self, session: int, key: Key, mode: int, now_ns: int) -> None:
        holder = self._grants.holders.get(session)
        if holder is None:
            return  # it has ended; its entry is on its way
        recall = holder.recalls.get(key)
        if recall is None or recall.mode > mode:
            holder.sequence += 1
            if recall is None or recall.is_look:
                begun, deadline = now_ns, now_ns + RECALL_MS * NS_PER_MS
                if mode == LEASE_WRITE:
                    self._looks += 1
                else:
                    self._begun += 1
                    self._contention.note_recall(key, now_ns)
            else:
                begun, deadline = recall.begun_ns, recall.deadline_ns
            holder.recalls[key] = Recall(holder.sequence, key, mode, begun, deadline)
            self._to_tell.add(session)

    def is_recalled(self, session: int, key: Key) -> bool:
        """The session is asked to let go of that key: its requests overtake those that wait."""
        holder = self._grants.holders.get(session)
        return holder is not None and key in holder.recalls and not holder.recalls[key].is_look

    # --- what sessions are told and say -----------------------------------------------------------------------------------------
    def take_sessions_to_tell(self) -> set[int]:
        """Returns the sessions that have new recalls since the last call."""
        taken, self._to_tell = self._to_tell, set()
        return taken

    def open_recalls(self, session: int, after: int) -> list[tuple[int, int, int]]:
        """Returns (sequence, inode, mode that may stay) of all its recalls, in order; none unless one is newer than `after`."""
        holder = self._grants.holders.get(session)
        if holder is None:
            return []
        found = sorted((recall.sequence, recall.key[1], recall.mode) for recall in holder.recalls.values())
        return found if found and found[-1][0] > after else []

    def find(self, session: int, term: int, sequence: int) -> Recall | None:
        """Returns the open recall that a session speaks of; None: it is answered, overtaken by a grant, or of another term."""
        holder = self._grants.holders.get(session)
        if holder is None or term != self._term:
            return None
        return next((recall for recall in holder.recalls.values() if recall.sequence == sequence), None)

    def answer(self, session: int, recall: Recall, now_ns: int) -> int:
        """The session has let go.  Returns the epoch of the write lease that an entry has to end now; 0: nothing more is to be done."""
        grants, key = self._grants, recall.key
        holder = grants.holders[session]
        assert holder.recalls.get(key) is recall, "only an open recall is answered"
        del holder.recalls[key]
        self._answered_ms[bisect_left(RECALL_BOUNDS_MS, (now_ns - recall.begun_ns) / NS_PER_MS)] += 1
        writer = grants.writer(key)
        if writer is not None and writer[0] == session:
            if recall.mode == LEASE_READ:
                grants.record_read(session, key)
            else:
                grants.drop_read(session, key)  # one that it went on with (LeaseTable.lower)
            return writer[1]
        if recall.mode == LEASE_NONE:
            grants.drop_read(session, key)
        self._queues.wake(key)
        return 0

    def extend(self, recall: Recall, done: int, now_ns: int) -> None:
        """The session has done so much of what the recall needs; its deadline moves only if that is more than before."""
        if done > recall.done:
            recall.done, recall.deadline_ns = done, now_ns + RECALL_MS * NS_PER_MS

    def overdue(self, now_ns: int) -> list[int]:
        """Returns the sessions that let the deadline of a recall pass."""
        return [
            session
            for session, holder in self._grants.holders.items()
            if any(recall.deadline_ns <= now_ns for recall in holder.recalls.values())
        ]

    def figures(self) -> dict[str, int]:
        within = zip(RECALL_BOUNDS_MS, accumulate(self._answered_ms), strict=False)
        return {
            **{f"lease_recalls_within_{bound}ms": count for bound, count in within},
            "lease_recalls_answered": sum(self._answered_ms),
            "lease_recalls": self._begun,
            "lease_looks": self._looks,
            "lease_recalls_open": sum(len(holder.recalls) for holder in self._grants.holders.values()),
        }
