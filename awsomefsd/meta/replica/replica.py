"""Log, machine and store of one node, and the one place that states the order of durable effects.

    log.propose → log.ready (journal, then what promises it) → machine.apply → answer            every turn
    machine.flush → store.begin_commit ┈ writer thread ┈→ store.settle → log.compact              every so often

`log.ready` is the voter's step (meta/voter): the entries are durable in the journal before any message says so.

So the store never holds an entry the journal may lose, and the journal drops only what a store commit covers and every registered reader
has passed.  Three indexes: *applied* is what the machine answers from, *begun* is what the writer thread is at, and *stored* is what the
store has durably.  The journal is compacted, and copies are begun, by `stored` alone.  A crash anywhere leaves a store at `stored`, or at
`begun` if the writer thread came to its end, and the log from there on.

With several voters the state may also be replaced whole, by another voter's state snapshot: stage it durably (state_snapshot_files.py) →
open it → tell the log, which begins behind it.  And at every multiple of DIGEST_ENTRIES the digest of the state goes to the log, which
compares it with the others'.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from awsomefsd.base.errors import Corrupt, Refused
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import (
    DIGEST_ENTRIES,
    JOURNAL_FILE_BYTES,
    NS_PER_MS,
    STORE_COMMIT_BYTES,
    STORE_COMMIT_ENTRIES,
    STORE_COMMIT_MS,
    STORE_COMMIT_ROWS,
    STORE_MAP_BYTES_MIN,
    STORE_WAIT_FACTOR,
)
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.api.messages import Reply
from awsomefsd.meta.log.disk import Disk
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.replica.applied_machine import AppliedMachine
from awsomefsd.meta.replica.checkpoint_progress import CheckpointProgress
from awsomefsd.meta.replica.overlay_store import OverlayStore
from awsomefsd.meta.replica.state_snapshot_exchange import StateSnapshotExchange
from awsomefsd.meta.replica.state_store import StateStore
from awsomefsd.meta.state import keys
from awsomefsd.meta.state.txn import Txn
from awsomefsd.meta.voter.ports import RAFT_NOTE, Consensus
from awsomefsd.meta.voter.single_voter import SeveralVoters, SingleVoter

CLUSTER_NOTE = b"cluster"  # a second copy of the row without which nothing can be said of the others
MakeMachine = Callable[[Txn], AppliedMachine]


@dataclass(frozen=True)
class ReplicaOptions:
    """The sizes and pace of journal and store.  The defaults are what a daemon uses."""

    disk: Disk | None = None  # of the journal and of copies of the state; None: the operating system's
    journal_file_bytes: int = JOURNAL_FILE_BYTES
    map_bytes_min: int = STORE_MAP_BYTES_MIN
    commit_entries: int = STORE_COMMIT_ENTRIES
    commit_ms: int = STORE_COMMIT_MS
    written: Callable[[], None] = lambda: None  # called on the writer thread of the store: another `pass_time` is due
    checkpoint_progress: CheckpointProgress | None = None  # shared with the writer of checkpoints; None: there is none
    open_store: Callable[..., StateStore] = OverlayStore.open  # of a single voter; one of several has StateSnapshotFiles.open_store


DEFAULT_OPTIONS = ReplicaOptions()


class Replica:
    """The state of one node and the log it follows.  The metadata thread makes and uses it; `commit` and `ready` wait for the disk."""

    def __init__(
        self,
        log: Consensus,
        store: StateStore,
        make_machine: MakeMachine,
        lock_fd: int,
        options: ReplicaOptions = DEFAULT_OPTIONS,
        exchange: StateSnapshotExchange | None = None,
    ) -> None:
        self._lock_fd = lock_fd
        self._exchange = exchange
        self.checkpoint_progress = options.checkpoint_progress or CheckpointProgress()
        self.log = log
        self.store = store
        self._written = store.written = options.written
        self._make_machine = make_machine
        self._commit_entries = options.commit_entries
        self._commit_ns = options.commit_ms * NS_PER_MS
        self.machine = make_machine(store)
        self.checkpoint_progress.stored = self.machine.applied_index
        self._uncommitted = 0  # entries applied since the last commit was begun
        self._first_ns = 0  # when the first of them was
        self._begun_ns = 0  # when that commit was begun
        self.commits = 0
        self.commit_ns_max = 0
        self.replayed = 0
        self._check()
        hit("log.replay.before")
        self._replay()
        hit("log.replay.after")

    @classmethod
    def open_single(
        cls,
        directory: Path,
        cluster_uuid: str,
        node_uuid: str,
        make_machine: MakeMachine,
        options: ReplicaOptions = DEFAULT_OPTIONS,
        *,
        refuse_several: bool = False,
    ) -> Replica:
        """The replica of a single voter: journal and store under `directory`, made if both are missing.

        Raises Corrupt for a store without its journal, a gap, or damage; FormatTooNew; Refused if another process uses the directory or
        it is another node's; OSError.  `refuse_several`: raises SeveralVoters for a journal or state of several voters, and writes
        nothing to it.
        """
        for part in (directory / "journal", directory / "store"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = lock_directory(directory)
        store = journal = None
        try:
            store = options.open_store(directory / "store", map_bytes_min=options.map_bytes_min)
            if refuse_several and (store.note(RAFT_NOTE) or store.get(keys.membership()) is not None):
                raise SeveralVoters(f"{directory} is one of several voters'")
            cluster, node = uuid_bytes(cluster_uuid), uuid_bytes(node_uuid)
            create = store.identity is None
            size = options.journal_file_bytes
            journal = Journal.open(directory / "journal", cluster, node, create=create, disk=options.disk, file_bytes=size)
            store.claim(cluster_uuid, node_uuid, journal.incarnation)
            voter = SingleVoter(journal, node_uuid, refuse_several=refuse_several)
            return cls(voter, store, make_machine, lock_fd, options)
        except BaseException:
            if store is not None:
                store.close()
            if journal is not None:
                journal.close()
            os.close(lock_fd)
            raise

    @classmethod
    def rebuild_single(cls, directory: Path, cluster_uuid: str, node_uuid: str, make_machine: MakeMachine) -> Replica:
        """A new store from the whole journal of a single voter; the old store has been moved out of the way.

        Raises Corrupt if the journal has dropped its first entries, and as `open_single`.
        """
        (directory / "store").mkdir(mode=0o700)
        lock_fd = lock_directory(directory)
        store = journal = None
        try:
            journal = Journal.open(directory / "journal", uuid_bytes(cluster_uuid), uuid_bytes(node_uuid), create=False)
            if journal.first_index > 1:
                raise Corrupt(f"the journal begins with entry {journal.first_index}, the ones before are in the store only")
            store = OverlayStore.open(directory / "store")
            store.claim(cluster_uuid, node_uuid, journal.incarnation)
            return cls(SingleVoter(journal, node_uuid), store, make_machine, lock_fd)
        except BaseException:
            for part in (store, journal):
                if part is not None:
                    part.close()
            os.close(lock_fd)
            raise

    def _check(self) -> None:
        applied = self.machine.applied_index
        if applied > self.log.committed:
            raise Corrupt(f"the state store has entry {applied} applied, the journal ends with {self.log.committed}: its end is lost")
        if applied + 1 < self.log.first_index:
            raise Corrupt(f"the state store ends with entry {applied}, the journal begins with {self.log.first_index}: entries are missing")

    # --- every turn ------------------------------------------------------------------------------------------------------
    def propose(self, batch: list[Entry]) -> None:
        """Stamp index and term into the entries and queue them for the next `ready`.  Raises NotLeading; then none is queued."""
        self.log.propose(batch)

    def ready(self) -> list[tuple[Entry, Reply]]:
        """Store and send what is queued; apply what is committed now and return it, each entry with the reply of its rule.

        Raises Unavailable if the queued proposals were given up, JournalFailed if this process must end, RejoinRequired if the state has
        diverged.
        """
        entries = self.log.ready()
        if entries:
            hit("log.apply.before")
        apply = self.machine.apply
        if self._exchange is None:
            applied = [(entry, apply(entry)) for entry in entries]
        else:
            applied = [(entry, self._apply_noted(entry)) for entry in entries]
        if entries:
            hit("log.apply.after")
            assert self.machine.applied_index == entries[-1].index
        if not self._uncommitted:
            self._first_ns = time.monotonic_ns()
        self._uncommitted += len(entries)
        self.store.count_rows()
        if self._exchange is not None and self._exchange.turn(self.log, self.store, self.machine.applied_index, self._is_stored):
            self._replace_store(self._exchange)
        return applied

    def _apply_noted(self, entry: Entry) -> Reply:
        reply = self.machine.apply(entry)
        if entry.index % DIGEST_ENTRIES == 0:
            self.machine.flush()  # the digest is of rows; every voter writes them back at this index
            if digest := self.store.digest:
                self.log.note_digest(entry.index, digest)
        return reply

    def _replace_store(self, exchange: StateSnapshotExchange) -> None:
        """A state snapshot is staged: it takes the place of the state, whatever happens from here on."""
        self.store.close()
        self.store = exchange.open_store()
        self.store.written = self._written
        self.machine = self._make_machine(self.store)
        self._uncommitted = 0
        self.checkpoint_progress.stored = self.machine.applied_index
        exchange.finish(self.log)

    def _replay(self) -> None:
        """Apply what the log has beyond the store."""
        for entry in self.log.replay(self.machine.applied_index):
            self.machine.apply(entry)
            self.replayed += 1
            if not self._uncommitted:
                self._first_ns = time.monotonic_ns()
            self._uncommitted += 1
            if self._is_large(1):
                self._settle(wait=True)
                self._begin_commit()

    # --- every so often -------------------------------------------------------------------------------------------------
    def _is_large(self, factor: int) -> bool:
        """The changes since the last commit was begun are `factor` times what makes another one due."""
        store = self.store
        if store.changes >= factor * STORE_COMMIT_ROWS or store.changed_bytes >= factor * STORE_COMMIT_BYTES:
            return True
        return self._uncommitted >= factor * self._commit_entries

    def commit_due_ns(self) -> int | None:
        """Monotonic time at which `pass_time` is due, 0: now; None while there is nothing to commit, or `written` will tell."""
        if self.store.writing:
            return 0 if self.store.ended or self._is_large(STORE_WAIT_FACTOR) else None
        if not self._uncommitted:
            return None
        return 0 if self._is_large(1) else self._first_ns + self._commit_ns

    def pass_time(self, now_ns: int) -> None:
        """Begin a commit that is due, and let the log drop what nobody needs once one is durable.

        Waits for the disk only if the last commit is not durable while STORE_WAIT_FACTOR times what makes the next one has been applied.
        Raises what the store's writer met (OSError, lmdb.Error, store.DAMAGE).
        """
        due = self.commit_due_ns()
        if due is None or now_ns < due:
            return
        if self.store.writing and self._settle(wait=self._is_large(STORE_WAIT_FACTOR)):
            self._compact()
        due = self.commit_due_ns()
        if not self.store.writing and due is not None and now_ns >= due:
            self._begin_commit()

    def commit(self) -> None:
        """Write the state back, durably, and let the log drop what nobody needs.  Waits for the disk; raises as `pass_time`."""
        self._settle(wait=True)
        self._begin_commit()
        self._settle(wait=True)
        self._compact()

    def _is_stored(self, index: int) -> bool:
        """True: the store has entry `index` durably.  Otherwise a commit that will have it is begun as soon as it can be."""
        if self.checkpoint_progress.stored < index and not self.store.writing:
            self._begin_commit()
        return self.checkpoint_progress.stored >= index

    def _begin_commit(self) -> None:
        applied = self.machine.applied_index
        assert applied <= self.log.committed, "the store never has an entry that the log may lose"
        self._begun_ns = time.monotonic_ns()
        hit("store.flush.before")
        self.machine.flush()
        if note := self.log.note(applied):
            self.store.set_note(RAFT_NOTE, note)
        if (cluster := self.store.get(keys.cluster())) is not None:
            self.store.set_note(CLUSTER_NOTE, cluster)
        self._uncommitted = 0
        self.store.begin_commit(applied)

    def _settle(self, *, wait: bool) -> bool:
        """True: a commit has become durable."""
        index = self.store.settle(wait=wait)
        if index is None:
            return False
        self.checkpoint_progress.stored = index
        self.commits += 1
        self.commit_ns_max = max(self.commit_ns_max, time.monotonic_ns() - self._begun_ns)
        return True

    def _compact(self) -> None:
        """By what the store has, never by what is applied: after a crash the entries between the two come from the journal."""
        stored = self.checkpoint_progress.stored
        cursors = self.machine.reader_cursors()
        self.log.compact(min([stored, self.checkpoint_progress.kept_from(stored), *cursors.values()]) + 1)

    def close(self) -> None:
        """Close log and store.  What is not committed is forgotten, as in a crash; the log has it."""
        if self._exchange is not None:
            self._exchange.close()
        self.store.close()
        self.log.close()
        os.close(self._lock_fd)

    def figures(self) -> dict[str, int | float | str]:
        """Figures for metrics: name → number or text."""
        return {
            "applied": self.machine.applied_index,
            "first_index": self.log.first_index,
            "last_index": self.log.committed,
            "term": self.log.term,
            "store_commits": self.commits,
            "store_commit_ms_max": round(self.commit_ns_max / 1e6, 3),
            "store_map_bytes": self.store.map_bytes,
            "store_map_use_percent": round(self.store.map_use_percent, 2),
            "store_map_grown": self.store.grown,
            "replayed": self.replayed,
            "results_held": self.machine.results_total,
            **self.log.figures(),
        }


def lock_directory(directory: Path) -> int:
    """A descriptor that keeps every other process from journal and store while it is open.

    Raises Refused if another process has it (LMDB would make us wait).
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        os.close(fd)
        raise Refused(f"{directory}: another process uses it; stop that first") from err
    return fd


def uuid_bytes(text: str) -> bytes:
    """The 16 bytes of a UUID in text; ValueError for anything else."""
    raw = bytes.fromhex(text.replace("-", ""))
    if len(raw) != 16:
        raise ValueError(f"{text!r} is not a UUID")
    return raw
