"""`awsomefsd meta recover --force-single`: this stopped node goes on alone, because the majority of the voters is lost.

All that is in its journal counts as committed: no voter is left that could contradict, and dropping it could only lose more.  Entries that
the lost voters had acknowledged and this node never got are gone.  The journal gets another incarnation and the membership a higher
generation, with this node as its only voter.  So no message of before reaches it, and a member of before that comes back is refused as left
behind, and stops: it may hold what is missing here, so people must decide (docs/OPERATIONS.md).

Crash windows.  Everything is built in meta/recovering out of copies; until its file `done` nothing has happened, and the command begins
again.  After it the parts are only moved into place, which the next try ends; the daemon does not start in between.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from awsomefsd.base import durable, identity
from awsomefsd.base.errors import NotFound, Refused
from awsomefsd.meta.api.commands import ChangeMembership
from awsomefsd.meta.check.check import check
from awsomefsd.meta.log.disk import OsDisk
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.replica.state_snapshot_files import StateSnapshotFiles
from awsomefsd.recovery.device_recover import BUILDING, DONE, adopt, fill_journal, move_in, propose_one
from awsomefsd.recovery.restore import alone


class Forced(Struct):
    """The result: the node that is the only voter now.  `lost`: nodes that were members before."""

    node: str
    index: int
    generation: int
    lost: list[str]
    faults: list[str]


def force_single(state_dir: Path, address: str, *, confirmed: bool) -> Forced:
    """Makes this stopped node the only voter.  `address`: of its metadata port.  Blocks.

    Raises NotFound without metadata here, and Refused without `confirmed`, for a node whose daemon runs, and if there is one voter anyway.
    """
    node = identity.load(state_dir)
    meta = state_dir / "meta"
    with ExitStack() as undo:
        undo.enter_context(identity.StateLock(state_dir, "meta recover"))
        building = meta / BUILDING
        if (building / DONE).exists():
            move_in(meta, building)
        if not (meta / "journal").is_dir() or not (meta / "store").is_dir():
            raise NotFound(f"{meta} holds no metadata; recover another node, or restore a backup (awsomefsd meta restore)")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, building, ignore_errors=True)
        old, index, term = _applied_copy(meta, building, node)
        if not confirmed:
            raise Refused("a majority of the voters may still come back; wait for it, or if it is lost add --confirm-majority-lost")
        incarnation = os.urandom(16)
        alone(building / "store")
        adopt(building / "store", node, incarnation, term)
        shutil.rmtree(building / "journal")
        (building / "journal").mkdir(mode=0o700)
        fill_journal(building / "journal", node, incarnation, term + 1, index, term, iter(()))
        mine = Member(node.node, incarnation.hex(), True, address)
        faults = _first_entry(building, node, Membership([mine], generation=old.generation + 1))
        durable.write_file(building / DONE, b"")
        move_in(meta, building)
    lost = sorted({member.node for member in (*old.members, *old.outgoing)} - {node.node})
    return Forced(node.node, index, old.generation + 1, lost, faults)


def _applied_copy(meta: Path, building: Path, node: identity.Node) -> tuple[Membership, int, int]:
    """Copies store and journal and applies all of the journal; returns the newest membership, the last entry, the term."""
    files = StateSnapshotFiles(meta, OsDisk().beside)
    try:
        store = files.open_store()  # ends an exchange of states that a crash interrupted
        (building / "store").mkdir(mode=0o700)
        store.copy_to(building / "store" / "data.mdb")
        store.close()
    finally:
        files.close()
    shutil.copytree(meta / "journal", building / "journal")
    replica = Replica.open_single(building, node.cluster, node.node, Machine)
    try:
        at = replica.machine.membership()
        if at is None:
            raise Refused("this node is already the only voter, so there is nothing to recover; start its daemon")
        replica.commit()
        return at.membership, replica.machine.applied_index, replica.log.term
    finally:
        replica.close()


def _first_entry(building: Path, node: identity.Node, membership: Membership) -> list[str]:
    replica = Replica.open_single(building, node.cluster, node.node, Machine)
    try:
        propose_one(replica, ChangeMembership(membership))
        replica.commit()
        return [f"{fault.where}: {fault.detail}" for fault in check(replica.store)]
    finally:
        replica.close()
