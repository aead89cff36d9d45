"""How a voter of several begins: journal, store and core out of what the disk has, or anew.

What is found                                        what is done
nothing                                              a fresh journal, which founds the cluster with the others or joins it (joining.py)
both, the store not ahead of the journal             go on; the leader says what is committed beyond the store
a store taken from a snapshot, the journal without   the crash came between the two: the journal is reset to the snapshot's entry
a journal from its first entry on, no store          the state is built again from the log
a store and journal that one voter alone kept        go on with them; its last entries hold the first membership (solo.py)
anything else: damage in the journal, a store        both are set aside, and the node joins under another incarnation: with the others
without its journal, a gap or an end lost            alive nothing is lost, and nothing contradicts what the old journal said

A single voter (Replica.open_solo) has nobody to get its state from, so there every one of the last kind is an error.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from awsomefsd import clock
from awsomefsd.clock import HybridClock
from awsomefsd.errors import Corrupt
from awsomefsd.limits import JOURNAL_FILE_BYTES, STORE_COMMIT_ENTRIES, STORE_COMMIT_MS, STORE_MAP_BYTES_MIN
from awsomefsd.meta.disk import Disk, OsDisk
from awsomefsd.meta.exchange import Exchange
from awsomefsd.meta.joining import Growing, Joining, Way
from awsomefsd.meta.journal import Journal
from awsomefsd.meta.raft_entries import RaftEntries
from awsomefsd.meta.raft_membership import Membership
from awsomefsd.meta.raft_types import MembershipAt
from awsomefsd.meta.replica import MakeMachine, Replica, lock_directory, uuid_bytes
from awsomefsd.meta.snapshot import RAFT_NOTE, AppliedAt, SnapshotFiles, set_aside, unpack_note
from awsomefsd.meta.store import DAMAGE, Store
from awsomefsd.meta.voter import Links, Voter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """Whose voter it is, and with whom.  `nodes`: UUID → address as text, of all nodes that shall be voters by configuration.

    `growing`: the membership is in the log instead, and this gives the addresses of the nodes there are; `address` is this node's own.
    """

    directory: Path
    cluster: str
    node: str
    site: int
    nodes: dict[str, str]
    growing: Callable[[], dict[str, str]] | None = None
    address: str = ""
    boot_ns: Callable[[], int] = clock.boot_ns
    wall_ns: Callable[[], int] = clock.wall_ns
    dice: Callable[[], float] = random.SystemRandom().random


MakeLinks = Callable[[str], Links]  # takes the incarnation of the journal; a second call is for another journal, in place of the first


def open_voter(
    setting: Setting,
    make_links: MakeLinks,
    make_machine: MakeMachine,
    *,
    disk: Disk | None = None,
    journal_file_bytes: int = JOURNAL_FILE_BYTES,
    map_bytes_min: int = STORE_MAP_BYTES_MIN,
    commit_entries: int = STORE_COMMIT_ENTRIES,
    commit_ms: int = STORE_COMMIT_MS,
) -> tuple[Replica, Voter]:
    """Raises Refused, FormatTooNew, OSError."""
    disk = disk or OsDisk()
    setting.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock_fd = lock_directory(setting.directory)
    how = _How(make_links, make_machine, disk, journal_file_bytes, commit_entries, commit_ms, lock_fd)
    try:
        files = SnapshotFiles(setting.directory, disk.beside, map_bytes_min)
        try:
            return _begin(setting, files, how)
        except DAMAGE as err:
            log.error("journal and metadata state are set aside, this node joins anew: %s", err)
            set_aside(setting.directory)
            return _begin(setting, files, how)
    except BaseException:
        os.close(lock_fd)
        raise


@dataclass(frozen=True)
class _How:
    make_links: MakeLinks
    make_machine: MakeMachine
    disk: Disk
    journal_file_bytes: int
    commit_entries: int
    commit_ms: int
    lock_fd: int


def _begin(setting: Setting, files: SnapshotFiles, how: _How) -> tuple[Replica, Voter]:
    journal, store, applied = _open_parts(setting, files, how)
    try:
        incarnation = journal.incarnation.hex()
        if setting.growing is not None:
            joining: Way = Growing(setting.node, incarnation, setting.address, setting.growing)
        else:
            joining = Joining(setting.node, incarnation, setting.nodes)
        hybrid = HybridClock(0, setting.wall_ns)
        entries = RaftEntries(lambda: (hybrid.now(), setting.wall_ns()), setting.site)
        links = how.make_links(incarnation)
        voter = Voter(journal, links, files, joining, entries, applied=applied, boot_ns=setting.boot_ns, random=setting.dice)
        exchange = Exchange(voter, files, setting.cluster, setting.node, journal.incarnation)
        return Replica(voter, store, how.make_machine, how.commit_entries, how.commit_ms, how.lock_fd, exchange), voter
    except BaseException:
        journal.close()
        store.close()
        raise


def _open_parts(setting: Setting, files: SnapshotFiles, how: _How) -> tuple[Journal, Store, AppliedAt]:
    store = files.open_store()
    journal = None
    try:
        cluster, node = uuid_bytes(setting.cluster), uuid_bytes(setting.node)
        place = setting.directory / "journal"
        place.mkdir(mode=0o700, exist_ok=True)
        journal = Journal.open(place, cluster, node, create=store.identity is None, disk=how.disk, file_bytes=how.journal_file_bytes)
        store.claim(setting.cluster, setting.node, journal.incarnation)
        applied = unpack_note(store.note(RAFT_NOTE)) if store.note(RAFT_NOTE) else _applied_alone(store, journal, how.make_machine)
        _follow_snapshot(journal, store)
        if applied.index > journal.last_index:
            raise Corrupt(f"the metadata state has entry {applied.index} applied, the journal ends with {journal.last_index}")
        if applied.index + 1 < journal.first_index:
            raise Corrupt(f"the metadata state ends with entry {applied.index}, the journal begins with {journal.first_index}")
        return journal, store, applied
    except BaseException:
        store.close()
        if journal is not None:
            journal.close()
        raise


def _applied_alone(store: Store, journal: Journal, make_machine: MakeMachine) -> AppliedAt:
    """No note was ever committed: an empty state, or one that a single voter kept (solo.py)."""
    machine = make_machine(store)
    index, at = machine.applied_index, machine.membership() or MembershipAt(0, Membership())
    return AppliedAt(index, journal.term_of(index) or 0, at.index, at.membership) if index else AppliedAt()


def _follow_snapshot(journal: Journal, store: Store) -> None:
    """A snapshot became the state, and a crash came before the journal began behind it."""
    identity = store.identity
    assert identity is not None
    index, term = identity.snapshot_index, identity.snapshot_term
    if index > journal.last_index or journal.term_of(index) not in (term, None):
        journal.reset_to(index, term)
