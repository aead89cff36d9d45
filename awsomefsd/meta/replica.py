"""Log, machine and store of one node: the one place that states the order of durable effects.

    log.propose → log.ready (store, send) → machine.apply → answer            every turn
    machine.flush → store.commit → log.compact                                every so often (commit_pace.py)

So the store never holds an entry the journal may lose, and the journal drops only what a store commit covers and every registered reader
has passed.  A crash anywhere leaves a store at some applied index, and the log from there on.  When the map is full, the transaction with
everything since the last commit is thrown away, the map grows, and the log is applied again: the machine is deterministic, so the replies
are the same ones.

With several voters the state may also be replaced whole, by another voter's snapshot: stage it durably (snapshot.py) → open it → tell the
log, which begins behind it.  And at every multiple of DIGEST_ENTRIES the digest of the state goes to the log, which compares it with the
others'.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from awsomefsd.errors import Corrupt, Refused
from awsomefsd.failpoints import hit
from awsomefsd.limits import DIGEST_ENTRIES, JOURNAL_FILE_BYTES, STORE_COMMIT_ENTRIES, STORE_COMMIT_MS, STORE_MAP_BYTES_MIN
from awsomefsd.meta import keys
from awsomefsd.meta.commands import Entry, SetLock
from awsomefsd.meta.commit_pace import CommitPace
from awsomefsd.meta.consensus import Consensus
from awsomefsd.meta.device_index import DeviceIndex
from awsomefsd.meta.disk import Disk
from awsomefsd.meta.exchange import RAFT_NOTE, Exchange
from awsomefsd.meta.journal import Journal
from awsomefsd.meta.messages import Reply
from awsomefsd.meta.raft_types import MembershipAt
from awsomefsd.meta.rows import NodeRow
from awsomefsd.meta.solo import SeveralVoters, Solo
from awsomefsd.meta.state_store import StateStore
from awsomefsd.meta.store import MapFull, Store
from awsomefsd.meta.txn import Txn
from awsomefsd.types import Lock


class AppliedMachine(Protocol):
    """What is used of machine.Machine here and in the leader."""

    @property
    def applied_index(self) -> int: ...

    @property
    def last_stamp(self) -> int: ...
    @property
    def level(self) -> int: ...

    def membership(self) -> MembershipAt | None: ...

    def apply(self, entry: Entry) -> Reply: ...

    def flush(self) -> None: ...

    def stored_result(self, mount: int, unique: int) -> Reply | None: ...

    def results_held(self, mount: int) -> int: ...

    @property
    def results_total(self) -> int: ...

    def reap_pending(self) -> bool: ...

    def live_sessions(self) -> dict[int, int]:
        """Session → epoch."""

    def locks_in_the_way(self, session: int, command: SetLock) -> list[Lock]: ...

    def node_rows(self) -> list[NodeRow]: ...

    def session_node(self, session: int) -> str | None:
        """None for a session that is not known (any more)."""

    def mount_node(self, mount: int) -> str | None: ...

    def results_of_others(self, mount: int, unique: int) -> list[int]:
        """Ids of results of a node's earlier daemons, given an id of the present one (client.node_unique)."""

    def sharing_sessions(self) -> dict[int, tuple[int, int]]: ...

    def write_leases(self) -> dict[tuple[int, int], tuple[int, int]]: ...

    def write_lease(self, volume: int, ino: int) -> tuple[int, int]: ...

    def foreign_changes(self, volume: int, ino: int, mount: int, known: int) -> tuple[int, bool]: ...

    def child(self, volume: int, parent: int, name: bytes) -> int: ...

    def reader_cursors(self) -> dict[str, int]: ...

    def take_unlocked(self) -> set[tuple[int, int]]:
        """(volume, ino) whose locks shrank since the last call."""


T = TypeVar("T")
CLUSTER_NOTE = b"cluster"  # a second copy of the row without which nothing can be said of the others
MakeMachine = Callable[[Txn], AppliedMachine]


class Replica:
    """Used by the metadata thread only."""

    def __init__(
        self,
        log: Consensus,
        store: StateStore,
        make_machine: MakeMachine,
        commit_entries: int,
        commit_ms: int,
        lock_fd: int,
        exchange: Exchange | None = None,
    ) -> None:
        self._lock_fd = lock_fd
        self._exchange = exchange
        self.on_device = DeviceIndex()
        self.log = log
        self.store = store
        self._make_machine = make_machine
        self._commit_entries = commit_entries
        self._commit_ns = commit_ms * 1_000_000
        self.machine = make_machine(store)
        self._pace = CommitPace(commit_entries)
        self._uncommitted = 0  # entries applied since the last commit
        self._first_ns = 0  # when the first of them was
        self.commits = 0
        self.commit_ns_max = 0
        self.replayed = 0
        self._check()
        try:
            hit("log.replay.before")
            self._replay(set())
            hit("log.replay.after")
        except MapFull:
            self._start_over(set())

    @classmethod
    def open_solo(
        cls,
        directory: Path,
        cluster_uuid: str,
        node_uuid: str,
        make_machine: MakeMachine,
        *,
        disk: Disk | None = None,
        journal_file_bytes: int = JOURNAL_FILE_BYTES,
        map_bytes_min: int = STORE_MAP_BYTES_MIN,
        commit_entries: int = STORE_COMMIT_ENTRIES,
        commit_ms: int = STORE_COMMIT_MS,
        open_store: Callable[..., StateStore] = Store.open,
        single: bool = False,
    ) -> Replica:
        """Journal and store under `directory`, made if both are missing.  A store without its journal is Corrupt; so is a gap.

        `single`: SeveralVoters for a journal or state of several voters; nothing is written to it then.
        """
        for part in (directory / "journal", directory / "store"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = lock_directory(directory)
        store = journal = None
        try:
            store = open_store(directory / "store", map_bytes_min=map_bytes_min)
            if single and (store.note(RAFT_NOTE) or store.get(keys.membership()) is not None):
                raise SeveralVoters(f"{directory} is one of several voters'")
            cluster, node = uuid_bytes(cluster_uuid), uuid_bytes(node_uuid)
            create = store.identity is None
            journal = Journal.open(directory / "journal", cluster, node, create=create, disk=disk, file_bytes=journal_file_bytes)
            store.claim(cluster_uuid, node_uuid, journal.incarnation)
            return cls(Solo(journal, node_uuid, single=single), store, make_machine, commit_entries, commit_ms, lock_fd)
        except BaseException:
            if store is not None:
                store.close()
            if journal is not None:
                journal.close()
            os.close(lock_fd)
            raise

    @classmethod
    def rebuild_solo(cls, directory: Path, cluster_uuid: str, node_uuid: str, make_machine: MakeMachine) -> Replica:
        """A new store from the whole journal; the old one is out of the way.  Corrupt if the journal has dropped its first entries."""
        (directory / "store").mkdir(mode=0o700)
        lock_fd = lock_directory(directory)
        store = journal = None
        try:
            journal = Journal.open(directory / "journal", uuid_bytes(cluster_uuid), uuid_bytes(node_uuid), create=False)
            if journal.first_index > 1:
                raise Corrupt(f"the journal begins with entry {journal.first_index}, the ones before are in the store only")
            store = Store.open(directory / "store")
            store.claim(cluster_uuid, node_uuid, journal.incarnation)
            return cls(Solo(journal, node_uuid), store, make_machine, STORE_COMMIT_ENTRIES, STORE_COMMIT_MS, lock_fd)
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
        """Stamps index and term."""
        self.log.propose(batch)

    def ready(self) -> list[tuple[Entry, Reply]]:
        """What is durable and committed now, applied.  Unavailable: the proposals were given up; JournalFailed: this process must end."""
        entries = self.log.ready()
        if entries:
            hit("log.apply.before")
        apply = self.machine.apply
        try:
            if self._exchange is None:
                applied = [(entry, apply(entry)) for entry in entries]
            else:
                applied = [(entry, self._apply_noted(entry)) for entry in entries]
        except MapFull:
            return self._start_over({entry.index for entry in entries})
        if entries:
            hit("log.apply.after")
        if not self._uncommitted:
            self._first_ns = time.monotonic_ns()
        self._uncommitted += len(entries)
        if self._exchange is not None and self._exchange.turn(self.log, self.store, self._commit_now):
            self._replace_store(self._exchange)
        return applied

    def _apply_noted(self, entry: Entry) -> Reply:
        reply = self.machine.apply(entry)
        if entry.index % DIGEST_ENTRIES == 0:
            self.machine.flush()  # the digest is of rows; every voter writes them back at this index
            self.log.note_digest(entry.index, self.store.digest)
        return reply

    def _replace_store(self, exchange: Exchange) -> None:
        """A snapshot is staged and takes the place of the state, whatever happens from here on."""
        self.store.close()
        self.store = exchange.open_store()
        self.machine = self._make_machine(self.store)
        self._uncommitted = 0
        exchange.finish(self.log)

    def look(self, ask: Callable[[AppliedMachine], T]) -> T:
        """What a look into the machine gives.  Making room in its cache writes rows, so the map can fill up here too."""
        try:
            return ask(self.machine)
        except MapFull:
            self._start_over(set())
            return ask(self.machine)

    def _start_over(self, wanted: set[int]) -> list[tuple[Entry, Reply]]:
        while True:
            self.store.abort_and_grow()
            self.machine = self._make_machine(self.store)
            try:
                return self._replay(wanted)
            except MapFull:
                continue  # the map has doubled; this ends

    def _replay(self, wanted: set[int]) -> list[tuple[Entry, Reply]]:
        """Apply what the log has beyond the store; the outcomes of the `wanted` indexes."""
        self._uncommitted = 0
        found = []
        for entry in self.log.replay(self.machine.applied_index):
            reply = self.machine.apply(entry)
            self.replayed += 1
            if entry.index in wanted:
                found.append((entry, reply))
            if not self._uncommitted:
                self._first_ns = time.monotonic_ns()
            self._uncommitted += 1
            if self._uncommitted >= self._commit_entries:
                self._commit()
        return found

    # --- every so often -------------------------------------------------------------------------------------------------
    def commit_due_ns(self) -> int | None:
        """Monotonic time of the next commit; None while there is nothing to commit."""
        if not self._uncommitted:
            return None
        return min(self._pace.due_ns(self._uncommitted), self._first_ns + self._commit_ns)

    def _commit_now(self) -> None:
        try:
            self._commit()
        except MapFull:
            self._start_over(set())
            self._commit()

    def commit(self) -> None:
        """Write the state back, durably, and let the log drop what nobody needs."""
        self._commit_now()
        durable = self.machine.applied_index
        cursors = self.look(lambda machine: machine.reader_cursors())
        self.log.compact(min([durable, self.on_device.kept_from(durable), *cursors.values()]) + 1)

    def _commit(self) -> None:
        start = time.monotonic_ns()
        hit("store.flush.before")
        self.machine.flush()
        if note := self.log.note(self.machine.applied_index):
            self.store.set_note(RAFT_NOTE, note)
        if (cluster := self.store.get(keys.cluster())) is not None:
            self.store.set_note(CLUSTER_NOTE, cluster)
        hit("store.commit.before")
        self.store.commit()
        hit("store.commit.after")
        now = time.monotonic_ns()
        self._pace.took(self._uncommitted, now - start, now)
        self._uncommitted = 0
        self.commits += 1
        self.commit_ns_max = max(self.commit_ns_max, now - start)

    def close(self) -> None:
        """Forgets what is not committed, as a crash does; the log has it."""
        if self._exchange is not None:
            self._exchange.close()
        self.store.close()
        self.log.close()
        os.close(self._lock_fd)

    def figures(self) -> dict[str, int | float | str]:
        return {
            "applied": self.machine.applied_index,
            "first_index": self.log.first_index,
            "last_index": self.log.committed,
            "term": self.log.term,
            "store_commits": self.commits,
            "store_commit_entries": self._pace.entries,
            "store_commit_ms_max": round(self.commit_ns_max / 1e6, 3),
            "store_map_bytes": self.store.map_bytes,
            "store_map_use_percent": round(self.store.map_use_percent, 2),
            "store_map_grown": self.store.grown,
            "replayed": self.replayed,
            "results_held": self.machine.results_total,
            **self.log.figures(),
        }


def lock_directory(directory: Path) -> int:
    """Keeps every other process from journal and store while the descriptor is open; Refused if one has it (LMDB would make us wait)."""
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
