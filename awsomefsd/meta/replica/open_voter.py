"""The beginning of a voter of several: journal, store and core are made from what the disk has, or empty.

What is found                                    what is done
nothing                                          a fresh journal, which founds the cluster with the others or joins it (voter/joining.py)
both, the store not ahead of the journal         go on; the leader says what is committed beyond the store
a store from a state snapshot, no journal of it  the crash came between the two: the journal is reset to the state snapshot's entry
a journal from its first entry on, no store      the state is built again from the log
a store and journal that one voter alone kept    go on with them; the last entries hold the first membership (voter/single_voter.py)
anything else: damage in the journal, a store    both are set aside, and the node joins under another incarnation: with the others
without its journal, a gap or an end lost        alive nothing is lost, and nothing contradicts what the old journal said

A single voter (Replica.open_single) has nobody to get its state from, so there every one of the last kind is an error.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from awsomefsd.base import clock
from awsomefsd.base.clock import HybridClock
from awsomefsd.base.errors import Corrupt
from awsomefsd.meta.log.disk import OsDisk
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.raft.membership import Membership
from awsomefsd.meta.raft.types import MembershipAt
from awsomefsd.meta.replica.overlay_store import OverlayStore
from awsomefsd.meta.replica.replica import DEFAULT_OPTIONS, MakeMachine, Replica, ReplicaOptions, lock_directory, uuid_bytes
from awsomefsd.meta.replica.state_snapshot_exchange import StateSnapshotExchange
from awsomefsd.meta.replica.state_snapshot_files import StateSnapshotFiles, set_aside
from awsomefsd.meta.replica.store import DAMAGE
from awsomefsd.meta.voter.joining import Growing, Joining, JoinPolicy
from awsomefsd.meta.voter.ports import RAFT_NOTE, AppliedAt, unpack_note
from awsomefsd.meta.voter.raft_entries import RaftEntries
from awsomefsd.meta.voter.voter import Links, Voter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """The voter's identity and the others.  `nodes`: UUID → address as text, of all nodes that shall be voters by configuration.

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
    options: ReplicaOptions = DEFAULT_OPTIONS,
) -> tuple[Replica, Voter]:
    """The replica and its voter, for the thread that calls this.  Damage is set aside, and the node joins again with an empty journal.

    Raises Refused if another process uses the directory or it is another node's, FormatTooNew, OSError.
    """
    setting.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock_fd = lock_directory(setting.directory)
    how = _How(make_links, make_machine, options, lock_fd)
    try:
        files = StateSnapshotFiles(setting.directory, (options.disk or OsDisk()).beside, options.map_bytes_min)
        try:
            return _begin(setting, files, how)
        except DAMAGE as err:
            log.error("journal and metadata state are moved aside, and this node joins again as a new member: %s", err)
            set_aside(setting.directory)
            return _begin(setting, files, how)
    except BaseException:
        os.close(lock_fd)
        raise


@dataclass(frozen=True)
class _How:
    make_links: MakeLinks
    make_machine: MakeMachine
    options: ReplicaOptions
    lock_fd: int


def _begin(setting: Setting, files: StateSnapshotFiles, how: _How) -> tuple[Replica, Voter]:
    journal, store, applied = _open_parts(setting, files, how)
    try:
        incarnation = journal.incarnation.hex()
        if setting.growing is not None:
            joining: JoinPolicy = Growing(setting.node, incarnation, setting.address, setting.growing)
        else:
            joining = Joining(setting.node, incarnation, setting.nodes)
        hybrid = HybridClock(0, setting.wall_ns)
        entries = RaftEntries(lambda: (hybrid.now(), setting.wall_ns()), setting.site)
        links = how.make_links(incarnation)
        voter = Voter(journal, links, files, joining, entries, applied=applied, boot_ns=setting.boot_ns, random=setting.dice)
        exchange = StateSnapshotExchange(voter, files, setting.cluster, setting.node, journal.incarnation)
        return Replica(voter, store, how.make_machine, how.lock_fd, how.options, exchange), voter
    except BaseException:
        journal.close()
        store.close()
        raise


def _open_parts(setting: Setting, files: StateSnapshotFiles, how: _How) -> tuple[Journal, OverlayStore, AppliedAt]:
    store = files.open_store()
    journal = None
    try:
        cluster, node = uuid_bytes(setting.cluster), uuid_bytes(setting.node)
        place = setting.directory / "journal"
        place.mkdir(mode=0o700, exist_ok=True)
        options = how.options
        journal = Journal.open(
            place, cluster, node, create=store.identity is None, disk=options.disk, file_bytes=options.journal_file_bytes
        )
        store.claim(setting.cluster, setting.node, journal.incarnation)
        applied = unpack_note(store.note(RAFT_NOTE)) if store.note(RAFT_NOTE) else _applied_alone(store, journal, how.make_machine)
        _follow_state_snapshot(journal, store)
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


def _applied_alone(store: OverlayStore, journal: Journal, make_machine: MakeMachine) -> AppliedAt:
    """The applied entry of a state that never committed a note: an empty one, or one that a single voter kept (voter/single_voter.py)."""
    machine = make_machine(store)
    index, at = machine.applied_index, machine.membership() or MembershipAt(0, Membership())
    return AppliedAt(index, journal.term_of(index) or 0, at.index, at.membership) if index else AppliedAt()


def _follow_state_snapshot(journal: Journal, store: OverlayStore) -> None:
    """Reset the journal if a state snapshot became the state and a crash came before the journal began behind it."""
    identity = store.identity
    assert identity is not None
    index, term = identity.state_snapshot_index, identity.state_snapshot_term
    if index > journal.last_index or journal.term_of(index) not in (term, None):
        journal.reset_to(index, term)
